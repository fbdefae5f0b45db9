"""Figures of a sweep: its trials with their noise, which settings matter, the Pareto front, and how
the optimum moves with size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies.analysis.figures.drawing import (
    BLUE,
    GREEN,
    GREY,
    VERMILION,
    Drawing,
    finish,
    legend,
    new_figure,
    style,
)
from studies.analysis.sweeps.optima import Search, Trend, noise, trends
from studies.analysis.sweeps.settings import short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 2


def sweep_drawings(searches: Sequence[Search]) -> list[Drawing]:
    """Figures of a sweep that has trials; none without."""
    begun = [s for s in searches if s.trials]
    if not begun:
        return []
    drawings: list[Drawing | None] = [_trials(begun), _importance(begun)]
    drawings += [_front(search) for search in begun if len(search.protocols) > 1]
    drawings += [_trend(found, begun) for found in trends(begun)]
    return [d for d in drawings if d is not None]


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = new_figure(3.0 + 2.2 * columns, height * rows + 0.5)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


@style()
def _trials(searches: Sequence[Search]) -> Drawing:
    """Scores in the order of the trials, the best so far, and the band of noise."""
    figure, panels = _grid(len(searches), 2.6)
    for search, axes in zip(searches, panels, strict=True):
        x = [t.number for t in search.trials]
        y = [search.score(t) for t in search.trials]
        axes.plot(x, y, "o", ms=5, color=BLUE, mec="white", mew=0.6, label="trial")
        best = [max(y[: i + 1]) for i in range(len(y))]
        axes.step(x, best, where="post", color=GREY, lw=1.2, label="best so far", zorder=1)
        moved = [(t.number, search.score(t)) for t in search.trials if t.is_transferred]
        if moved:
            axes.plot(*zip(*moved, strict=True), "D", ms=7, color=GREEN, label="transferred")
        won = search.trial(search.winner)
        if won is not None:
            at = (won.number, search.score(won))
            axes.plot(*at, "o", ms=12, mfc="none", mec=VERMILION, mew=2, label="winner")
        again = list(search.repeats.values())
        if again:
            axes.plot(
                [max(x) + 1] * len(again),
                again,
                "_",
                ms=12,
                mew=2,
                color=VERMILION,
                label="winner at other seeds",
            )
        spread = noise(search)
        if spread is not None:
            axes.axhspan(
                spread.centre - spread.margin, max(y + again), color=VERMILION, alpha=0.10, lw=0
            )
        axes.set_title(search.label or search.objective, loc="left")
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{search.objective} on dev (%)")
        axes.grid(True)
    legend(figure, *panels)
    return finish(
        figure,
        "sweep-trials",
        "Every finished trial, in the order of their start; the line is the best so far, the band "
        "what cannot be distinguished from the winner. The winner's own score is the best of many "
        "and too high; its runs at other seeds, if any, are at right.",
    )


@style()
def _importance(searches: Sequence[Search]) -> Drawing | None:
    """Bars of the variance that each setting explains."""
    with_any = [s for s in searches if s.importance]
    if not with_any:
        return None
    figure, panels = _grid(len(with_any), 0.9 + 0.3 * max(len(s.importance) for s in with_any))
    for search, axes in zip(with_any, panels, strict=True):
        names = list(search.importance)[::-1]
        shares = [100 * search.importance[name] for name in names]
        axes.barh([short(n) for n in names], shares, color=BLUE)
        axes.set_xlim(0, 100)
        axes.set_xlabel("share of the variance (%)")
        axes.set_title(search.label or search.objective, loc="left")
    return finish(
        figure,
        "sweep-importance",
        "Share of the variance of the score over the space that each setting alone or with others "
        "explains: functional ANOVA on a random forest. With few trials it is a hint.",
    )


@style()
def _front(search: Search) -> Drawing:
    """Two protocols against each other, the Pareto front joined."""
    figure, (axes,) = _grid(1, 3.2)
    (name_x, name_y) = search.protocols[:2]
    on_front = sorted(
        (t for t in search.trials if t.number in search.front), key=lambda t: t.values
    )
    x, y = [t.values[0] for t in search.trials], [t.values[1] for t in search.trials]
    axes.plot(x, y, "o", ms=5, color=GREY, mec="white", mew=0.6, label="trial")
    axes.plot(
        [t.values[0] for t in on_front],
        [t.values[1] for t in on_front],
        "o-",
        ms=6,
        color=BLUE,
        lw=1.2,
        label="Pareto front",
    )
    won = search.trial(search.winner)
    if won is not None:
        axes.plot(*won.values[:2], "o", ms=13, mfc="none", mec=VERMILION, mew=2, label="winner")
    axes.set_xlabel(f"{name_x} on dev (%)")
    axes.set_ylabel(f"{name_y} on dev (%)")
    axes.set_title(search.label or "Several protocols at once", loc="left")
    axes.grid(True)
    legend(figure, axes)
    more = len(search.protocols) - 2
    return finish(
        figure,
        f"sweep-front{'-' + search.label if search.label else ''}",
        "Trials by two protocols; no trial beats one on the front in one protocol without losing "
        "in another."
        + (f" {more} more protocols count for the front and are not drawn." if more > 0 else ""),
    )


@style()
def _trend(found: Trend, searches: Sequence[Search]) -> Drawing:
    """SweepOptimum against encoder parameters with intervals; what is not quoted is hollow."""
    figure, (axes,) = _grid(1, 3.0)
    tried = [o.tried for _, o in found.points if o.tried]
    low, high = min(t[0] for t in tried), max(t[1] for t in tried)
    for params, at in found.points:
        if at.status == "inside" and at.at is not None:
            ends = (at.low if at.low is not None else low, at.high if at.high is not None else high)
            axes.plot([params, params], ends, color=BLUE, lw=1.5)
            axes.plot([params], [at.at], "o", ms=7, color=BLUE)
        elif at.status == "edge":
            axes.plot(
                [params],
                [(low * high) ** 0.5 if found.is_log else (low + high) / 2],
                "x",
                ms=7,
                color=GREY,
            )
    if found.slope is not None and found.intercept is not None:
        ends_x = [min(n for n, _ in found.points), max(n for n, _ in found.points)]
        line = [found.intercept + found.slope * math.log10(n) for n in ends_x]
        axes.plot(ends_x, [10**v for v in line] if found.is_log else line, "--", color=VERMILION)
    axes.set_xscale("log")
    axes.set_yscale("log" if found.is_log else "linear")
    axes.axhline(low, color=GREY, lw=0.8, ls=":")
    axes.axhline(high, color=GREY, lw=0.8, ls=":")
    axes.set_xlabel("encoder parameters")
    axes.set_ylabel(f"best {short(found.key)}")
    axes.set_title(f"Best {short(found.key)} by size", loc="left")
    axes.grid(True)
    return finish(
        figure,
        f"sweep-trend-{short(found.key).replace(' ', '-')}",
        f"Vertex of the response surface over {short(found.key)} with its 90 % interval at each "
        "size; dotted: the values tried. A cross stands for an optimum at their edge, which is "
        f"not quoted. {found.verdict[0].upper()}{found.verdict[1:]}.",
    )
