"""A stage on its way through a run: its state, its attempts, its payload."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cluster.gang import Gang
from mae_core.config import Execution
from mae_core.errors import MaeCoreError
from orchestrator.drive.policy import Start, TaskState, TaskView
from orchestrator.drive.remedies import PastAttempt
from orchestrator.plan.plan import PlannedStage
from orchestrator.rank.faults import Fault
from orchestrator.rank.payload import StagePayload, StageResult, extensions_of, parents_of
from orchestrator.store.data_facts import Datasets
from orchestrator.store.lineage import interventions, level_of
from orchestrator.store.provenance import code_version
from orchestrator.store.records import DoneRecord, Records
from orchestrator.store.sharing import sharing_of


@dataclass
class Task:
    """One identity to compute; several cells may share it."""

    planned: PlannedStage
    parents: tuple[str, ...]
    """Science hashes."""
    state: TaskState = TaskState.WAITING
    attempts: list[PastAttempt] = field(default_factory=list)
    gang: Gang | None = None
    attempt: int = 0
    """Number of the running or last attempt, in the store."""
    began: float = 0.0
    """Of the running attempt, on the monotonic clock."""
    started_at: float = 0.0
    """The same in Unix seconds."""
    decision: Start | None = None
    """What was decided for the running or last attempt."""
    is_stopping: bool = False
    """Its gang has been asked to stop."""
    reason: str = ""
    estimate_s: float = 0.0
    deferred_until: float = 0.0
    """Not to be started before; another study's driver runs it."""

    @property
    def key(self) -> str:
        """Science hash."""
        return self.planned.identity.science_hash

    @property
    def num_ranks(self) -> int:
        """Ranks that it asks for."""
        return self.planned.stage.execution.world_size

    @property
    def execution(self) -> Execution:
        """How the running or last attempt is computed: as the stage asks for, with remedies."""
        return self.decision.execution if self.decision else self.planned.stage.execution

    def view(self) -> TaskView:
        """What a policy sees: evaluations first, then trials, then the longest pretrainings."""
        rank = 0 if self.planned.stage.parents else 1 if self.planned.cell.role == "sweep" else 2
        return TaskView(
            key=self.key,
            state=self.state,
            execution=self.planned.stage.execution,
            batch=split.global_batch if (split := self.planned.cost.split) else None,
            parents=self.parents,
            attempts=tuple(self.attempts),
            not_before=self.deferred_until,
            priority=(rank, -self.estimate_s),
            running_on=self.execution.world_size if self.gang else 0,
            started_at=self.started_at,
            is_stopping=self.is_stopping,
        )


def make_payload(
    task: Task,
    records: Records,
    datasets: Datasets,
    *,
    faults: Sequence[Fault] = (),
) -> StagePayload:
    """Everything a rank needs for the attempt of a task that was begun."""
    stage = task.planned.stage
    return StagePayload(
        recipe=stage.recipe,
        execution=task.execution,
        umask=sharing_of(records.store.path("")).umask,
        facts=datasets.ensure(stage.recipe.data.path),
        science_hash=task.key,
        directory=records.attempt_dir(task.key, task.attempt),
        checkpoints=records.checkpoints(task.key),
        parents=parents_of(task.planned.cell, stage, task.parents, records),
        extensions=extensions_of(stage.recipe),
        attempt=task.attempt,
        over_if_any=records.over_if_any(task.key, task.attempt),
        rollback=task.decision.rollback if task.decision else 0,
        capture=True,
        faults=tuple(faults),
    )


def completion(
    task: Task,
    result: StageResult,
    seconds: float,
    records: Records,
    code: Mapping[str, str | bool] | None = None,
) -> DoneRecord:
    """The completion record of a task whose gang succeeded, from what rank 0 returned.

    Args:
        code: version that computed it; None = this process's.
    """
    parents = {parent: records.done(parent) for parent in task.parents}
    attempts = records.lineage(task.key)
    own = interventions(attempts, lambda n: records.attempt_dir(task.key, n))
    inherited = [
        replace(mark, inherited=parent)
        for parent, record in parents.items()
        if record is not None
        for mark in record.intervened
    ]
    level = level_of(attempts, lambda n: records.attempt_dir(task.key, n))
    return DoneRecord(
        science_hash=task.key,
        kind=task.planned.stage.kind,
        attempt=task.attempt,
        metrics=result.metrics,
        outputs=result.outputs,
        parents={p: record.outputs if record else {} for p, record in parents.items()},
        seconds=round(seconds, 3),
        world_size=task.execution.world_size,
        provenance=result.provenance
        | {"code": code_version() if code is None else dict(code), "level": level},
        intervened=own + inherited,
    )


def drop_checkpoints(records: Records, science_hash: str, execution: Execution) -> None:
    """Remove the checkpoints of a finished stage; what cannot be removed only costs room."""
    shutil.rmtree(records.checkpoints(science_hash), ignore_errors=True)
    if execution.checkpoint_uri is None:
        return
    from mae_core.runtime.arrow_storage import open_storage

    with contextlib.suppress(OSError, MaeCoreError):
        storage = open_storage(f"{execution.checkpoint_uri.rstrip('/')}/{science_hash}")
        for name in storage.directories():
            storage.delete(name)
