"""From a plan to the report: rows, gallery and provenance handed to `studies.analysis`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mae_core.config import GALLERY_FILE, PretrainRecipe
from orchestrator.goodput import study_goodput
from orchestrator.plan import Plan, PlannedStage
from orchestrator.records import Records, now_iso
from orchestrator.results import make_rows
from orchestrator.tasks import code_version
from studies.analysis.figures import GalleryEntry
from studies.analysis.report import ReportMeta
from studies.analysis.report import write_report as write_page

GALLERY_CELLS = 4


def write_report(plan: Plan, records: Records, directory: Path) -> Path:
    """Write the report of what is finished; return the path of its page."""
    rows = make_rows(plan, records)
    sweep = plan.sweep
    meta = ReportMeta(
        study=plan.study.name,
        question=plan.study.question,
        command=f"mae-study run {plan.study.name}",
        created_at=now_iso(),
        notes=plan.study.notes,
        axes=plan.study.axes,
        measures=plan.study.measures,
        published=plan.study.published,
        provenance=_provenance(plan),
        sweep_winner=sweep.winner if sweep else None,
        objective=sweep.trials.sweep.objective if sweep else None,
        goodput=study_goodput(plan, records),
        missing=tuple(
            (s.cell.address, s.stage.name, s.reason)
            for s in plan.stages
            if s.status.is_work and s.cell.role != "sweep"
        ),
    )
    files = write_page(rows, meta=meta, gallery=_gallery(plan, records), directory=directory)
    return files.html


def _provenance(plan: Plan) -> dict[str, str]:
    found: dict[str, Any] = {"data": ", ".join(f"{p} {f}" for p, f in plan.fingerprints.items())}
    found |= {k: str(v) for k, v in code_version().items()}
    for planned in plan.stages:
        if planned.record is not None and planned.record.provenance:
            provenance = planned.record.provenance
            found["device"] = str(provenance.get("device", ""))
            found["host"] = str(provenance.get("host", ""))
            versions: dict[str, str] = provenance.get("versions", {})
            found["versions"] = ", ".join(f"{k} {v}" for k, v in versions.items())
            break
    return {k: str(v) for k, v in found.items()} | {"python": sys.version.split()[0]}


def _gallery(plan: Plan, records: Records) -> list[GalleryEntry]:
    """Reconstructions of the largest size at its first seed, by duration."""
    finished = [p for p in plan.stages if _has_gallery(p)]
    if not finished:
        return []
    largest = max(finished, key=lambda p: p.cost.encoder_params or 0)
    assert isinstance(largest.stage.recipe, PretrainRecipe)
    encoder = largest.stage.recipe.encoder
    chosen: dict[int, PlannedStage] = {}
    for planned in finished:
        recipe = planned.stage.recipe
        assert isinstance(recipe, PretrainRecipe)
        if recipe.encoder == encoder:
            chosen.setdefault(planned.cost.steps or 0, planned)
    entries = []
    for steps in sorted(chosen)[:GALLERY_CELLS]:
        planned = chosen[steps]
        record = planned.record
        assert record is not None
        assert isinstance(planned.stage.recipe, PretrainRecipe)
        entries.append(
            GalleryEntry(
                cell=planned.cell.address,
                label=str(planned.stage.recipe.duration) if steps else "untrained",
                path=records.outputs(record.science_hash, record.attempt) / GALLERY_FILE,
            )
        )
    return entries


def _has_gallery(planned: PlannedStage) -> bool:
    return (
        planned.cell.role in ("grid", "untrained")
        and planned.record is not None
        and GALLERY_FILE in planned.record.outputs
    )
