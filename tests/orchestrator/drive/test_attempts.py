"""What attempts leave in a real store: orphans, lineage, rollbacks, exactly once; without Ray."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.fault_studies import TWO, pretrain, study
from support.store_damage import as_older_version

from orchestrator.drive.orphans import (
    close_orphans,
    drop_finished_checkpoints,
    set_damage_apart,
)
from orchestrator.drive.task import Task, completion, make_payload
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.rank.faults import Fault
from orchestrator.rank.payload import StagePayload, StageResult
from orchestrator.run import RunOptions, run_study
from orchestrator.store.attempts import AttemptEnd, AttemptStart, DecisionRecord, Driver, Remedies
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import SEAL, LocalStore
from orchestrator.store.journal import JOURNAL_FILE, JournalWriter
from orchestrator.store.lease import hold
from orchestrator.store.lineage import interventions, level_of, steps_of
from orchestrator.store.records import DoneRecord, Intervention, Records, digest_outputs, stage_key
from studies.catalog import quickstart


class Bench:
    """A planned pretraining with a child, and its store."""

    def __init__(self, folder: Path) -> None:
        knn = quickstart.evaluations(0, features="mean")[0]
        self.study = study(pretrain(20, TWO), replace(knn, parents=("pretrain",)))
        self.store = LocalStore(folder / "store")
        self.records, self.datasets = Records(self.store), Datasets(self.store)

    def plan(self) -> Plan:
        for planned in self.study.all_stages():
            self.datasets.ensure(planned.recipe.data.path)
        return make_plan(self.study, self.records, self.datasets)

    def keys(self) -> list[str]:
        return [s.identity.science_hash for s in self.plan().stages]

    def begin(self, key: str, driver: Driver | None = None, **more: Any) -> int:
        return self.records.begin_attempt(key, AttemptStart(driver=driver, world_size=2, **more))

    def journal(self, key: str, number: int) -> JournalWriter:
        return JournalWriter(self.records.attempt_dir(key, number) / JOURNAL_FILE)


def done_record(key: str, attempt: int, intervened: Sequence[Intervention] = ()) -> DoneRecord:
    return DoneRecord(
        science_hash=key,
        kind="pretrain",
        attempt=attempt,
        metrics={},
        outputs={},
        parents={},
        seconds=1.0,
        world_size=2,
        intervened=list(intervened),
    )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def dead_driver() -> Driver:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Driver(host=socket.gethostname(), pid=process.pid, heartbeat="x")


def test_attempts_of_dead_drivers_are_closed_and_those_of_living_ones_left(bench: Bench) -> None:
    key, child = bench.keys()
    with hold(bench.store, "other") as lease:
        lost = bench.begin(key, dead_driver())
        journal = bench.journal(key, lost)
        journal.event("restored", {"step": 10, "seconds": 0.1, "level": "bit-exact"})
        journal.event("saved", {"step": 20, "write_s": 0.0})
        journal.close()
        living = bench.begin(child, lease.holder)
        assert close_orphans(bench.plan(), bench.records) == 1
        assert close_orphans(bench.plan(), bench.records) == 0
    end = bench.records.attempts(key)[lost - 1].end
    assert end is not None and (end.cause, end.last_step) == ("driver lost", 20)
    assert bench.records.attempts(child)[living - 1].end is None


def test_a_driver_that_died_after_completing_had_success(bench: Bench) -> None:
    key, _ = bench.keys()
    number = bench.begin(key, dead_driver())
    assert bench.records.complete(done_record(key, number))
    checkpoints = bench.records.checkpoints(key)
    checkpoints.mkdir(parents=True)
    close_orphans(bench.plan(), bench.records)
    drop_finished_checkpoints(bench.plan(), bench.records)
    end = bench.records.attempts(key)[0].end
    assert end is not None and end.cause == "success"
    assert not checkpoints.exists()


def leave_finished(bench: Bench, key: str) -> int:
    """What is there if a driver is killed once rank 0 is done: no record says it."""
    number = bench.begin(key, dead_driver(), code={"commit": "c0ffee"})
    outputs = bench.records.outputs(key, number)
    (outputs / "encoder.safetensors").write_bytes(b"weights")
    result = StageResult(
        metrics={"loss": 0.5},
        seconds={"starting": 1.0, "working": 2.0},
        provenance={"device": "one"},
        outputs=digest_outputs(outputs),
    )
    result.leave(bench.records.attempt_dir(key, number))
    return number


def test_what_was_finished_when_its_driver_was_killed_is_kept(bench: Bench) -> None:
    """The next command completes it: no rank is started for it."""
    key, _ = bench.keys()
    number = leave_finished(bench, key)
    bench.study = study(pretrain(20, TWO))
    found = run_study(bench.study, RunOptions(store=bench.store.root, write_report=False))
    assert not found.plan.has_work and len(bench.records.attempts(key)) == 1
    done, end = bench.records.done(key), bench.records.attempts(key)[0].end
    assert done is not None and end is not None
    assert (done.attempt, done.metrics, done.world_size) == (number, {"loss": 0.5}, 2)
    assert [*done.outputs] == ["encoder.safetensors"] and done.provenance["device"] == "one"
    assert done.provenance["code"] == {"commit": "c0ffee"}
    assert done.seconds == end.wall_s == 3.0 and done.finished_at == end.ended_at
    assert (end.cause, end.seconds) == ("success", {"starting": 1.0, "working": 2.0})


def test_what_was_finished_counts_only_whole_and_with_its_parents(bench: Bench) -> None:
    key, child = bench.keys()
    cut, torn, orphan = (leave_finished(bench, k) for k in (key, key, child))
    path = bench.records.attempt_dir(key, cut) / "result.json"
    path.write_bytes(path.read_bytes()[:-9])
    (bench.records.outputs(key, torn) / "encoder.safetensors").write_bytes(b"weight\0")
    assert close_orphans(bench.plan(), bench.records) == 3
    assert bench.records.done(key) is None and bench.records.done(child) is None
    bench.records.complete(done_record(key, 3))
    later = leave_finished(bench, child)  # its parent was there when it began
    assert close_orphans(bench.plan(), bench.records) == 1
    ends = [a.end.cause for k in (key, child) for a in bench.records.attempts(k) if a.end]
    assert ends == ["driver lost", "driver lost", "driver lost", "success"]
    done = bench.records.done(child)
    assert done is not None and done.attempt == later != orphan


def test_damaged_history_is_moved_aside_and_an_end_is_read_from_the_journal(bench: Bench) -> None:
    key, _ = bench.keys()
    first, second = (bench.begin(key, dead_driver()) for _ in range(2))
    for number in (first, second):
        bench.records.end_attempt(key, number, AttemptEnd(cause="rank died"))
    journal = bench.journal(key, second)
    journal.event("saved", {"step": 20, "write_s": 0.0})
    journal.close()
    assert bench.records.complete(done_record(key, second))
    folder = bench.store.root / stage_key(key)
    for name in (f"attempts/{first:06d}.json", f"ends/{second:06d}.json"):
        (folder / name).write_bytes(b"{")
    records = Records(bench.store, lambda text: None)
    set_damage_apart(bench.plan(), records)
    assert close_orphans(bench.plan(), records) == 1
    [attempt] = records.attempts(key)
    assert attempt.number == second and attempt.end is not None
    assert (attempt.end.cause, attempt.end.last_step) == ("success", 20)
    assert bench.begin(key) == second + 1 and not records.passed_over


def test_a_stage_is_completed_once(bench: Bench) -> None:
    key, _ = bench.keys()
    assert bench.records.complete(done_record(key, 1))
    assert not bench.records.complete(done_record(key, 2))
    found = bench.records.done(key)
    assert found is not None and found.attempt == 1


def test_records_of_before_interventions_were_kept_are_read(bench: Bench) -> None:
    key, _ = bench.keys()
    bench.records.complete(done_record(key, 1))
    [path] = bench.store.root.glob("stages/*/*/done.json")
    old = json.loads(path.read_text())
    del old["intervened"], old[SEAL]
    as_older_version(path, old)
    found = Records(LocalStore(bench.store.root)).done(key)
    assert found is not None and found.intervened == []


def attempt_with(bench: Bench, key: str, remedies: dict[str, Any], *events: dict[str, Any]) -> int:
    number = bench.begin(key, remedies=Remedies.from_json(remedies))
    journal = bench.journal(key, number)
    for event in events:
        journal.event(event["event"], {k: v for k, v in event.items() if k != "event"})
    journal.close()
    return number


def restored(step: int, level: str = "bit-exact") -> dict[str, Any]:
    return {"event": "restored", "step": step, "seconds": 0.1, "level": level}


@pytest.mark.parametrize(
    ("attempts", "level"),
    [
        ([({}, [restored(0, "none")])], "bit-exact"),
        ([({}, [restored(0, "none")]), ({}, [restored(10)])], "bit-exact"),
        # The last one resumed exactly, what it resumed from had not.
        ([({}, [restored(10, "order-exact")]), ({}, [restored(20)])], "order-exact"),
        ([({"world_size": 1}, [restored(0, "none")])], "order-exact"),
        ([({"micro_batch": 4}, [restored(0, "none")])], "order-exact"),
        ([({"loader_threads": 0}, [restored(0, "none")])], "bit-exact"),
        ([({"world_size": 1}, []), ({}, [restored(0, "none")])], "bit-exact"),
    ],
)
def test_a_result_is_as_exact_as_its_weakest_attempt(
    bench: Bench, attempts: list[tuple[dict[str, Any], list[dict[str, Any]]]], level: str
) -> None:
    key, _ = bench.keys()
    for remedies, events in attempts:
        attempt_with(bench, key, remedies, *events)
    lineage = bench.records.lineage(key)
    assert level_of(lineage, lambda n: bench.records.attempt_dir(key, n)) == level


def test_a_rollback_marks_the_result_and_its_children(bench: Bench) -> None:
    key, child = bench.keys()
    attempt_with(bench, key, {}, restored(0, "none"))
    attempt_with(bench, key, {"rollback": 1})  # it died before it went back
    attempt_with(bench, key, {"rollback": 1}, restored(10))
    last = attempt_with(bench, key, {}, restored(20))
    plan = bench.plan()
    task = Task(plan.stages[0], ())
    task.attempt = last
    result = StageResult(metrics={})
    record = completion(task, result, 1.0, bench.records)
    mark = Intervention(cause="numerics", attempt=3, step=10, rollback=1)
    assert record.intervened == [mark]
    bench.records.complete(record)
    assert bench.records.done(key) == record

    below = Task(plan.stages[1], (key,))
    below.attempt = bench.begin(child)
    inherited = completion(below, result, 1.0, bench.records).intervened
    assert inherited == [replace(mark, inherited=key)]


def test_a_payload_crosses_as_json(bench: Bench) -> None:
    key, _ = bench.keys()
    bench.records.complete(done_record(key, 1))
    child = Task(bench.plan().stages[1], (key,), attempt=1)
    fault = Fault(rank=1, point="step", hit=3)
    bench.store.root.chmod(0o2770)  # a team's
    payload = make_payload(child, bench.records, bench.datasets, faults=[fault])
    assert [parent.name for parent in payload.parents] == ["pretrain"]
    assert payload.umask == 0o007
    assert bench.begin(child.key) == payload.attempt
    assert not any(p.exists() for p in payload.over_if_any)
    bench.begin(child.key)
    assert any(p.exists() for p in payload.over_if_any), "a later attempt has begun"
    assert StagePayload.from_json(json.loads(json.dumps(payload.to_json()))) == payload


def test_attempts_of_an_archived_result_mark_nothing(bench: Bench) -> None:
    key, _ = bench.keys()
    old = attempt_with(bench, key, {"rollback": 1}, restored(10, "order-exact"))
    bench.records.complete(done_record(key, old))
    bench.records.supersede(key)
    attempt_with(bench, key, {}, restored(0, "none"))
    lineage = bench.records.lineage(key)

    def directory(number: int) -> Path:
        return bench.records.attempt_dir(key, number)

    assert interventions(lineage, directory) == []
    assert level_of(lineage, directory) == "bit-exact"


def test_steps_are_read_from_the_journal(bench: Bench) -> None:
    key, _ = bench.keys()
    number = bench.begin(key)
    folder = bench.records.attempt_dir(key, number)
    assert steps_of(folder).last is None and steps_of(folder).saved == 0
    journal = bench.journal(key, number)
    journal.event("restored", {"step": 10, "seconds": 0.1, "level": "bit-exact"})
    journal.write(11, {"loss": 1.0})
    journal.write(14, {"loss": 1.0})
    journal.event("saved", {"step": 13, "write_s": 0.0})
    journal.close()
    found = steps_of(folder)
    assert (found.resumed, found.saved, found.last) == (10, 13, 14)
    assert found.last_at is not None and found.heard_at is not None
    assert found.last_at <= found.heard_at <= time.time()


def test_decisions_are_appended(bench: Bench) -> None:
    key, _ = bench.keys()
    for reason in ("one", "two"):
        bench.records.decide(key, DecisionRecord(decision="start", reason=reason))
    assert [d.reason for d in bench.records.decisions(key)] == ["one", "two"]
