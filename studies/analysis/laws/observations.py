"""What a law is fitted to: measured errors over named axes, repeats of a cell, and shared trunks.

A row is one run. Rows of the same cell are seeds of it; cells of the same cluster share a trunk and
are not independent. Errors are what is left to gain: 100 - top-1 (points), or a loss.
Legend: n runs, m cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from studies.analysis.results import distinct
from studies.errors import StudyError, unknown
from studies.result_row import ResultRow

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

ROW_AXES = ("encoder_params", "pretrain_flops", "images_seen", "gpu_hours")
"""Axes that a results table has: parameters, counted FLOPs, images, rank-hours of pretraining."""


@dataclass(frozen=True, kw_only=True)
class Observations:
    """n runs. Build it with `observe` or `observe_rows`, which check and fill in."""

    axes: Mapping[str, F64]
    """Name -> one value per run, shape (n,)."""
    y: F64
    """Error per run, shape (n,): points (100 - top-1) or a loss."""
    cells: tuple[str, ...]
    """Cell of each run; runs of one cell differ by seed alone."""
    clusters: tuple[str, ...]
    """Trunk of each run; the cell itself where nothing is shared."""
    seed_sd: float | None = None
    """Standard deviation of one run over seeds, in units of y, where known from other data."""
    seed_dof: float = math.inf
    """Degrees of freedom behind `seed_sd`: repeats - 1; infinite where it is taken as known."""
    percent: bool = False
    """Whether y is 100 - accuracy in points, so that 0 and 100 are its ends."""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, keep: npt.NDArray[np.bool_] | I64 | Sequence[int]) -> Observations:
        """The runs at these positions (or where a mask is true)."""
        index = np.arange(len(self.y))[np.asarray(keep)]
        return replace(
            self,
            axes={name: values[index] for name, values in self.axes.items()},
            y=self.y[index],
            cells=tuple(self.cells[i] for i in index),
            clusters=tuple(self.clusters[i] for i in index),
        )

    def distinct(self, axis: str) -> int:
        """How many different values an axis takes; two within 0.1 % of each other are one."""
        return len(np.unique(np.round(np.log(self.axes[axis]), 3)))

    @property
    def num_cells(self) -> int:
        """m."""
        return len(set(self.cells))


@dataclass(frozen=True, kw_only=True)
class CellTable:
    """m cells: means over seeds of y, or of log y."""

    axes: Mapping[str, F64]
    """Shape (m,) each."""
    z: F64
    """Mean of y (scale "absolute") or of log y (scale "log"), shape (m,)."""
    counts: F64
    """Runs per cell; a mean of k runs weighs k times one run."""
    cells: tuple[str, ...]
    clusters: tuple[str, ...]
    pure_ss: float
    """Sum of squares of runs around the mean of their cell, on the scale of z."""
    pure_dof: int
    """n - m: what the repeats alone say about seed noise."""

    def plus(self, axes: Mapping[str, float], z: float, count: float) -> CellTable:
        """The same table with one more cell."""
        return replace(
            self,
            axes={name: np.append(v, axes[name]) for name, v in self.axes.items()},
            z=np.append(self.z, z),
            counts=np.append(self.counts, count),
            cells=(*self.cells, "+"),
            clusters=(*self.clusters, "+"),
        )


def observe(
    axes: Mapping[str, Iterable[float]],
    y: Iterable[float],
    *,
    cells: Sequence[str] | None = None,
    clusters: Sequence[str] | None = None,
    seed_sd: float | None = None,
    seed_dof: float = math.inf,
    percent: bool = False,
) -> Observations:
    """Runs from plain arrays; values may still be NaN (`refusals.clean` says what it drops).

    Without `cells`, runs with equal axes are seeds of one cell.

    Raises:
        StudyError: if lengths differ, there is no axis, or `seed_sd` is not positive.
    """
    values = {name: np.asarray(list(v), dtype=np.float64) for name, v in axes.items()}
    errors = np.asarray(list(y), dtype=np.float64)
    if not values:
        raise StudyError("observations without an axis; name at least one, such as encoder_params")
    for name, v in values.items():
        if v.shape != errors.shape:
            raise StudyError(
                f"axis {name!r} has {v.size} values for {errors.size} results; give one per run"
            )
    if seed_sd is not None and not seed_sd > 0:
        raise StudyError(f"seed_sd = {seed_sd} is no standard deviation; give it above 0, or None")
    if cells is None:
        cells = ["/".join(f"{v[i]:.6g}" for v in values.values()) for i in range(errors.size)]
    clusters = cells if clusters is None else clusters
    if len(cells) != errors.size or len(clusters) != errors.size:
        raise StudyError(
            f"{len(cells)} cells and {len(clusters)} clusters named for {errors.size} results"
        )
    return Observations(
        axes=values,
        y=errors,
        cells=tuple(cells),
        clusters=tuple(clusters),
        seed_sd=seed_sd,
        seed_dof=seed_dof,
        percent=percent,
    )


def observe_rows(
    rows: Iterable[ResultRow],
    *,
    protocol: str,
    axes: Sequence[str] = ("encoder_params", "images_seen"),
    metric: str = "top1",
    clusters: Mapping[str, str] | None = None,
) -> Observations:
    """The grid's runs of one protocol from a results table; the error is 100 - top1, or the loss.

    Untrained networks, baselines and sweep trials are no curve points and are left out. A value
    that a row lacks becomes NaN. `clusters` maps a cell's address to the trunk it shares.

    Raises:
        StudyError: for a protocol, axis or metric that the table does not have.
    """
    table = list(rows)
    known = {r.protocol for r in table}
    if protocol not in known:
        raise unknown("protocol", protocol, known)
    for axis in axes:
        if axis not in ROW_AXES:
            raise unknown("axis", axis, ROW_AXES)
    if metric not in ("top1", "top5", "loss"):
        raise unknown("metric", metric, ("top1", "top5", "loss"))
    paid = {r.cell: r.rank_seconds / 3600 for r in table if r.kind == "pretrain"}
    chosen = distinct(r for r in table if r.protocol == protocol and r.role == "grid")
    names = _names_without_seed(chosen)
    return observe(
        {axis: [_axis_value(r, axis, paid) for r in chosen] for axis in axes},
        [_error(r, metric) for r in chosen],
        cells=names,
        clusters=[(clusters or {}).get(r.cell, n) for r, n in zip(chosen, names, strict=True)],
        percent=metric != "loss",
    )


def cell_table(data: Observations, scale: str) -> CellTable:
    """Means per cell on the scale of the fit, and what the repeats say about noise."""
    z = np.log(data.y) if scale == "log" else data.y
    names = tuple(dict.fromkeys(data.cells))
    place = {name: i for i, name in enumerate(names)}
    index = np.asarray([place[c] for c in data.cells], dtype=np.int64)
    trunk = dict(zip(data.cells, data.clusters, strict=True))
    counts = np.bincount(index, minlength=len(names)).astype(np.float64)
    means = np.bincount(index, weights=z, minlength=len(names)) / counts
    return CellTable(
        axes={
            axis: np.exp(np.bincount(index, weights=np.log(v), minlength=len(names)) / counts)
            for axis, v in data.axes.items()
        },
        z=means,
        counts=counts,
        cells=names,
        clusters=tuple(trunk[name] for name in names),
        pure_ss=float(np.sum((z - means[index]) ** 2)),
        pure_dof=len(z) - len(names),
    )


def _axis_value(row: ResultRow, axis: str, paid: Mapping[str, float]) -> float:
    value = paid.get(row.cell) if axis == "gpu_hours" else getattr(row, axis)
    return math.nan if value is None else float(value)


def _error(row: ResultRow, metric: str) -> float:
    value = getattr(row, metric)
    if value is None:
        return math.nan
    return float(value) if metric == "loss" else 100.0 - float(value)


_MAKES_A_CELL = {
    "size": "{}",
    "duration": "{}",
    "mask_ratio": "mask {:g}",
    "decoder_depth": "decoder depth {}",
    "decoder_width": "width {}",
    "num_labels": "{} labels",
}
"""Columns that make a cell, but for the seed, and how they are said."""


def _names_without_seed(rows: Sequence[ResultRow]) -> list[str]:
    """What seeds of a cell share, without what all of the rows share: `B, 800ep`."""
    values = {name: [getattr(r, name) for r in rows] for name in _MAKES_A_CELL}
    differing = [name for name in _MAKES_A_CELL if len(set(values[name])) > 1]
    shown = differing or ["size", "duration"]
    return [
        ", ".join(
            "-" if values[name][i] is None else _MAKES_A_CELL[name].format(values[name][i])
            for name in shown
        )
        for i in range(len(rows))
    ]
