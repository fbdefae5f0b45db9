"""Where the time went, on the report's page: bars, a table and sentences."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from studies.analysis.figures.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Drawing,
    finish,
    legend,
    new_figure,
    style,
)
from studies.analysis.goodput.accounting import BUCKETS, Goodput
from studies.analysis.goodput.interval_advice import StudyGoodput, short_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "useful": GREEN,
    "starting": SKY,
    "restoring": BLUE,
    "saving": ORANGE,
    "replayed": PURPLE,
    "failed": VERMILION,
    "waiting": GREY,
}
MAX_BARS = 12
_LABEL_WIDTH = 34
_LEAST_LABELLED = 7.0
"""Per cent of a bar that a number fits into."""


def longest(goodput: StudyGoodput) -> dict[str, Goodput]:
    """The stages with most time, at most `MAX_BARS`, longest first."""
    by_span = sorted(goodput.stages.items(), key=lambda item: -item[1].span_s)
    return dict(by_span[:MAX_BARS])


@style()
def goodput_bars(goodput: StudyGoodput, name: str) -> Drawing | None:
    """Shares of the time per bucket: a bar for the study, one for each of its longest stages."""
    if goodput.whole.span_s <= 0:
        return None
    stages = longest(goodput)
    bars = {f"all {len(goodput.stages)} stages": goodput.whole, **stages}
    if len(goodput.stages) == 1:
        bars = stages
    figure = new_figure(6.6, 1.3 + 0.36 * len(bars))
    axes = figure.add_subplot()
    _stack(axes, list(bars.values()))
    labels = [f"{_short(a)}  ({short_time(g.span_s)})" for a, g in bars.items()]
    axes.set_yticks(range(len(bars)), labels, fontsize=8.5)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the time from first start to end (%)")
    legend(figure, axes)
    left_out = len(goodput.stages) - len(stages)
    caption = (
        "Every second of every attempt in one bucket. Useful: steps done for the first time. "
        "Replayed: steps that an earlier attempt had done. Failed: from the last finished step to "
        "the end of an attempt that did not succeed. Waiting: between attempts."
        + (f" The {left_out} shorter stages are in the sum only." if left_out else "")
    )
    return finish(figure, name, caption)


def _stack(axes: Axes, bars: list[Goodput]) -> None:
    left = [0.0] * len(bars)
    for bucket in BUCKETS:
        widths = [g.shares[bucket] for g in bars]
        if not any(widths):
            continue
        axes.barh(range(len(bars)), widths, left=left, color=COLOURS[bucket], label=bucket)
        for y, (x, width) in enumerate(zip(left, widths, strict=True)):
            if width >= _LEAST_LABELLED:
                middle = (x + width / 2, y)
                axes.annotate(f"{width:.0f}", middle, ha="center", va="center", fontsize=8)
        left = [x + width for x, width in zip(left, widths, strict=True)]


def _short(address: str) -> str:
    return textwrap.shorten(address, _LABEL_WIDTH, placeholder="…") or address[:_LABEL_WIDTH]
