"""What drivers that were killed have left in the store: attempts without an end, checkpoints.

Damaged side records too: they are moved aside before anything is written beside them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

from cluster.verdict import Cause
from orchestrator.drive.policy import Start
from orchestrator.drive.task import Task, completion, drop_checkpoints
from orchestrator.plan.plan import Plan, Status
from orchestrator.rank.payload import StageResult
from orchestrator.store.attempts import Attempt, AttemptEnd, Driver
from orchestrator.store.generations import milliseconds
from orchestrator.store.lease import is_alive
from orchestrator.store.lineage import steps_of
from orchestrator.store.records import Records, digest_outputs


def set_damage_apart(plan: Plan, records: Records) -> None:
    """Move damaged side records of the plan's stages out of the way, and say what is lost."""
    for science_hash in {s.identity.science_hash for s in plan.stages} & records.known_stages():
        records.attempts(science_hash)
        records.archived(science_hash)
        records.decisions(science_hash)
    records.set_apart()


def close_orphans(plan: Plan, records: Records) -> int:
    """Write the end of attempts whose driver is gone; return how many there were.

    An attempt of a driver that lives, another study's perhaps, is left alone. One that had
    finished its stage is a success, and completes it if its driver could not.
    """
    count = 0
    hashes = {(s.cell.address, s.stage.name): s.identity.science_hash for s in plan.stages}
    planned = {s.identity.science_hash: s for s in plan.stages}
    for science_hash in planned.keys() & records.known_stages():
        stage = planned[science_hash]
        parents = tuple(hashes[stage.cell.address, parent] for parent in stage.stage.parents)
        for attempt in records.attempts(science_hash):
            driver = attempt.start.driver
            if attempt.end is None and driver and not is_alive(records.store, driver):
                task = Task(stage, parents, attempt=attempt.number)
                end = _end(task, attempt, driver, records)
                records.end_attempt(science_hash, attempt.number, end)
                count += 1
    return count


def drop_finished_checkpoints(plan: Plan, records: Records) -> None:
    """Remove checkpoints of finished stages whose driver died before it could."""
    for planned in plan.stages:
        science_hash = planned.identity.science_hash
        if planned.status is Status.DONE and records.checkpoints(science_hash).exists():
            drop_checkpoints(records, science_hash, planned.stage.execution)


def _end(task: Task, attempt: Attempt, driver: Driver, records: Records) -> AttemptEnd:
    """End record, dated at the attempt's last sign of life."""
    directory = records.attempt_dir(task.key, attempt.number)
    steps, result = steps_of(directory), StageResult.left_in(directory)
    began = milliseconds(attempt.start.started_at) / 1000
    started = began or steps.heard_at or time.time()
    worked = sum(result.seconds.values()) if result else 0.0
    ended = max(started + worked, steps.heard_at or started)
    ended_at = datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds")
    if result and _may_count(task, attempt, result, records):
        base = task.planned.stage.execution
        world = attempt.start.world_size or base.world_size
        task.decision = Start(key=task.key, execution=replace(base, world_size=world))
        record = completion(task, result, ended - started, records, attempt.start.code)
        records.complete(replace(record, finished_at=ended_at))
    done = records.done(task.key)
    finished = done is not None and done.attempt == attempt.number
    where = f"process {driver.pid} on {driver.host}"
    return AttemptEnd(
        cause=(Cause.SUCCESS if finished else Cause.DRIVER_LOST).value,
        message=f"its driver, {where}, ended before it could record the end",
        wall_s=round(ended - started, 3),
        seconds=result.seconds if result and finished else None,
        last_step=steps.last,
        last_step_at=steps.last_at,
        resumed_step=steps.resumed,
        saved_step=steps.saved,
        ended_at=ended_at,
    )


def _may_count(task: Task, attempt: Attempt, result: StageResult, records: Records) -> bool:
    """Whether what an attempt left finished is whole, and of the parents that are there now."""
    parents = [records.done(parent) for parent in task.parents]
    began = milliseconds(attempt.start.started_at)
    return (
        all(parent and milliseconds(parent.finished_at) <= began for parent in parents)
        and attempt.number in {a.number for a in records.lineage(task.key)}
        and digest_outputs(records.outputs(task.key, attempt.number)) == result.outputs
    )
