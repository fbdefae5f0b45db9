"""As another user of the machine: no lease is taken, broken or blocked. Played by root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.strangers import IS_ROOT, STRANGER, open_folder

from orchestrator.errors import StoreError, UserError
from orchestrator.store.driver import LocalStore
from orchestrator.store.lease import LeaseTimes, acquire, hold, lease_prefix
from orchestrator.store.sharing import make_store
from orchestrator.tracking.mlflow_database import opened_client

QUICK = LeaseTimes(heartbeat_s=0.05, stale_after_s=0.5)

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not IS_ROOT, reason="playing another user takes root"),
]


def as_user(uid: int, act: Callable[[], object]) -> bool:
    """Do something as another user, in a process of its own; True if nothing refused it."""
    child = os.fork()
    if not child:
        code = 2
        with contextlib.suppress(BaseException):
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            try:
                act()
                code = 0
            except (PermissionError, StoreError):
                code = 1
            except BaseException:
                traceback.print_exc()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 1), "it failed otherwise"
    return os.waitstatus_to_exitcode(status) == 0


@pytest.fixture
def reachable() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def attacks(root: Path) -> dict[str, Callable[[], object]]:
    """What a stranger could try with a lease, by name."""
    store, folder = LocalStore(root), root / lease_prefix("s")
    beat = folder / "000001.heartbeat"

    def lock_database() -> None:
        """For ever: `flock` asks for no right to write."""
        with (root / "tracking/mlflow.db.lock").open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def beat_for_ever() -> None:
        aside = folder / "aside"
        aside.touch()
        os.utime(aside, (2e9, 2e9))
        aside.replace(beat)

    return {
        "take a free one": lambda: acquire(store, "free", QUICK),
        "take, by a record": lambda: store.create_json(f"{lease_prefix('s')}/000002.json", {}),
        "release": lambda: store.create_json(f"{lease_prefix('s')}/000001.released", {}),
        "remove": lambda: (folder / "000001.json").unlink(),
        "rewrite": lambda: (folder / "000001.json").write_text("{}"),
        "stop the heartbeat": beat.unlink,
        "beat for ever": beat_for_ever,
        "move the folder": lambda: folder.rename(root / "studies/gone"),
        "fill another study's folder": lambda: (root / "studies/t/lease").mkdir(parents=True),
        "lock the database": lock_database,
    }


@pytest.mark.parametrize("private", [False, True])
def test_a_stranger_cannot_take_break_or_block_a_lease(reachable: Path, private: bool) -> None:
    root = reachable / "store"
    before = os.umask(0o022)
    try:
        make_store(root, private=private)
        with hold(LocalStore(root), "s", QUICK) as lease:
            with opened_client(f"sqlite:///{root}/tracking/mlflow.db"):
                pass
            succeeded = [n for n, act in attacks(root).items() if as_user(STRANGER, act)]
            lease.check()
            can_read = as_user(STRANGER, (root / lease_prefix("s") / "000001.json").read_bytes)
        with hold(LocalStore(root), "s", QUICK) as later:
            assert later.epoch == 2
    finally:
        os.umask(before)
    assert succeeded == [] and can_read is not private


def test_a_directory_that_a_stranger_has_laid_out_becomes_no_private_store(
    reachable: Path,
) -> None:
    (reachable / "planted").mkdir()
    os.chown(reachable / "planted", STRANGER, STRANGER)
    with pytest.raises(UserError, match="another user's"):
        make_store(reachable / "planted", private=True)


def test_the_same_acts_succeed_where_anybody_may_write(reachable: Path) -> None:
    """The attacks are real: what stops them is the modes of the store."""
    before = os.umask(0)
    try:
        found = {}
        for number, name in enumerate(attacks(reachable)):
            root = reachable / str(number)
            lease = acquire(LocalStore(root), "s", QUICK)
            (root / "studies/s/lease/000001.heartbeat").touch()
            (root / "tracking").mkdir()
            (root / "tracking/mlflow.db.lock").touch()
            found[name] = as_user(STRANGER, attacks(root)[name])
            del lease
    finally:
        os.umask(before)
    refused = [name for name, done in found.items() if not done]
    assert refused == [] and len(found) == len(attacks(reachable))
