"""As another user of the machine: no lease is taken, broken or blocked. Played by root.

The same acts succeed where anybody may write: see `tests/cluster/test_other_users.py`.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.other_user import QUICK, lease_acts
from support.strangers import IS_ROOT, STRANGER, open_folder

from orchestrator.errors import StoreError, UserError
from orchestrator.store.driver import LocalStore
from orchestrator.store.lease import hold, lease_prefix
from orchestrator.store.sharing import make_store
from orchestrator.tracking.mlflow_database import opened_client

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


@pytest.mark.parametrize("private", [False, True])
def test_a_stranger_cannot_take_break_or_block_a_lease(reachable: Path, private: bool) -> None:
    root = reachable / "store"
    before = os.umask(0o022)
    try:
        make_store(root, private=private)
        with hold(LocalStore(root), "s", QUICK) as lease:
            with opened_client(f"sqlite:///{root}/tracking/mlflow.db"):
                pass
            succeeded = [n for n, act in lease_acts(root).items() if as_user(STRANGER, act)]
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
