"""The page of a comparison: a report of all sides together, with their differences first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.plan.plan import plan_findings
from orchestrator.report.compare_sides import Side, rows_of
from orchestrator.report.predictions import chance_of
from orchestrator.report.study_report import asks_for_laws
from orchestrator.store.records import Records, now_iso
from studies.analysis.curves.differences import Difference
from studies.analysis.laws.by_protocol import study_laws
from studies.analysis.report.meta import ReportMeta
from studies.analysis.report.page import write_report


def write_comparison(
    sides: Sequence[Side], found: Sequence[Difference], records: Records, directory: Path
) -> Path:
    """Write index.html, figures and tables into a directory; return the page's path.

    Curves are drawn over what all sides vary; a law of each protocol is fitted side by side, never
    to results of two sides at once.
    """
    by_side = rows_of(sides, records)
    studies = [side.plan.study for side in sides]
    laws = [
        replace(law, side=side.label)
        for side, rows in zip(sides, by_side, strict=True)
        if asks_for_laws(side.plan)
        for law in study_laws(rows, top=chance_of(side.plan))
    ]
    shared = [a for a in studies[0].axes if all(a in study.axes for study in studies)]
    meta = ReportMeta(
        study=" and ".join(side.text for side in sides),
        question=" / ".join(dict.fromkeys(study.question for study in studies)),
        command="mae-study compare " + " ".join(side.text for side in sides),
        created_at=now_iso(),
        notes=tuple(dict.fromkeys(note for study in studies for note in study.notes)),
        provenance={"sides": ", ".join(f"{s.label} = {s.text}" for s in sides)},
        axes=shared,
        measures=studies[0].measures,
        published=tuple(dict.fromkeys(name for study in studies for name in study.published)),
        laws=laws,
        differences=found,
        findings=tuple(
            (f.level, f.code, f"{side.label}: {f.message}")
            for side in sides
            for f in plan_findings(side.plan)
        ),
        missing=tuple(
            (f"{side.label}/{s.cell.address}", s.stage.name, s.reason)
            for side in sides
            for s in side.plan.stages
            if s.status.is_work and s.cell.role != "sweep"
        ),
    )
    rows = [row for rows in by_side for row in rows]
    return write_report(rows, meta=meta, gallery=(), directory=directory).html
