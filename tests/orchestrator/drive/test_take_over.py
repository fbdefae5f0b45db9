"""A driver that froze and was taken over: two drivers, in two PID namespaces, on one stage."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.store.attempts import Attempt
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import JOURNAL_FILE, read_events
from orchestrator.store.records import Records

HEARTBEAT_S, STALE_S = 1.0, 3.0
DRIVER = f"""
import sys
from dataclasses import replace
from pathlib import Path

from mae_core.config import Duration, Execution
from orchestrator.cli.options import plain_errors
from orchestrator.run import RunOptions, run_study
from orchestrator.store.lease import LeaseTimes
from studies.catalog import quickstart
from studies.spec import Cell, Study

stage = quickstart.pretrain("N1", 10, 0)
recipe = replace(stage.recipe, duration=Duration.steps(2500), global_batch=32)
execution = Execution(world_size=1, zero_stage=0, loader_threads=0, checkpoint_every_steps=20)
cell = Cell(address="one", stages=(replace(stage, recipe=recipe, execution=execution),))
times = LeaseTimes(heartbeat_s={HEARTBEAT_S}, stale_after_s={STALE_S})
options = RunOptions(store=Path(sys.argv[1]), slots=1, num_cpus=1, write_report=False,
                     lease_times=times)
with plain_errors():
    run_study(Study(name="long", question="?", cells=(cell,)), options)
"""
ELSEWHERE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""A container, as far as process numbers go."""


def is_allowed() -> bool:
    """Whether this user may make PID namespaces."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*ELSEWHERE, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(*before: str) -> subprocess.Popen[str]:
        command = [*before, sys.executable, "-c", DRIVER, str(tmp_path / "store")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.mark.usefixtures("clean_machine")
def test_a_frozen_driver_is_taken_over_and_stops_when_it_thaws(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    if not is_allowed():
        pytest.skip("making a PID namespace takes root, and unshare of util-linux")
    store = Stored(tmp_path / "store")
    beat = tmp_path / "store/studies/long/lease/000001.heartbeat"
    first = start()
    until(first, beat.exists)
    refused = start(*ELSEWHERE)
    output, _ = refused.communicate(timeout=60)
    assert refused.returncode == 5, output
    assert f"is being run by process {first.pid} on" in output

    until(first, lambda: store.has_saved(1))
    assert any(is_shipper(p) for p in psutil.Process(first.pid).children())
    [rank] = [p for p in psutil.Process(first.pid).children(recursive=True) if is_rank(p)]
    first.send_signal(signal.SIGSTOP)
    until(None, lambda: time.time() - beat.stat().st_mtime > STALE_S)
    second = start(*ELSEWHERE)
    until(second, lambda: store.has_saved(2))
    # Ranks and shipper of the first have seen that they are succeeded; its driver has not.
    shippers = [p for p in psutil.Process(first.pid).children() if is_shipper(p)]
    assert shippers == [] and rank.is_running() and "this attempt was declared over" in store.log(1)

    thawed = time.monotonic()
    first.send_signal(signal.SIGCONT)
    until(None, lambda: not rank.is_running())
    assert time.monotonic() - thawed < 2 * HEARTBEAT_S + 2.0
    output, _ = first.communicate(timeout=30)
    assert first.returncode == 5, output
    assert "study 'long' was taken over by process" in output and "this one stops" in output
    assert "Traceback" not in output

    output, _ = second.communicate(timeout=120)
    assert second.returncode == 0, output
    causes = [a.end and a.end.cause for a in store.attempts()]
    assert causes == ["driver lost", "success"]
    done = store.records.done(store.key)
    assert done is not None and done.attempt == 2 and done.provenance["level"] == "bit-exact"
    assert not store.records.checkpoints(store.key).exists()


class Stored:
    """What the one stage of a store has left so far."""

    def __init__(self, root: Path) -> None:
        self.records = Records(LocalStore(root))

    @property
    def key(self) -> str:
        [key] = self.records.known_stages()
        return key

    def attempts(self) -> list[Attempt]:
        return self.records.attempts(self.key)

    def events(self, attempt: int, name: str) -> list[dict[str, object]]:
        path = self.records.attempt_dir(self.key, attempt) / JOURNAL_FILE
        return [e for e in read_events(path) if e["event"] == name] if path.exists() else []

    def has_saved(self, attempt: int) -> bool:
        return bool(self.records.known_stages() and self.events(attempt, "saved"))

    def log(self, attempt: int) -> str:
        return (self.records.attempt_dir(self.key, attempt) / "rank0.log").read_text()


def is_rank(process: psutil.Process) -> bool:
    return any("RankActor" in word for word in process.cmdline())


def is_shipper(process: psutil.Process) -> bool:
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.ZombieProcess:  # it has ended, and its driver cannot take note
        return False


def until(process: subprocess.Popen[str] | None, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
