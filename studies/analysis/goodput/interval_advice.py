"""Which checkpoint interval would have been best, and whether the law explains what was seen."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from studies.analysis.goodput.accounting import Goodput, total
from studies.analysis.goodput.interval_law import (
    Costs,
    FailureRate,
    best_interval,
    expected_s,
    failure_rate,
    young,
)


@dataclass(frozen=True, kw_only=True)
class IntervalAdvice:
    """The best interval at the rate seen; prediction and measurement side by side.

    Intervals are seconds of training between checkpoints, shares are per cent of the time from
    a stage's first start to its end.
    """

    rate: FailureRate
    costs: Costs
    interval_s: float
    """In use, as measured: the median."""
    best_s: float
    """By Daly's formula at the rate seen. Without a failure: at the highest rate that the time
    seen allows for, so that a shorter interval cannot pay."""
    young_s: float
    """The same by Young's, without the limit that writing a checkpoint sets."""
    best_share: float
    """Useful share predicted for `best_s`."""
    predicted_share: float
    """Useful share predicted for `interval_s`."""
    measured_share: float

    def to_dict(self) -> dict[str, object]:
        """Plain values; what is infinite becomes None."""
        values = asdict(self) | {"mtbf_s": self.rate.mtbf_s}
        return {k: None if v == math.inf else v for k, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class StudyGoodput:
    """Where the time of a study went."""

    stages: Mapping[str, Goodput]
    """By address; only stages that were ever started, each identity once."""
    advice: IntervalAdvice | None

    @property
    def whole(self) -> Goodput:
        """All stages as one."""
        return total(self.stages.values())

    @property
    def is_empty(self) -> bool:
        """True if nothing was ever started."""
        return not self.stages

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return {
            "whole": to_plain(self.whole),
            "stages": [{"stage": a, **to_plain(g)} for a, g in self.stages.items()],
            "advice": self.advice.to_dict() if self.advice else None,
        }


def to_plain(goodput: Goodput) -> dict[str, object]:
    """A stage's goodput as plain values: seconds, shares in per cent, counts."""
    return {
        "attempts": goodput.attempts,
        "causes": dict(goodput.causes),
        "failures": goodput.failures,
        "lost_steps": goodput.lost_steps,
        "span_s": round(goodput.span_s, 3),
        "seconds": {b: round(s, 3) for b, s in goodput.seconds.items()},
        "shares": {b: round(s, 3) for b, s in goodput.shares.items()},
    }


def costs_of(goodput: Goodput) -> Costs:
    """Mean costs as measured; those that were never seen are 0."""
    return Costs(
        save_s=_mean(goodput.stalls_s),
        restart_s=goodput.training_starts_s / goodput.trainings if goodput.trainings else 0.0,
        dead_s=goodput.failure_dead_s / goodput.failures if goodput.failures else 0.0,
        lag_s=_mean(goodput.lags_s),
    )


def advise_interval(stages: Sequence[Goodput]) -> IntervalAdvice | None:
    """Advice for trainings under one failure rate; None before a checkpoint was committed.

    The prediction is for the useful seconds that each stage has done so far. What was stopped on
    purpose, or at a checkpoint in time, is no failure: its restart and its pause are added.
    """
    whole = total(stages)
    interval_s = whole.interval_s
    if interval_s is None or whole.alive_s <= 0 or whole.span_s <= 0:
        return None
    rate, costs = failure_rate(whole.failures, whole.alive_s), costs_of(whole)
    assumed_mtbf_s = rate.mtbf_s if rate.failures else rate.shortest_mtbf_s
    best_s = best_interval(assumed_mtbf_s, costs) or interval_s  # a save that costs nothing

    def share(interval_s: float) -> float:
        work = [g.seconds["useful"] for g in stages]
        taken = sum(expected_s(w, interval_s, rate.mtbf_s, costs) for w in work)
        taken += whole.stop_dead_s + whole.stops * costs.restart_s
        return 100 * sum(work) / taken if 0 < taken < math.inf else 0.0

    return IntervalAdvice(
        rate=rate,
        costs=costs,
        interval_s=interval_s,
        best_s=best_s,
        young_s=young(costs.save_s, assumed_mtbf_s),
        best_share=share(best_s),
        predicted_share=share(interval_s),
        measured_share=whole.shares["useful"],
    )


def sentence(advice: IntervalAdvice) -> str:
    """The advice in words, as one sentence."""
    words = _words(advice)
    return f"{words[0].upper()}{words[1:]}."


def _words(advice: IntervalAdvice) -> str:
    rate = advice.rate
    seen = f"in {short_time(rate.alive_s)} of running"
    now = (
        f"at the present interval of {short_time(advice.interval_s)}, {advice.predicted_share:.1f} "
        f"% predicted and {advice.measured_share:.1f} % measured"
    )
    if not rate.failures:
        return (
            f"no failure {seen}, so with 95 % confidence fewer than one per "
            f"{short_time(rate.shortest_mtbf_s)}: no interval under {short_time(advice.best_s)} "
            f"would pay; useful {now}"
        )
    plural = "" if rate.failures == 1 else "s"
    return (
        f"a checkpoint every {short_time(advice.best_s)} would be best at the rate seen "
        f"({rate.failures} failure{plural} {seen}; mean {short_time(rate.mtbf_s)} between them, 90 "
        f"% interval {short_time(1 / rate.high)} to {short_time(1 / rate.low)}): useful share "
        f"{advice.best_share:.1f} % predicted; {now}"
    )


def causes_text(goodput: Goodput) -> str:
    """`rank died 12, preempted 2`: how attempts ended that did not succeed; most frequent first."""
    causes = sorted(goodput.causes.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{cause} {count}" for cause, count in causes)


def short_time(seconds: float) -> str:
    """`0.42 s`, `42 s`, `12.5 min`, `3.4 h`, `120 d`: three figures."""
    units = ((90.0, "s", 1), (5400.0, "min", 60), (172800.0, "h", 3600), (math.inf, "d", 86400))
    unit, size = next((u, n) for limit, u, n in units if seconds < limit or u == "d")
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
