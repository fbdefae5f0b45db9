"""From the store to goodput: what attempts and journals say, handed to `studies.analysis`."""

from __future__ import annotations

import bisect
import datetime
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mae_core.config import RECIPES
from orchestrator.plan.plan import Plan
from orchestrator.store.attempts import Attempt, AttemptEnd
from orchestrator.store.journal import JOURNAL_FILE, Entry, JournalReader, read_events
from orchestrator.store.lease import is_alive
from orchestrator.store.records import Records
from studies.analysis.goodput.accounting import AttemptLog, Goodput, JournalEvent, account, total
from studies.analysis.goodput.interval_advice import StudyGoodput, advise_interval

STEPPED_KINDS = frozenset(kind for kind, recipe in RECIPES.items() if recipe.TRAINS)
"""Stages that train in steps and save checkpoints; the others work from their first event on."""


def study_goodput(plan: Plan, records: Records, *, now: float | None = None) -> StudyGoodput:
    """Goodput of every stage of a plan that was ever started, trials of its sweep included."""
    known, stages, trainings = records.known_stages(), {}, []
    kinds = {p.identity.science_hash: (p.address, p.stage.kind) for p in reversed(plan.stages)}
    for science_hash, (address, kind) in reversed(kinds.items()):
        if science_hash not in known:
            continue
        goodput = from_store(records, science_hash, kind=kind, now=now)
        if goodput.attempts:
            stages[address] = goodput
            if kind in STEPPED_KINDS:
                trainings.append(goodput)
    return StudyGoodput(stages=stages, advice=advise_interval(trainings))


def from_store(
    records: Records, science_hash: str, *, kind: str | None = None, now: float | None = None
) -> Goodput:
    """Goodput of one stage; empty if it was never started.

    Args:
        kind: the stage's, if it is known; else its identity is read.
        now: Unix seconds; by default the clock's.
    """
    if kind is None:
        kind = str(records.identity(science_hash).get("kind", "pretrain"))
    now = time.time() if now is None else now
    results = _by_result(records, science_hash)
    return total(
        account(_logs(records, science_hash, attempts), now=now, has_steps=kind in STEPPED_KINDS)
        for attempts in results
    )


def _by_result(records: Records, science_hash: str) -> list[list[Attempt]]:
    """Attempts, in groups that led to one result each; an archived result was not replayed."""
    results = sorted(record.attempt for record in records.archived(science_hash))
    groups: list[list[Attempt]] = [[] for _ in range(len(results) + 1)]
    for attempt in records.attempts(science_hash):
        groups[bisect.bisect_left(results, attempt.number)].append(attempt)
    return groups


def _logs(records: Records, science_hash: str, attempts: Sequence[Attempt]) -> list[AttemptLog]:
    logs = []
    for attempt in attempts:
        path = records.attempt_dir(science_hash, attempt.number) / JOURNAL_FILE
        is_last = attempt is attempts[-1]
        log = attempt_log(
            attempt,
            read_events(path),
            JournalReader(path).read_new(),
            is_running=is_last and attempt.end is None and _has_driver(records, attempt),
        )
        if log is not None:
            logs.append(log)
    return logs


def attempt_log(
    attempt: Attempt,
    events: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
    *,
    is_running: bool = False,
) -> AttemptLog | None:
    """An attempt's records and journal as goodput reads them; None without a readable start."""
    started_at = _seconds(attempt.start.started_at)
    if started_at is None:
        return None
    end = attempt.end or AttemptEnd(cause="")
    points = [(_number(e.step), _number(e.timestamp_ms)) for e in entries]
    return AttemptLog(
        started_at=started_at,
        ended_at=_seconds(end.ended_at),
        cause=end.cause or None,
        is_running=is_running,
        events=[JournalEvent.read(event) for event in events],
        points=[(s, t / 1000) for s, t in points if s is not None and t is not None],
        last_step=_number(end.last_step),
        last_step_at=_number(end.last_step_at),
    )


def _has_driver(records: Records, attempt: Attempt) -> bool:
    driver = attempt.start.driver
    return driver is not None and is_alive(records.store, driver)


def _seconds(iso: object) -> float | None:
    """Unix seconds of an ISO 8601 time; None for what is none."""
    try:
        return datetime.datetime.fromisoformat(str(iso)).timestamp()
    except (TypeError, ValueError):
        return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
