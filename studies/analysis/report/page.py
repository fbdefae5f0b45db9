"""The report of a study: result rows in; one offline page, figures and tables out.

The page states what the rows show and what is missing; no law is fitted and nothing is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from studies.analysis.curves.curves import Change, Curve
from studies.analysis.curves.from_rows import axis_curves, scaling_curves
from studies.analysis.figures.cost_figure import cost_bars
from studies.analysis.figures.gallery_figure import GalleryEntry, gallery
from studies.analysis.figures.goodput_figure import goodput_bars
from studies.analysis.report.cell_table import cell_table
from studies.analysis.report.claims import Claim, ClaimLevel, claims
from studies.analysis.report.curve_page import curve_json, curve_sections
from studies.analysis.report.evidence import EvidenceLine, coverage, evidence, headline
from studies.analysis.report.goodput_text import goodput_lines, goodput_text
from studies.analysis.report.meta import ReportFiles, ReportMeta
from studies.analysis.report.optional_sections import (
    difference_sections,
    law_sections,
    sweep_sections,
)
from studies.analysis.report.section import Section, section
from studies.analysis.report.tables import write_csv, write_json, write_parquet
from studies.analysis.results import cost, unmeasured
from studies.result_row import ResultRow

if TYPE_CHECKING:
    from studies.analysis.curves.insights import Insights


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """What the rows show, computed once for page and files."""

    rows: Sequence[ResultRow]
    meta: ReportMeta
    curves: tuple[Curve, ...]
    insights: Insights
    headline: str
    evidence: list[EvidenceLine]
    claims: list[Claim]


def write_report(
    rows: Sequence[ResultRow], *, meta: ReportMeta, gallery: Sequence[GalleryEntry], directory: Path
) -> ReportFiles:
    """Write index.html, figures/*.png and *.pdf, results.csv, .parquet and .json, summary.json.

    Partial results are reported as such. Raises OSError if the directory cannot be written.
    """
    found = _findings(rows, meta)
    sections = _sections(found, gallery)
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    drawings = [drawing for section in sections for drawing in section.drawings]
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
    write_json(_summary(found), files.summary)
    files.html.write_text(_page(found, sections), encoding="utf-8", errors="backslashreplace")
    return files


def _findings(rows: Sequence[ResultRow], meta: ReportMeta) -> _Findings:
    """Over size, duration and compute, or over the study's own axes."""
    from studies.analysis.curves.insights import gather  # numpy and scipy come when there are rows

    curves = scaling_curves(rows, meta.odd)
    if meta.axes:
        given = {"axes": meta.axes, "measures": meta.measures, "published": meta.published}
        curves = axis_curves(rows, odd=meta.odd, **given)
    lines = evidence(curves)
    return _Findings(
        rows=rows,
        meta=meta,
        curves=curves,
        insights=gather(rows, curves),
        headline=headline(curves, meta.axes),
        evidence=lines,
        claims=claims(lines, meta.laws),
    )


def _sections(found: _Findings, entries: Sequence[GalleryEntry]) -> list[Section]:
    """Titled groups of drawings, with the sentence to show when there is none."""
    from studies.analysis.report import insight_page

    rows, meta = found.rows, found.meta
    pictures, problems = gallery(entries, "gallery")
    spent = _spent(rows)
    total = sum(spent.values())
    paid = f"Total: {total:.0f} rank-seconds ({total / 3600:.2f} rank-hours)."
    sections = [
        *difference_sections(meta),
        *curve_sections(found.curves, meta.axes, meta.measures),
        *insight_page.insight_sections(rows, found.curves if meta.axes else (), found.insights),
        *law_sections(meta),
        *insight_page.influence_section(meta),
        *insight_page.noise_section(found.insights.noise),
        *sweep_sections(rows, meta),
        section("Reconstructions", [pictures], is_wide=True, problems=problems),
        section("Cost", [cost_bars(spent, "cost")], text=[paid] if total else []),
    ]
    if meta.goodput is not None and not meta.goodput.is_empty:
        bars, lines = goodput_bars(meta.goodput, "goodput"), goodput_lines(meta.goodput)
        text = goodput_text(meta.goodput)
        sections.append(
            section("Where the time went", [bars], is_wide=True, lines=lines, text=text)
        )
    return sections


def _spent(rows: Sequence[ResultRow]) -> dict[tuple[str, str], float]:
    return cost(rows, lambda row: (row.kind, row.role))


def _page(found: _Findings, sections: Sequence[Section]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    meta, rows = found.meta, found.rows
    header, cells = cell_table(rows, meta.reference or meta.study, meta.store_option)
    return environment.get_template("report.html").render(
        meta=meta,
        headline=found.headline,
        claims=found.claims,
        levels=list(ClaimLevel),
        script=(Path(__file__).parent / "report.js").read_text(encoding="utf-8"),
        evidence=found.evidence,
        risen=Change.RISES,
        unknown=Change.UNKNOWN,
        coverage=coverage(rows, found.curves, meta.axes, meta.expected_seeds),
        sections=sections,
        header=header,
        cells=cells,
        num_rows=len(rows),
        unmeasured=unmeasured(rows),
    )


def _summary(found: _Findings) -> dict[str, object]:
    from studies.analysis.laws.by_protocol import law_json
    from studies.analysis.report.insight_page import insights_json
    from studies.analysis.report.sweep_text import sweep_json

    rows, meta = found.rows, found.meta
    return {
        "study": meta.study,
        "created_at": meta.created_at,
        "headline": found.headline,
        "num_rows": len(rows),
        "unmeasured": unmeasured(rows),
        "curves": [curve_json(curve) for curve in found.curves],
        "evidence": found.evidence,
        "sweep": {"objective": meta.objective, "winner": meta.sweep_winner},
        "searches": sweep_json(meta.searches),
        "rank_seconds": {"/".join(key): seconds for key, seconds in _spent(rows).items()},
        "goodput": meta.goodput.to_dict() if meta.goodput else None,
        "claims": found.claims,
        "insights": insights_json(rows, found.insights),
        "laws": law_json(meta.laws),
        "differences": [d.to_json() for d in meta.differences],
        "advice": meta.advice,
        "predictions": meta.predictions,
        "findings": meta.findings,
        "missing": meta.missing,
        "notes": meta.notes,
        "provenance": meta.provenance,
    }
