"""Controller and driver through real faults: shrinking, growing, notices, deaths of the driver."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.fault_studies import EVERY, TWO, pretrain, study

from cluster.ranks.stop_request import SIGNALS
from mae_core.config import PretrainRecipe
from orchestrator.drive.signals import Notice
from orchestrator.errors import Preempted, StagesFailed
from orchestrator.rank.faults import Fault, FaultPlan
from orchestrator.run import RunOptions, run_study
from orchestrator.store.attempts import AttemptEnd, Remedies
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import JOURNAL_FILE, read_events
from orchestrator.store.records import Records
from studies.spec.cell import Stage


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


@pytest.mark.usefixtures("clean_machine")
def test_finished_work_is_kept_though_ray_dies_before_its_ranks_return(tmp_path: Path) -> None:
    """The result lies in the store as soon as every rank is done."""

    def behead() -> None:
        while not (results := list(tmp_path.glob("stages/*/*/attempts/*/result.json"))):
            time.sleep(0.0005)
        family = psutil.Process().children(recursive=True)
        for rank in [p for p in family if p.name().startswith("ray::_RankActor")]:
            rank.suspend()  # it cannot return
        next(p for p in family if p.name() == "gcs_server").kill()
        beheaded.extend(results)

    beheaded: list[Path] = []
    watcher = threading.Thread(target=behead, daemon=True)
    watcher.start()
    found = run(pretrain(20, TWO), tmp_path)
    assert beheaded and found.causes == ["success"]
    assert found.done is not None and found.done.attempt == 1 and found.done.metrics


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
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # as a terminal does
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
    os.killpg(told.process.pid, signal.SIGHUP)  # to all that it started, as a terminal that closes
    time.sleep(0.05)
    told.process.send_signal(signal.SIGTERM)  # neither this one nor the next interrupts the save
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


@pytest.mark.parametrize("number", SIGNALS)
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


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        heard = Notice()
        with heard.listen():
            signal.raise_signal(signal.SIGHUP)
            assert not heard.is_given
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_handlers_of_others_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Notice().listen():
        assert signal.getsignal(signal.SIGUSR1) is not before
    assert signal.getsignal(signal.SIGUSR1) is before
