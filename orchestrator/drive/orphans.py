"""What drivers that were killed have left in the store: attempts without an end, checkpoints.

Damaged side records too: they are moved aside before anything is written beside them.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from cluster.verdict import Cause
from orchestrator.drive.task import drop_checkpoints
from orchestrator.plan.plan import Plan, Status
from orchestrator.store.attempts import Attempt, AttemptEnd, Driver
from orchestrator.store.generations import milliseconds
from orchestrator.store.lease import is_alive
from orchestrator.store.lineage import steps_of
from orchestrator.store.records import Records


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
    completed its stage is a success: its driver died between two records.
    """
    count = 0
    known = records.known_stages()
    for science_hash in {s.identity.science_hash for s in plan.stages} & known:
        for attempt in records.attempts(science_hash):
            driver = attempt.start.driver
            if attempt.end is None and driver and not is_alive(records.store, driver):
                end = _end(science_hash, attempt, driver, records)
                records.end_attempt(science_hash, attempt.number, end)
                count += 1
    return count


def drop_finished_checkpoints(plan: Plan, records: Records) -> None:
    """Remove checkpoints of finished stages whose driver died before it could."""
    for planned in plan.stages:
        science_hash = planned.identity.science_hash
        if planned.status is Status.DONE and records.checkpoints(science_hash).exists():
            drop_checkpoints(records, science_hash, planned.stage.execution)


def _end(science_hash: str, attempt: Attempt, driver: Driver, records: Records) -> AttemptEnd:
    """End record, dated at the attempt's last sign of life."""
    steps = steps_of(records.attempt_dir(science_hash, attempt.number))
    began = milliseconds(attempt.start.started_at) / 1000
    started = began or steps.heard_at or time.time()
    ended = max(started, steps.heard_at or started)
    done = records.done(science_hash)
    finished = done is not None and done.attempt == attempt.number
    where = f"process {driver.pid} on {driver.host}"
    return AttemptEnd(
        cause=(Cause.SUCCESS if finished else Cause.DRIVER_LOST).value,
        message=f"its driver, {where}, ended before it could record the end",
        wall_s=round(ended - started, 3),
        last_step=steps.last,
        last_step_at=steps.last_at,
        resumed_step=steps.resumed,
        saved_step=steps.saved,
        ended_at=datetime.fromtimestamp(ended, UTC).isoformat(timespec="milliseconds"),
    )
