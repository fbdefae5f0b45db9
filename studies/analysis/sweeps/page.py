"""The report's section on a sweep: its trials, what matters, what is within noise of the winner,
the Pareto front, and how the optimum moves with size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studies.analysis.report.style import Drawing, finish, legend, new_figure, style
from studies.analysis.sweeps.trials import (
    Optimum,
    Search,
    Trend,
    noise,
    optimum,
    transfers,
    trend,
    within_noise,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _VERMILION, _GREY, _GREEN = "#0072B2", "#D55E00", "#999999", "#009E73"
_COLUMNS = 2
_MAX_LISTED = 6
"""Settings within noise that the page spells out."""


def sweep_drawings(searches: Sequence[Search]) -> list[Drawing]:
    """Figures of a sweep that has trials; none without."""
    begun = [s for s in searches if s.trials]
    if not begun:
        return []
    drawings: list[Drawing | None] = [_trials(begun), _importance(begun)]
    drawings += [_front(search) for search in begun if len(search.protocols) > 1]
    drawings += [_trend(found, begun) for found in _trends(begun)]
    return [d for d in drawings if d is not None]


def short(key: str) -> str:
    """A dotted setting without its stage: `pretrain.decoder.depth` is `decoder depth`."""
    return " ".join(key.split(".")[1:] or [key]).replace("_", " ")


def settings_text(settings: Mapping[str, Any]) -> str:
    """`mask ratio 0.75, decoder depth 4`."""
    return ", ".join(
        f"{short(k)} {v:.4g}" if isinstance(v, float) else f"{short(k)} {v}"
        for k, v in settings.items()
    )


def _grid(count: int, height: float) -> tuple[Any, list[Axes]]:
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
        axes.plot(x, y, "o", ms=5, color=_BLUE, mec="white", mew=0.6, label="trial")
        best = [max(y[: i + 1]) for i in range(len(y))]
        axes.step(x, best, where="post", color=_GREY, lw=1.2, label="best so far", zorder=1)
        moved = [(t.number, search.score(t)) for t in search.trials if t.is_transferred]
        if moved:
            axes.plot(*zip(*moved, strict=True), "D", ms=7, color=_GREEN, label="transferred")
        won = search.trial(search.winner)
        if won is not None:
            at = (won.number, search.score(won))
            axes.plot(*at, "o", ms=12, mfc="none", mec=_VERMILION, mew=2, label="winner")
        again = list(search.repeats.values())
        if again:
            axes.plot(
                [max(x) + 1] * len(again), again, "_", ms=12, mew=2, color=_VERMILION,
                label="winner at other seeds",
            )  # fmt: skip
        spread = noise(search)
        if spread is not None:
            axes.axhspan(
                spread.centre - spread.margin, max(y + again), color=_VERMILION, alpha=0.10, lw=0
            )
        axes.set_title(search.label or search.objective, loc="left")
        axes.set_xlabel("trial")
        axes.set_ylabel(f"{search.objective} on dev (%)")
        axes.grid(True)
    legend(figure, *panels)
    return finish(
        figure,
        "sweep-trials",
        "Every finished trial, in the order in which it was asked for; the line is the best so "
        "far, the band what cannot be told from the winner. The winner's own score is the best of "
        "many and too high; its runs at other seeds, if any, are at right.",
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
        axes.barh([short(n) for n in names], shares, color=_BLUE)
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
    axes.plot(x, y, "o", ms=5, color=_GREY, mec="white", mew=0.6, label="trial")
    axes.plot(
        [t.values[0] for t in on_front], [t.values[1] for t in on_front], "o-", ms=6,
        color=_BLUE, lw=1.2, label="Pareto front",
    )  # fmt: skip
    won = search.trial(search.winner)
    if won is not None:
        axes.plot(*won.values[:2], "o", ms=13, mfc="none", mec=_VERMILION, mew=2, label="winner")
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


def _trends(searches: Sequence[Search]) -> list[Trend]:
    keys = dict.fromkeys(key for s in searches for key in s.keys)
    found = [trend(searches, key) for key in keys]
    return [t for t in found if t is not None and any(o.status == "inside" for _, o in t.points)]


@style()
def _trend(found: Trend, searches: Sequence[Search]) -> Drawing:
    """Optimum against encoder parameters with intervals; what is not quoted is hollow."""
    figure, (axes,) = _grid(1, 3.0)
    tried = [o.tried for _, o in found.points if o.tried]
    low, high = min(t[0] for t in tried), max(t[1] for t in tried)
    for params, at in found.points:
        if at.status == "inside" and at.at is not None:
            ends = (at.low if at.low is not None else low, at.high if at.high is not None else high)
            axes.plot([params, params], ends, color=_BLUE, lw=1.5)
            axes.plot([params], [at.at], "o", ms=7, color=_BLUE)
        elif at.status == "edge":
            axes.plot([params], [(low * high) ** 0.5 if found.is_log else (low + high) / 2], "x",
                      ms=7, color=_GREY)  # fmt: skip
    if found.slope is not None and found.intercept is not None:
        ends_x = [min(n for n, _ in found.points), max(n for n, _ in found.points)]
        line = [found.intercept + found.slope * math.log10(n) for n in ends_x]
        axes.plot(ends_x, [10**v for v in line] if found.is_log else line, "--", color=_VERMILION)
    axes.set_xscale("log")
    axes.set_yscale("log" if found.is_log else "linear")
    axes.axhline(low, color=_GREY, lw=0.8, ls=":")
    axes.axhline(high, color=_GREY, lw=0.8, ls=":")
    axes.set_xlabel("encoder parameters")
    axes.set_ylabel(f"best {short(found.key)}")
    axes.set_title(f"Best {short(found.key)} by size", loc="left")
    axes.grid(True)
    return finish(
        figure,
        f"sweep-trend-{short(found.key).replace(' ', '-')}",
        f"Vertex of the response surface over {short(found.key)} with its 90 % interval at each "
        "size; dotted: the values tried. A cross stands for an optimum at their edge, which is not "
        f"quoted. {found.verdict[0].upper()}{found.verdict[1:]}.",
    )


def sweep_lines(searches: Sequence[Search]) -> list[tuple[str, ...]]:
    """A table: per size the winner, its own score and its score at other seeds, the noise."""
    header = (
        "size",
        "trials",
        "winner",
        "own score %",
        "at other seeds %",
        "within noise",
        "noise",
    )
    lines: list[tuple[str, ...]] = [header]
    for search in searches:
        won = search.trial(search.winner)
        spread = noise(search)
        again = list(search.repeats.values())
        mean = sum(again) / len(again) if again else 0.0
        lines.append(
            (
                search.label or "all",
                f"{len(search.trials)} of {search.wanted}",
                settings_text(won.settings) if won else "not decided",
                f"{search.score(won):.1f}" if won else "–",
                f"{mean:.1f} (n = {len(again)})" if again else "not run",
                f"{len(within_noise(search))} settings" if won else "–",
                f"{spread.sd:.2f} points ({spread.source})" if spread else "unknown",
            )
        )
    return lines


def sweep_texts(searches: Sequence[Search]) -> list[str]:
    """Sentences: settings within noise, bias of the winner, optima, trends, transfer, the files."""
    texts: list[str] = []
    for search in searches:
        texts += _texts_of(search)
    texts += [f"{short(t.key).capitalize()}: {t.verdict}{_slope(t)}." for t in _trends(searches)]
    for moved in transfers(searches):
        verdict = {
            True: "it cannot be told from the best, which does not contradict the transfer",
            False: "it is beaten by more than noise: the transfer does not hold",
            None: "no noise is known to judge it by",
        }[moved.holds]
        margin = "" if moved.margin is None else f" (noise margin {moved.margin:.1f})"
        texts.append(
            f"{moved.label}: the setting that won at the size before is number {moved.rank} of "
            f"{moved.num_trials} trials, {moved.behind:.1f} points below the best{margin}: "
            f"{verdict}."
        )
    journals = [s.journal for s in searches if s.journal and s.trials]
    if journals:
        texts.append(f"Every trial in the browser: optuna-dashboard {journals[0]}")
    return texts


def _texts_of(search: Search) -> list[str]:
    name = f"{search.label}: " if search.label else ""
    won = search.trial(search.winner)
    if won is None:
        return []
    close = within_noise(search)
    shown = "; ".join(
        f"{settings_text(t.settings)} ({search.score(t):.1f})" for t in close[:_MAX_LISTED]
    )
    more = f"; and {len(close) - _MAX_LISTED} more" if len(close) > _MAX_LISTED else ""
    texts = [f"{name}settings that cannot be told from the winner: {shown}{more}."]
    spread = noise(search)
    if spread is not None and spread.source == "repeats":
        bias = search.score(won) - spread.centre
        texts.append(
            f"{name}at {spread.n} other seeds the winner scores {spread.centre:.1f} ± "
            f"{spread.sd:.2f}, {abs(bias):.1f} points {'below' if bias >= 0 else 'above'} its own "
            "score as a trial."
        )
    elif spread is not None:
        texts.append(
            f"{name}noise is taken from the size of the dev set ({spread.n} images) alone: the "
            "seed adds to it; name repeat_seeds to measure it."
        )
    if len(search.protocols) > 1:
        by_rank = search.rule == "mean_rank"
        rule = "of the best mean rank" if by_rank else f"that is best by {search.objective}"
        count = len(search.front)
        trials = f"{count} trial{'s' if count != 1 else ''}"
        texts.append(f"{name}{trials} on the Pareto front; the winner is the one {rule}.")
    found = [optimum(search, key) for key in search.keys]
    return texts + [f"{name}{_optimum_text(o)}." for o in found if o.status != "few"]


def _optimum_text(found: Optimum) -> str:
    what = short(found.key)
    if found.status == "edge":
        return f"the best {what} lies at the edge of the values tried and is not quoted"
    if found.status == "flat" or found.at is None:
        return f"{what} has no optimum that can be told from a flat response"
    low = "the lowest tried" if found.low is None else f"{found.low:.3g}"
    high = "the highest tried" if found.high is None else f"{found.high:.3g}"
    return f"the best {what} is {found.at:.3g} (90 % interval {low} to {high})"


def _slope(found: Trend) -> str:
    if found.slope is None:
        return ""
    unit = "decades" if found.is_log else "units"
    return (
        f" ({found.slope:+.3g} {unit} per tenfold parameters, 90 % interval "
        f"{found.slope_low:+.3g} to {found.slope_high:+.3g})"
    )


def sweep_json(searches: Sequence[Search]) -> list[dict[str, Any]]:
    """Everything of the section, as plain values."""
    return [
        {
            "size": s.label or None,
            "encoder_params": s.params,
            "protocols": list(s.protocols),
            "winner": s.winner,
            "front": list(s.front),
            "within_noise": [t.number for t in within_noise(s)],
            "noise_sd": spread.sd if (spread := noise(s)) else None,
            "noise_source": spread.source if spread else None,
            "repeats": {str(seed): score for seed, score in s.repeats.items()},
            "importance": dict(s.importance),
            "optima": {k: _optimum_json(optimum(s, k)) for k in s.keys},
            "trials": [
                {"trial": t.number, "settings": dict(t.settings), "values": list(t.values)}
                for t in s.trials
            ],
        }
        for s in searches
    ]


def _optimum_json(found: Optimum) -> dict[str, Any]:
    return {"status": found.status, "at": found.at, "low": found.low, "high": found.high}
