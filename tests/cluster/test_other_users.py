"""Another user of the machine gets nothing: token, key-value store, sweep, lease, store, files.

Each attack is also tried where it must succeed: as the owner, or against something that was opened
on purpose.
"""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from support import other_user
from support.other_user import ATTACKS, QUICK, Attack, attempt, lease_acts
from support.strangers import open_folder

from cluster.connect import connect
from cluster.embedded.leftovers import sweep_temp_dirs
from cluster.embedded.private_directory import PREFIX, PrivateDirectory, places
from cluster.process_identity import ProcessIdentity
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape
from orchestrator.store.driver import LocalStore
from orchestrator.store.lease import Lease, acquire, lease_prefix
from orchestrator.tracking.mlflow_database import opened_client

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can play another user")
UMASKS = {"closed": 0o022, "open": 0}
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


def test_no_attack_of_another_user_succeeds(session: Session) -> None:
    got = {attack.__name__: TRIALS[attack](session) for attack in ATTACKS}
    succeed = {name: what for name, what in got.items() if what}
    print(f"{len(succeed)} of {len(got)} attacks succeed")
    assert succeed == {} and len(got) == 6


def _find_tokens(session: Session) -> list[str]:
    folder = str(session.folder)
    assert session.token in attempt(other_user.find_tokens, uid=0, folder=folder)
    written = [p for p in session.folder.rglob("*") if p.is_file()]
    assert written and not any(session.token in p.read_text(errors="replace") for p in written)
    return [t for t in attempt(other_user.find_tokens, folder=folder) if t == session.token]


def _replace_class(session: Session) -> list[str]:
    attack, address = other_user.replace_class, session.address
    assert "written" in attempt(attack, token=session.token, address=address)
    guessed = attempt(attack, token="0" * 64, address=address)
    return attempt(attack, address=address) + guessed


def _plant_leftovers(session: Session) -> list[str]:
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as shared,
        _victim() as victim,
        pytest.MonkeyPatch.context() as patch,
    ):
        Path(shared).chmod(0o1777)
        patch.setenv("TMPDIR", shared)
        patch.setattr(tempfile, "tempdir", None)
        named = asdict(ProcessIdentity.of(victim.pid))
        planted = attempt(
            other_user.plant_leftovers, place=shared, victims=[named], live=str(session.folder)
        )
        assert len(planted) == 3
        sweep_temp_dirs()
        left = {p.name for p in Path(shared).iterdir()}
        got = ["a process"] if victim.poll() is not None else []
        got += [] if session.folder.exists() else ["a living session"]
        got += sorted({*planted} - left)
        for name in planted:  # the same, written by its own user, is believed
            os.chown(Path(shared) / name, 0, 0)
        sweep_temp_dirs()
        assert victim.poll() is not None
        left = {p.name for p in Path(shared).iterdir()}
        assert left == {*planted[1:], f"{PREFIX}evillink"}
        return got


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


def _take_lease(session: Session) -> list[str]:
    with open_folder() as folder:
        held = [_leased_stores(folder / name, umask) for name, umask in UMASKS.items()]
        with opened_client(f"sqlite:///{folder}/mlflow.db"):  # the lock as the product makes it
            pass
        locked = folder / "closed/lock the database/tracking"
        (folder / "mlflow.db.lock").replace(locked / "mlflow.db.lock")
        assert attempt(other_user.take_lease, root=str(folder / "open")) == [*lease_acts(folder)]
        got = attempt(other_user.take_lease, root=str(folder / "closed"))
        del held
        return got


def _leased_stores(root: Path, umask: int) -> list[Lease]:
    """A store for each act, in which a study is driven."""
    before = os.umask(umask)
    try:
        leases = []
        for act in lease_acts(root):
            store = root / act
            leases.append(acquire(LocalStore(store), "s", QUICK))
            (store / lease_prefix("s") / "000001.heartbeat").touch()
            (store / "tracking").mkdir()
            (store / "tracking/mlflow.db.lock").touch()
        return leases
    finally:
        os.umask(before)


def _enter_stores(session: Session) -> list[str]:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    (got,) = attempt(other_user.enter_stores, uid=0, url=session.store, ports=[])
    assert got.startswith("file of")
    opened = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=9), wait_for_workers=False)
    found = attempt(other_user.enter_stores, url=session.store, ports=[opened.port])
    assert found == [f"port {opened.port}"]
    return attempt(other_user.enter_stores, url=session.store, ports=session.ports)


def _use_files(session: Session) -> list[str]:
    paths = sorted(str(p) for p in [session.folder, *session.folder.rglob("*")])
    assert any("sockets/raylet" in path for path in paths)
    mapped = {m.path for p in psutil.Process().children(recursive=True) for m in _maps(p)}
    memory = [path for path in mapped if path.startswith("/dev/shm/") and Path(path).exists()]
    got = attempt(other_user.use_files, paths=[*paths, *memory])
    logs = [path for path in paths if "/logs/" in path]
    session.folder.chmod(0o711)
    try:
        assert attempt(other_user.use_files, paths=logs[:1]) != []  # Ray opened them to all
    finally:
        session.folder.chmod(0o700)
    return got


def _maps(process: psutil.Process) -> list[psutil._common.pmmap_grouped]:
    with contextlib.suppress(psutil.Error):
        return list(process.memory_maps())
    return []


TRIALS: dict[Attack, Callable[[Session], list[str]]] = {
    other_user.find_tokens: _find_tokens,
    other_user.replace_class: _replace_class,
    other_user.plant_leftovers: _plant_leftovers,
    other_user.take_lease: _take_lease,
    other_user.enter_stores: _enter_stores,
    other_user.use_files: _use_files,
}
"""What each attack gets as another user; asserts that it succeeds where it must."""
