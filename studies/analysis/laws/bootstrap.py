"""Bootstrap over cells and seeds: trunks are drawn with replacement, then seeds within a cell.

Cells that share a trunk (branches of one warm-up-stable-decay run) share its luck, so they are
drawn together: resampling them one by one would count one lucky trunk as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from studies.analysis.laws.fit import Fit
from studies.errors import StudyError

F64 = npt.NDArray[np.float64]

MIN_CLUSTERS = 4
"""Fewer independent units than this give no bootstrap worth the name."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Refits of resampled data."""

    parameters: Mapping[str, F64]
    """Name -> shape (kept,)."""
    predictions: F64
    """Error per refit and target, shape (kept, targets)."""
    drawn: int
    left_out: int
    """Resamples with too few distinct cells for the law: not refitted, and said."""

    def interval(self, name: str, level: float) -> tuple[float, float]:
        """Percentile interval of a parameter."""
        tails = [0.5 - level / 2, 0.5 + level / 2]
        low, high = np.quantile(self.parameters[name], tails)
        return float(low), float(high)


def bootstrap(
    fit: Fit, targets: Sequence[Mapping[str, float]] = (), *, num: int = 200, seed: int = 0
) -> Bootstrap:
    """Refit `num` resamples, each from every optimum of the fit; a pure function of `seed`.

    Raises:
        StudyError: with fewer than four independent cells (or trunks), or if hardly any resample
            can carry the law.
    """
    clusters = sorted(set(fit.table.clusters))
    if len(clusters) < MIN_CLUSTERS:
        raise StudyError(
            f"{len(clusters)} independent cells: too few to bootstrap; {MIN_CLUSTERS} are needed"
        )
    runs = _runs_per_cell(fit)
    cluster_of = np.asarray([clusters.index(c) for c in fit.table.clusters])
    free = list(range(len(fit.law.nonlinear)))
    values: list[list[float]] = []
    predictions: list[list[float]] = []
    for i in range(num):
        rng = np.random.default_rng((seed, 1, i))
        times = np.bincount(rng.integers(0, len(clusters), len(clusters)), minlength=len(clusters))
        z = np.asarray([np.mean(rng.choice(r, len(r))) if len(r) > 1 else r[0] for r in runs])
        keep = times[cluster_of] > 0
        if int(keep.sum()) < fit.law.num_parameters or not _carries(fit, keep):
            continue
        table = replace(
            fit.table,
            axes={a: v[keep] for a, v in fit.table.axes.items()},
            z=z[keep],
            counts=(fit.table.counts * times[cluster_of])[keep],
        )
        problem = fit.problem(table)
        best = min(
            (problem.descend(np.asarray(o.u), free, {}) for o in fit.optima),
            key=lambda o: o.objective,
        )
        values.append(list(fit.values_of(best).values()))
        predictions.append([float(fit.predict(t, best)[0]) for t in targets])
    if len(values) < num / 4:
        raise StudyError(
            f"{num - len(values)} of {num} resamples have too few distinct cells for the law "
            f"{fit.law.name!r}: too few cells to bootstrap it"
        )
    found = np.asarray(values)
    return Bootstrap(
        parameters={name: found[:, i] for i, name in enumerate(fit.law.names)},
        predictions=np.asarray(predictions).reshape(len(values), len(targets)),
        drawn=num,
        left_out=num - len(values),
    )


def _runs_per_cell(fit: Fit) -> list[F64]:
    """Results of the seeds of each cell, on the scale of the fit."""
    z = np.log(fit.data.y) if fit.scale == "log" else fit.data.y
    cells = np.asarray(fit.data.cells)
    return [z[cells == name] for name in fit.table.cells]


def _carries(fit: Fit, keep: npt.NDArray[np.bool_]) -> bool:
    """Whether a resample still has as many values of each axis as its exponents ask for."""
    return all(
        len(np.unique(fit.table.axes[a][keep])) >= min(3, needed)
        for a, needed in fit.law.min_distinct.items()
    )
