"""Fit a law to observations: every optimum worth knowing, and the noise around the best.

`fit_law` is the engine without judgement; `conclusions.conclude` adds what may not be concluded.
Legend: n runs, m cells, p parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from studies.analysis.laws.forms import Law
from studies.analysis.laws.observations import CellTable, Observations, cell_table
from studies.analysis.laws.variable_projection import LocalMinimum, Problem
from studies.errors import StudyError

F64 = npt.NDArray[np.float64]

LACK_OF_FIT = 0.05
"""Below this p-value the law misses the cells by more than seeds explain."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a law is fitted."""

    scale: Literal["absolute", "log"] | None = None
    """Residuals of the error or of its logarithm. None: of the error where it is an accuracy's,
    whose seed noise is about the same number of points everywhere; else what suits the law."""
    huber: float | None = None
    """Corner of Huber's loss on the residuals (1e-3 on log residuals in the literature); None:
    least squares."""
    starts: int = 10
    """Local searches, from the best distinct points of a grid."""
    tolerance: float = 0.05
    """Optima whose objective exceeds the best one's by at most this share are reported."""

    def __post_init__(self) -> None:
        if self.huber is not None and not self.huber > 0:
            raise StudyError(f"huber = {self.huber}: the corner must lie above 0")
        if self.starts < 1:
            raise StudyError(f"starts = {self.starts}: at least one search is needed")


@dataclass(frozen=True, kw_only=True)
class RunSpread:
    """Spread of one run around the law, on the scale of the fit."""

    sd: float | None
    """None where neither repeats nor spare cells say anything."""
    dof: float
    source: str
    """seeds, residuals, seeds and residuals, given."""
    lack_of_fit_p: float | None = None
    """How often seeds alone would give residuals this large; None where it cannot be tested."""

    @property
    def lacks_fit(self) -> bool:
        """Whether the law is contradicted by the noise that repeats measure."""
        return self.lack_of_fit_p is not None and self.lack_of_fit_p < LACK_OF_FIT


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted law."""

    law: Law
    data: Observations
    method: Method
    scale: Literal["absolute", "log"]
    table: CellTable
    references: Mapping[str, float]
    """Axis -> what it is divided by."""
    optima: tuple[LocalMinimum, ...]
    """All distinct optima within the tolerance, best first."""
    noise: RunSpread

    @property
    def best(self) -> LocalMinimum:
        """The lowest optimum."""
        return self.optima[0]

    @property
    def num_cells(self) -> int:
        """m."""
        return len(self.table.z)

    @property
    def dof(self) -> int:
        """Cells to spare: m - p."""
        return self.num_cells - self.law.num_parameters

    @property
    def values(self) -> dict[str, float]:
        """Parameter -> value at the best optimum, coefficients at the reference point."""
        return self.values_of(self.best)

    def values_of(self, optimum: LocalMinimum) -> dict[str, float]:
        """Parameter -> value; coefficients are what a term adds at the reference point."""
        theta = [p.from_search(u) for p, u in zip(self.law.nonlinear, optimum.u, strict=True)]
        numbers = [float(v) for v in (*theta, *optimum.coefficients)]
        return dict(zip(self.law.names, numbers, strict=True))

    @property
    def raw_values(self) -> dict[str, float]:
        """Parameter -> value with axes in their own units, as papers print it."""
        values = self.values
        for name, powers in (self.law.powers or {}).items():
            for axis, (exponent, sign) in powers.items():
                values[name] *= self.references[axis] ** (-sign * values[exponent])
        return values

    def problem(self, table: CellTable | None = None) -> Problem:
        """The objective of this fit, on its own cells or on others."""
        return Problem(
            self.law,
            table or self.table,
            self.references,
            scale=self.scale,
            huber=self.method.huber,
        )

    def predict(self, axes: Mapping[str, float | F64], optimum: LocalMinimum | None = None) -> F64:
        """Error at these axes (in their own units), shape of the broadcast axes, at least 1-d."""
        missing = [a for a in self.law.axes if a not in axes]
        if missing:
            raise StudyError(
                f"prediction without axis {missing[0]!r}; the law {self.law.name!r} needs "
                f"{', '.join(self.law.axes)}"
            )
        values = np.broadcast_arrays(*(np.atleast_1d(np.float64(axes[a])) for a in self.law.axes))
        x = {a: v / self.references[a] for a, v in zip(self.law.axes, values, strict=True)}
        chosen = optimum or self.best
        theta = [p.from_search(u) for p, u in zip(self.law.nonlinear, chosen.u, strict=True)]
        return self.law.evaluate(np.asarray(theta), np.asarray(chosen.coefficients), x)

    @property
    def residuals(self) -> F64:
        """Measured minus predicted per cell, on the scale of the fit, shape (m,)."""
        model = self.predict(self.table.axes)
        return self.table.z - (np.log(model) if self.scale == "log" else model)

    @property
    def aicc(self) -> float:
        """Akaike's criterion corrected for few cells; infinite with fewer than p + 3 cells.

        Comparable only between laws fitted to the same cells on the same scale: on log residuals
        the logarithm's own density is added, so that both scales compare.
        """
        m, p = self.num_cells, self.law.num_parameters + 1
        if m - p - 1 <= 0:
            return math.inf
        weighted = self.residuals * np.sqrt(self.table.counts)
        spread = max(float(np.mean(weighted**2)), 1e-30)
        density = 2 * float(np.sum(self.table.z)) if self.scale == "log" else 0.0
        return m * math.log(spread) + density + 2 * p + 2 * p * (p + 1) / (m - p - 1)


def fit_law(law: Law, data: Observations, method: Method | None = None) -> Fit:
    """Fit by variable projection from many starts.

    Raises:
        StudyError: if an axis is missing, a value is not finite, an axis not positive, or an error
            not positive where the residuals are logarithmic (`refusals.clean` drops such rows).
    """
    method = method or Method()
    scale = residual_scale(law, data, method)
    _check(law, data, scale)
    table = cell_table(data, scale)
    references = {
        a: float(np.exp(np.mean(np.log(table.axes[a])))) if law.normalised else 1.0
        for a in law.axes
    }
    problem = Problem(law, table, references, scale=scale, huber=method.huber)
    found = problem.search(starts=method.starts, fixed_u={}, fixed={})
    optima = _distinct(problem, found, method.tolerance)
    noise = _noise(data, table, optima[0].objective, law, scale, method)
    return Fit(
        law=law,
        data=data,
        method=method,
        scale=scale,
        table=table,
        references=references,
        optima=optima,
        noise=noise,
    )


def residual_scale(law: Law, data: Observations, method: Method) -> Literal["absolute", "log"]:
    """The scale of the residuals that a fit will use."""
    return method.scale or ("absolute" if data.percent else law.scale)


def _check(law: Law, data: Observations, scale: str) -> None:
    for axis in law.axes:
        if axis not in data.axes:
            raise StudyError(
                f"law {law.name!r} needs axis {axis!r}; the results have {', '.join(data.axes)}"
            )
        if not (np.isfinite(data.axes[axis]).all() and (data.axes[axis] > 0).all()):
            raise StudyError(f"axis {axis!r} has values that are missing or not above 0; drop them")
    if not len(data):
        raise StudyError("no results to fit a law to")
    if not np.isfinite(data.y).all() or (scale == "log" and (data.y <= 0).any()):
        raise StudyError("results that are missing, or not above 0 on a log scale; drop them first")


def _distinct(
    problem: Problem, found: list[LocalMinimum], tolerance: float
) -> tuple[LocalMinimum, ...]:
    """Those within the tolerance of the best that a ridge separates."""
    limit = found[0].objective * (1 + tolerance)
    kept: list[LocalMinimum] = []
    for optimum in found:
        if optimum.objective <= limit and all(problem.separate(optimum, k) for k in kept):
            kept.append(optimum)
    return tuple(kept)


def _noise(
    data: Observations, table: CellTable, objective: float, law: Law, scale: str, method: Method
) -> RunSpread:
    """Combine what repeats say with what residuals say.

    Where the two agree they are pooled; where residuals are larger than seeds explain (F test,
    5 %) the residuals count alone: the intervals then include the law's own misfit.
    """
    dof = len(table.z) - law.num_parameters
    if method.huber is not None:
        objective = math.nan  # Huber's loss is no sum of squares: repeats alone measure seeds.
        dof = 0
    pure_ss, pure_dof, source = table.pure_ss, float(table.pure_dof), "seeds"
    if data.seed_sd is not None:
        given = data.seed_sd if scale == "absolute" else data.seed_sd / float(np.mean(data.y))
        if math.isinf(data.seed_dof):
            return _given(given, objective, dof)
        pure_ss, pure_dof = pure_ss + given**2 * data.seed_dof, pure_dof + data.seed_dof
    if dof <= 0:
        sd = math.sqrt(pure_ss / pure_dof) if pure_dof else None
        return RunSpread(sd=sd or None, dof=pure_dof, source=source)
    if not pure_dof or pure_ss <= 0:
        return RunSpread(sd=math.sqrt(objective / dof) or None, dof=dof, source="residuals")
    p_value = float(stats.f.sf(objective / dof / (pure_ss / pure_dof), dof, pure_dof))
    if p_value < LACK_OF_FIT:
        return RunSpread(
            sd=math.sqrt(objective / dof), dof=dof, source="residuals", lack_of_fit_p=p_value
        )
    pooled = math.sqrt((objective + pure_ss) / (dof + pure_dof))
    return RunSpread(
        sd=pooled, dof=dof + pure_dof, source="seeds and residuals", lack_of_fit_p=p_value
    )


def _given(sd: float, objective: float, dof: int) -> RunSpread:
    """RunSpread known beforehand, unless the residuals contradict it (chi-square test, 5 %)."""
    if dof <= 0 or math.isnan(objective):
        return RunSpread(sd=sd, dof=math.inf, source="given")
    p_value = float(stats.chi2.sf(objective / sd**2, dof))
    if p_value < LACK_OF_FIT:
        return RunSpread(
            sd=math.sqrt(objective / dof), dof=dof, source="residuals", lack_of_fit_p=p_value
        )
    return RunSpread(sd=sd, dof=math.inf, source="given", lack_of_fit_p=p_value)
