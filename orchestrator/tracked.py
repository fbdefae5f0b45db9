"""An observer that tells MLflow what the controller does, and fills in what MLflow lacks.

This is the driver's side: a `Shipper` passes on what is to be shipped, `tracking.ship` ships it.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from cluster.verdict import Verdict
from orchestrator.journal import Entry
from orchestrator.plan import Plan, PlannedStage
from orchestrator.records import DoneRecord, Records, stage_key
from orchestrator.results import axes_of, make_rows
from orchestrator.store import Store
from orchestrator.tasks import Task, code_version
from orchestrator.tracking import (
    RunInfo,
    Target,
    artifact_root,
    check_uri,
    database_stamp,
    default_uri,
    ship,
)
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
STALL_S = 60.0
"""Shipping without any progress for this long is given up."""


class Tracking:
    """Ships one study to MLflow. Use as a context manager."""

    def __init__(self, store: Store, plan: Plan, uri: str | None) -> None:
        self._records, self._plan = Records(store), plan
        self.uri = uri or default_uri(store)
        root = artifact_root(store) if uri is None else None
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
        study = plan.study
        self._shipper = Shipper(
            Target(
                uri=self.uri,
                study=study.name,
                question=study.question,
                artifacts=root,
                store=store,
            )
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
        """Ship its journal while it grows, after those of earlier attempts."""
        tags = {"attempts": task.attempt, "state": "running"}
        info = self._stage_info(task.planned)
        self._shipper.follow(info, self._attempt_dirs(task.key, task.attempt), tags)

    def stage_done(self, task: Task, record: DoneRecord) -> None:
        """Log its results; the cell's run follows with `sync`."""
        self._ship_done(task.planned, record)

    def attempt_failed(self, task: Task, verdict: Verdict) -> None:
        """Note the cause."""
        tags = {"state": verdict.cause.value, "last_message": verdict.message[:500]}
        info = self._stage_info(task.planned)
        self._shipper.failed(info, self._attempt_dirs(task.key, task.attempt), tags)

    def tick(self, tasks: dict[str, Task]) -> None:
        """Nothing to do: the shipper has its own clock."""

    def sync(self, plan: Plan, records: Records, report: Path | None) -> None:
        """Make runs of everything that is done, whoever did it when, and attach the report."""
        rows = {(r.cell, r.stage): r for r in make_rows(plan, records)}
        for planned in plan.stages:
            if planned.record is not None:
                self._ship_done(planned, planned.record)
        by_cell: dict[str, list[PlannedStage]] = {}
        for planned in plan.stages:
            by_cell.setdefault(planned.cell.address, []).append(planned)
        for stages in by_cell.values():
            self._ship_cell(stages, rows)
        self._shipper.finish_study(report)

    def _attempt_dirs(self, science_hash: str, last: int) -> tuple[Path, ...]:
        """Directories of the attempts that led to attempt `last`, oldest first.

        Attempts of a result that was set aside belong to another curve.
        """
        aside = self._records.store.last_numbered(f"{stage_key(science_hash)}/superseded")
        first = 1 + (int(aside[1]["attempt"]) if aside else 0)
        numbers = range(min(first, last), last + 1)
        return tuple(self._records.attempt_dir(science_hash, n) for n in numbers)

    def _ship_done(self, planned: PlannedStage, record: DoneRecord) -> None:
        costs = {"seconds": record.seconds, "stage_flops": planned.cost.flops}
        self._shipper.done(
            self._stage_info(planned),
            self._attempt_dirs(record.science_hash, record.attempt),
            final_results(record.metrics) | numeric(costs),
            _ms(record.finished_at),
            attempt=record.attempt,
            tags={"state": "done", "attempts": record.attempt},
        )

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
            self._shipper.result(self._cell_info(stages), metrics, finished, state)

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


def final_results(metrics: dict[str, Any]) -> dict[str, float]:
    """A stage's results under names that no curve has, and those that people sort by as they are.

    A curve's own key would get its last value once more, at step 0.
    """
    values = numeric(metrics)
    plain = {k: values[k] for k in ("top1", "top5") if k in values}
    return {f"final.{k}": v for k, v in values.items()} | plain


def numeric(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {
        k: float(v)
        for k, v in values.items()
        if isinstance(v, int | float) and not isinstance(v, bool)
    }


def sync_key(uri: str, plan: Plan) -> str:
    """Store key that says that this state of the study is in that MLflow.

    It is another key once a SQLite database was deleted or made anew.
    """
    done = sorted(s.address + (s.record.finished_at if s.record else "") for s in plan.stages)
    state = json.dumps([uri, database_stamp(uri, plan.study.name), done])
    digest = hashlib.sha256(state.encode()).hexdigest()[:16]
    return f"tracking/synced/{plan.study.name}/{digest}.json"


def _ms(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1000) if iso else 0


class Shipper:
    """A process that follows journals and ships them; training and controller never wait for it.

    A process of its own, at low priority: MLflow's client costs seconds of import and tens of
    milliseconds of Python per call, which neither the controller nor a rank should pay.
    """

    def __init__(self, target: Target) -> None:
        check_uri(target.uri)
        context = multiprocessing.get_context("spawn")
        self._work: Any = context.Queue()
        # At exit nobody waits until a process that is gone has read its queue; `close` waits for
        # the answer, which comes after everything was read.
        self._work.cancel_join_thread()
        self._progress: Any = context.RawValue(ctypes.c_uint64, 0)
        self._answer, answer = context.Pipe(duplex=False)
        arguments = (target, self._work, answer, self._progress, os.getpid())
        self._process = context.Process(target=ship, args=arguments, name="shipper", daemon=True)
        with _without_main_module():
            self._process.start()
        answer.close()  # the child has the only end now: its death is seen

    def follow(self, info: RunInfo, attempts: tuple[Path, ...], tags: dict[str, Any]) -> None:
        """Make the run of a stage and ship the journals of its attempts from now on."""
        self._work.put(("follow", info.identity, info, attempts, tags))

    def failed(self, info: RunInfo, attempts: tuple[Path, ...], tags: dict[str, Any]) -> None:
        """Note that a stage's last attempt ended without success."""
        self._work.put(("failed", info.identity, info, attempts, tags))

    def done(
        self,
        info: RunInfo,
        attempts: tuple[Path, ...],
        metrics: dict[str, float],
        timestamp_ms: int,
        *,
        attempt: int,
        tags: dict[str, Any],
    ) -> None:
        """Make sure that a finished stage's curves and results arrive, once per attempt."""
        entry = Entry(0, timestamp_ms, 0, metrics)
        self._work.put(("done", info.identity, info, attempts, entry, attempt, tags))

    def result(
        self, info: RunInfo, metrics: dict[str, float], timestamp_ms: int, tags: dict[str, Any]
    ) -> None:
        """Make sure of a run that has no journal, and log final numbers onto it."""
        entry = Entry(0, timestamp_ms, 0, metrics)
        self._work.put(("result", info.identity, info, entry, tags))

    def finish_study(self, report: Path | None) -> None:
        """Attach the report to the study run and close it."""
        self._work.put(("study", "study", report))

    def close(self, stall_s: float = STALL_S) -> str | None:
        """Ship what is left; return what is missing, None if everything arrived.

        However much it is, it may take its time; without progress for `stall_s` it is given up.
        """
        self._work.put(None)
        problem = self._wait(stall_s)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        self._work.close()
        self._answer.close()
        return problem

    def _wait(self, stall_s: float) -> str | None:
        seen, since = self._progress.value, time.monotonic()
        while time.monotonic() - since < stall_s:
            if wait([self._answer, self._process.sentinel], timeout=min(1.0, stall_s)):
                return self._read_answer()
            if self._progress.value != seen:
                seen, since = self._progress.value, time.monotonic()
        self._process.kill()
        return f"shipping made no progress for {stall_s:g} s"

    def _read_answer(self) -> str | None:
        try:
            problem: str | None = self._answer.recv()
        except (EOFError, OSError):
            self._process.join(5)
            return f"the shipping process died (exit code {self._process.exitcode})"
        return problem


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep a spawned process from running the caller's script again."""
    main = sys.modules["__main__"]
    saved = {name: getattr(main, name, None) for name in ("__file__", "__spec__")}
    try:
        main.__file__, main.__spec__ = None, None
        yield
    finally:
        for name, value in saved.items():
            setattr(main, name, value)
