"""What the report says of a study with axes of its own: figures, findings, evidence, coverage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studies.analysis.curves.axis_curves import AxisCurve, trends
from studies.analysis.curves.curves import MIN_SEEDS, PairedDifference, Point, plus_minus
from studies.analysis.figures.axis_figures import axis_figure, in_words
from studies.analysis.figures.drawing import Drawing
from studies.spec.axes import tick

_TITLES = {
    "top1": "Accuracy",
    "mce": "Mean corruption error",
    "speedup": "Speed",
    "relative_flops": "Compute",
}


def axis_sections(curves: Sequence[AxisCurve]) -> list[tuple[str, list[Drawing]]]:
    """(title, figures) for every axis and measure, in the order of the curves."""
    found: dict[str, list[Drawing]] = {}
    for i, curve in enumerate(curves):
        name = _safe(f"{curve.axis.name}-{curve.measure}-{i + 1}")
        drawing = axis_figure(curve, name)
        if drawing is not None:
            title = f"{_TITLES[curve.measure]} against {curve.axis.label}"
            found.setdefault(title, []).append(drawing)
    return list(found.items())


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def axis_headline(curves: Sequence[AxisCurve]) -> str:
    """Where each figure is highest and lowest, in words."""
    told = [text for curve in curves if (text := in_words(curve))]
    if not told:
        return "Fewer than two points of an axis are measured yet: nothing can be said."
    seeds = [p.n for c in curves for s in c.series for _, p in s.points]
    few = "" if min(seeds) >= MIN_SEEDS else " Points of fewer than 3 seeds may differ by chance."
    return "\n".join(told) + few


def axis_evidence(curves: Sequence[AxisCurve]) -> list[dict[str, Any]]:
    """A line for each paired difference: lowest to highest of a series, then all to the highest."""
    return [
        _line(curve, trend)
        for curve in curves
        if curve.measure == "top1"
        for trend in trends(curve)
    ]


def _line(curve: AxisCurve, trend: PairedDifference) -> dict[str, Any]:
    verdict, difference = trend.verdict, "–"
    if trend.mean is not None:
        difference = ("+" if trend.mean >= 0 else "") + plus_minus(trend.mean, trend.sd)
    start, end = _name(curve, trend.start), _name(curve, trend.end)
    return {
        "protocol": f"{curve.title}, over {curve.axis.label}",
        "compares": trend.label,
        "primary": trend.label == "extremes",
        "start": start,
        "start_top1": _value(trend.start),
        "end": end,
        "end_top1": _value(trend.end),
        "difference": difference,
        "pairs": trend.n,
        "every_seed_rises": trend.every_seed_rises,
        "exceeds": trend.exceeds_seed_spread,
        "verdict": verdict,
        "sentence": f"{curve.title}: {start} to {end} {difference} points: {verdict}.",
    }


def _name(curve: AxisCurve, point: Point) -> str:
    return point.duration if len(curve.series) == 1 else f"{point.size}: {point.duration}"


def _value(point: Point) -> str:
    return f"{plus_minus(point.mean, point.sd)} ({point.n})"


def axis_coverage(curves: Sequence[AxisCurve], expected: int) -> list[dict[str, Any]]:
    """Per axis: seeds measured in every figure of it, by series and place."""
    by_axis: dict[str, list[AxisCurve]] = {}
    for curve in curves:
        if curve.measure == "top1" and curve.axis.name != "corruption":
            by_axis.setdefault(curve.axis.name, []).append(curve)
    return [_coverage(group, expected) for group in by_axis.values()]


def _coverage(curves: Sequence[AxisCurve], expected: int) -> dict[str, Any]:
    order = list(dict.fromkeys(at for c in curves for s in c.series for at, _ in s.points))
    labels = list(dict.fromkeys(s.label for c in curves for s in c.series))
    rows = []
    for label in labels:
        found = [dict(s.points) for c in curves for s in c.series if s.label == label]
        counts = [min((p[at].n for p in found if at in p), default=0) for at in order]
        cells = [{"found": n, "expected": expected, "full": n >= expected} for n in counts]
        rows.append({"size": label, "cells": cells})
    axis = curves[0].axis
    return {"corner": axis.label, "durations": [tick(axis.name, at) for at in order], "rows": rows}


def axis_summary(curve: AxisCurve) -> dict[str, Any]:
    """The figure's numbers, as plain values."""
    return {
        "axis": curve.axis.name,
        "measure": curve.measure,
        "family": curve.family,
        "protocols": list(curve.protocols),
        "series": [
            {
                "label": s.label,
                "points": [
                    {"at": at, "mean": p.mean, "sd": p.sd, "n": p.n}
                    | {"values": {str(k): v for k, v in p.values.items()}}
                    for at, p in s.points
                ],
            }
            for s in curve.series
        ],
        "published": [
            {"label": s.label, "points": [list(p) for p in s.points], "links": list(s.links)}
            for s in curve.published
        ],
    }


def axis_text(curve: AxisCurve) -> str:
    """A table of one figure for a terminal, the published numbers below the measured."""
    order = curve.order
    table = [["top-1 %" if curve.measure == "top1" else curve.measure]]
    table[0] += [tick(curve.axis.name, at) for at in order]
    for s in curve.series:
        points = dict(s.points)
        table.append([s.label, *(_value(points[at]) if at in points else "–" for at in order)])
    for reference in curve.published:
        values = dict(reference.points)
        numbers = (f"{values[at]:g}" if at in values else "–" for at in order)
        table.append([f"published ({reference.label})", *numbers])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in table
    ]
    return "\n".join([f"{curve.title}, over {curve.axis.label}", *lines])
