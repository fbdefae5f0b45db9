"""What may not be concluded: every reason to draw no line, or to draw it with a mark, in words.

Each check is a pure function that returns statements. A refusal means no law; a caution belongs
beside the figure it marks; a note says what was left out.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import stats

from studies.analysis.laws.fit import LACK_OF_FIT, Fit
from studies.analysis.laws.forms import MIN_SIZES_FOR_FLOOR, Law
from studies.analysis.laws.intervals import Interval, Prediction
from studies.analysis.laws.observations import CellTable, Observations, cell_table

EXTRAPOLATION_MARKED = 4.0
EXTRAPOLATION_FAR = 8.0
"""A target this many times beyond the fitted range is marked, and marked as far."""
_SAME = 1e-3
"""Axis values closer than this (relative) are the same."""
_ABSURD = 1e100
_PAIRED_SHARE = 0.25
"""Pairs of cells that differ in one axis alone speak for a design if they hold this share of it."""
_GROUP = 60
"""Cells of a line that are compared pair by pair."""


class StatementKind(enum.Enum):
    """What a statement does to the conclusion."""

    REFUSED = "refused"
    """No law, no line, no number."""
    CAUTION = "caution"
    """The number may be shown, with this note."""
    NOTE = "note"


@dataclass(frozen=True)
class Statement:
    """A sentence for the reader."""

    kind: StatementKind
    text: str


def refused(text: str) -> Statement:
    """A reason for no law."""
    return Statement(StatementKind.REFUSED, text)


def caution(text: str) -> Statement:
    """A mark on a number."""
    return Statement(StatementKind.CAUTION, text)


def note(text: str) -> Statement:
    """What was done to the data."""
    return Statement(StatementKind.NOTE, text)


def clean(law: Law, data: Observations, scale: str) -> tuple[Observations, tuple[Statement, ...]]:
    """Leave out the runs that no law can use, and say which and why."""
    found: list[Statement] = []
    reasons: list[tuple[npt.NDArray[np.bool_], str]] = [
        (~(np.abs(data.y) < _ABSURD), "have no result (missing, infinite or not a number)")
    ]
    for axis in law.axes:
        if axis in data.axes:
            values = data.axes[axis]
            usable = np.isfinite(values) & (values > 0)
            reasons.append((~usable, f"have no {axis} above 0"))
    if data.percent:
        reasons += [
            (data.y < 0, "claim more than 100 %"),
            (data.y > 100, "claim less than 0 %"),
            (data.y == 0, "are at 100 %: the test is used up and shows no further difference"),
            (data.y == 100, "are at 0 %, below chance: failed runs, or a wrong label map"),
        ]
    elif scale == "log":
        reasons.append((data.y <= 0, "are not above 0, which a logarithm needs"))
    if law.top is not None:
        reasons.append((data.y > law.top * 1.02, f"are worse than chance ({law.top:g})"))
    keep = np.ones(len(data), dtype=bool)
    for bad, reason in reasons:
        bad = bad & keep
        if bad.any():
            names = sorted({data.cells[i] for i in np.flatnonzero(bad)})
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            found.append(note(f"{int(bad.sum())} of {len(data)} runs {reason}; left out: {shown}."))
            keep &= ~bad
    return data.take(keep), tuple(found)


def before_fit(law: Law, data: Observations) -> tuple[Statement, ...]:
    """Reasons not to fit this law to these (clean) runs, and cautions that need no fit."""
    missing = [axis for axis in law.axes if axis not in data.axes]
    if missing:
        return (refused(f"The results have no axis {missing[0]!r}, which {law.name!r} needs."),)
    if not len(data):
        return (refused("No usable result: nothing can be concluded."),)
    found = list(_too_few(law, data))
    if data.num_cells < 2:
        return tuple(found)
    table = cell_table(data, "absolute")
    flat = _flat(table)
    if flat:
        return (*found, flat)
    found += _confounded(law, table)
    for axis in law.falling:
        found += _monotone(law, axis, table, data)
    return tuple(found)


def after_fit(fit: Fit, intervals: Mapping[str, Interval]) -> Iterator[Statement]:
    """What the fit itself says about how far to trust it."""
    if fit.noise.lacks_fit:
        yield caution(
            "The law misses its own cells by more than seeds explain (p = "
            f"{fit.noise.lack_of_fit_p:.2g} < {LACK_OF_FIT:g}): intervals use the misfit "
            f"({fit.noise.sd:.3g} per run on the fitted scale) instead of seed noise."
        )
    if fit.noise.lack_of_fit_p is None and fit.noise.sd is not None:
        yield note("No measured seed noise to compare with: misfit and noise are one here.")
    if len(fit.optima) > 1:
        others = "; ".join(_optimum(fit, i) for i in range(len(fit.optima)))
        yield caution(
            f"{len(fit.optima)} separate optima fit within {fit.method.tolerance:.0%} of the best: "
            f"{others}."
        )
    for name, interval in intervals.items():
        if not interval.identifiable:
            yield caution(f"{name} is not identified: {interval.why}.")


def about_prediction(prediction: Prediction, spread: float) -> Iterator[Statement]:
    """Marks of one prediction; `spread` is the range of the fitted errors."""
    for axis, factor in prediction.extrapolation.items():
        if factor > EXTRAPOLATION_FAR:
            yield caution(
                f"The target lies {factor:.3g} times beyond the fitted range of {axis}, far more "
                f"than {EXTRAPOLATION_FAR:g}: the interval holds only if the law does, and nothing "
                "here tests that."
            )
        elif factor > EXTRAPOLATION_MARKED * (1 + _SAME):
            yield caution(
                f"The target lies {factor:.3g} times beyond the fitted range of {axis} (marked "
                f"beyond {EXTRAPOLATION_MARKED:g})."
            )
    width = prediction.high - prediction.low
    if math.isinf(width):
        yield caution("The interval has no end: the data do not predict this target.")
    elif width > spread > 0:
        yield caution(
            f"The interval ({width:.3g} wide) is wider than everything measured ({spread:.3g}): "
            "the data say next to nothing about this target."
        )


def edge_statement(name: str, at: float) -> Statement:
    """An optimum at the end of what was tried is no optimum."""
    return refused(
        f"The best {name} tried ({at:g}) is at the edge of the grid: the optimum may lie beyond it "
        "and is not quoted. Try values on both sides."
    )


def _too_few(law: Law, data: Observations) -> Iterator[Statement]:
    for axis, needed in law.min_distinct.items():
        have = data.distinct(axis)
        if have >= needed:
            continue
        if law.floor and needed == MIN_SIZES_FOR_FLOOR:
            text = (
                f"{have} values of {axis} cannot show a floor: at least {needed} are needed, since "
                f"{law.formula} passes through three whatever they are."
            )
        else:
            text = f"{have} values of {axis} are too few for {law.formula}: {needed} are needed."
        yield refused(text)
    if data.num_cells <= law.num_parameters:
        yield refused(
            f"{data.num_cells} cells for {law.num_parameters} parameters ({law.formula}): too few "
            f"points, at least {law.num_parameters + 1} are needed."
        )


def _flat(table: CellTable) -> Statement | None:
    """Nothing to explain: all cells equal, or no more different than seeds of one cell."""
    spread = float(np.max(table.z) - np.min(table.z))
    if spread <= 1e-9 * max(abs(float(np.mean(table.z))), 1e-12):
        return refused(f"All {len(table.z)} cells are equal: no axis makes a difference here.")
    if table.pure_dof < 2 or table.pure_ss <= 0:
        return None
    between = table.counts @ (table.z - np.average(table.z, weights=table.counts)) ** 2
    dof = len(table.z) - 1
    p_value = float(
        stats.f.sf(between / dof / (table.pure_ss / table.pure_dof), dof, table.pure_dof)
    )
    if p_value > LACK_OF_FIT:
        return refused(
            f"The {len(table.z)} cells differ by no more than seeds of one cell do (p = "
            f"{p_value:.2g}): there is no trend to fit."
        )
    return None


def _confounded(law: Law, table: CellTable) -> Iterator[Statement]:
    """Axes that rise together cannot be separated."""
    for a, b in combinations(law.axes, 2):
        x, y = np.log(table.axes[a]), np.log(table.axes[b])
        if np.ptp(x) < _SAME or np.ptp(y) < _SAME:
            continue
        if 1 - abs(float(np.corrcoef(x, y)[0, 1])) < 1e-4:
            yield refused(
                f"{a} and {b} rise together in every cell: their effects cannot be separated. Vary "
                "one with the other held."
            )
            return


def _monotone(law: Law, axis: str, table: CellTable, data: Observations) -> Iterator[Statement]:
    """Pairs of cells that differ along one axis only: how many rise where the law can only fall.

    Where such pairs are few by design (runs of equal compute), all cells judge together.
    """
    x = np.log(table.axes[axis])
    noise = _noise_of_difference(table, data)
    rises = falls = clear = 0
    paired: set[int] = set()
    for group in _groups(law, axis, table):
        for i, j in combinations(group, 2):
            if x[j] - x[i] < _SAME:
                continue
            paired |= {i, j}
            change = table.z[j] - table.z[i]
            rises, falls = rises + int(change > 0), falls + int(change < 0)
            limit = noise * math.sqrt(1 / table.counts[i] + 1 / table.counts[j])
            clear += int(change > 2 * limit)
    if len(paired) < _PAIRED_SHARE * len(table.z):
        yield from _falls_over_all(law, axis, table)
    elif rises and rises >= falls:
        yield refused(
            f"The error does not fall along {axis}: it rises in {rises} of {rises + falls} pairs "
            f"of cells that differ in {axis} alone, and {law.formula} can only fall."
        )
    elif clear:
        beyond = "by more than twice the seed noise" if noise else "(seed noise is not measured)"
        yield caution(
            f"Not monotone: the error rises along {axis} in {clear} of {rises + falls} pairs of "
            f"cells, {beyond}."
        )


def _falls_over_all(law: Law, axis: str, table: CellTable) -> Iterator[Statement]:
    """Refuse if a plane through all cells, logarithmic in every axis, does not fall along one."""
    logs = [np.log(table.axes[a]) for a in (axis, *(a for a in law.axes if a != axis))]
    plane = np.column_stack([*logs, np.ones(len(table.z))])
    if np.linalg.matrix_rank(plane) < plane.shape[1]:
        return
    slope = float(np.linalg.lstsq(plane, table.z, rcond=None)[0][0])
    if slope >= 0:
        yield refused(
            f"The error does not fall along {axis}: over all {len(table.z)} cells it rises with it "
            f"while the other axes are held, and {law.formula} can only fall."
        )


def _groups(law: Law, axis: str, table: CellTable) -> list[list[int]]:
    """Cells equal on the other axes, ordered along this one; long groups are thinned."""
    others = [np.round(np.log(table.axes[a]), 3) for a in law.axes if a != axis]
    groups: dict[tuple[float, ...], list[int]] = {}
    for i in np.argsort(table.axes[axis], kind="stable"):
        groups.setdefault(tuple(float(o[i]) for o in others), []).append(int(i))
    return [g[:: math.ceil(len(g) / _GROUP)] for g in groups.values() if len(g) > 1]


def _noise_of_difference(table: CellTable, data: Observations) -> float:
    if data.seed_sd is not None:
        return data.seed_sd
    return math.sqrt(table.pure_ss / table.pure_dof) if table.pure_dof else 0.0


def _optimum(fit: Fit, i: int) -> str:
    values = fit.values_of(fit.optima[i])
    shown = ", ".join(f"{p.name} = {values[p.name]:.4g}" for p in fit.law.nonlinear)
    return f"{shown} (objective {fit.optima[i].objective:.6g})"
