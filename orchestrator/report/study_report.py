"""From a plan to the report: rows, gallery and provenance handed to `studies.analysis`."""

from __future__ import annotations

import platform
from pathlib import Path

from mae_core.config import GALLERY_FILE, PretrainRecipe, ReconstructionRecipe
from mae_core.config.inference import gallery_file
from orchestrator.plan.pasted import command, resolved_path, store_option
from orchestrator.plan.plan import Plan, PlannedStage, plan_findings
from orchestrator.plan.rows import make_rows
from orchestrator.report.goodput import study_goodput
from orchestrator.report.predictions import chance_of, next_runs, score_lines, scored
from orchestrator.report.searches import searches
from orchestrator.store.kept_files import output
from orchestrator.store.provenance import code_version
from orchestrator.store.records import Records, now_iso
from orchestrator.sweep.trials import Winner
from studies.analysis.figures.gallery_figure import GalleryEntry
from studies.analysis.laws.by_protocol import study_laws
from studies.analysis.report.meta import ReportMeta
from studies.analysis.report.page import write_report as write_page
from studies.analysis.sweeps.settings import ChosenSetting
from studies.spec.axes import shown

GALLERY_CELLS = 5


def write_report(plan: Plan, records: Records, directory: Path) -> Path:
    """Write the report of what is finished; return the path of its page."""
    rows = make_rows(plan, records)
    findings = plan_findings(plan)
    sweep = plan.sweeps[0] if len(plan.sweeps) == 1 else None
    meta = ReportMeta(
        study=plan.study.name,
        question=plan.study.question,
        command=command(records, plan.study.name, "run"),
        store_option=store_option(records),
        created_at=now_iso(),
        notes=plan.study.notes,
        axes=plan.study.axes,
        measures=plan.study.measures,
        published=plan.study.published,
        provenance=_provenance(plan),
        sweep_winner=_chosen(sweep.winner) if sweep else None,
        objective=sweep.trials.sweep.objective if sweep else None,
        searches=searches(plan, records),
        goodput=study_goodput(plan, records),
        laws=study_laws(rows, top=chance_of(plan)) if asks_for_laws(plan) else (),
        advice=next_runs(plan, rows) if asks_for_laws(plan) else (),
        predictions=score_lines(scored(plan, records)),
        findings=tuple((f.level, f.code, f.message) for f in findings),
        odd={cell: f.message for f in findings for cell in f.cells},
        reference=resolved_path(records, plan.study.name),
        missing=tuple(
            (s.cell.address, s.stage.name, s.reason)
            for s in plan.stages
            if s.status.is_work and s.cell.role != "sweep"
        ),
    )
    files = write_page(rows, meta=meta, gallery=_gallery(plan, records), directory=directory)
    return files.html


def _chosen(winner: Winner | None) -> ChosenSetting | None:
    """A decision without its Pareto front, which has a figure of its own."""
    if winner is None:
        return None
    return ChosenSetting(
        settings=winner.settings,
        score=winner.score,
        objective=winner.objective,
        trial=winner.trial,
        num_trials=winner.num_trials,
        decided_at=winner.decided_at,
        rule=winner.rule,
        values=winner.values,
    )


def asks_for_laws(plan: Plan) -> bool:
    """True if the study's question is about size and duration and nothing else."""
    return set(plan.study.axes) <= {"size", "duration"}


def _provenance(plan: Plan) -> dict[str, str]:
    found = {"data": ", ".join(f"{p} {f}" for p, f in plan.fingerprints.items())}
    found |= {k: str(v) for k, v in code_version().items()}
    for planned in plan.stages:
        if planned.record is not None and planned.record.provenance:
            provenance = planned.record.provenance
            found["device"] = str(provenance.get("device", ""))
            found["host"] = str(provenance.get("host", ""))
            versions: dict[str, str] = provenance.get("versions", {})
            found["versions"] = ", ".join(f"{k} {v}" for k, v in versions.items())
            break
    return found | {"python": platform.python_version()}


def _gallery(plan: Plan, records: Records) -> list[GalleryEntry]:
    """Reconstructions of the largest size at its first seed, over the study's axes or duration."""
    finished = [p for p in plan.stages if _has_gallery(p)]
    if not finished:
        return _ratio_gallery(plan, records)
    encoders = [_recipe(p).encoder for p in finished]
    largest = max(zip(finished, encoders, strict=True), key=lambda pair: _params(pair[0]))[1]
    chosen: dict[str, PlannedStage] = {}
    for planned, encoder in zip(finished, encoders, strict=True):
        if encoder == largest:
            chosen.setdefault(_gallery_label(planned), planned)
    if not plan.study.axes:
        chosen = dict(sorted(chosen.items(), key=lambda item: item[1].cost.steps or 0))
    entries = []
    for label, planned in list(chosen.items())[:GALLERY_CELLS]:
        record = planned.record
        assert record is not None
        path = output(records, record, GALLERY_FILE)
        entries.append(GalleryEntry(cell=planned.cell.address, label=label, path=path))
    return entries + _ratio_gallery(plan, records)


def _ratio_gallery(plan: Plan, records: Records) -> list[GalleryEntry]:
    """Reconstructions at several mask ratios, of the largest network trained longest."""
    finished = [
        p for p in plan.stages if p.record and isinstance(p.stage.recipe, ReconstructionRecipe)
    ]
    if not finished:
        return []
    planned = max(finished, key=lambda p: (p.cost.flops, _trained_images(plan, p)))
    record, recipe = planned.record, planned.stage.recipe
    assert record is not None and isinstance(recipe, ReconstructionRecipe)
    return [
        GalleryEntry(
            cell=planned.cell.address,
            label=f"mask {ratio:g}, {planned.cell.address}",
            path=output(records, record, gallery_file(ratio)),
        )
        for ratio in recipe.gallery_ratios
        if gallery_file(ratio) in record.outputs
    ]


def _trained_images(plan: Plan, planned: PlannedStage) -> int:
    start = planned.cell.pretrain
    return plan.planner.cost(planned.cell, start).images if start else 0


def _recipe(planned: PlannedStage) -> PretrainRecipe:
    assert isinstance(planned.stage.recipe, PretrainRecipe)
    return planned.stage.recipe


def _params(planned: PlannedStage) -> int:
    return planned.cost.encoder_params or 0


def _gallery_label(planned: PlannedStage) -> str:
    """Where it stands on the study's axes, else how long it was trained."""
    if planned.places:
        return ", ".join(shown(axis, place) for axis, place in planned.places.items())
    return str(_recipe(planned).duration) if planned.cost.steps else "untrained"


def _has_gallery(planned: PlannedStage) -> bool:
    return (
        planned.cell.role in ("grid", "untrained")
        and planned.record is not None
        and GALLERY_FILE in planned.record.outputs
    )


def report_dir(records: Records, study: str) -> Path:
    """Where a study's report is written."""
    return records.store.path(f"reports/{study}")
