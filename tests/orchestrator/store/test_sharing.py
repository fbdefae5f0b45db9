"""Whom a store is shared with: what is made, what is refused, which umask follows."""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import StoreError, UserError
from orchestrator.store.driver import LocalStore
from orchestrator.store.sharing import Sharing, make_store, obey, owned_mode, sharing_of

OWN_GROUP = grp.getgrgid(os.getgid()).gr_name


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(root: Path) -> set[str]:
    """Modes of a store's directories and files, and whose they are."""
    found = [root, *root.rglob("*")]
    return {f"{'d' if p.is_dir() else 'f'} {stat.S_IMODE(p.stat().st_mode):o}" for p in found}


def write(root: Path) -> None:
    assert LocalStore(root).create("studies/s/lease/000001.json", b"{}")


@pytest.mark.parametrize(
    ("asked", "expected", "lock"),
    [
        ({}, {"d 755", "f 644"}, 0o600),
        ({"private": True}, {"d 700", "f 600"}, 0o600),
        ({"team": OWN_GROUP}, {"d 2770", "f 660"}, 0o660),
    ],
)
def test_what_is_written_has_the_modes_of_the_store(
    tmp_path: Path, asked: dict[str, object], expected: set[str], lock: int
) -> None:
    root = tmp_path / "store"
    make_store(root, **asked)  # type: ignore[arg-type]
    write(root)
    assert modes(root) == expected and owned_mode() == lock
    make_store(root, **asked)  # type: ignore[arg-type]  # the same command again

    os.umask(0o022)  # another process, another user
    obey(root)
    LocalStore(root).create("stages/ab/done.json", b"{}")
    assert modes(root) == expected


def test_a_store_keeps_the_sharing_that_it_was_made_with(tmp_path: Path) -> None:
    open_to_all, private = tmp_path / "default", tmp_path / "private"
    write(open_to_all)
    with pytest.raises(StoreError, match=r"not made with --private.*chmod -R go= "):
        make_store(open_to_all, private=True)
    make_store(private, private=True)
    write(private)
    with pytest.raises(StoreError, match=rf"not made with --team.*chgrp -R {OWN_GROUP} "):
        make_store(private, team=OWN_GROUP)
    assert sharing_of(private) is Sharing.PRIVATE and sharing_of(open_to_all) is Sharing.UMASK
    open_to_all.chmod(0o700)  # as the message says
    make_store(open_to_all, private=True)


def test_what_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exclude each other"):
        make_store(tmp_path / "s", private=True, team=OWN_GROUP)
    with pytest.raises(UserError, match="no such group"):
        make_store(tmp_path / "s", team="no-such-group-here")
    assert sharing_of(tmp_path / "s") is Sharing.UMASK
