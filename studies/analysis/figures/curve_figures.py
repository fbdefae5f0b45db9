"""Figures of the first-curves report: each function takes numbers and returns one drawing.

Matplotlib's object interface only (no pyplot, no global figure), imported when a figure is made.
Figures are narrow, one protocol each, so that a page can stack them on a phone.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studies.analysis.curves.curves import (
    UNTRAINED,
    Curve,
    Point,
    baseline_caption,
    duration_caption,
    duration_positions,
    point_text,
)
from studies.analysis.figures.drawing import (
    Drawing,
    finish,
    legend,
    log_ticks,
    new_figure,
    point_at,
    style,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Array = np.ndarray[Any, np.dtype[Any]]

# Okabe and Ito's palette, safe for colour-blind readers.
ROLE_COLOURS = {
    "grid": "#0072B2",
    "untrained": "#999999",
    "baseline": "#E69F00",
    "sweep": "#009E73",
    "repeat": "#56B4E9",
}
_GREY, _VERMILION, _INK = "#6b6b6b", "#D55E00", "#222222"
_MARKERS = "osD^vPX*"
_MEANS: Any = {"ms": 6, "linewidth": 1.6, "mec": "white", "mew": 0.6, "zorder": 3}


@style()
def accuracy_by_duration(curve: Curve, name: str) -> Drawing | None:
    """Top-1 against duration: a line per size, a dot per seed, the untrained network at left."""
    if not curve.points:
        return None
    figure, axes = _canvas(curve.label)
    x = duration_positions(curve)
    for size, colour, marker in _styles(curve.sizes, "viridis"):
        _size_line(axes, curve, size, x, colour, marker)
    _baseline(axes, curve.baseline)
    _duration_axis(axes, curve, x)
    legend(figure, axes)
    return finish(figure, name, duration_caption(curve))


@style()
def accuracy_by_parameters(curve: Curve, name: str) -> Drawing | None:
    """Top-1 against encoder parameters (log): a line per duration."""
    points = [p for p in curve.points.values() if p.encoder_params]
    if not points:
        return None
    figure, axes = _canvas(curve.label)
    for duration, colour, marker in _styles((UNTRAINED, *curve.durations), "plasma"):
        line = sorted((p for p in points if p.duration == duration), key=_params)
        style = ("--", _GREY) if duration == UNTRAINED else ("-", colour)
        _line(axes, [(_params(p), p) for p in line], duration, style, marker)
    _baseline(axes, curve.baseline)
    axes.set_xscale("log")
    sizes = {_params(p): f"{p.size}\n{_si(_params(p))}" for p in points}
    _ticks(axes, list(sizes), list(sizes.values()))
    axes.set_xlabel("encoder parameters (log scale)")
    legend(figure, axes)
    caption = (
        f"{curve.label}: top-1 against encoder parameters (decoder, head and fixed positions not "
        "counted). Dots are seeds, lines join means of one duration."
    )
    return finish(figure, name, caption + baseline_caption(curve))


@style()
def accuracy_by_flops(curve: Curve, name: str) -> Drawing | None:
    """Top-1 against pretraining FLOPs (log): a line per size; untrained networks have none."""
    if not any(p.pretrain_flops for p in curve.points.values()):
        return None
    figure, axes = _canvas(curve.label)
    for size, colour, marker in _styles(curve.sizes, "viridis"):
        line = [(p.pretrain_flops, p) for p in curve.line(size) if p.pretrain_flops]
        _line(axes, sorted(line, key=lambda pair: pair[0]), size, ("-", colour), marker)
    _baseline(axes, curve.baseline)
    axes.set_xscale("log")
    axes.set_xlabel("pretraining compute (FLOPs, log scale)")
    log_ticks(axes)
    legend(figure, axes)
    caption = (
        f"{curve.label}: top-1 against the algorithmic FLOPs of the whole pretraining (encoder on "
        "visible tokens, decoder on all). Each point is a full run of its own. "
        "Untrained networks cost nothing and are not on a logarithmic axis."
    )
    return finish(figure, name, caption + baseline_caption(curve))


@style()
def cost_bars(cost: Mapping[tuple[str, str], float], name: str) -> Drawing | None:
    """Rank-seconds by stage kind, stacked by what the cell was for."""
    if not any(seconds > 0 for seconds in cost.values()):
        return None
    kinds = sorted(
        {kind for kind, _ in cost}, key=lambda kind: sum(v for k, v in cost.items() if k[0] == kind)
    )
    unit, scale = ("rank-hours", 3600.0) if sum(cost.values()) > 7200 else ("rank-seconds", 1.0)
    figure = new_figure(5.0, 1.5 + 0.45 * len(kinds))
    axes = figure.add_subplot()
    left = dict.fromkeys(kinds, 0.0)
    for role in [r for r in ROLE_COLOURS if any(key[1] == r for key in cost)]:
        widths = [cost.get((kind, role), 0.0) / scale for kind in kinds]
        axes.barh(kinds, widths, left=list(left.values()), color=ROLE_COLOURS[role], label=role)
        left = {kind: left[kind] + w for kind, w in zip(kinds, widths, strict=True)}
    for i, total in enumerate(left.values()):
        form = ",.0f" if total >= 100 else ".3g"
        axes.annotate(f" {total:{form}}", (total, i), va="center", fontsize=8.5)
    axes.margins(x=0.12)
    axes.grid(axis="x")
    axes.set_xlabel(f"{unit} (wall-clock × ranks)")
    legend(figure, axes)
    caption = "Wall-clock time of the attempts that finished, times ranks; shared stages once."
    return finish(figure, name, caption)


def _size_line(
    axes: Axes, curve: Curve, size: str, x: Mapping[str, float], colour: str, marker: str
) -> None:
    trained = curve.line(size)
    _line(axes, [(x[p.duration], p) for p in trained], size, ("-", colour), marker)
    start = curve.points.get((size, UNTRAINED))
    if start is None:
        return
    _line(axes, [(x[UNTRAINED], start)], size, ("", colour), marker, named=not trained)
    if trained:
        # Dashed: the axis is broken between the untrained network and the first duration.
        at, means = [x[UNTRAINED], x[trained[0].duration]], [start.mean, trained[0].mean]
        axes.plot(at, means, "--", color=colour, linewidth=0.9, alpha=0.7)


def _line(
    axes: Axes,
    pairs: Sequence[tuple[float, Point]],
    label: str,
    style: tuple[str, str],
    marker: str,
    *,
    named: bool = True,
) -> None:
    """Means joined by a line, hollow where a point is none of the curve's; a dot per seed."""
    if not pairs:
        return
    dash, colour = style
    kind = {**_MEANS, "linestyle": dash or "none", "color": colour, "marker": marker}
    name = label if named else None
    drawn = axes.plot([x for x, _ in pairs], [p.mean for _, p in pairs], label=name, **kind)
    odd = [(x, p) for x, p in pairs if p.odd]
    hollow: Any = {"ms": 8, "mfc": "white", "mec": colour, "mew": 1.6, "zorder": 3.5}
    drawn += axes.plot(
        [x for x, _ in odd], [p.mean for _, p in odd], linestyle="none", marker=marker, **hollow
    )
    dots = [(x, value) for x, p in pairs for value in p.values.values()]
    x, y = [d[0] for d in dots], [d[1] for d in dots]
    seeds: Any = {"facecolors": "white", "edgecolors": colour, "linewidths": 0.8, "zorder": 4}
    point_at(axes, label, [*drawn, axes.scatter(x, y, s=9, **seeds)], _texts(pairs))


def _texts(pairs: Sequence[tuple[float, Point]]) -> Iterator[tuple[float, float, str]]:
    """What each mean and each seed is, for whoever points at it."""
    for x, p in pairs:
        for seed, value in p.values.items():
            yield x, value, f"{p.size}, {p.duration}, seed {seed}: {value:.2f}"
        yield x, p.mean, point_text(p)


def _baseline(axes: Axes, values: Sequence[float]) -> None:
    if not values:
        return
    mean = sum(values) / len(values)
    axes.axhline(mean, linestyle=(0, (5, 3)), color=_INK, linewidth=1.0, label="raw pixels")
    # In axes coordinates: the baseline has no duration, size or compute.
    across = axes.get_yaxis_transform()
    axes.scatter([0.985] * len(values), values, s=9, color=_INK, transform=across, zorder=4)


def _duration_axis(axes: Axes, curve: Curve, x: Mapping[str, float]) -> None:
    shown = list(curve.durations)
    if any(p.duration == UNTRAINED for p in curve.points.values()):
        shown = [UNTRAINED, *shown]
        if curve.durations:
            edge = (x[UNTRAINED] + x[curve.durations[0]]) / 2
            axes.axvline(edge, linestyle=":", color=_GREY, linewidth=0.9)
    epochs = {p.duration: p.epochs for p in curve.points.values()}
    known = all(epochs[d] for d in curve.durations)
    labels = [f"{epochs[d]:g}" if known and d != UNTRAINED else d for d in shown]
    axes.set_xlabel("pretraining duration (epochs, log scale)" if known else "pretraining duration")
    _ticks(axes, [x[d] for d in shown], labels)
    axes.margins(x=0.08)


def _styles(names: Sequence[str], palette: str) -> list[tuple[str, str, str]]:
    """(name, colour, marker) in order, from dark to light but never too pale for white paper."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    top = 0.82 / max(len(names) - 1, 1)
    colours = [to_hex(colormaps[palette](i * top)) for i in range(len(names))]
    return [
        (n, c, _MARKERS[i % len(_MARKERS)])
        for i, (n, c) in enumerate(zip(names, colours, strict=True))
    ]


def _params(point: Point) -> float:
    return float(point.encoder_params or 0)


def _si(value: float) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"


def _canvas(title: str) -> tuple[Figure, Axes]:
    figure = new_figure(4.8, 3.9)
    axes = figure.add_subplot()
    axes.set_title(textwrap.fill(title, 52), loc="left")
    axes.set_ylabel("top-1 accuracy (%)")
    axes.grid(True)
    return figure, axes


def _ticks(axes: Axes, at: Sequence[float], labels: Sequence[str]) -> None:
    crowded = len(at) > 7
    axes.set_xticks(at, labels, rotation=35 if crowded else 0, ha="right" if crowded else "center")
    axes.set_xticks([], minor=True)
