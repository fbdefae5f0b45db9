"""Another user of the machine gets nothing: token, key-value store, sweep, store, files.

Each attack is also tried where it must succeed: as the owner, or against something that was opened
on purpose. What another user could do to the lease of a study is tested beside the lease.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from support import other_user
from support.other_user import attempt

from cluster.connect import connect
from cluster.embedded.leftovers import sweep_temp_dirs
from cluster.embedded.private_directory import PREFIX, PrivateDirectory, places
from cluster.process_identity import ProcessIdentity
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")
TESTS = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True, kw_only=True)
class Session:
    """A living Ray with a gang at work, and what everybody can find out about it."""

    folder: Path
    address: str
    token: str
    store: str
    ports: list[int]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as scratch:
        patch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("GLOO_SOCKET_IFNAME", "eth9")  # as a site's profile would
        umask = os.umask(0o027)
        try:
            with connect(num_cpus=2) as capacity:
                with SlotPool("guarded", 2, capacity, shape=slot_shape(capacity)) as pool:
                    told = Path(scratch) / "store"
                    entry = "support.rank_entries:hold_meeting"
                    gang = pool.launch(entry, {"told": str(told)}, 2)
                    assert gang is not None
                    while not told.exists():
                        pool.wait([gang], 0.1)
                        assert not gang.outcomes, gang.outcomes
                    assert stat.S_IMODE(told.stat().st_mode) == 0o640  # ranks keep the umask
                    yield _seen(told.read_text())
                    gang.request_stop()
                    while not gang.is_finished:
                        pool.wait([gang], 0.1)
                    assert all(o.error is None for o in gang.outcomes.values()), gang.outcomes
        finally:
            os.umask(umask)


def _seen(store: str) -> Session:
    import ray

    mine = psutil.Process().children(recursive=True)
    return Session(
        folder=next(
            path
            for place in places()
            for path in place.glob(f"{PREFIX}*")
            if _owner(path) == os.getpid()
        ),
        address=ray.get_runtime_context().gcs_address,
        token=os.environ["RAY_AUTH_TOKEN"],
        store=store,
        ports=sorted(
            {
                connection.laddr.port
                for process in [psutil.Process(), *mine]
                for connection in process.net_connections("inet")
                if connection.status == psutil.CONN_LISTEN
            }
        ),
    )


def _owner(path: Path) -> int | None:
    with contextlib.suppress(OSError), contextlib.closing(PrivateDirectory(path)) as directory:
        record = directory.read()
        return record.owner.pid if record is not None else None
    return None


def test_the_token_is_not_found(session: Session) -> None:
    folder = str(session.folder)
    assert session.token not in attempt(other_user.find_tokens, folder=folder)
    assert session.token in attempt(other_user.find_tokens, uid=0, folder=folder)
    written = [p for p in session.folder.rglob("*") if p.is_file()]
    assert written and not any(session.token in p.read_text(errors="replace") for p in written)


@pytest.mark.parametrize("guess", [None, "0" * 64])
def test_the_key_value_store_is_closed(session: Session, guess: str | None) -> None:
    assert attempt(other_user.replace_class, token=guess, address=session.address) == []


def test_the_key_value_store_is_open_to_who_has_the_token(session: Session) -> None:
    assert "written" in attempt(
        other_user.replace_class, token=session.token, address=session.address
    )


def test_the_sweep_believes_no_other_user(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as shared, _victim() as victim:
        Path(shared).chmod(0o1777)
        monkeypatch.setenv("TMPDIR", shared)
        monkeypatch.setattr(tempfile, "tempdir", None)
        named = asdict(ProcessIdentity.of(victim.pid))
        planted = attempt(
            other_user.plant_leftovers, place=shared, victims=[named], live=str(session.folder)
        )
        assert len(planted) == 3
        sweep_temp_dirs()
        assert victim.poll() is None and session.folder.exists()
        assert {p.name for p in Path(shared).iterdir()} >= set(planted)
        for name in planted:  # the same, written by its own user, is believed
            os.chown(Path(shared) / name, 0, 0)
        sweep_temp_dirs()
        assert victim.poll() is not None
        left = {p.name for p in Path(shared).iterdir()}
        assert left == {*planted[1:], f"{PREFIX}evillink"}


@contextlib.contextmanager
def _victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like one of Ray's."""
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "/ray/"]
    ) as process:
        while "/ray/" not in psutil.Process(process.pid).cmdline():
            time.sleep(0.01)  # until it is no longer a copy of this one
        try:
            yield process
        finally:
            process.kill()


def test_the_store_of_a_gang_is_closed(session: Session) -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    assert attempt(other_user.enter_stores, url=session.store, ports=session.ports) == []
    (got,) = attempt(other_user.enter_stores, uid=0, url=session.store, ports=[])
    assert got.startswith("file of")
    opened = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=9), wait_for_workers=False)
    got = attempt(other_user.enter_stores, url=session.store, ports=[opened.port])
    assert got == [f"port {opened.port}"]


def test_temporary_files_are_closed(session: Session) -> None:
    paths = sorted(str(p) for p in [session.folder, *session.folder.rglob("*")])
    assert any("sockets/raylet" in path for path in paths)
    mapped = {m.path for p in psutil.Process().children(recursive=True) for m in _maps(p)}
    memory = [path for path in mapped if path.startswith("/dev/shm/") and Path(path).exists()]
    assert attempt(other_user.use_files, paths=[*paths, *memory]) == []
    logs = [path for path in paths if "/logs/" in path]
    session.folder.chmod(0o711)
    try:
        assert attempt(other_user.use_files, paths=logs[:1]) != []  # Ray opened them to all
    finally:
        session.folder.chmod(0o700)


def _maps(process: psutil.Process) -> list[psutil._common.pmmap_grouped]:
    with contextlib.suppress(psutil.Error):
        return list(process.memory_maps())
    return []
