"""What the report says of its curves: figures, a table for a terminal, and plain values."""

from __future__ import annotations

from collections.abc import Sequence

from studies.analysis.curves.curves import DURATION, PARAMETERS, SCALING, Curve
from studies.analysis.curves.from_rows import axis_curves, scaling_curves
from studies.analysis.figures.curve_figure import curve_figure
from studies.analysis.report.section import Section, section
from studies.result_row import ResultRow
from studies.spec.axes import axis

_TITLES = {
    "top1": "Accuracy",
    "mce": "Mean corruption error",
    "speedup": "Speed",
    "relative_flops": "Compute",
}


def curve_sections(
    curves: Sequence[Curve], axes: Sequence[str], measures: Sequence[str]
) -> list[Section]:
    """The figures of every axis and measure; of the study's own, those with a point."""
    numbered = list(enumerate(curves, 1))
    found = []
    for measure in measures if axes else ("top1",):
        for name in axes or SCALING:
            chosen = [(i, c) for i, c in numbered if (c.axis.name, c.measure) == (name, measure)]
            if not axes:  # one size is no axis of sizes
                figures = [c for _, c in chosen if name != PARAMETERS or len(c.places) > 1]
                drawn = [curve_figure(c, f"{name}-{i}-{c.kind}") for i, c in enumerate(figures, 1)]
            else:
                safe = "".join(c if c.isalnum() else "-" for c in f"{name}-{measure}")
                drawn = [curve_figure(c, f"{safe}-{i}") for i, c in chosen]
            if drawn or not axes:
                found.append(section(f"{_TITLES[measure]} against {axis(name).label}", drawn))
    return found


def summary_text(
    rows: Sequence[ResultRow],
    *,
    axes: Sequence[str] = (),
    measures: Sequence[str] = ("top1",),
    published: Sequence[str] = (),
) -> str:
    """Tables of mean ± sd (seeds) per protocol, for a terminal: size × duration, or by axis."""
    found = scaling_curves(rows, axes=(DURATION,))
    if axes:
        found = axis_curves(rows, axes=axes, measures=measures, published=published)
    return "\n\n".join(map(_text, found)) or "No evaluated cell yet."


def _text(curve: Curve) -> str:
    """A table of one figure, the published numbers below the measured."""
    measure = "top-1 %" if curve.measure == "top1" else curve.measure
    table = [[measure, *(curve.labels[at] for at in curve.places)]]
    for s in curve.series:
        points = [s.point(at) for at in curve.places]
        table.append([s.label, *("–" if p is None else p.text for p in points)])
    for reference in curve.published:
        values = dict(reference.points)
        numbers = (f"{values[at]:g}" if at in values else "–" for at in curve.places)
        table.append([f"published ({reference.label})", *numbers])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(t.rjust(w) for t, w in zip(line, widths, strict=True)) for line in table]
    lines += [f"{line.label}: {sum(line.values) / len(line.values):.1f}" for line in curve.lines]
    return "\n".join([curve.subject, *lines])


def curve_json(curve: Curve) -> dict[str, object]:
    """The figure's numbers, as plain values."""
    return {
        "axis": curve.axis.name,
        "measure": curve.measure,
        "title": curve.title,
        "protocols": list(curve.protocols),
        "series": [
            {
                "label": s.label,
                "key": dict(s.key),
                "points": [
                    {"at": p.at, "label": p.label, "mean": p.mean, "sd": p.sd, "n": p.n}
                    | {"values": dict(p.values), "odd": p.odd}
                    for p in s.points
                ],
            }
            for s in curve.series
        ],
        "published": curve.published,
        "lines": curve.lines,
    }
