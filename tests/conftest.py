"""Fixtures shared by the tests that run real processes."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.command import mae_study, tiny_study
from support.digit_cases import DIGITS
from support.gangs import capacity, pool  # noqa: F401  (fixtures of the tests that train in gangs)

from cluster.embedded.private_directory import PrivateDirectory, places
from mae_core.data.sources import ImageData, open_data

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest_plugins = ["support.lanes"]


def leftovers() -> list[str]:
    """Ray processes and temp directories left behind; not those of a Ray at work beside us."""
    folders = [folder for place in places() for folder in place.glob("mae-study-ray-*")]
    owners = {folder: _owner(folder) for folder in folders}
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


def _owner(folder: Path) -> int:
    """Number of the process whose private directory this is; 0 if nothing tells."""
    with contextlib.suppress(OSError), contextlib.closing(PrivateDirectory(folder)) as directory:
        record = directory.read()
        return record.owner.pid if record is not None else 0
    return 0


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
