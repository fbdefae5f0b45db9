"""How sure a fitted law is: profile-likelihood intervals for parameters and for predictions.

A value is inside the interval while the objective, minimised over everything else, has risen by no
more than t^2 sigma^2 (t: Student's quantile for the degrees of freedom behind sigma). Unlike a
standard error this follows the curved valleys of scaling laws, and it shows when there is no end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from studies.analysis.laws.bootstrap import bootstrap
from studies.analysis.laws.fit import Fit
from studies.analysis.laws.observations import CellTable
from studies.errors import StudyError

F64 = npt.NDArray[np.float64]

LEVEL = 0.90
"""Nominal probability of every interval by default."""
IDENTIFIABLE_FACTOR = 10.0
"""A positive parameter whose interval spans more than this factor is not identified."""
_OUT_OF_SIGHT = 1e4
"""A coefficient this many times the errors themselves is as good as infinite."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Profile-likelihood interval of one parameter."""

    name: str
    value: float
    low: float
    high: float
    """Where the search ended without the objective rising enough: 0 or infinity for a
    coefficient, the end of the search for an exponent."""
    low_open: bool
    high_open: bool
    """Whether that end is the search's and not the data's."""
    identifiable: bool
    why: str
    """Reason of the mark, in words."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Error of a new run at a target, with its interval."""

    target: Mapping[str, float]
    value: float
    low: float
    high: float
    """Of one new run: the law's uncertainty and the noise of a run."""
    law_low: float
    law_high: float
    """Of the law's value alone."""
    level: float
    method: str
    """profile likelihood, or bootstrap."""
    extrapolation: Mapping[str, float]
    """Axis -> how many times beyond the fitted range the target lies; 1 inside."""

    def z(self, error: float) -> float:
        """Distance of a measurement in standard deviations, read from the interval's width."""
        reach = (self.high - self.value) if error > self.value else (self.value - self.low)
        quantile = float(stats.norm.ppf(0.5 + self.level / 2))
        return (error - self.value) / reach * quantile if 0 < reach < math.inf else math.nan


def require_noise(fit: Fit) -> float:
    """Standard deviation of one run, never quite zero.

    Raises:
        StudyError: if neither repeats nor spare cells say anything about noise.
    """
    if fit.noise.sd is None:
        raise StudyError(
            f"{fit.num_cells} cells leave nothing to measure noise by: the law {fit.law.name!r} "
            f"has {fit.law.num_parameters} parameters. Repeat a cell with another seed, or add one."
        )
    return max(fit.noise.sd, 1e-7 * float(np.median(np.abs(fit.table.z))), 1e-12)


def threshold(fit: Fit, level: float = LEVEL) -> float:
    """How far the objective may rise inside an interval.

    With Huber's loss the rise is calibrated as a robust likelihood ratio (Schrader and
    Hettmansperger 1980): E[psi^2] / E[psi'] takes the place of the variance.
    """
    if fit.method.huber is None:
        t = float(stats.t.ppf(0.5 + level / 2, fit.noise.dof))
        return (t * require_noise(fit)) ** 2
    residuals = np.abs(fit.residuals)
    corner = fit.method.huber
    dof = max(fit.dof, 1)
    # E[psi'] is the share of residuals inside the corner. Where the corner is far inside the
    # residuals that share is a density at zero; it is read off a window that holds enough of them.
    window = max(corner, float(np.quantile(residuals, 0.3)))
    inside = float(np.mean(residuals <= window)) * corner / window
    psi2 = float(np.sum(np.minimum(residuals, corner) ** 2)) / dof
    t = float(stats.t.ppf(0.5 + level / 2, dof))
    return t**2 / 2 * psi2 / max(inside, 1e-12)


def profile(fit: Fit, name: str, level: float = LEVEL) -> Interval:
    """Interval of one parameter: a coefficient at the reference point, or an exponent.

    Raises:
        StudyError: for an unknown parameter, or without any measure of noise.
    """
    if name not in fit.law.names:
        raise StudyError(
            f"law {fit.law.name!r} has no parameter {name!r}: {', '.join(fit.law.names)}"
        )
    limit = fit.best.objective + threshold(fit, level)
    follower = _Follower(fit)
    nonlinear = [p.name for p in fit.law.nonlinear]
    if name in nonlinear:
        i = nonlinear.index(name)
        parameter = fit.law.nonlinear[i]
        start, (low, high) = fit.best.u[i], parameter.bounds
        step = 0.03 * (high - low)
        (low, low_open), (high, high_open) = (
            _walk(lambda u: follower.least({i: u}, {}), start, end, step, limit)
            for end in (low, high)
        )
        low, high = parameter.from_search(low), parameter.from_search(high)
    else:
        j = fit.law.linear.index(name)
        start, size = fit.best.coefficients[j], _typical(fit)
        step = max(0.05 * start, 0.002 * size)
        (low, low_open), (high, high_open) = (
            _walk(lambda c: follower.least({}, {j: c}), start, end, step, limit)
            for end in (0.0, _OUT_OF_SIGHT * size)
        )
        high = math.inf if high_open else high
    identifiable, why = _identifiable(low, high, low_open, high_open)
    return Interval(
        name=name,
        value=fit.values[name],
        low=low,
        high=high,
        low_open=low_open,
        high_open=high_open,
        identifiable=identifiable,
        why=why,
    )


def predict(
    fit: Fit,
    target: Mapping[str, float],
    level: float = LEVEL,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> Prediction:
    """Prediction of one new run at a target cell, with its interval.

    A value is inside while adding it as one more run would raise the least objective by no more
    than the threshold; refits start from every optimum. Robust fits use the bootstrap, with this
    many resamples.

    Raises:
        StudyError: if an axis is missing, or nothing measures the noise.
    """
    value = float(fit.predict(target)[0])
    beyond = extrapolation(fit, target)
    if fit.method.huber is not None:
        low, high, law_low, law_high = _bootstrap_ends(fit, target, level, resamples, seed)
        return Prediction(
            target=dict(target),
            value=value,
            low=low,
            high=high,
            law_low=law_low,
            law_high=law_high,
            level=level,
            method="bootstrap",
            extrapolation=beyond,
        )
    limit = fit.best.objective + threshold(fit, level)
    # As one run, and as so many that their mean is the law's value itself.
    low, high = _prediction_ends(fit, target, 1.0, limit)
    law_low, law_high = _prediction_ends(fit, target, 1e4, limit)
    return Prediction(
        target=dict(target),
        value=value,
        low=low,
        high=high,
        law_low=law_low,
        law_high=law_high,
        level=level,
        method="profile likelihood",
        extrapolation=beyond,
    )


def extrapolation(fit: Fit, target: Mapping[str, float]) -> dict[str, float]:
    """Axis -> factor by which the target lies beyond the fitted range; 1 inside it."""
    found = {}
    for axis in fit.law.axes:
        values, at = fit.table.axes[axis], float(target[axis])
        found[axis] = max(1.0, at / float(np.max(values)), float(np.min(values)) / at)
    return found


def _typical(fit: Fit) -> float:
    z = np.exp(fit.table.z) if fit.scale == "log" else fit.table.z
    return max(float(np.median(np.abs(z))), 1e-12)


Rise = Callable[[float], float]


class _Follower:
    """Least objective along a path: from every known optimum, and from the last point found."""

    def __init__(self, fit: Fit, table: CellTable | None = None) -> None:
        self.problem = fit.problem(table)
        self.known = [np.asarray(o.u) for o in fit.optima]
        self.last: F64 | None = None
        self.all = list(range(len(fit.law.nonlinear)))

    def least(self, held: Mapping[int, float], fixed: Mapping[int, float]) -> float:
        """Objective with some nonlinear (`held`) and linear (`fixed`) parameters given."""
        free = [i for i in self.all if i not in held]
        starts = self.known if self.last is None else [*self.known, self.last]
        found = []
        for start in starts:
            u = start.copy()
            for i, value in held.items():
                u[i] = value
            found.append(self.problem.descend(u, free, fixed))
        best = min(found, key=lambda o: o.objective)
        self.last = np.asarray(best.u)
        return best.objective


def _walk(rise: Rise, start: float, end: float, step: float, limit: float) -> tuple[float, bool]:
    """Where the objective crosses the limit on the way from start to end; (end, True) if nowhere.

    Doubling steps find the bracket, Brent's method the crossing, to a thousandth of its distance.
    """
    sign = 1.0 if end > start else -1.0
    inside = start
    while (end - inside) * sign > 0:
        outside = inside + sign * min(step, (end - inside) * sign)
        if rise(outside) > limit:
            crossing = (
                optimize.brentq(
                    lambda v: _capped(rise(v) - limit, limit),
                    inside,
                    outside,
                    xtol=2e-3 * abs(outside - start) + 1e-12,
                    rtol=1e-6,
                    full_output=True,
                    disp=False,
                )[0]
                if rise(inside) <= limit
                else inside
            )
            return float(crossing), False
        inside, step = outside, step * 2
    return end, True


def _capped(value: float, limit: float) -> float:
    """Keep one steep side from spoiling Brent's interpolation."""
    return min(value, 10 * abs(limit) + 1.0)


def _identifiable(low: float, high: float, low_open: bool, high_open: bool) -> tuple[bool, str]:
    if low_open and high_open:
        return False, "the data give no bound on either side"
    if high_open:
        return False, "the data set no upper bound"
    if low_open:
        return False, "the data set no lower bound" if low > 0 else "the data allow zero"
    if low > 0 and high / low > IDENTIFIABLE_FACTOR:
        return False, f"the interval spans a factor of {high / low:.3g}"
    return True, "bounded on both sides"


def _prediction_ends(
    fit: Fit, target: Mapping[str, float], count: float, limit: float
) -> tuple[float, float]:
    """Ends of the interval of the mean of `count` runs, in units of the error."""
    log = fit.scale == "log"
    follower = _Follower(fit, fit.table.plus(target, 0.0, count))

    def rise(z: float) -> float:
        follower.problem.z[-1] = z
        return follower.least({}, {})

    centre = float(fit.predict(target)[0])
    start = math.log(max(centre, 1e-300)) if log else centre
    step = 1.5 * math.sqrt(max(limit - fit.best.objective, 1e-300))
    top = fit.law.top or _OUT_OF_SIGHT * _typical(fit)
    bottom = math.log(1e-6 * _typical(fit)) if log else 0.0
    ceiling = math.log(top) if log else top
    low, _ = _walk(rise, start, bottom, step, limit)
    follower.last = None
    high, high_open = _walk(rise, start, ceiling, step, limit)
    if log:
        low, high = math.exp(low), math.exp(high)
    return low, math.inf if high_open and fit.law.top is None else high


def _bootstrap_ends(
    fit: Fit, target: Mapping[str, float], level: float, resamples: int, seed: int
) -> tuple[float, float, float, float]:
    """Quantiles of bootstrapped predictions, and of those plus a residual drawn for each."""
    samples = bootstrap(fit, [target], num=resamples, seed=seed).predictions[:, 0]
    tails = [0.5 - level / 2, 0.5 + level / 2]
    law_low, law_high = (float(v) for v in np.quantile(samples, tails))
    spread = fit.residuals * math.sqrt(fit.num_cells / max(fit.dof, 1))
    drawn = np.random.default_rng((seed, 2)).choice(spread, size=(len(samples), 20))
    runs = samples[:, None] * np.exp(drawn) if fit.scale == "log" else samples[:, None] + drawn
    low, high = (float(v) for v in np.quantile(runs, tails))
    return low, high, law_low, law_high
