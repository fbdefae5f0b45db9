"""Reports to MLflow what the controller does, and fills in what MLflow lacks.

Everything that is said is read from the store, so that a run's last update is complete whatever
was shipped before it: by this driver, by an earlier one, or by none.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from cluster.verdict import Verdict
from mae_core.data.facts import split_sizes
from orchestrator.drive.observer import Observer
from orchestrator.drive.task import Task
from orchestrator.errors import StudyBusy
from orchestrator.plan.plan import Plan, PlannedStage
from orchestrator.plan.rows import make_rows, role_of
from orchestrator.report.study_report import report_dir
from orchestrator.store.attempts import DecisionRecord, Driver
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import Store
from orchestrator.store.generations import Generation, generations, milliseconds
from orchestrator.store.lease import lease_prefix
from orchestrator.store.records import DoneRecord, Records, now_iso
from orchestrator.tracking.cell_values import axes, cell_results, protocols, settings, stage_results
from orchestrator.tracking.mlflow_database import (
    SYNCED_TAG,
    Destination,
    artifact_root,
    database_stamp,
    default_uri,
)
from orchestrator.tracking.run_values import DataUse, RunInfo, RunStatus, RunUpdate, Value
from orchestrator.tracking.ship_loop import PATIENCE_S
from orchestrator.tracking.shipper import Shipper
from orchestrator.tracking.study_values import study_update
from orchestrator.tracking.uri import without_credentials
from studies.result_row import ResultRow

INTERRUPTED_PATIENCE_S = 5.0
"""An unreachable server is waited for this long when the command was interrupted."""
MAX_TAG = 500
"""Characters of a free text in a tag."""


class Tracking(Observer):
    """Ships one study to MLflow. Use as a context manager.

    An unreachable server is reported once on stderr, and gets everything when it is back.

    Args:
        over_if: record that says, once it is there, that another driver has the study.

    Raises:
        TrackingError: the URI or its server cannot be used, and waiting will not help.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        uri: str | None = None,
        datasets: Datasets | None = None,
        over_if: Path | None = None,
    ) -> None:
        self._records, self._plan = Records(store), plan
        self._datasets = datasets or Datasets(store)
        self.uri = uri or default_uri(store)
        root = artifact_root(store) if uri is None else None
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
        first = self._records.side(
            f"{lease_prefix(plan.study.name)}/000001.json",
            Driver.from_json,
            "MLflow dates the study from now on",
        )
        self._shipper = Shipper(
            Destination(
                uri=self.uri,
                study=plan.study.name,
                question=plan.study.question,
                origin=self._records.store_id(),
                artifacts=root,
                started_ms=milliseconds(first.since) if first else 0,
                over_if=over_if,
            )
        )
        if self._shipper.absent:
            print(absence_text(self.uri, self._shipper.absent), file=sys.stderr, flush=True)
        self.problem: str | None = None
        self._is_synced = False
        self._known: dict[str, list[Generation]] | None = None

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, StudyBusy):  # it is another driver's to say now
            self._shipper.abandon()
            return
        patience = PATIENCE_S if kind is None else INTERRUPTED_PATIENCE_S
        self.problem = self._shipper.close(patience_s=patience)
        if self.problem is None and self._is_synced:
            self._records.store.create_json(sync_key(self.uri, self._plan), {})

    def stage_started(self, task: Task, directory: Path) -> None:
        """Ship its journal while it grows, after those of earlier attempts."""
        self._tell(task)

    def stage_done(self, task: Task, record: DoneRecord) -> None:
        """Log its results, and its cell's."""
        self._tell(task)

    def attempt_failed(self, task: Task, verdict: Verdict) -> None:
        """Note the cause, as the store has it."""
        self._tell(task)

    def decided(self, task: Task, decision: DecisionRecord) -> None:
        """Note it, as the store has it."""
        self._tell(task)

    def tick(self, tasks: dict[str, Task], ahead_s: Callable[[], float]) -> None:
        """See to the shipper; it has its own clock."""
        self._shipper.tend()

    def sync(self, plan: Plan, report: Path | None) -> None:
        """Make runs of everything that is done or was tried, and attach the report."""
        rows = self.sync_cells(plan)
        update = study_update(plan, self._records, rows, report)
        self._shipper.send(replace(update, tags=update.tags | {SYNCED_TAG: now_iso()}))
        self._is_synced = True

    def sync_cells(self, plan: Plan) -> list[ResultRow]:
        """Make runs of the cells and stages of a plan; return what they measured."""
        self._plan, self._known = plan, {}
        made = make_rows(plan, self._records)
        rows: dict[str, list[ResultRow]] = {}
        for row in made:
            rows.setdefault(row.cell, []).append(row)
        cells: dict[str, list[PlannedStage]] = {}
        for planned in plan.stages:
            cells.setdefault(planned.cell.address, []).append(planned)
        shipped: set[str] = set()  # what cells share is nested in the first of them
        for address, stages in cells.items():
            cell = self._cell_info(stages)
            for planned in stages:
                key = planned.identity.science_hash
                for generation in self._generations(key) if key not in shipped else ():
                    self._ship(planned, generation, cell)
                shipped.add(key)
            self._ship_cell(stages, cell, rows.get(address, ()))
        self._known = None
        return made

    def _tell(self, task: Task) -> None:
        """Ship a stage and its cell as the store has them now."""
        planned = task.planned
        stages = [
            replace(s, record=self._records.done(s.identity.science_hash))
            for s in self._plan.planner.plan_cell(planned.cell)
        ]
        cell = self._cell_info(stages)
        self._ship(planned, self._generations(task.key)[-1], cell)
        rows = make_rows(replace(self._plan, stages=tuple(stages)), self._records)
        self._ship_cell(stages, cell, rows)

    def _generations(self, science_hash: str) -> list[Generation]:
        """Of a stage; while all are shipped, each is read from the store once."""
        if self._known is None:
            return generations(self._records, science_hash)
        if science_hash not in self._known:
            self._known[science_hash] = generations(self._records, science_hash)
        return self._known[science_hash]

    def _ship(self, planned: PlannedStage, generation: Generation, cell: RunInfo) -> None:
        """Make the run of a generation as it stands; none if nothing ever happened to it."""
        record = generation.record
        if record is None and not generation.attempts and not generation.decisions:
            return
        key, last = generation.science_hash, generation.last
        numbers = range(min(generation.after + 1, last), last + 1)
        self._shipper.send(
            RunUpdate(
                info=self._stage_info(planned, generation, cell),
                status=status_of(generation),
                attempts=tuple(self._records.attempt_dir(key, n) for n in numbers),
                attempt=last,
                results=stage_results(record, planned.cost.flops) if record else (),
                tags=generation_tags(generation),
                ended_ms=milliseconds(generation.ended_at),
            )
        )

    def _ship_cell(
        self, stages: Sequence[PlannedStage], cell: RunInfo, rows: Iterable[ResultRow]
    ) -> None:
        """Make a cell's run as it stands; none if no stage of it was tried."""
        last = [self._generations(s.identity.science_hash)[-1] for s in stages]
        tried = [g for g in last if g.record is not None or g.attempts]
        if not tried:
            return
        done = [g for g in tried if g.record is not None]
        is_running = any(g.state == "running" for g in tried)
        status = RunStatus.FINISHED if done else RunStatus.FAILED
        state = ("done" if len(done) == len(stages) else "partial") if done else "failed"
        commits = [g.commit for g in done if g.commit]
        self._shipper.send(
            RunUpdate(
                info=cell,
                status=RunStatus.RUNNING if is_running else status,
                results=cell_results(stages, rows),
                tags={"state": "running" if is_running else state}
                | ({"commit": commits[-1]} if commits else {}),
                ended_ms=max(milliseconds(g.ended_at) for g in tried),
            )
        )

    def _cell_info(self, stages: Sequence[PlannedStage]) -> RunInfo:
        cell = stages[0].cell
        hashes = [s.identity.science_hash for s in stages]
        key = hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]
        opened = [milliseconds(self._generations(h)[0].opened_at) for h in hashes]
        return RunInfo(
            name=cell.address,
            level="cell",
            identity=f"cell:{cell.address}:{key}",
            tags=self._tags(stages[0]) | protocols(stages),
            params=axes(self._plan, stages[0]),
            data=self._data_use(stages[-1]),
            started_ms=min((ms for ms in opened if ms), default=0),
        )

    def _stage_info(self, planned: PlannedStage, generation: Generation, cell: RunInfo) -> RunInfo:
        tags = self._tags(planned) | {
            "stage": planned.stage.name,
            "kind": planned.stage.kind,
            "protocol": planned.stage.recipe.protocol,
            "science_hash": planned.identity.science_hash,
        }
        parents = planned.identity.parents
        return RunInfo(
            name=planned.address,
            level="stage",
            identity=generation.identity,
            parent=cell,
            tags=tags,
            params=axes(self._plan, planned),
            settings=settings(planned),
            data=self._data_use(planned),
            upstream=self._upstream(parents[0], generation.started_at) if parents else None,
            started_ms=milliseconds(generation.opened_at),
        )

    def _upstream(self, parent: str, started_at: str) -> str:
        """Identity of the parent's result that a stage begun at that time read."""
        found = self._generations(parent)
        before = [g for g in found if g.record is not None and g.ended_at <= started_at]
        return (before or found)[-1].identity

    def _tags(self, planned: PlannedStage) -> dict[str, str]:
        coordinates = planned.coordinates
        return {
            "study": self._plan.study.name,
            "cell": planned.cell.address,
            "family": coordinates.family,
            "role": role_of(planned),
        } | ({"size": coordinates.size} if coordinates.size else {})

    def _data_use(self, planned: PlannedStage) -> DataUse | None:
        """What a stage reads; None while the data have not been read."""
        recipe = planned.stage.recipe
        facts = self._datasets.facts(recipe.data.path)
        if facts is None:
            return None
        sizes = split_sizes(facts, recipe.data)
        cut: dict[str, Value] = {f"num_{split}": count for split, count in sizes.items()}
        cut |= {"split_seed": recipe.data.split_seed, "image_size": recipe.data.image_size}
        if recipe.scored_on is not None:
            cut["eval_split"] = recipe.scored_on
        return DataUse(recipe.data, facts, is_evaluation=recipe.IS_EVALUATION, cut=cut)


def sync_study(
    records: Records,
    plan: Plan,
    uri: str | None = None,
    datasets: Datasets | None = None,
    earlier: Iterable[Plan] = (),
) -> str | None:
    """Ship everything of a study, with the report that is there; return what is missing.

    Args:
        earlier: plans of states in which the study was run before.
    """
    with Tracking(records.store, plan, uri, datasets=datasets) as tracking:
        for one in earlier:
            tracking.sync_cells(one)
        page = report_dir(records, plan.study.name)
        tracking.sync(plan, page if (page / "index.html").exists() else None)
    return tracking.problem


def sync_key(uri: str, plan: Plan) -> str:
    """Store key that says that this state of the study is in that MLflow.

    It is another key once a SQLite database was deleted, rebuilt, or put back to a backup.
    """
    done = sorted(s.address + (s.record.finished_at if s.record else "") for s in plan.stages)
    state = json.dumps([uri, database_stamp(uri, plan.study.name), done])
    digest = hashlib.sha256(state.encode()).hexdigest()[:16]
    return f"tracking/synced/{plan.study.name}/{digest}.json"


def status_of(generation: Generation) -> RunStatus | None:
    """How MLflow shows a generation; None while nothing was tried."""
    if generation.record is not None:
        return RunStatus.FINISHED
    if not generation.attempts:
        return None
    return RunStatus.RUNNING if generation.state == "running" else RunStatus.FAILED


def generation_tags(generation: Generation) -> dict[str, str]:
    """Its state, the last decision about it, whose code ran, and how exact its result is."""
    record = generation.record
    tags = {"commit": generation.commit, "last_message": generation.last_message[:MAX_TAG]}
    if record is not None or generation.attempts:
        tags |= {"state": generation.state, "attempts": str(generation.last)}
    if decisions := generation.decisions:
        tags |= {"decision": decision_text(decisions[-1]), "decisions": str(len(decisions))}
    if record is not None:
        tags["exactness"] = str(record.provenance.get("level") or "")
        marks = [mark.to_json() for mark in record.intervened]
        tags["intervened"] = json.dumps(marks)[:MAX_TAG] if marks else ""
    return {name: text for name, text in tags.items() if text}


def decision_text(decision: DecisionRecord) -> str:
    """A decision on one line, short enough for a tag."""
    return f"{decision.decision}: {decision.reason}"[:MAX_TAG]


def absence_text(uri: str, reason: str) -> str:
    """Warning that the server cannot be reached at the start."""
    return (
        f"warning: MLflow at {without_credentials(uri)} cannot be reached: {reason}. The study "
        "runs and the store keeps everything; it is sent when the server is back. If that is after "
        "the end of the study, start the server and run the same command again."
    )
