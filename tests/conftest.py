"""Fixtures shared by the tests that run real processes."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from digit_cases import DIGITS
from gangs import capacity, pool  # noqa: F401  (fixtures of the tests that train in gangs)

from mae_core.config import ENCODER_FILE
from mae_core.data.sources import ImageData, open_data
from mae_core.runtime.inputs import Parent

os.environ.setdefault("OMP_NUM_THREADS", "1")

TINY_STUDY = '''
"""A study of seconds: 2-rank gangs, every kind of stage, a sweep."""
from dataclasses import replace

from mae_core.model import sizes
from mae_core.config import *
from studies.catalog import quickstart as base
from studies.spec import Cell, Choices, Stage, Study, Sweep

TWO = Execution(world_size=2, zero_stage=2, loader_threads=0, checkpoint_every_s=CHECKPOINT_S)


def cell(epochs, seed):
    pretrain = base.pretrain("N1", epochs, seed)
    pretrain = replace(pretrain, execution=TWO)
    warmup = LrScheduleConfig(warmup=Duration.epochs(1))
    quick = [replace(s, recipe=replace(s.recipe, duration=Duration.epochs(5), lr_schedule=warmup))
             if hasattr(s.recipe, "duration") else s
             for s in base.evaluations(seed, features="mean")]
    quick[1] = replace(quick[1], execution=TWO)
    tune = base.finetune(seed)
    tune = replace(tune, recipe=replace(tune.recipe, duration=Duration.epochs(2)), execution=TWO)
    return Cell(address=f"N1/e{epochs}/s{seed}", stages=(pretrain, *quick, tune), uses_winner=True)


def study():
    sweep = base.sweep()
    stages = tuple(replace(s, recipe=replace(s.recipe, duration=Duration.epochs(2)))
                   for s in sweep.base.stages)
    sweep = replace(sweep, base=replace(sweep.base, stages=stages), num_trials=3)
    return Study(name="tiny", question="does it run?", sweep=sweep,
                 cells=(base.pixels(0), cell(0, 0), cell(EPOCHS, 0)))
'''


def tiny_study(folder: Path, *, epochs: int = 4, checkpoint_s: float = 600.0) -> Path:
    """Write the tiny study and return its path."""
    path = folder / "tiny.py"
    text = TINY_STUDY.replace("EPOCHS", str(epochs))
    path.write_text(text.replace("CHECKPOINT_S", str(checkpoint_s)))
    return path


def encoder_parent(path: Path) -> tuple[Parent, ...]:
    """Parents of an evaluation: a pretraining that left the encoder of this file."""
    return (Parent(name="pretrain", kind="pretrain", files={ENCODER_FILE: path}),)


def mae_study(
    *arguments: str, timeout: float = 200, **options: object
) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    command = [sys.executable, "-m", "orchestrator.cli.main", *arguments]
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command, capture_output=True, text=True, timeout=timeout, check=False, **options
    )


def leftovers() -> list[str]:
    """Ray processes and temp directories left behind; not those of a Ray at work beside us."""
    folders = list(Path(tempfile.gettempdir()).glob("mae-study-ray-*"))
    owners = {folder: int(folder.name.split("-")[3]) for folder in folders}
    others = {pid for pid in owners.values() if _is_anothers_driver(pid)}
    names = [
        f"{folder} with {[str(p.relative_to(folder)) for p in folder.rglob('*')][:20]}"
        for folder in folders
        if owners[folder] not in others
    ]
    for process in psutil.process_iter(["cmdline", "name", "status"]):
        if process.info["status"] == psutil.STATUS_ZOMBIE:
            continue  # it has ended; process 1 has not collected it yet
        line = " ".join(process.info["cmdline"] or [])
        if "mae-study-ray-" in line or process.info["name"].startswith("ray::"):
            with contextlib.suppress(psutil.NoSuchProcess):
                if not others & {parent.pid for parent in process.parents()}:
                    names.append(f"{process.pid} {line[:80]}")
    return names


def _is_anothers_driver(pid: int) -> bool:
    """True if this process is alive, and neither ourselves nor started by us."""
    try:
        return os.getpid() not in {pid, *(p.pid for p in psutil.Process(pid).parents())}
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def clean_machine() -> Iterator[None]:
    """Assert that a test leaves no daemon and no temp directory behind."""
    yield
    deadline = time.monotonic() + 20
    while leftovers() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert leftovers() == []


@pytest.fixture(scope="module")
def gang() -> Iterator[None]:
    """A gang of this process alone: DeepSpeed wants a process group."""
    from mae_core.train.deepspeed_engine import join_gang, leave_gang

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
        for name, value in variables.items():
            patch.setenv(name, str(value))
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        join_gang()
        yield
        leave_gang()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny study that was run once, and its store."""
    folder = tmp_path_factory.mktemp("study")
    study, store = tiny_study(folder), folder / "store"
    done = mae_study("run", str(study), "--store", str(store))
    assert done.returncode == 0, done.stderr + done.stdout
    return study, store


@pytest.fixture(scope="session")
def data() -> ImageData:
    """The digits."""
    return open_data(DIGITS)
