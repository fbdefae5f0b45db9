"""Controller and driver through real faults: shrinking, growing, notices, deaths of the driver.

What needs no Ray (orphans, lineage, exactly once) is tested on a real store at the end.
"""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from mae_core.config import Duration, Execution, PretrainRecipe
from orchestrator.drive.orphans import close_orphans, drop_finished_checkpoints
from orchestrator.drive.signals import Notice
from orchestrator.drive.task import Task, completion, make_payload
from orchestrator.errors import Preempted, StagesFailed
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.rank.faults import Fault, FaultPlan
from orchestrator.rank.payload import StagePayload, StageResult
from orchestrator.run import RunOptions, run_study
from orchestrator.store.attempts import AttemptEnd, AttemptStart, DecisionRecord, Remedies
from orchestrator.store.attempts import Driver as StudyDriver
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import JOURNAL_FILE, JournalWriter, read_events
from orchestrator.store.lease import hold
from orchestrator.store.lineage import interventions, level_of, steps_of
from orchestrator.store.records import DoneRecord, Intervention, Records
from studies.catalog import quickstart
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

EVERY = 10
"""Steps between checkpoints."""


def pretrain(steps: int, execution: Execution, **changes: Any) -> Stage:
    stage = quickstart.pretrain("N1", 10, 0)
    assert isinstance(stage.recipe, PretrainRecipe)
    warmup = replace(stage.recipe.lr_schedule, warmup=Duration.steps(5))
    recipe = replace(
        stage.recipe,
        duration=Duration.steps(steps),
        global_batch=32,
        **{"lr_schedule": warmup} | changes,
    )
    return replace(stage, recipe=recipe, execution=execution)


def study(*stages: Stage) -> Study:
    cell = Cell(address="one", stages=stages)
    return Study(name="faults", question="does it go on?", cells=(cell,))


TWO = Execution(
    world_size=2, zero_stage=2, loader_threads=0, checkpoint_every_steps=EVERY, snapshot="blocking"
)


class Outcome:
    """What a run has left in its store."""

    def __init__(self, store: Path) -> None:
        self.records = Records(LocalStore(store))
        [self.key] = self.records.known_stages()
        self.attempts = self.records.attempts(self.key)
        self.decisions = self.records.decisions(self.key)
        self.done = self.records.done(self.key)

    @property
    def causes(self) -> list[str]:
        return [a.end.cause if a.end else "" for a in self.attempts]

    @property
    def sizes(self) -> list[int | None]:
        return [a.start.world_size for a in self.attempts]

    @property
    def ends(self) -> list[AttemptEnd]:
        return [a.end for a in self.attempts if a.end is not None]


def run(
    stage: Stage, store: Path, faults: FaultPlan | None = None, notice: Notice | None = None
) -> Outcome:
    options = RunOptions(store=store, slots=2, num_cpus=2, write_report=False, faults=faults)
    run_study(study(stage), options, notice=notice)
    return Outcome(store)


@pytest.mark.usefixtures("clean_machine")
def test_an_elastic_gang_shrinks_and_grows_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 → 1 → 2: a rank dies, the rest goes on alone until its successor has started."""
    monkeypatch.setattr("orchestrator.drive.policy.ELASTIC_WAIT_S", 0.0)
    monkeypatch.setattr("orchestrator.drive.policy.RESIZE_EVERY_S", 0.5)

    def faults(attempt: int) -> Sequence[Fault]:
        return (Fault(rank=1, point="step", hit=EVERY + 5),) if attempt == 1 else ()

    # Alone it needs longer than a rank process needs to start.
    found = run(pretrain(1500, replace(TWO, min_world_size=1)), tmp_path, faults)
    assert found.sizes == [2, 1, 2]
    assert found.causes == ["rank died", "resized", "success"]
    dead, alone, _ = found.ends
    assert (dead.rank, dead.saved_step) == (1, EVERY) and (dead.last_step or 0) >= EVERY
    assert alone.resumed_step == EVERY and alone.stop_reason == "resize"
    assert alone.last_step == alone.saved_step > EVERY
    kinds = [(d.decision, d.world_size) for d in found.decisions]
    assert kinds == [("start", 2), ("start", 1), ("resize", 2), ("start", 2)]
    assert "slots are missing: on 1 ranks" in found.decisions[1].reason
    assert found.done is not None and found.done.attempt == 3
    assert found.done.provenance["level"] == "order-exact" and found.done.intervened == []
    assert found.done.world_size == 2


@pytest.mark.usefixtures("clean_machine")
def test_a_notice_to_a_rank_costs_no_step_and_no_budget(tmp_path: Path) -> None:
    def faults(attempt: int) -> Sequence[Fault]:
        return (Fault(rank=1, point="step", hit=3, action="notice"),) if attempt < 3 else ()

    found = run(pretrain(30, replace(TWO, numerics_retries=0)), tmp_path, faults)
    assert found.causes == ["preempted"] * 2 + ["success"]
    for before, after in itertools.pairwise(found.ends):
        assert before.last_step == before.saved_step
        assert after.resumed_step == before.saved_step
    assert found.done is not None and found.done.provenance["level"] == "bit-exact"


@pytest.mark.usefixtures("clean_machine")
def test_numerics_go_back_as_often_as_they_may_and_then_fail(tmp_path: Path) -> None:
    """A learning rate beyond all bounds: every rollback is tried, then the stage is given up."""
    stage = pretrain(60, TWO)
    assert isinstance(stage.recipe, PretrainRecipe)
    wild = replace(stage.recipe.optimizer, base_lr=1e30, clip_grad_norm=None)
    with pytest.raises(StagesFailed, match="numerics, after 3 attempts"):
        run(pretrain(60, TWO, optimizer=wild), tmp_path)
    found = Outcome(tmp_path)
    assert found.causes == ["numerics"] * 3 and found.done is None
    assert [a.start.remedies for a in found.attempts] == [
        Remedies(),
        Remedies(rollback=1),
        Remedies(rollback=2),
    ]
    assert [d.decision for d in found.decisions] == ["start"] * 3 + ["fail"]


LONG_STUDY = """
from dataclasses import replace
from mae_core.config import Duration, Execution
from studies.catalog import quickstart
from studies.spec import Cell, Study


def study():
    stage = quickstart.pretrain("N1", 10, 0)
    recipe = replace(stage.recipe, duration=Duration.steps(500), global_batch=32)
    execution = Execution(world_size=2, zero_stage=2, loader_threads=0, checkpoint_every_steps=20)
    stage = replace(stage, recipe=recipe, execution=execution)
    return Study(name="long", question="?", cells=(Cell(address="one", stages=(stage,)),))
"""


class Driver:
    """A `mae-study run` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "store"
        (folder / "long.py").write_text(LONG_STUDY)
        command = [
            sys.executable,
            "-m",
            "orchestrator.cli.main",
            "run",
            str(folder / "long.py"),
            "--store",
            str(self.store),
            "--no-report",
        ]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def has_saved(self) -> bool:
        """True once an attempt of this driver has committed; a killed one's ranks end later."""
        for path in self.store.glob("stages/*/*/attempts/*.json"):
            if json.loads(path.read_text())["driver"]["pid"] == self.process.pid:
                events = read_events(path.with_suffix("") / JOURNAL_FILE)
                if any(e["event"] == "saved" for e in events):
                    return True
        return False

    def until(self, condition: Callable[[], Any], timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self, timeout_s: float = 120) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, output


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Callable[[], Driver]]:
    started: list[Driver] = []

    def start() -> Driver:
        started.append(Driver(tmp_path))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.mark.usefixtures("clean_machine")
def test_the_same_command_goes_on_after_notice_kill_and_lost_head(
    tmp_path: Path, driver: Callable[[], Driver]
) -> None:
    told = driver()
    told.until(told.has_saved)
    told.process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    told.process.send_signal(signal.SIGUSR1)  # neither this one nor the next interrupts the save
    told.process.send_signal(signal.SIGUSR2)
    code, output = told.end()
    assert code == 9, output
    assert "preempted: checkpoints are committed; run the same command to continue" in output
    assert "Traceback" not in output

    killed = driver()
    killed.until(killed.has_saved)
    killed.process.kill()
    killed.process.wait()

    beheaded = driver()
    beheaded.until(beheaded.has_saved)
    family = psutil.Process(beheaded.process.pid).children()
    [head] = [p for p in family if p.name() == "gcs_server"]
    head.kill()
    code, output = beheaded.end()
    assert code == 0, output
    assert "starting another; stages go on from their checkpoints" in output

    found = Outcome(tmp_path / "store")
    assert found.causes == ["preempted", "driver lost", "head lost", "success"]
    ends = found.ends
    assert ends[0].stop_reason == "preempted"
    assert ends[0].last_step == ends[0].saved_step
    assert ends[2].resumed_step >= ends[0].saved_step
    assert [a.start.epoch for a in found.attempts] == [1, 2, 3, 3]
    assert ends[1].ended_at < found.attempts[2].start.started_at
    assert found.done is not None and found.done.attempt == 4
    assert found.done.provenance["level"] == "bit-exact"
    assert not found.records.checkpoints(found.key).exists()


@pytest.fixture
def notice() -> Iterator[Notice]:
    heard = Notice()
    with heard.listen():
        yield heard


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_with_nothing_to_save_ends_the_command_at_once(
    notice: Notice, number: signal.Signals
) -> None:
    with pytest.raises(Preempted):
        signal.raise_signal(number)
    signal.raise_signal(number)  # cleaning up is not interrupted
    assert notice.is_given


def test_a_signal_while_stages_run_is_only_noted(notice: Notice) -> None:
    with notice.deferred():
        signal.raise_signal(signal.SIGUSR1)
        assert notice.is_given
        signal.raise_signal(signal.SIGTERM)


def test_the_handlers_of_others_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Notice().listen():
        assert signal.getsignal(signal.SIGUSR1) is not before
    assert signal.getsignal(signal.SIGUSR1) is before


# On a real store, without Ray.


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

    def begin(self, key: str, driver: StudyDriver | None = None, **more: Any) -> int:
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


def dead_driver() -> StudyDriver:
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = psutil.Process(process.pid).create_time()
    process.wait()
    host = socket.gethostname()
    return StudyDriver(host=host, pid=process.pid, process_started=started, heartbeat="x")


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
    del old["intervened"]
    path.write_text(json.dumps(old))
    found = bench.records.done(key)
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
    payload = make_payload(child, bench.records, bench.datasets, lease_epoch=2, faults=[fault])
    assert [parent.name for parent in payload.parents] == ["pretrain"]
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
