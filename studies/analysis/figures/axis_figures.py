"""Figures over a study's own axes: measured points filled, published ones hollow, sources named."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studies.analysis.curves.axis_curves import AxisCurve, PublishedSeries, Series
from studies.analysis.curves.curves import plus_minus, point_text
from studies.analysis.figures.drawing import Drawing, finish, new_figure, point_at, style
from studies.result_row import Place
from studies.spec.axes import tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222")
"""Okabe and Ito's, the strong ones first: series are categories here, not a ramp."""
_MARKERS = "osD^vPX*"
_HOLLOW = "Dsv^o<>p"
_GREYS = ("#555555", "#888888", "#777777", "#aaaaaa")
_YLABEL = {
    "top1": "top-1 accuracy (%)",
    "mce": "mean corruption error (%), lower is better",
    "speedup": "pretraining speed-up (×)",
    "relative_flops": "pretraining FLOPs (× the cheapest)",
}
_APART = 2.2
"""Ranges that together span this many times the larger of them get a panel each."""


@style()
def axis_figure(curve: AxisCurve, name: str) -> Drawing | None:
    """A measure over one axis: a line per series with its seeds, and the published numbers."""
    if not curve.series:
        return None
    x = _positions(curve)
    figure, panels = _panels(curve)
    apart = panels["measured"] is not panels["published"]
    for panel in panels.values():
        panel.set_ylabel(_YLABEL[curve.measure], fontsize=8.5 if apart else 9.5)
        panel.grid(True)
    measured = panels["measured"]
    colours: dict[str, str] = {}
    for i, series in enumerate(curve.series):
        colour = _COLOURS[i % len(_COLOURS)]
        colours[dict(series.key).get("objective", "")] = colour  # type: ignore[index]
        spot = _aside(curve, x, i)
        _measured(measured, curve, series, spot, colour, _MARKERS[i % len(_MARKERS)])
    for i, reference in enumerate(curve.published):
        # The same objective keeps its colour if there are several; else published is grey.
        own = colours.get(reference.objective) if len(curve.series) > 1 else None
        grey = _GREYS[i % len(_GREYS)]
        spot = _aside(curve, x, len(curve.series) + i)
        _reference(panels["published"], curve, reference, spot, own or grey, _HOLLOW[i % 8])
    _baselines(measured, curve)
    _x_axis(curve, x, list(panels.values()))
    _legend(figure, list(panels.values()))
    return finish(figure, name, caption(curve, apart=apart))


def caption(curve: AxisCurve, *, apart: bool) -> str:
    """What the figure shows, of what, and what it must not be read for."""
    counts = sorted({point.n for s in curve.series for _, point in s.points})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    what = {
        "top1": "top-1",
        "mce": "mean corruption error, in per cent of a baseline's (lower is better)",
        "speedup": "rank-hours of the slowest pretraining of a series over a point's own",
        "relative_flops": "counted FLOPs of a pretraining over the cheapest of its series",
    }[curve.measure]
    text = [
        f"{curve.title}: {what} against {curve.axis.label}. Filled: measured here, dots are seeds "
        f"({seeds} per point), bars ± 1 standard deviation over seeds."
    ]
    if len(curve.protocols) > 1:
        text.append(f"Protocols: {'; '.join(curve.protocols)}.")
    if curve.published:
        links = dict.fromkeys(link for s in curve.published for link in s.links)
        text.append(f"Hollow: published ({', '.join(links) or 'no link'}).")
    if apart:
        text.append("Published and measured accuracies lie far apart: each panel has its scale.")
    for label, values in curve.lines:
        text.append(f"Dashed: {label} (n = {len(values)}).")
    return " ".join(text)


def _panels(curve: AxisCurve) -> tuple[Figure, dict[str, Axes]]:
    """One panel, or two with scales of their own where published and measured lie far apart."""
    own = [v for s in curve.series for _, p in s.points for v in p.values.values()]
    own += [v for _, values in curve.lines for v in values]
    other = [value for s in curve.published for _, value in s.points]
    title = textwrap.fill(curve.title, 52)
    if not other or not _far_apart(own, other):
        figure = new_figure(4.8, 3.9)
        axes = figure.add_subplot()
        axes.set_title(title, loc="left")
        return figure, {"measured": axes, "published": axes}
    figure = new_figure(4.8, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.5))
    on_top = "published" if min(other) > max(own) else "measured"
    upper.set_title(title, loc="left")
    names = ("published", "measured") if on_top == "published" else ("measured", "published")
    panels = dict(zip(names, (upper, lower), strict=True))
    for name, panel in panels.items():
        at: Any = {"xycoords": "axes fraction", "ha": "right", "va": "bottom", "fontsize": 8.5}
        panel.annotate(name, (1.0, 1.01), style="italic", **at)
    return figure, panels


def _far_apart(own: Sequence[float], other: Sequence[float]) -> bool:
    spans = (max(own) - min(own), max(other) - min(other))
    union = max(*own, *other) - min(*own, *other)
    return union > _APART * max(*spans, 0.5) and (min(other) > max(own) or max(other) < min(own))


def _positions(curve: AxisCurve) -> dict[Place, float]:
    """Where each place lies: numbers at themselves, categories and ranks one after another."""
    order = curve.order
    numeric = curve.axis.scale in ("linear", "log") and all(isinstance(p, float) for p in order)
    if numeric and (curve.axis.scale == "linear" or all(float(p) > 0 for p in order)):
        return {place: float(place) for place in order}
    return {place: float(i) for i, place in enumerate(order)}


def _aside(curve: AxisCurve, x: Mapping[Place, float], index: int) -> Mapping[Place, float]:
    """Categories have room to stand side by side; numbers stay where they are."""
    total = len(curve.series) + len(curve.published)
    if curve.axis.scale != "category" or total < 2:
        return x
    return {place: at + 0.36 * (index / (total - 1) - 0.5) for place, at in x.items()}


def _measured(
    axes: Axes, curve: AxisCurve, series: Series, x: Mapping[Place, float], colour: str, mark: str
) -> None:
    at = [x[place] for place, _ in series.points]
    means = [point.mean for _, point in series.points]
    spreads = [point.sd or 0.0 for _, point in series.points]
    look: Any = {"ms": 6, "mec": "white", "mew": 0.6, "linewidth": 1.6, "capsize": 2.5}
    joined = "none" if curve.axis.scale == "category" else "-"
    bars = axes.errorbar(
        at,
        means,
        yerr=spreads,
        fmt=mark,
        linestyle=joined,
        color=colour,
        label=series.label,
        elinewidth=1.0,
        zorder=3,
        **look,
    )
    odd = [(x[place], point.mean) for place, point in series.points if point.odd]
    hollow: Any = {"ms": 8, "mfc": "white", "mec": colour, "mew": 1.6, "zorder": 3.5}
    drawn = axes.plot([o[0] for o in odd], [o[1] for o in odd], mark, linestyle="none", **hollow)
    dots = [(x[at], v) for at, p in series.points if p.n > 1 for v in p.values.values()]
    seeds: Any = {"s": 14, "color": colour, "alpha": 0.35, "linewidths": 0, "zorder": 2.5}
    drawn_dots = axes.scatter([d[0] for d in dots], [d[1] for d in dots], **seeds)
    texts = [(x[place], point.mean, point_text(point)) for place, point in series.points]
    point_at(axes, series.label, [*bars.get_children(), *drawn, drawn_dots], texts)


def _reference(
    axes: Axes,
    curve: AxisCurve,
    series: PublishedSeries,
    x: Mapping[Place, float],
    colour: str,
    mark: str,
) -> None:
    joined = "none" if curve.axis.scale == "category" else ":"
    drawn = axes.plot(
        [x[place] for place, _ in series.points],
        [value for _, value in series.points],
        marker=mark,
        linestyle=joined,
        color=colour,
        mfc="none",
        mec=colour,
        mew=1.3,
        ms=6.5,
        linewidth=1.1,
        label=textwrap.fill(series.label, 34),
        zorder=2,
    )
    texts = [
        (x[place], value, f"published, {series.label}: {tick(curve.axis.name, place)}: {value:g}")
        for place, value in series.points
    ]
    point_at(axes, series.label, drawn, texts)


def _baselines(axes: Axes, curve: AxisCurve) -> None:
    for (label, values), dash in zip(curve.lines, ((0, (5, 3)), (0, (1, 2))), strict=False):
        mean = sum(values) / len(values)
        axes.axhline(mean, linestyle=dash, color="#222222", linewidth=1.0, label=label)


def _x_axis(curve: AxisCurve, x: Mapping[Place, float], panels: Sequence[Axes]) -> None:
    values = list(x.values())
    is_log = curve.axis.scale == "log" and values != [float(i) for i in range(len(values))]
    labels = [tick(curve.axis.name, place).replace("_", " ") for place in x]
    crowded = len(values) > 8 or sum(map(len, labels)) > 100
    if not crowded:
        labels = [textwrap.fill(label, 14) for label in labels]
    for panel in dict.fromkeys(panels):
        if is_log:
            panel.set_xscale("log")
        panel.set_xticks(values, labels)
        panel.set_xticks([], minor=True)
        panel.margins(x=0.08 if crowded or curve.axis.scale != "category" else 0.18)
    last = panels[-1]
    if crowded:
        for label in last.get_xticklabels():
            label.set(rotation=50, ha="right", rotation_mode="anchor")
    last.set_xlabel(curve.axis.label + (" (log scale)" if is_log else ""))


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One legend of all panels below the figure, two entries a line: labels name their source."""
    shared = [panel.get_legend_handles_labels() for panel in dict.fromkeys(panels)]
    pairs = [pair for found in shared for pair in zip(*found, strict=True)]
    # Lines alone are published numbers and baselines: after what was measured here.
    pairs.sort(key=lambda pair: hasattr(pair[0], "get_linestyle"))
    handles, labels = [h for h, _ in pairs], [text for _, text in pairs]
    columns = 2 if len(labels) > 1 else 1
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def in_words(curve: AxisCurve) -> str | None:
    """The finding of a figure in a sentence: where each series is highest and lowest."""
    told = []
    for series in curve.series:
        if len(series.points) < 2:
            continue
        (high_at, high), (low_at, low) = series.best, series.worst
        who = f"{series.label}: " if len(curve.series) > 1 else ""
        told.append(
            f"{who}highest at {tick(curve.axis.name, high_at)} "
            f"({plus_minus(high.mean, high.sd)}, n = {high.n}), lowest at "
            f"{tick(curve.axis.name, low_at)} ({plus_minus(low.mean, low.sd)}, n = {low.n})"
        )
    return f"{curve.title} over {curve.axis.label}: {'; '.join(told)}." if told else None
