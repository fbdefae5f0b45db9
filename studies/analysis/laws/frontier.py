"""The best that a compute budget bought, and where along a grid the best lies.

The best of a bin is biased: of many noisy cells the luckiest is taken. It is the frontier that
papers draw, and says so; a law over all cells has no such bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from studies.analysis.laws.observations import Observations, cell_table, observe
from studies.analysis.laws.refusals import Statement, caution, edge_statement, note, refused
from studies.errors import StudyError

F64 = npt.NDArray[np.float64]

MIN_POINTS_FOR_OPTIMUM = 4
_NEAR = 5
"""Grid points around the best that the parabola sees."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Best cell per bin of compute."""

    data: Observations
    """One run per kept bin, axis `axis`."""
    axis: str
    statements: tuple[Statement, ...]


def best_per_bin(data: Observations, axis: str, *, bins_per_decade: float = 4.0) -> Frontier:
    """Lowest mean error in each bin of log10(axis); bins that no better cell reaches are dropped.

    A bin that is worse than a cheaper one is not on the frontier and is left out, with a note.

    Raises:
        StudyError: if the axis is missing or `bins_per_decade` is not positive.
    """
    if axis not in data.axes:
        raise StudyError(f"no axis {axis!r}; the results have {', '.join(data.axes)}")
    if not bins_per_decade > 0:
        raise StudyError(f"bins_per_decade = {bins_per_decade}: give a number above 0")
    table = cell_table(data, "absolute")
    place = np.floor(np.log10(table.axes[axis]) * bins_per_decade + 1e-9).astype(np.int64)
    kept: list[int] = []
    dominated = 0
    for b in np.unique(place):
        inside = np.flatnonzero(place == b)
        best = int(inside[np.argmin(table.z[inside])])
        if kept and table.z[best] >= table.z[kept[-1]]:
            dominated += 1
        else:
            kept.append(best)
    statements = [
        caution(
            f"The best of each bin ({len(table.z)} cells in {len(kept) + dominated} bins) is "
            "biased towards lucky runs."
        )
    ]
    if dominated:
        statements.append(note(f"{dominated} bins are worse than a cheaper one and left out."))
    frontier = observe(
        {axis: table.axes[axis][kept]},
        table.z[kept],
        cells=[table.cells[i] for i in kept],
        clusters=[table.clusters[i] for i in kept],
        seed_sd=data.seed_sd,
        seed_dof=data.seed_dof,
        percent=data.percent,
    )
    return Frontier(data=frontier, axis=axis, statements=tuple(statements))


@dataclass(frozen=True, kw_only=True)
class GridOptimum:
    """Where along one setting the error is lowest."""

    x: float
    """Vertex of the parabola."""
    y: float
    low: float
    high: float
    """Where the parabola stays within the resolution of its minimum: settings not worse than it
    beyond noise."""
    num_points: int


def grid_optimum(
    name: str, x: Sequence[float], y: Sequence[float], *, sd: float | None = None, log: bool = False
) -> GridOptimum | Statement:
    """Optimum of a setting (mask ratio, decoder depth, model size at a budget) from a parabola.

    The parabola is fitted to the (up to) five points around the best, in x or log x. `sd` is the
    noise of one y; without it, the parabola's own misfit. A best point at the edge, a vertex beyond
    the neighbours of the best point, or too few points return a statement instead.
    """
    pairs = sorted(zip(x, y, strict=True))
    pairs = [(a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)]
    xs, ys = np.asarray([a for a, _ in pairs]), np.asarray([b for _, b in pairs])
    if len(np.unique(xs)) < MIN_POINTS_FOR_OPTIMUM:
        return refused(
            f"{len(np.unique(xs))} values of {name} are too few to place an optimum: "
            f"{MIN_POINTS_FOR_OPTIMUM} are needed."
        )
    if log and xs[0] <= 0:
        return refused(f"{name} has values that are not above 0 and cannot be put on a log axis.")
    best = int(np.argmin(ys))
    if xs[best] in (xs[0], xs[-1]):
        return edge_statement(name, float(xs[best]))
    first = max(0, min(best - _NEAR // 2, len(xs) - _NEAR))
    near = slice(first, first + _NEAR)
    u = np.log(xs[near]) if log else xs[near]
    centre = u.mean()
    curve, slope, level = np.polyfit(u - centre, ys[near], 2)
    if curve <= 0:
        return refused(f"The error has no dip along {name}: no optimum is quoted.")
    vertex = -slope / (2 * curve)
    lowest = level - slope**2 / (4 * curve)
    neighbours = [xs[xs < xs[best]][-1], xs[xs > xs[best]][0]]
    ends = np.log(neighbours) if log else np.asarray(neighbours)
    if not ends[0] <= vertex + centre <= ends[1]:
        return refused(
            f"The points around the best {name} ({xs[best]:g}) are too noisy to place an optimum "
            "between them."
        )
    misfit = ys[near] - np.polyval([curve, slope, level], u - centre)
    noise = sd if sd is not None else float(np.sqrt(misfit @ misfit / max(len(u) - 3, 1)))
    reach = math.sqrt(2 * noise / curve)

    def back(v: float) -> float:
        return float(np.exp(v + centre)) if log else float(v + centre)

    return GridOptimum(
        x=back(vertex),
        y=float(lowest),
        low=back(vertex - reach),
        high=back(vertex + reach),
        num_points=len(u),
    )
