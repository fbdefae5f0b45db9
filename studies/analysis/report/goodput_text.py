"""Where the time went, in a table and sentences."""

from __future__ import annotations

from studies.analysis.figures.goodput_figure import longest
from studies.analysis.goodput.accounting import BUCKETS, Goodput
from studies.analysis.goodput.interval_advice import StudyGoodput, causes_text, sentence, short_time


def goodput_lines(goodput: StudyGoodput) -> list[tuple[str, ...]]:
    """A header, the sum, and each stage that is drawn or had more than one attempt."""
    drawn = longest(goodput)
    shown = {a: g for a, g in goodput.stages.items() if a in drawn or g.attempts > 1}
    header = ("stage", "attempts", "ended by", "repeated steps", "time")
    return [
        (*header, *(f"{bucket} %" for bucket in BUCKETS)),
        _line("all", goodput.whole),
        *(_line(address, g) for address, g in shown.items()),
    ]


def _line(address: str, goodput: Goodput) -> tuple[str, ...]:
    return (
        address,
        str(goodput.attempts),
        causes_text(goodput),
        str(goodput.lost_steps),
        short_time(goodput.span_s),
        *(f"{goodput.shares[bucket]:.1f}" for bucket in BUCKETS),
    )


def goodput_text(goodput: StudyGoodput) -> list[str]:
    """What to do about it: the best checkpoint interval, with prediction and measurement."""
    if goodput.advice is None:
        return []
    return [
        sentence(goodput.advice),
        "The best interval is Daly's (2006) at the mean stall per checkpoint and the mean time "
        "between failures seen; the prediction counts restarts, failures during a restart, and "
        "the work since the last checkpoint.",
    ]
