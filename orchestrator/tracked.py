"""An observer that tells MLflow what the controller does, and fills in what MLflow lacks."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from cluster.verdict import Verdict
from orchestrator.plan import Plan, PlannedStage
from orchestrator.records import DoneRecord, Records
from orchestrator.results import axes_of, make_rows
from orchestrator.store import Store
from orchestrator.tasks import Task, code_version
from orchestrator.tracking import RunInfo, Shipper, Target, artifact_root, default_uri
from studies.results import ResultRow

AXES = (
    "size",
    "encoder_params",
    "total_params",
    "duration",
    "epochs",
    "steps",
    "images_seen",
    "mask_ratio",
    "decoder_depth",
    "decoder_width",
    "seed",
    "pretrain_flops",
)
"""Copied onto every run: MLflow's filters and charts see only a run's own values."""


class Tracking:
    """Ships one study to MLflow. Use as a context manager."""

    def __init__(self, store: Store, plan: Plan, uri: str | None) -> None:
        self._store, self._plan = store, plan
        self.uri = uri or default_uri(store)
        root = artifact_root(store) if uri is None else None
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
        study = plan.study
        self._shipper = Shipper(
            Target(uri=self.uri, study=study.name, question=study.question, artifacts=root)
        )
        self.problem: str | None = None

    @staticmethod
    def default(store: Store) -> str:
        """Where runs go when no server is named."""
        return default_uri(store)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self.problem = self._shipper.close()

    def stage_started(self, task: Task, directory: Path) -> None:
        """Ship its journal while it grows."""
        tags = {"attempts": task.attempt, "state": "running"}
        self._shipper.follow(self._stage_info(task.planned), directory, tags)

    def stage_done(self, task: Task, record: DoneRecord) -> None:
        """Log its results; the cell's run follows with `sync`."""
        self._ship_done(task.planned, record)

    def attempt_failed(self, task: Task, verdict: Verdict) -> None:
        """Note the cause."""
        tags = {"state": verdict.cause.value, "last_message": verdict.message[:500]}
        info = self._stage_info(task.planned)
        self._shipper.result(info, {}, _now_ms(), tags=tags, status="FAILED")

    def tick(self, tasks: dict[str, Task]) -> None:
        """Nothing to do: the shipper has its own clock."""

    def sync(self, plan: Plan, records: Records, report: Path | None) -> None:
        """Make runs of everything that is done, whoever did it when, and attach the report."""
        rows = {(r.cell, r.stage): r for r in make_rows(plan, records)}
        for planned in plan.stages:
            if planned.record is not None:
                self._follow_done(planned, planned.record, records)
        by_cell: dict[str, list[PlannedStage]] = {}
        for planned in plan.stages:
            by_cell.setdefault(planned.cell.address, []).append(planned)
        for stages in by_cell.values():
            self._ship_cell(stages, rows)
        self._shipper.finish_study(report)

    def _follow_done(self, planned: PlannedStage, record: DoneRecord, records: Records) -> None:
        info = self._stage_info(planned)
        directory = records.attempt_dir(record.science_hash, record.attempt)
        self._shipper.follow(info, directory, {"attempts": record.attempt})
        self._ship_done(planned, record)

    def _ship_done(self, planned: PlannedStage, record: DoneRecord) -> None:
        finished = _ms(record.finished_at)
        metrics = numeric(record.metrics) | {
            "seconds": record.seconds,
            "stage_flops": planned.cost.flops,
        }
        self._shipper.result(self._stage_info(planned), metrics, finished, tags={"state": "done"})

    def _ship_cell(
        self, stages: list[PlannedStage], rows: dict[tuple[str, str], ResultRow]
    ) -> None:
        metrics: dict[str, float] = {}
        finished = 0
        for planned in stages:
            row = rows.get((planned.cell.address, planned.stage.name))
            if row is None:
                continue
            finished = max(finished, _ms(row.finished_at or ""))
            values = {"top1": row.top1, "top5": row.top5, "loss": row.loss, "seconds": row.seconds}
            metrics |= numeric({f"{row.stage}.{k}": v for k, v in values.items()})
        if metrics:
            complete = len(stages) == sum((s.cell.address, s.stage.name) in rows for s in stages)
            state = {"state": "done" if complete else "partial"}
            self._shipper.result(self._cell_info(stages), metrics, finished, tags=state)

    def _cell_info(self, stages: list[PlannedStage]) -> RunInfo:
        cell = stages[0].cell
        hashes = "".join(s.identity.science_hash for s in stages)
        key = hashlib.sha256(hashes.encode()).hexdigest()[:16]
        return RunInfo(
            name=cell.address,
            level="cell",
            identity=f"cell:{cell.address}:{key}",
            tags=self._tags(stages[0]) | {"role": cell.role},
            params=self._axes(stages[0]),
        )

    def _stage_info(self, planned: PlannedStage) -> RunInfo:
        tags = self._tags(planned) | {
            "stage": planned.stage.name,
            "kind": planned.stage.kind,
            "role": planned.cell.role,
            "science_hash": planned.identity.science_hash,
        }
        parents = planned.identity.science["parents"]
        return RunInfo(
            name=planned.address,
            level="stage",
            identity=f"stage:{planned.identity.science_hash}",
            tags=tags,
            params=self._axes(planned) | {"kind": planned.stage.kind},
            upstream=f"stage:{parents[0]}" if parents else None,
        )

    def _tags(self, planned: PlannedStage) -> dict[str, str]:
        code = code_version()
        tags = {"study": self._plan.study.name, "cell": planned.cell.address}
        return tags | ({"commit": code["commit"]} if code else {})

    def _axes(self, planned: PlannedStage) -> dict[str, Any]:
        axes = axes_of(planned.cell, self._plan.planner)
        return {name: axes[name] for name in AXES if name in axes}


def numeric(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {
        k: float(v)
        for k, v in values.items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    }


def sync_key(uri: str, plan: Plan) -> str:
    """Store key that says that this state of the study is in that MLflow."""
    done = sorted(s.address + (s.record.finished_at if s.record else "") for s in plan.stages)
    state = json.dumps([uri, done])
    digest = hashlib.sha256(state.encode()).hexdigest()[:16]
    return f"tracking/synced/{plan.study.name}/{digest}.json"


def _ms(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1000) if iso else 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
