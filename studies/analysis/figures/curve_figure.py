"""A curve as a figure: measured points filled, each seed a dot, published ones hollow.

Figures are narrow, one curve each, so that a page can stack them on a phone.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studies.analysis.curves.curves import (
    COMPUTE,
    DURATION,
    PARAMETERS,
    UNTRAINED,
    Curve,
    CurvePoint,
    PublishedSeries,
    Series,
    plus_minus,
)
from studies.analysis.figures.drawing import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    Drawing,
    finish,
    log_ticks,
    new_figure,
    point_at,
    style,
)
from studies.result_row import Place

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
"""The strong ones first: for series that are categories."""
_RAMPS = {"size": "viridis", DURATION: "plasma"}
"""For series that are in an order."""
_MARKERS = "osD^vPX*"
_HOLLOW = "Dsv^o<>p"
_GREYS = ("#555555", "#888888", "#777777", "#aaaaaa")
_GREY = "#6b6b6b"
_YLABEL = {
    "top1": "top-1 accuracy (%)",
    "mce": "mean corruption error (%), lower is better",
    "speedup": "pretraining speed-up (×)",
    "relative_flops": "pretraining FLOPs (× the cheapest)",
}
_SHOWN = {
    "top1": "top-1",
    "mce": "mean corruption error, in per cent of a baseline's (lower is better)",
    "speedup": "rank-hours of the slowest pretraining of a series over a point's own",
    "relative_flops": "counted FLOPs of a pretraining over the cheapest of its series",
}
_NOTES = {
    PARAMETERS: "Decoder, head and fixed positions are not counted.",
    COMPUTE: "FLOPs are the algorithmic ones of the whole pretraining (encoder on visible tokens, "
    "decoder on all). Each point is a separate full run. Untrained networks cost nothing and are "
    "not on a logarithmic axis.",
}
_APART = 2.2
"""Ranges that together span this many times the larger of them get a panel each."""


@dataclass(frozen=True, kw_only=True)
class _Look:
    """How a series is drawn, and where along the axis its places lie."""

    colour: str
    marker: str
    x: Mapping[Place, float]
    is_joined: bool
    is_ground: bool = False
    """Whether it is of the untrained network, dashed and grey."""
    is_broken: bool = False
    """Whether its first place is the untrained network's, beyond a break of the axis."""


@style()
def curve_figure(curve: Curve, name: str) -> Drawing | None:
    """A measure over one axis: a line per series with its seeds, and the published numbers."""
    if not curve.series:
        return None
    x, is_log = _positions(curve)
    figure, panels = _panels(curve)
    measured, published = panels["measured"], panels["published"]
    is_apart = measured is not published
    for panel in (measured, published):
        panel.set_ylabel(_YLABEL[curve.measure], fontsize=8.5 if is_apart else 9.5)
        panel.grid(True)
    colours: dict[Place, str] = {}
    for series, look in zip(curve.series, _looks(curve, x), strict=True):
        _measured(measured, series, look)
        colours[dict(series.key).get("objective", "")] = look.colour
    for i, reference in enumerate(curve.published):
        # The same objective keeps its colour if there are several; else published is grey.
        own = colours.get(reference.objective) if len(curve.series) > 1 else None
        look = _Look(
            colour=own or _GREYS[i % len(_GREYS)],
            marker=_HOLLOW[i % len(_HOLLOW)],
            x=_aside(curve, x, len(curve.series) + i),
            is_joined=curve.axis.scale != "category",
        )
        _reference(published, curve, reference, look)
    _lines(measured, curve)
    _x_axis(curve, x, list(dict.fromkeys(panels.values())), is_log=is_log)
    _legend(figure, list(dict.fromkeys(panels.values())))
    return finish(figure, name, caption(curve, is_apart=is_apart))


def caption(curve: Curve, *, is_apart: bool) -> str:
    """What the figure shows, of what, and what it must not be read for."""
    counts = sorted({point.n for s in curve.series for point in s.points})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = [
        f"{curve.title}: {_SHOWN[curve.measure]} against {curve.axis.label}. Filled: measured "
        f"here, dots are seeds ({seeds} per point), bars ± 1 standard deviation over seeds."
    ]
    if curve.axis.name in _NOTES:
        text.append(_NOTES[curve.axis.name])
    if _has_ground(curve):
        text.append("The network before any training is at left, on a broken axis.")
    if len(curve.protocols) > 1:
        text.append(f"Protocols: {'; '.join(curve.protocols)}.")
    if curve.published:
        links = dict.fromkeys(link for s in curve.published for link in s.links)
        text.append(f"Hollow: published ({', '.join(links) or 'no link'}).")
    if is_apart:
        text.append("Published and measured accuracies lie far apart: each panel has its scale.")
    for line in curve.lines:
        own = line.protocol in curve.protocols or not curve.kind
        scored = "" if own else f", scored by {line.protocol}"
        text.append(f"Dashed: {line.label} (n = {len(line.values)}{scored}).")
    if curve.averaged and curve.is_scaling:
        text.append(f"{curve.averaged} repeated measurements of a seed are averaged into its dot.")
    return " ".join(text)


def point_text(point: CurvePoint) -> str:
    """A point in a line: where it stands, mean ± sd, seeds, and why it is none of its curve."""
    seeds = f"{point.n} seed{'' if point.n == 1 else 's'}"
    text = f"{point.series}, {point.label}: {plus_minus(point.mean, point.sd, 2)} ({seeds})"
    return text + (f". Not a point of this curve: {point.odd}" if point.odd else "")


def _panels(curve: Curve) -> tuple[Figure, dict[str, Axes]]:
    """One panel, or two with scales of their own where published and measured lie far apart."""
    own = [v for s in curve.series for p in s.points for v in p.values.values()]
    own += [v for line in curve.lines for v in line.values]
    other = [value for s in curve.published for _, value in s.points]
    title = textwrap.fill(curve.title, 52)
    if not other or not _far_apart(own, other):
        figure = new_figure(4.8, 3.9)
        axes = figure.add_subplot()
        axes.set_title(title, loc="left")
        return figure, {"measured": axes, "published": axes}
    figure = new_figure(4.8, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.5))
    upper.set_title(title, loc="left")
    names = ("published", "measured") if min(other) > max(own) else ("measured", "published")
    panels = dict(zip(names, (upper, lower), strict=True))
    for name, panel in panels.items():
        at: Any = {"xycoords": "axes fraction", "ha": "right", "va": "bottom", "fontsize": 8.5}
        panel.annotate(name, (1.0, 1.01), style="italic", **at)
    return figure, panels


def _far_apart(own: Sequence[float], other: Sequence[float]) -> bool:
    spans = (max(own) - min(own), max(other) - min(other))
    union = max(*own, *other) - min(*own, *other)
    return union > _APART * max(*spans, 0.5) and (min(other) > max(own) or max(other) < min(own))


def _has_ground(curve: Curve) -> bool:
    """Whether an untrained network has a place on the axis."""
    return curve.axis.name == DURATION and UNTRAINED in curve.places


def _positions(curve: Curve) -> tuple[dict[Place, float], bool]:
    """Where each place lies, and whether at its logarithm; what is no number stands in a row.

    An untrained network has its place left of all durations.
    """
    order = [at for at in curve.places if at != UNTRAINED or not _has_ground(curve)]
    numbers = [at for at in order if isinstance(at, float)]
    scale = curve.axis.scale if len(numbers) == len(order) else "rank"
    is_log = scale in ("log", "continuous") and all(at > 0 for at in numbers)
    x = {at: float(i) for i, at in enumerate(order)}
    if scale in ("linear", "continuous"):
        x = {at: at for at in numbers}
    elif is_log:
        x = {at: math.log2(at) for at in numbers}
    if not _has_ground(curve):
        return x, is_log
    first, last = (min(x.values()), max(x.values())) if x else (0.0, 0.0)
    gap = max((last - first) / max(len(x) - 1, 1), 0.22 * (last - first)) or 1.0
    return {UNTRAINED: first - gap, **x}, is_log


def _looks(curve: Curve, x: Mapping[Place, float]) -> list[_Look]:
    """From dark to light where series are in an order, but never too pale for white paper."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    axes = {tuple(name for name, _ in s.key) for s in curve.series}
    ramp = _RAMPS.get(next(iter(axes))[0]) if axes in ({("size",)}, {(DURATION,)}) else None
    top = 0.82 / max(len(curve.series) - 1, 1)
    found = []
    for i, series in enumerate(curve.series):
        is_ground = series.key == ((DURATION, UNTRAINED),)
        colour = to_hex(colormaps[ramp](i * top)) if ramp else _COLOURS[i % len(_COLOURS)]
        look = _Look(
            colour=_GREY if is_ground else colour,
            marker=_MARKERS[i % len(_MARKERS)],
            x=_aside(curve, x, i),
            is_joined=curve.axis.scale != "category",
            is_ground=is_ground,
            is_broken=_has_ground(curve) and series.points[0].at == UNTRAINED,
        )
        found.append(look)
    return found


def _aside(curve: Curve, x: Mapping[Place, float], index: int) -> Mapping[Place, float]:
    """Categories have room to stand side by side; numbers stay where they are."""
    total = len(curve.series) + len(curve.published)
    if curve.axis.scale != "category" or total < 2:
        return x
    return {place: at + 0.36 * (index / (total - 1) - 0.5) for place, at in x.items()}


def _measured(axes: Axes, series: Series, look: _Look) -> None:
    """Means with their spread joined by a line, hollow where odd; a dot per seed."""
    first = int(look.is_broken)
    joined = ("--" if look.is_ground else "-") if look.is_joined else "none"
    drawn = _means(axes, series.points[first:], look, linestyle=joined, label=series.label)
    if look.is_broken:
        # Dashed: the axis is broken between the untrained network and the first duration.
        ends = series.points[:2]
        x, y = [look.x[p.at] for p in ends], [p.mean for p in ends]
        drawn += axes.plot(x, y, "--", color=look.colour, linewidth=0.9, alpha=0.7)
        drawn += _means(axes, ends[:1], look, linestyle="none")
    odd = [(look.x[p.at], p.mean) for p in series.points if p.odd]
    at_odd = ([o[0] for o in odd], [o[1] for o in odd])
    hollow: Any = {"ms": 8, "mfc": "white", "mec": look.colour, "mew": 1.6, "zorder": 3.5}
    drawn += axes.plot(*at_odd, look.marker, linestyle="none", **hollow)
    dots = [(look.x[p.at], v) for p in series.points if p.n > 1 for v in p.values.values()]
    seeds: Any = {"s": 9, "facecolors": "white", "edgecolors": look.colour, "linewidths": 0.8}
    drawn.append(axes.scatter([d[0] for d in dots], [d[1] for d in dots], zorder=4, **seeds))
    point_at(axes, series.label, drawn, _texts(series, look))


def _means(axes: Axes, points: Sequence[CurvePoint], look: _Look, **line: str) -> list[Artist]:
    """Markers at the means, bars of one standard deviation over seeds, and a line."""
    look_of: Any = {"elinewidth": 1.0, "capsize": 2.5, "ms": 6, "mec": "white", "mew": 0.6, **line}
    bars = axes.errorbar(
        [look.x[p.at] for p in points],
        [p.mean for p in points],
        yerr=[p.sd or 0.0 for p in points],
        fmt=look.marker,
        color=look.colour,
        linewidth=1.6,
        zorder=3,
        **look_of,
    )
    return list(bars.get_children())


def _texts(series: Series, look: _Look) -> Iterator[tuple[float, float, str]]:
    """What each seed and each mean is, for whoever points at it."""
    for p in series.points:
        if p.n > 1:
            for seed, value in p.values.items():
                yield look.x[p.at], value, f"{p.series}, {p.label}, seed {seed}: {value:.2f}"
        yield look.x[p.at], p.mean, point_text(p)


def _reference(axes: Axes, curve: Curve, series: PublishedSeries, look: _Look) -> None:
    drawn = axes.plot(
        [look.x[place] for place, _ in series.points],
        [value for _, value in series.points],
        marker=look.marker,
        linestyle=":" if look.is_joined else "none",
        color=look.colour,
        mfc="none",
        mec=look.colour,
        mew=1.3,
        ms=6.5,
        linewidth=1.1,
        label=textwrap.fill(series.label, 34),
        zorder=2,
    )
    texts = [
        (look.x[place], value, f"published, {series.label}: {curve.labels[place]}: {value:g}")
        for place, value in series.points
    ]
    point_at(axes, series.label, drawn, texts)


def _lines(axes: Axes, curve: Curve) -> None:
    """What has no place on the axis: a dashed line, and its seeds at the right edge."""
    across = axes.get_yaxis_transform()
    for line, dash in zip(curve.lines, ((0, (5, 3)), (0, (1, 2))), strict=False):
        mean = sum(line.values) / len(line.values)
        axes.axhline(mean, linestyle=dash, color=INK, linewidth=1.0, label=line.label)
        at_edge = [0.985] * len(line.values)
        axes.scatter(at_edge, line.values, s=9, color=INK, transform=across, zorder=4)


def _x_axis(
    curve: Curve, x: Mapping[Place, float], panels: Sequence[Axes], *, is_log: bool
) -> None:
    is_continuous = curve.axis.scale == "continuous"
    labels = [_tick(curve, place) for place in x]
    crowded = len(labels) > 8 or sum(map(len, labels)) > 100
    if not crowded:
        labels = [textwrap.fill(label, 14, replace_whitespace=False) for label in labels]
    for panel in panels:
        if is_continuous:
            panel.set_xscale("log")
            log_ticks(panel)
            continue
        panel.set_xticks(list(x.values()), labels)
        panel.set_xticks([], minor=True)
        panel.margins(x=0.08 if crowded or curve.axis.scale != "category" else 0.18)
        if _has_ground(curve) and len(x) > 1:
            edge = sum(sorted(x.values())[:2]) / 2
            panel.axvline(edge, linestyle=":", color=_GREY, linewidth=0.9)
    last = panels[-1]
    if crowded and not is_continuous:
        for label in last.get_xticklabels():
            label.set(rotation=50, ha="right", rotation_mode="anchor")
    what = curve.axis.label
    if is_log:
        what = f"{what[:-1]}, log scale)" if what.endswith(")") else f"{what} (log scale)"
    last.set_xlabel(what)


def _tick(curve: Curve, place: Place) -> str:
    """A place below its axis, whose label has the unit."""
    if curve.axis.name == PARAMETERS and isinstance(place, float):
        return f"{curve.labels[place]}\n{_si(place)}"
    if curve.axis.name == DURATION and isinstance(place, float) and place != UNTRAINED:
        return f"{place:g}"
    return curve.labels[place].replace("_", " ")


def _si(value: float) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend of all panels below the figure; long labels, which name their source, by two."""
    shared = [panel.get_legend_handles_labels() for panel in panels]
    pairs = [pair for found in shared for pair in zip(*found, strict=True)]
    # Lines alone are published numbers and baselines: after what was measured here.
    pairs.sort(key=lambda pair: hasattr(pair[0], "get_linestyle"))
    handles, labels = [h for h, _ in pairs], [text for _, text in pairs]
    most = 2 if max(map(len, labels)) > 16 else 4
    columns = math.ceil(len(labels) / math.ceil(len(labels) / most))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
