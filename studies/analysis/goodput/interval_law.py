"""How often to checkpoint: failures that strike at random against the price of a checkpoint.

J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974.
J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
Future Generation Computer Systems 22(3), 2006. All quantities are seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIDENCE = 0.90
"""Of the interval of the failure rate, both sides together."""
_MAX_EXPONENT = 700.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What checkpoints and failures cost, in seconds."""

    save_s: float
    """Training stands still for each checkpoint."""
    restart_s: float = 0.0
    """From launch to the first step: start and restore. A failure may strike in it again."""
    dead_s: float = 0.0
    """From a failure to the next launch: noticing it, waiting. Nothing is left to fail then."""
    lag_s: float = 0.0
    """From the end of the stall until the checkpoint can be restored from. A failure within it
    costs the interval before as well: on average `lag_s` seconds per failure."""


@dataclass(frozen=True, kw_only=True)
class FailureRate:
    """Failures per second, with its exact Poisson interval."""

    failures: int
    alive_s: float
    """Time in which a failure could strike."""
    low: float
    high: float
    """Ends of the 90 % interval; without a failure, `high` is exceeded with 5 % probability."""

    @property
    def mtbf_s(self) -> float:
        """Mean time between failures; infinite without any."""
        return self.alive_s / self.failures if self.failures else math.inf

    @property
    def shortest_mtbf_s(self) -> float:
        """The lower end of what the mean may be."""
        return 1 / self.high if self.high else math.inf


def failure_rate(failures: int, alive_s: float) -> FailureRate:
    """The rate seen, and the exact interval of Garwood (1936).

    Raises:
        ValueError: if `alive_s` is not positive or `failures` is negative.
    """
    if alive_s <= 0 or failures < 0:
        raise ValueError(f"{failures} failures in {alive_s} s are no rate; give time above 0 s")
    tail = (1 - CONFIDENCE) / 2
    low = _poisson_mean(failures - 1, 1 - tail) if failures else 0.0
    high = _poisson_mean(failures, tail)
    return FailureRate(failures=failures, alive_s=alive_s, low=low / alive_s, high=high / alive_s)


def young(save_s: float, mtbf_s: float) -> float:
    """Best training time between two checkpoints, to first order: sqrt(2 C M)."""
    return math.sqrt(2 * save_s * mtbf_s)


def daly(save_s: float, mtbf_s: float) -> float:
    """Best training time between two checkpoints (Daly 2006, equation 37).

    A save that costs more than two mean times between failures is done once per mean.
    """
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    if math.isinf(mtbf_s):
        return math.inf
    ratio = math.sqrt(save_s / (2 * mtbf_s))
    return young(save_s, mtbf_s) * (1 + ratio / 3 + ratio**2 / 9) - save_s


def best_interval(mtbf_s: float, costs: Costs) -> float:
    """Daly's interval, but never shorter than a checkpoint takes to be written."""
    return max(daly(costs.save_s, mtbf_s), costs.lag_s)


def expected_s(work_s: float, interval_s: float, mtbf_s: float, costs: Costs) -> float:
    """Mean wall-clock seconds of `work_s` of training with a checkpoint per `interval_s` of it.

    Failures are exponential with mean M. With D dead after each and a restart of R, which may
    itself be struck, a stretch of L seconds that must pass without a failure takes on average
    (M + D) e^(R/M) (e^(L/M) - 1), which is Daly's where D = 0. A stretch is an interval and
    its save; the last is what is left of the work, and is not saved. In front comes the first
    start, a stretch of R that is its own restart: (M + D) (e^(R/M) - 1).
    Infinite if it would never end. Raises `ValueError` for an interval that is not positive.
    """
    if interval_s <= 0:
        raise ValueError(f"a checkpoint interval of {interval_s} s is not possible; give above 0 s")
    if work_s <= 0:
        return 0.0
    full = max(0, math.ceil(work_s / interval_s) - 1)
    rest = work_s - full * interval_s
    if math.isinf(mtbf_s):
        return costs.restart_s + work_s + full * costs.save_s
    dead = mtbf_s + costs.dead_s + min(costs.lag_s, interval_s)
    first = dead * _expm1(costs.restart_s / mtbf_s)
    again = dead * (1 + _expm1(costs.restart_s / mtbf_s))
    stretches = full * _expm1((interval_s + costs.save_s) / mtbf_s) + _expm1(rest / mtbf_s)
    return first + again * stretches


def _expm1(x: float) -> float:
    return math.expm1(x) if x < _MAX_EXPONENT else math.inf


def _poisson_mean(count: int, probability: float) -> float:
    """The mean at which a Poisson variable is at most `count` with this probability.

    Half a chi-square quantile of 2 (count + 1) degrees of freedom; by bisection, so that asking
    for the status loads no numerical library.
    """
    low, high = 0.0, 10.0 * (count + 5)
    for _ in range(100):
        middle = (low + high) / 2
        if _poisson_at_most(count, middle) > probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _poisson_at_most(count: int, mean: float) -> float:
    if mean == 0:
        return 1.0
    return math.fsum(
        math.exp(k * math.log(mean) - mean - math.lgamma(k + 1)) for k in range(count + 1)
    )
