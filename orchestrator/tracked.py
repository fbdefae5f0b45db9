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
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from cluster.verdict import Verdict
from orchestrator.journal import Entry
from orchestrator.observer import Observer
from orchestrator.plan import Plan, PlannedStage
from orchestrator.records import DoneRecord, Records, stage_key
from orchestrator.results import axes_of, make_rows
from orchestrator.shipping import PATIENCE_S, End, Item, ship
from orchestrator.store import Store
from orchestrator.tasks import Task, code_version
from orchestrator.tracking import (
    STUDY,
    RunInfo,
    Target,
    artifact_root,
    database_stamp,
    default_uri,
)
from orchestrator.tracking_uri import check_uri, without_credentials
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
"""A shipper that is told to end and makes no progress for this long is killed."""
INTERRUPTED_PATIENCE_S = 5.0
"""A server that is away is waited for this long when the command was interrupted."""
RESTARTS = 5
"""A shipper that died is replaced this often."""
MAX_TAG = 500
"""Characters of a free text in a tag."""


class Tracking(Observer):
    """Ships one study to MLflow. Use as a context manager.

    A server that is away is said once through `warn`, and shipped to when it is back.

    Raises:
        TrackingError: the URI or its server cannot be used, and waiting will not mend it.
    """

    def __init__(
        self, store: Store, plan: Plan, uri: str | None, warn: Callable[[str], None] | None = None
    ) -> None:
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
        if self._shipper.absent:
            (warn or _warn)(absence_text(self.uri, self._shipper.absent))
        self.problem: str | None = None

    @staticmethod
    def default(store: Store) -> str:
        """Where runs go when no server is named."""
        return default_uri(store)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        patience = PATIENCE_S if kind is None else INTERRUPTED_PATIENCE_S
        self.problem = self._shipper.close(patience_s=patience)

    def stage_started(self, task: Task, directory: Path) -> None:
        """Ship its journal while it grows, after those of earlier attempts."""
        self._send("follow", task, {"attempts": task.attempt, "state": "running"})

    def stage_done(self, task: Task, record: DoneRecord) -> None:
        """Log its results; the cell's run follows with `sync`."""
        self._ship_done(task.planned, record)

    def attempt_failed(self, task: Task, verdict: Verdict) -> None:
        """Note the cause."""
        message = verdict.message[:MAX_TAG]
        self._send("failed", task, {"state": verdict.cause.value, "last_message": message})

    def decided(self, task: Task, decision: Mapping[str, Any]) -> None:
        """Note it, as the store has it."""
        self._send("note", task, self._decision_tags(task.key))

    def tick(self, tasks: dict[str, Task]) -> None:
        """See to the shipper; it has its own clock."""
        self._shipper.tend()

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
        info = RunInfo(name=plan.study.name, level="study", identity=STUDY)
        self._shipper.send(Item(action="study", info=info, report=report))

    def _send(self, action: str, task: Task, tags: dict[str, Any]) -> None:
        attempts = self._attempt_dirs(task.key, task.attempt)
        info = self._stage_info(task.planned)
        self._shipper.send(Item(action=action, info=info, attempts=attempts, tags=tags))

    def _decision_tags(self, science_hash: str) -> dict[str, str]:
        """The last decision about a stage, and how many there have been, under any driver."""
        last = self._records.store.last_numbered(f"{stage_key(science_hash)}/decisions")
        return (
            {} if last is None else {"decision": decision_text(last[1]), "decisions": str(last[0])}
        )

    def _set_aside(self, science_hash: str) -> int:
        """Number of the stage's last attempt whose result was set aside; 0 if none was."""
        aside = self._records.store.last_numbered(f"{stage_key(science_hash)}/superseded")
        return int(aside[1]["attempt"]) if aside else 0

    def _identity(self, science_hash: str) -> str:
        """What a stage's run is found by; what was done after a result was set aside is another.

        Their curves have the same keys and steps, which one run would hold twice.
        """
        aside = self._set_aside(science_hash)
        return f"stage:{science_hash}" + (f":after-{aside}" if aside else "")

    def _attempt_dirs(self, science_hash: str, last: int) -> tuple[Path, ...]:
        """Directories of the attempts that led to attempt `last`, oldest first.

        Attempts of a result that was set aside belong to another curve.
        """
        numbers = range(min(1 + self._set_aside(science_hash), last), last + 1)
        return tuple(self._records.attempt_dir(science_hash, n) for n in numbers)

    def _ship_done(self, planned: PlannedStage, record: DoneRecord) -> None:
        costs = {"seconds": record.seconds, "stage_flops": planned.cost.flops}
        results = final_results(record.metrics) | numeric(costs)
        self._shipper.send(
            Item(
                action="done",
                info=self._stage_info(planned),
                attempts=self._attempt_dirs(record.science_hash, record.attempt),
                entry=Entry(0, _ms(record.finished_at), 0, results),
                attempt=record.attempt,
                tags={"state": "done", "attempts": record.attempt}
                | exactness(record)
                | self._decision_tags(record.science_hash),
            )
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
            self._shipper.send(
                Item(
                    action="result",
                    info=self._cell_info(stages),
                    entry=Entry(0, finished, 0, metrics),
                    tags={"state": "done" if complete else "partial"},
                )
            )

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
            identity=self._identity(planned.identity.science_hash),
            tags=tags,
            params=self._axes(planned) | {"kind": planned.stage.kind},
            upstream=self._identity(parents[0]) if parents else None,
        )

    def _tags(self, planned: PlannedStage) -> dict[str, str]:
        code = code_version()
        tags = {"study": self._plan.study.name, "cell": planned.cell.address}
        return tags | ({"commit": code["commit"]} if code else {})

    def _axes(self, planned: PlannedStage) -> dict[str, Any]:
        axes = axes_of(planned.cell, self._plan.planner)
        return {name: axes[name] for name in AXES if name in axes}


def absence_text(uri: str, reason: str) -> str:
    """What is said once when the server is away at the start."""
    return (
        f"MLflow at {without_credentials(uri)} is away: {reason}. The study runs all the same and "
        "the store keeps everything; it is shipped when the server is back. If it does not come "
        "back in time, start it and run the same command again."
    )


def decision_text(decision: Mapping[str, Any]) -> str:
    """A decision on one line, short enough for a tag."""
    return f"{decision.get('decision')}: {decision.get('reason')}"[:MAX_TAG]


def exactness(record: DoneRecord) -> dict[str, str]:
    """Tags that say how a result compares with an undisturbed run's, and who intervened."""
    tags = {}
    if level := record.provenance.get("level"):
        tags["exactness"] = str(level)
    if record.intervened:
        tags["intervened"] = json.dumps(record.intervened)[:MAX_TAG]
    return tags


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


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
    milliseconds of Python per call, which neither the controller nor a rank should pay. If it
    dies, another one begins anew from the journals.

    Args:
        restarts: how often one that died is replaced.

    Raises:
        TrackingError: the URI or its server cannot be used, and waiting will not mend it.
    """

    def __init__(self, target: Target, restarts: int = RESTARTS) -> None:
        self.absent = check_uri(target.uri)
        """Why the server does not answer now; None if it does."""
        self._target = target
        self._context = multiprocessing.get_context("spawn")
        self._progress: Any = self._context.RawValue(ctypes.c_uint64, 0)
        self._items: dict[str, Item] = {}
        """The last word on every run, for a process that begins anew."""
        self._restarts, self._max_restarts = 0, restarts
        self._begin()

    @property
    def pid(self) -> int:
        """Process id of the shipper that works now."""
        return self._process.pid or 0

    def _begin(self) -> None:
        self._work: Any = self._context.Queue()
        # At exit nobody waits until a process that is gone has read its queue; `close` waits for
        # the answer, which comes after everything was read.
        self._work.cancel_join_thread()
        self._answer, answer = self._context.Pipe(duplex=False)
        arguments = (self._target, self._work, answer, self._progress, os.getpid())
        self._process = self._context.Process(
            target=ship, args=arguments, name="shipper", daemon=True
        )
        with _without_main_module():
            self._process.start()
        answer.close()  # the child has the only end now: its death is seen
        self._began = time.monotonic()
        for item in self._items.values():
            self._work.put(item)

    def tend(self) -> None:
        """Put another process in the place of one that died; call it now and then."""
        pause_s = 2.0**self._restarts
        if self._process.is_alive() or time.monotonic() - self._began < pause_s:
            return
        self._replace()

    def _replace(self) -> bool:
        """Begin anew after a death; False if that was done too often."""
        if self._restarts >= self._max_restarts:
            return False
        self._restarts += 1
        self._process.join()
        self._work.close()
        self._answer.close()
        self._begin()
        return True

    def send(self, item: Item) -> None:
        """Have something shipped; it replaces what was said of that run before."""
        item = item.after(self._items.get(item.info.identity))
        # Moved to the end, so that a new process does everything in the same order.
        self._items.pop(item.info.identity, None)
        self._items[item.info.identity] = item
        if self._process.is_alive():
            self._work.put(item)

    def close(self, stall_s: float = STALL_S, patience_s: float = PATIENCE_S) -> str | None:
        """Ship what is left; return what is missing, None if everything arrived.

        However much it is, it may take its time. A server that is away is waited for `patience_s`
        (15 s at most if it has never answered); without any progress for `stall_s` the process is
        killed.
        """
        problem = self._wait(stall_s, patience_s)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        self._work.close()
        self._answer.close()
        return problem

    def _wait(self, stall_s: float, patience_s: float) -> str | None:
        self._work.put(End(patience_s))
        seen, since = self._progress.value, time.monotonic()
        while time.monotonic() - since < stall_s:
            if wait([self._answer, self._process.sentinel], timeout=min(1.0, stall_s)):
                try:
                    problem: str | None = self._answer.recv()
                    return problem
                except (EOFError, OSError):
                    self._process.join(5)
                    code = self._process.exitcode
                if not self._replace():
                    others = f"; so did {self._restarts} before it" if self._restarts else ""
                    return f"the shipping process died (exit code {code}){others}"
                self._work.put(End(patience_s))
                since = time.monotonic()
            if self._progress.value != seen:
                seen, since = self._progress.value, time.monotonic()
        self._process.kill()
        return f"shipping made no progress for {stall_s:g} s"


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
