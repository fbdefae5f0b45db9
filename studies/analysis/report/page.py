"""The first-curves report: result rows in; one offline page, figures and tables out.

The page states what the rows show and what is missing; no law is fitted and nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studies.analysis.curves.axis_curves import AxisCurve, axis_curves
from studies.analysis.curves.curves import (
    UNTRAINED,
    Curve,
    PairedDifference,
    Point,
    curves,
    duration_label,
    duration_trends,
    ordered_durations,
    plus_minus,
    size_trends,
)
from studies.analysis.curves.results import cost, filled, unmeasured
from studies.analysis.figures import curve_figures
from studies.analysis.figures.gallery_figure import GalleryEntry, gallery
from studies.analysis.figures.goodput_figure import goodput_bars
from studies.analysis.report import axis_page
from studies.analysis.report.cell_table import cell_table
from studies.analysis.report.claims import LEVELS, claims
from studies.analysis.report.goodput_text import goodput_lines, goodput_text
from studies.analysis.report.meta import ReportFiles, ReportMeta, section
from studies.analysis.report.optional_sections import (
    difference_sections,
    law_sections,
    laws_json,
    searches_json,
    sweep_sections,
)
from studies.analysis.report.tables import write_csv, write_json, write_parquet
from studies.result_row import ResultRow

if TYPE_CHECKING:
    from studies.analysis.curves.insights import Insights

__all__ = ["GalleryEntry", "ReportFiles", "ReportMeta", "summary_text", "write_report"]


def write_report(
    rows: Sequence[ResultRow],
    *,
    meta: ReportMeta,
    gallery: Sequence[GalleryEntry],
    directory: Path,
) -> ReportFiles:
    """Write index.html, figures/*.png and *.pdf, results.csv, .parquet and .json, summary.json.

    Partial results are reported as such. Raises OSError if the directory cannot be written.
    """
    found, over_axes = _all_curves(rows, meta)
    from studies.analysis.curves.insights import gather  # numpy and scipy come when there are rows

    insights = gather(rows, found, over_axes)
    sections, problems = _sections(rows, found, over_axes, insights, meta, gallery)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    drawings = [drawing for section in sections for drawing in section["drawings"]]
    files = ReportFiles(
        html=directory / "index.html",
        csv=directory / "results.csv",
        parquet=directory / "results.parquet",
        json=directory / "results.json",
        summary=directory / "summary.json",
        figures=tuple(directory / "figures" / f"{d.name}.png" for d in drawings),
    )
    for path, drawing in zip(files.figures, drawings, strict=True):
        path.write_bytes(drawing.png)
        path.with_suffix(".pdf").write_bytes(drawing.pdf)
    write_csv(rows, files.csv)
    write_parquet(rows, files.parquet)
    write_json([row.to_dict() for row in rows], files.json)
    write_json(_summary(rows, found, over_axes, insights, meta), files.summary)
    page = _page(rows, found, over_axes, meta, sections, problems)
    files.html.write_text(page, encoding="utf-8")
    return files


def _all_curves(
    rows: Sequence[ResultRow], meta: ReportMeta
) -> tuple[tuple[Curve, ...], tuple[AxisCurve, ...]]:
    """Size × duration curves, or those over the study's own axes: one of the two is empty."""
    if not meta.axes:
        return curves(rows, meta.odd), ()
    found = axis_curves(
        rows, axes=meta.axes, measures=meta.measures, published=meta.published, odd=meta.odd
    )
    return (), found


def summary_text(
    rows: Sequence[ResultRow],
    *,
    axes: Sequence[str] = (),
    measures: Sequence[str] = ("top1",),
    published: Sequence[str] = (),
) -> str:
    """Tables of mean ± sd (seeds) per protocol, for a terminal: size × duration, or by axis."""
    blocks = [_text_table(curve) for curve in curves(rows)]
    if axes:
        found = axis_curves(rows, axes=axes, measures=measures, published=published)
        blocks = [axis_page.axis_text(curve) for curve in found]
    return "\n\n".join(blocks) if blocks else "No evaluated cell yet."


def _text_table(curve: Curve) -> str:
    columns = _columns(curve)
    table = [["top-1 %", *columns]]
    for size in curve.sizes:
        table.append([size, *(_value(curve.points.get((size, d))) for d in columns)])
    widths = [max(len(line[i]) for line in table) for i in range(len(columns) + 1)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True))
        for line in table
    ]
    if curve.baseline:
        lines.append(f"raw pixels: {sum(curve.baseline) / len(curve.baseline):.1f}")
    return "\n".join([curve.label, *lines])


def _columns(curve: Curve) -> list[str]:
    start = any(duration == UNTRAINED for _, duration in curve.points)
    return [*([UNTRAINED] if start else []), *curve.durations]


def _value(point: Point | None) -> str:
    return "–" if point is None else f"{plus_minus(point.mean, point.sd)} ({point.n})"


def _sections(
    rows: Sequence[ResultRow],
    found: Sequence[Curve],
    over_axes: Sequence[AxisCurve],
    insights: Insights,
    meta: ReportMeta,
    entries: Sequence[GalleryEntry],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Titled groups of drawings, with the sentence to show when there is none."""
    from studies.analysis.report import insight_page

    kinds = (
        ("Accuracy against duration", "duration", curve_figures.accuracy_by_duration),
        ("Accuracy against encoder size", "parameters", curve_figures.accuracy_by_parameters),
        ("Accuracy against pretraining compute", "flops", curve_figures.accuracy_by_flops),
    )
    sections = difference_sections(meta)
    sections += [
        section(
            title,
            [
                draw(c, f"{name}-{i + 1}-{c.kind}")
                for i, c in enumerate(found)
                if name != "parameters" or len(c.sizes) > 1
            ],
        )
        for title, name, draw in (() if meta.axes else kinds)
    ]
    sections += [section(title, list(d)) for title, d in axis_page.axis_sections(over_axes)]
    sections += insight_page.insight_sections(rows, over_axes, insights)
    sections += law_sections(meta)
    sections += insight_page.influence_section(meta)
    sections += insight_page.noise_section(insights.noise)
    sections += sweep_sections(rows, meta)
    pictures, problems = gallery(entries, "gallery")
    sections.append(section("Reconstructions", [pictures], wide=True, problems=problems))
    spent = cost(rows, lambda row: (row.kind, row.role))
    sections.append(section("Cost", [curve_figures.cost_bars(spent, "cost")]))
    if meta.goodput is not None and not meta.goodput.is_empty:
        bars, lines = goodput_bars(meta.goodput, "goodput"), goodput_lines(meta.goodput)
        said = {"lines": lines, "text": goodput_text(meta.goodput)}
        sections.append(section("Where the time went", [bars], wide=True, **said))
    return sections, problems


def sentence(curve: Curve, trend: PairedDifference) -> str:
    """A paired difference in words, with both ends, the pairs and the verdict."""
    ends = [f"{_value(p)} {p.duration}, size {p.size}" for p in (trend.start, trend.end)]
    if trend.mean is None:
        return f"{curve.label}: {ends[0]}; {ends[1]}; no seed was measured at both."
    rises = sum(d > 0 for d in trend.differences.values())
    return (
        f"{curve.label}: from {ends[0]} to {ends[1]}; paired difference "
        f"{plus_minus(trend.mean, trend.sd)} points, {rises} of {trend.n} seeds rise: "
        f"{trend.verdict}."
    )


def _headline(found: Sequence[Curve], over_axes: Sequence[AxisCurve] = ()) -> str:
    """The one sentence at the top: how many (protocol, size) pairs rise over the untrained."""
    if over_axes:
        return axis_page.axis_headline(over_axes)
    start = "the untrained network"
    trends = [t for c in found for t in duration_trends(c) if t.start.duration == UNTRAINED]
    if not trends:
        start = "the shortest duration"
        trends = [t for c in found for t in duration_trends(c)]
    judged = [t for t in trends if t.exceeds_seed_spread is not None]
    if not found:
        return "No evaluated cell yet: nothing can be said."
    if not trends:
        return "No size has two durations or an untrained network: durations cannot be compared."
    if not judged:
        return "Too few paired seeds (fewer than 3) to say whether pretraining helps beyond chance."
    rising = sum(t.exceeds_seed_spread is True for t in judged)
    rest = len(trends) - len(judged)
    return (
        f"From {start} to the longest duration, top-1 rises by more than the seed "
        f"spread in {rising} of {len(judged)} (protocol, size) pairs with at least 3 paired seeds"
        + (f"; {rest} more have too few." if rest else ".")
    )


def _evidence(found: Sequence[Curve], over_axes: Sequence[AxisCurve] = ()) -> list[dict[str, Any]]:
    """A line for every paired difference of the page's evidence table."""
    lines = axis_page.axis_evidence(over_axes)
    for curve in found:
        for trend in (*duration_trends(curve), *size_trends(curve)):
            lines.append(
                {
                    "protocol": curve.label,
                    "compares": trend.label,
                    "primary": trend.start.duration == UNTRAINED
                    and trend.end.duration != UNTRAINED,
                    "start": f"{trend.start.size} {trend.start.duration}",
                    "start_top1": _value(trend.start),
                    "end": f"{trend.end.size} {trend.end.duration}",
                    "end_top1": _value(trend.end),
                    "difference": _signed(trend),
                    "pairs": trend.n,
                    "every_seed_rises": trend.every_seed_rises,
                    "exceeds": trend.exceeds_seed_spread,
                    "verdict": trend.verdict,
                    "sentence": sentence(curve, trend),
                }
            )
    return lines


def _signed(trend: PairedDifference) -> str:
    if trend.mean is None:
        return "–"
    return ("+" if trend.mean >= 0 else "") + plus_minus(trend.mean, trend.sd)


def _coverage(
    rows: Sequence[ResultRow],
    found: Sequence[Curve],
    over_axes: Sequence[AxisCurve],
    meta: ReportMeta,
) -> list[dict[str, Any]]:
    """Seeds that every protocol has measured, by size and duration or by series and place."""
    grid = [r for r in filled(rows) if r.role in ("grid", "untrained")]
    expected = meta.expected_seeds or len({r.seed for r in grid if r.seed is not None})
    if meta.axes:
        return axis_page.axis_coverage(over_axes, expected)
    first = sorted({(r.encoder_params or 0, r.size or "size unknown") for r in grid})
    durations = ordered_durations(
        (duration_label(r), -1.0 if r.role == "untrained" else r.epochs) for r in grid
    )
    sizes = list(dict.fromkeys(size for _, size in first))
    table = []
    for size in sizes:
        counts = [_complete(found, size, duration) for duration in durations]
        cells = [{"found": n, "expected": expected, "full": n >= expected} for n in counts]
        table.append({"size": size, "cells": cells})
    return [{"corner": "size", "durations": durations, "rows": table}] if table else []


def _complete(found: Sequence[Curve], size: str, duration: str) -> int:
    # A protocol that no cell of this size was evaluated by is not asked of it.
    asked = [curve for curve in found if size in curve.sizes]
    points = [curve.points.get((size, duration)) for curve in asked]
    seeds = [set(point.values) if point else set() for point in points]
    return len(set.intersection(*seeds)) if seeds else 0


def _page(
    rows: Sequence[ResultRow],
    found: Sequence[Curve],
    over_axes: Sequence[AxisCurve],
    meta: ReportMeta,
    sections: Sequence[Mapping[str, Any]],
    problems: Sequence[str],
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    header, cells = cell_table(rows, meta.reference or meta.study)
    return environment.get_template("report.html").render(
        meta=meta,
        headline=_headline(found, over_axes),
        claims=claims(_evidence(found, over_axes), meta.laws),
        levels=LEVELS,
        script=(Path(__file__).parent / "report.js").read_text(encoding="utf-8"),
        evidence=_evidence(found, over_axes),
        coverage=_coverage(rows, found, over_axes, meta),
        sections=sections,
        header=header,
        cells=cells,
        num_rows=len(rows),
        unmeasured=unmeasured(rows),
        total_cost=sum(cost(rows, lambda row: (row.kind, row.role)).values()),
        problems=problems,
    )


def _summary(
    rows: Sequence[ResultRow],
    found: Sequence[Curve],
    over_axes: Sequence[AxisCurve],
    insights: Insights,
    meta: ReportMeta,
) -> dict[str, Any]:
    from studies.analysis.report import insight_page

    return {
        "study": meta.study,
        "created_at": meta.created_at,
        "headline": _headline(found, over_axes),
        "num_rows": len(rows),
        "unmeasured": unmeasured(rows),
        "curves": [_curve_summary(curve) for curve in found],
        "over_axes": [axis_page.axis_summary(curve) for curve in over_axes],
        "evidence": _evidence(found, over_axes),
        "sweep": {"objective": meta.objective, "winner": meta.sweep_winner},
        "searches": searches_json(meta),
        "rank_seconds": {"/".join(k): v for k, v in cost(rows, lambda r: (r.kind, r.role)).items()},
        "goodput": meta.goodput.to_dict() if meta.goodput else None,
        "claims": [asdict(c) for c in claims(_evidence(found, over_axes), meta.laws)],
        "insights": insight_page.insights_json(rows, insights),
        "laws": laws_json(meta),
        "differences": [d.to_json() for d in meta.differences],
        "advice": list(meta.advice),
        "predictions": [list(line) for line in meta.predictions],
        "findings": [list(item) for item in meta.findings],
        "missing": [list(item) for item in meta.missing],
        "notes": list(meta.notes),
        "provenance": dict(meta.provenance),
    }


def _curve_summary(curve: Curve) -> dict[str, Any]:
    points = [
        {**asdict(p), "values": {str(k): v for k, v in p.values.items()}, "mean": p.mean}
        | {"sd": p.sd, "n": p.n}
        for p in curve.points.values()
    ]
    return {
        "protocol": curve.label,
        "kind": curve.kind,
        "baseline": list(curve.baseline),
        "points": points,
    }
