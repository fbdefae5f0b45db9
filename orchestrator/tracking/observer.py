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
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from cluster.verdict import Verdict
from orchestrator.drive.observer import Observer
from orchestrator.drive.task import Task
from orchestrator.plan.plan import Plan, PlannedStage
from orchestrator.plan.rows import make_rows
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import Store
from orchestrator.store.generations import Generation, generations, milliseconds
from orchestrator.store.journal import Entry
from orchestrator.store.records import DoneRecord, Records
from orchestrator.tracking.cell_values import (
    axes,
    cell_metrics,
    final_results,
    numeric,
    protocols,
    settings,
    x_axes,
)
from orchestrator.tracking.dataset_inputs import data_use
from orchestrator.tracking.mlflow_runs import (
    STUDY,
    RunInfo,
    Target,
    artifact_root,
    database_stamp,
    default_uri,
)
from orchestrator.tracking.saved_view import Cell, cells_view
from orchestrator.tracking.shipper import PATIENCE_S, End, Item, ship
from orchestrator.tracking.study_values import study_values
from orchestrator.tracking.uri import check_uri, without_credentials
from studies.result_row import ResultRow

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
        self,
        store: Store,
        plan: Plan,
        uri: str | None,
        warn: Callable[[str], None] | None = None,
        datasets: Datasets | None = None,
    ) -> None:
        self._records, self._plan, self._datasets = (
            Records(store),
            plan,
            datasets or Datasets(store),
        )
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
                started_ms=first_run_ms(store, study.name),
            )
        )
        if self._shipper.absent:
            (warn or _warn)(absence_text(self.uri, self._shipper.absent))
        self.problem: str | None = None
        self._known: dict[str, list[Generation]] | None = None
        self._grid: list[Cell] = []
        """What the runs of the grid's cells say."""

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
        self._ship(task.planned, self._generations(task.key)[-1])

    def attempt_failed(self, task: Task, verdict: Verdict) -> None:
        """Note the cause."""
        message = verdict.message[:MAX_TAG]
        self._send("failed", task, {"state": verdict.cause.value, "last_message": message})

    def decided(self, task: Task, decision: Mapping[str, Any]) -> None:
        """Note it, as the store has it."""
        self._send("note", task, {})

    def tick(self, tasks: dict[str, Task]) -> None:
        """See to the shipper; it has its own clock."""
        self._shipper.tend()

    def sync(self, plan: Plan, records: Records, report: Path | None) -> None:
        """Make runs of everything that is done or was tried, and attach the report."""
        rows = self.sync_cells(plan)
        values = study_values(plan, records, rows, report)
        self._shipper.send(
            Item(
                action="study",
                info=RunInfo(name=plan.study.name, level="study", identity=STUDY),
                entry=Entry(0, values.at_ms, 0, values.metrics),
                tags=values.tags,
                tables=values.tables,
                view=cells_view(self._grid, x_axes(plan), values.at_ms) if self._grid else "",
                report=report,
                ended_ms=max((milliseconds(r.finished_at or "") for r in rows), default=0),
            )
        )

    def sync_cells(self, plan: Plan) -> list[ResultRow]:
        """Make runs of the cells and stages of a plan; return what they measured."""
        self._plan, self._known, self._grid = plan, {}, []
        made = make_rows(plan, self._records)
        rows: dict[tuple[str, str], ResultRow] = {}
        for row in made:  # a stage's own row comes before those of its conditions
            rows.setdefault((row.cell, row.stage), row)
        by_cell: dict[str, list[PlannedStage]] = {}
        for planned in plan.stages:
            for generation in self._generations(planned.identity.science_hash):
                self._ship(planned, generation)
            by_cell.setdefault(planned.cell.address, []).append(planned)
        for stages in by_cell.values():
            self._ship_cell(stages, rows)
        self._known = None
        return made

    def _generations(self, science_hash: str) -> list[Generation]:
        """Of a stage; while all are shipped, each is read from the store once."""
        if self._known is None:
            return generations(self._records, science_hash)
        if science_hash not in self._known:
            self._known[science_hash] = generations(self._records, science_hash)
        return self._known[science_hash]

    def _send(self, action: str, task: Task, tags: dict[str, Any]) -> None:
        generation = self._generations(task.key)[-1]
        last = max(task.attempt, generation.last)
        self._shipper.send(
            Item(
                action=action,
                info=self._stage_info(task.planned, generation),
                attempts=self._attempt_dirs(generation, last),
                tags=generation_tags(generation) | tags,
                ended_ms=milliseconds(generation.ended_at),
            )
        )

    def _attempt_dirs(self, generation: Generation, last: int) -> tuple[Path, ...]:
        """Directories of the attempts that led to attempt `last`, oldest first."""
        numbers = range(min(generation.after + 1, last), last + 1)
        return tuple(self._records.attempt_dir(generation.science_hash, n) for n in numbers)

    def _ship(self, planned: PlannedStage, generation: Generation) -> None:
        """Make the run of a generation as it stands; none if nothing ever happened to it."""
        record = generation.record
        if record is None and not generation.attempts and not generation.decisions:
            return
        actions = {"done": "done", "running": "follow"}
        action = actions.get(generation.state, "failed") if generation.attempts else "note"
        entry, tags = None, generation_tags(generation)
        if generation.attempts or record is not None:
            tags |= {"state": generation.state, "attempts": str(generation.last)}
        if generation.last_message:
            tags["last_message"] = generation.last_message[:MAX_TAG]
        if record is not None:
            action = "done"
            costs = {"seconds": record.seconds, "stage_flops": planned.cost.flops}
            results = final_results(record.metrics) | numeric(costs)
            entry = Entry(0, milliseconds(record.finished_at), 0, results)
            tags |= exactness(record)
        self._shipper.send(
            Item(
                action=action,
                info=self._stage_info(planned, generation),
                attempts=self._attempt_dirs(generation, generation.last),
                entry=entry,
                attempt=generation.last,
                tags=tags,
                ended_ms=milliseconds(generation.ended_at),
            )
        )

    def _ship_cell(
        self, stages: list[PlannedStage], rows: dict[tuple[str, str], ResultRow]
    ) -> None:
        metrics = cell_metrics(stages, rows)
        if not metrics:
            return
        info = self._cell_info(stages)
        if stages[0].cell.role == "grid":
            self._grid.append((info.params, metrics))
        done = [r for s in stages if (r := rows.get((s.cell.address, s.stage.name)))]
        finished = max(milliseconds(row.finished_at or "") for row in done)
        self._shipper.send(
            Item(
                action="result",
                info=info,
                entry=Entry(0, finished, 0, metrics),
                tags={"state": "done" if len(done) == len(stages) else "partial"},
                ended_ms=finished,
            )
        )

    def _cell_info(self, stages: list[PlannedStage]) -> RunInfo:
        cell = stages[0].cell
        hashes = "".join(s.identity.science_hash for s in stages)
        key = hashlib.sha256(hashes.encode()).hexdigest()[:16]
        begun = [
            self._generations(s.identity.science_hash)[-1] for s in stages if s.record is not None
        ]
        tags = self._tags(stages[0]) | {"role": cell.role} | protocols(stages)
        commits = [g.commit for g in begun if g.commit]
        return RunInfo(
            name=cell.address,
            level="cell",
            identity=f"cell:{cell.address}:{key}",
            tags=tags | ({"commit": commits[-1]} if commits else {}),
            params=axes(self._plan, stages[0]),
            data=data_use(stages[-1], self._datasets),
            started_ms=min((milliseconds(g.started_at) for g in begun if g.started_at), default=0),
        )

    def _stage_info(self, planned: PlannedStage, generation: Generation) -> RunInfo:
        tags = self._tags(planned) | {
            "stage": planned.stage.name,
            "kind": planned.stage.kind,
            "protocol": planned.stage.recipe.protocol,
            "role": planned.cell.role,
            "science_hash": planned.identity.science_hash,
        }
        parents = planned.identity.parents
        return RunInfo(
            name=planned.address,
            level="stage",
            identity=generation.identity,
            tags=tags,
            params=axes(self._plan, planned),
            settings=settings(planned),
            data=data_use(planned, self._datasets),
            upstream=self._upstream(parents[0], generation.started_at) if parents else None,
            started_ms=milliseconds(generation.opened_at),
        )

    def _upstream(self, parent: str, started_at: str) -> str:
        """Identity of the parent's result that a stage begun at that time read."""
        found = self._generations(parent)
        before = [g for g in found if g.record is not None and g.ended_at <= started_at]
        return (before or found)[-1].identity

    def _tags(self, planned: PlannedStage) -> dict[str, str]:
        tags = {"study": self._plan.study.name, "cell": planned.cell.address}
        size = planned.coordinates.size
        return tags | ({"size": str(size)} if size else {})


def first_run_ms(store: Store, study: str) -> int:
    """When a study was first run; 0 if it never was."""
    first = store.read_json(f"studies/{study}/lease/000001.json") or {}
    return milliseconds(str(first.get("since", "")))


def generation_tags(generation: Generation) -> dict[str, str]:
    """The last decision about a stage, how many there were under any driver, and whose code ran."""
    tags = {"commit": generation.commit} if generation.commit else {}
    if found := generation.decisions:
        tags |= {"decision": decision_text(found[-1]), "decisions": str(len(found))}
    return tags


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


def sync_key(uri: str, plan: Plan) -> str:
    """Store key that says that this state of the study is in that MLflow.

    It is another key once a SQLite database was deleted or made anew.
    """
    done = sorted(s.address + (s.record.finished_at if s.record else "") for s in plan.stages)
    state = json.dumps([uri, database_stamp(uri, plan.study.name), done])
    digest = hashlib.sha256(state.encode()).hexdigest()[:16]
    return f"tracking/synced/{plan.study.name}/{digest}.json"


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
        self._items[item.info.identity] = item  # in its old place: parents stay before children
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
