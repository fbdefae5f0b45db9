"""What to run next: the cells and repeated seeds that narrow the target's interval most per hour.

For each cell that could be run the expected interval at the target afterwards follows from the
law's derivatives there (an optimal design in the sense of Chernoff 1953), averaged over parameter
values that the data still allow; before a law can be fitted, over values that such laws usually
have. Cells are taken greedily by narrowing against cost until the budget is spent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import stats

from studies.analysis.laws.conclusions import conclude
from studies.analysis.laws.fit import Fit, Method, residual_scale
from studies.analysis.laws.forms import Law
from studies.analysis.laws.intervals import LEVEL, Prediction, predict, require_noise
from studies.analysis.laws.observations import Observations
from studies.analysis.laws.refusals import Statement, caution, note
from studies.errors import StudyError

F64 = npt.NDArray[np.float64]

_USUAL_EXPONENTS = (0.2, 0.5)
_USUAL_ERROR = 30.0
_USUAL_NOISE = 0.01
"""Of the error itself, where nothing has measured it."""
_NARROWS = 1e-4
"""A run that narrows the interval by less than this share is not advised."""
_THRIFTS = (0.3, 0.6, 1.0)
_TRUSTED = 3.0
"""Distance (natural logarithm; a factor of 20) at which what a law gets wrong is as large as the
noise of a run."""
_FEW_DOF = 2.0
"""Degrees of freedom assumed before there is a fit: too few to trust a narrow interval."""


@dataclass(frozen=True, kw_only=True)
class PossibleRun:
    """A run that could be paid for."""

    cell: str
    axes: Mapping[str, float]
    gpu_hours: float
    times: int = 1
    """How often it may be run: seeds."""
    is_measured: bool = False
    """Whether it has a result, under whatever name the data have it."""

    def __post_init__(self) -> None:
        if not (self.gpu_hours > 0 and math.isfinite(self.gpu_hours)):
            raise StudyError(f"cell {self.cell!r} costs {self.gpu_hours} GPU-hours; give its cost")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One advised run."""

    option: PossibleRun
    is_repeat: bool
    """Whether the cell has a result already, so that this is another seed of it."""
    width_after: float
    """Expected width of the target's interval for one new run, in units of the error."""


@dataclass(frozen=True, kw_only=True)
class NextRuns:
    """What to run, in order."""

    steps: tuple[Step, ...]
    width_now: float
    prediction: Prediction | None
    """Of the target as things stand; None before a law can be fitted."""
    statements: tuple[Statement, ...]

    @property
    def gpu_hours(self) -> float:
        """Cost of all steps."""
        return sum(s.option.gpu_hours for s in self.steps)


def advise(
    law: Law,
    data: Observations | None,
    target: Mapping[str, float],
    options: Sequence[PossibleRun],
    budget: float,
    *,
    method: Method | None = None,
    level: float = LEVEL,
) -> NextRuns:
    """Runs that narrow the interval at the target most per GPU-hour, within the budget.

    Results change what is best next: run the first steps, and ask again.

    The target itself is no option: it is what one wants to know without paying for it.

    Raises:
        StudyError: if the budget is not positive or an option lacks an axis of the law.
    """
    if not budget > 0:
        raise StudyError(f"a budget of {budget} GPU-hours buys nothing; give a number above 0")
    for option in options:
        for axis in law.axes:
            if axis not in option.axes:
                raise StudyError(f"option {option.cell!r} lacks axis {axis!r} of {law.name!r}")
    left = [o for o in options if not _same(o.axes, target, law.axes)]
    method = method or Method()
    state, statements, prediction = _state(law, data, target, left, method, level)
    width_now = state.width()
    known = {o.cell for o in options if o.is_measured}
    known |= set(data.cells) if data is not None else set()
    steps = _best_plan(state, left, budget, known)
    if not steps:
        statements = (*statements, note("No option fits the budget or narrows the interval."))
    return NextRuns(
        steps=tuple(steps), width_now=width_now, prediction=prediction, statements=statements
    )


def go_or_no_go(prediction: Prediction, gpu_hours: float, *, percent: bool = True) -> str:
    """One sentence for the decision on the largest cell, accuracies where errors are theirs."""
    value, low, high = prediction.value, prediction.low, prediction.high
    if percent:
        value, low, high = 100 - value, 100 - high, 100 - low
    what, unit = ("top-1", " %") if percent else ("loss", "")
    return (
        f"Predicted {what} {value:.2f}{unit} ({prediction.level:.0%} interval {low:.2f} to "
        f"{high:.2f}); running it costs {gpu_hours:,.0f} GPU-hours."
    )


@dataclass
class _State:
    """What is known, per plausible set of parameters."""

    inverses: list[F64]
    """Of the information matrices."""
    targets: list[F64]
    """Derivatives at the target."""
    columns: list[list[F64]]
    """Derivatives of each option, a vector per set of parameters."""
    sd: float
    dof: float
    level: float

    def width(self, option: int | None = None) -> float:
        """Mean width over the plausible parameters, now or after a run of an option."""
        columns = None if option is None else self.columns[option]
        quantile = float(stats.t.ppf(0.5 + self.level / 2, self.dof + (columns is not None)))
        found = []
        for i, (inverse, g) in enumerate(zip(self.inverses, self.targets, strict=True)):
            variance = float(g @ inverse @ g)
            if columns is not None:
                j = columns[i]
                variance -= float(g @ inverse @ j) ** 2 / (self.sd**2 + float(j @ inverse @ j))
            found.append(2 * quantile * math.sqrt(max(variance, 0.0) + self.sd**2))
        return float(np.mean(found))

    def copy(self) -> _State:
        """A state that can go its own way."""
        return replace(self, inverses=list(self.inverses))

    def add(self, option: int) -> None:
        """Take one run of an option into account."""
        for i, j in enumerate(self.columns[option]):
            reach = self.inverses[i] @ j
            self.inverses[i] = self.inverses[i] - np.outer(reach, reach) / (
                self.sd**2 + float(j @ reach)
            )
        self.dof += 1


def _state(
    law: Law,
    data: Observations | None,
    target: Mapping[str, float],
    options: Sequence[PossibleRun],
    method: Method,
    level: float,
) -> tuple[_State, tuple[Statement, ...], Prediction | None]:
    """The state after the data, from the fit where there is one, else from usual values."""
    fit: Fit | None = None
    statements: tuple[Statement, ...] = ()
    prediction: Prediction | None = None
    if data is not None and len(data):
        done = conclude(law, data, method=method, parameters=False)
        fit, statements = done.fit, done.statements
    if fit is not None and fit.noise.sd is not None and fit.method.huber is None:
        prediction = predict(fit, target, level)
        points, references = _plausible(fit, prediction), fit.references
        sd, dof, scale = require_noise(fit), fit.noise.dof, fit.scale
        cells, counts = fit.table.axes, fit.table.counts
    else:
        statements = (
            *statements,
            caution(
                "No law can be fitted yet: the first cells are chosen by what such laws usually "
                "need."
            ),
        )
        cells, counts, references, typical = _unfitted(law, data, options)
        points = _usual(law, typical)
        scale = residual_scale(law, data, method) if data is not None else law.scale
        given = data.seed_sd if data is not None and data.seed_sd else _USUAL_NOISE * typical
        sd, dof = (given / typical if scale == "log" else given), _FEW_DOF
    derive = _Derivatives(law, references, scale)
    at = {a: np.asarray([target[a]]) for a in law.axes}
    axes = {a: np.asarray([o.axes[a] for o in options], dtype=np.float64) for a in law.axes}
    near = _nearness(axes, target)
    tables = [derive(p, axes) * near[:, None] for p in points]
    columns = [[t[i] for t in tables] for i in range(len(options))]
    weights = _nearness({a: cells[a] for a in law.axes}, target)[:, None]
    inverses = [_inverse(derive(p, cells) * weights, counts, sd) for p in points]
    targets = [derive(p, at)[0] for p in points]
    state = _State(inverses, targets, columns, sd, dof, level)
    return state, statements, prediction


def _inverse(jacobian: F64, counts: F64, sd: float) -> F64:
    """Inverse of the information that cells hold.

    One unit per scaled parameter: exponents within their range, coefficients of the size of the
    errors. It keeps what no cell has touched finite.
    """
    information = (jacobian.T * counts) @ jacobian / sd**2
    return np.asarray(np.linalg.inv(information + np.eye(len(information))))


def _nearness(axes: Mapping[str, F64], target: Mapping[str, float]) -> F64:
    """Weight of a run by its distance from the target, 1 at the target itself.

    No law is exact over decades: what it gets wrong adds to the noise of a run, the more the
    farther it is from where the prediction is wanted.
    """
    away = sum(np.log(np.asarray(values) / target[a]) ** 2 for a, values in axes.items())
    return np.asarray(1 / np.sqrt(1 + away / _TRUSTED**2))


ParameterSet = tuple[F64, F64]
"""Search coordinates of the nonlinear parameters, and coefficients."""


class _Derivatives:
    """Derivative of the law by its scaled parameters, at any axes."""

    def __init__(self, law: Law, references: Mapping[str, float], scale: str) -> None:
        self.law, self.references, self.log = law, references, scale == "log"

    def __call__(self, point: ParameterSet, axes: Mapping[str, F64]) -> F64:
        """Shape (points, p)."""
        u, c = point
        x = {a: np.asarray(axes[a], dtype=np.float64) / self.references[a] for a in self.law.axes}
        size = max(float(np.max(np.abs(c), initial=0.0)), 1e-12)
        error, by_coefficient = self.law.apply(
            self.law.columns(self._theta(u), x), c, self.law.base(self._theta(u), x)
        )
        columns = []
        for i, parameter in enumerate(self.law.nonlinear):
            low, high = parameter.bounds
            moved = u.copy()
            moved[i] += 1e-5 * (high - low)
            slope = (self.law.evaluate(self._theta(moved), c, x) - error) / (1e-5 * (high - low))
            # A quarter of the range stands for "within the range".
            columns.append(slope * (high - low) / 4)
        found = np.column_stack([*columns, by_coefficient * 2 * size])
        return found / error[:, None] if self.log else found

    def _theta(self, u: F64) -> F64:
        pairs = zip(self.law.nonlinear, u, strict=True)
        return np.asarray([p.from_search(float(v)) for p, v in pairs])


def _plausible(fit: Fit, prediction: Prediction) -> list[ParameterSet]:
    """Every optimum, and the parameters at both ends of the law's interval at the target."""
    found = [(np.asarray(o.u), np.asarray(o.coefficients)) for o in fit.optima]
    for end in (prediction.law_low, prediction.law_high):
        if 0 < end < math.inf:
            z = math.log(end) if fit.scale == "log" else end
            problem = fit.problem(fit.table.plus(prediction.target, z, 1e4))
            o = problem.descend(np.asarray(fit.best.u), list(range(len(fit.best.u))), {})
            found.append((np.asarray(o.u), np.asarray(o.coefficients)))
    return found


def _unfitted(
    law: Law, data: Observations | None, options: Sequence[PossibleRun]
) -> tuple[dict[str, F64], F64, dict[str, float], float]:
    """Cells so far, runs per cell, references and typical error, where no law fits yet."""
    cells: dict[str, F64] = {a: np.empty(0) for a in law.axes}
    typical = _USUAL_ERROR
    if data is not None and len(data):
        usable = np.isfinite(data.y)
        for a in law.axes:
            usable &= np.isfinite(data.axes[a]) & (data.axes[a] > 0)
        if usable.any():
            cells = {a: data.axes[a][usable] for a in law.axes}
            typical = max(float(np.mean(np.abs(data.y[usable]))), 1e-12)
    every = {a: np.append(cells[a], [o.axes[a] for o in options]) for a in law.axes}
    references = {
        a: float(np.exp(np.mean(np.log(v)))) if law.normalised and len(v) else 1.0
        for a, v in every.items()
    }
    return cells, np.ones(len(cells[law.axes[0]])), references, typical


def _usual(law: Law, typical: float) -> list[ParameterSet]:
    """Parameters that scaling laws usually have, for an error of this size."""
    c = np.full(len(law.linear), 0.2 if law.top else 0.3 * typical)
    if law.floor and len(c):
        c[0] = 0.4 * typical
    exponents = product(_USUAL_EXPONENTS, repeat=min(len(law.nonlinear), 2))
    found = []
    for values in exponents:
        padded = (*values, *(0.3,) * (len(law.nonlinear) - len(values)))
        u = [
            p.to_search(min(max(v, p.low), p.high))
            for p, v in zip(law.nonlinear, padded, strict=True)
        ]
        found.append((np.asarray(u), c))
    return found


def _greedy(
    state: _State,
    options: Sequence[PossibleRun],
    times: list[int],
    budget: float,
    known: set[str],
    thrift: float,
) -> list[Step]:
    """Steps by narrowing per GPU-hour^thrift until nothing affordable narrows the interval."""
    state, times = state.copy(), list(times)
    steps: list[Step] = []
    width = state.width()
    taken = set(known)
    while True:
        affordable = [i for i, o in enumerate(options) if times[i] and o.gpu_hours <= budget]
        gains = {i: width - state.width(i) for i in affordable}
        best = max(gains, key=lambda i: gains[i] / options[i].gpu_hours ** thrift, default=None)
        if best is None or gains[best] <= _NARROWS * width:
            return steps
        option, after = options[best], width - gains[best]
        steps.append(Step(option=option, is_repeat=option.cell in taken, width_after=after))
        state.add(best)
        taken.add(option.cell)
        times[best] -= 1
        budget, width = budget - option.gpu_hours, after


def _best_plan(
    state: _State, options: Sequence[PossibleRun], budget: float, known: set[str]
) -> list[Step]:
    """Of greedy plans that weigh cost differently, the one that ends narrowest.

    Plain greed by narrowing per hour spends a budget on many cheap cells where one dear cell would
    have shown more; no greed by cost at all does the opposite.
    """
    times = [o.times for o in options]
    plans = [_greedy(state, options, times, budget, known, thrift) for thrift in _THRIFTS]
    best = min(plans, key=lambda steps: steps[-1].width_after if steps else math.inf)
    # The set is chosen for the budget; within it, what narrows most per hour goes first, so that
    # cheap results come early and may change the rest.
    chosen = [sum(s.option is o for s in best) for o in options]
    return _greedy(state, options, chosen, budget, known, 1.0)


def _same(a: Mapping[str, float], b: Mapping[str, float], axes: Sequence[str]) -> bool:
    return all(math.isclose(a[axis], b[axis], rel_tol=1e-6) for axis in axes)
