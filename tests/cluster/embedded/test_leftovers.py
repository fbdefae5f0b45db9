"""What the sweep of leftovers believes, and what it leaves alone."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.connect import sweep_temp_dirs
from cluster.embedded.private_directory import PREFIX, PrivateDirectory, Record
from cluster.process_identity import ProcessIdentity

HERE = ProcessIdentity.of_this_process()
DEAD = replace(HERE, pid=4_194_303, started=1.0)


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a private directory of a killed command lies; the place that is swept is its parent."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = tmp_path / f"{PREFIX}12345678"
    path.mkdir(mode=0o700)
    (path / "r").mkdir()
    (path / "r" / "log").write_text("log")
    return path


def leave(path: Path, owner: ProcessIdentity = DEAD, *, is_held: bool = False) -> PrivateDirectory:
    directory = PrivateDirectory(path)
    assert directory.lock(create=True)
    directory.write(Record(owner=owner, token_digest="0" * 64))
    if not is_held:
        directory.close()
    return directory


def test_what_a_killed_command_left_is_removed(left: Path) -> None:
    leave(left)
    sweep_temp_dirs()
    assert not left.exists()


def test_a_living_command_is_known_by_its_lock_from_anywhere(left: Path) -> None:
    """Also where its process number means nothing, or another process has it."""
    elsewhere = replace(DEAD, pid_namespace="pid:[1]")
    for owner in (DEAD, elsewhere):
        directory = leave(left, owner, is_held=True)
        sweep_temp_dirs()
        assert (left / "r" / "log").exists()
        directory.close()
        os.unlink(left / "lock")


@pytest.mark.parametrize(
    ("owner", "is_removed"),
    [
        (replace(DEAD, pid_namespace="pid:[1]"), True),  # the kernel is the same: it has no lock
        (replace(DEAD, boot_id="another"), False),  # of another machine, for all that is known
        (replace(DEAD, boot_id=""), False),
        (HERE, False),
    ],
)
def test_boot_and_namespace_decide_what_a_missing_process_means(
    left: Path, owner: ProcessIdentity, is_removed: bool
) -> None:
    leave(left, owner)
    sweep_temp_dirs()
    assert left.exists() is not is_removed


def test_a_directory_that_is_open_to_others_is_not_believed(left: Path) -> None:
    leave(left)
    for mode in (0o701, 0o710, 0o777):
        left.chmod(mode)
        sweep_temp_dirs()
        assert left.exists()


def test_a_link_is_not_followed(left: Path, tmp_path: Path) -> None:
    leave(left)
    hidden = tmp_path / "hidden"
    left.rename(hidden)
    left.symlink_to(hidden)
    sweep_temp_dirs()
    assert (hidden / "r" / "log").exists() and left.is_symlink()


def test_what_links_point_to_stays(left: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (left / "link").symlink_to(outside)
    (left / "r" / "link").symlink_to(outside)
    leave(left)
    sweep_temp_dirs()
    assert not left.exists() and (outside / "kept").read_text() == "kept"


def test_a_directory_in_the_making_is_left_alone(left: Path) -> None:
    sweep_temp_dirs()
    assert left.exists()
    (left / "record.json").write_text('{"owner": {}}')
    sweep_temp_dirs()
    assert left.exists()
    os.utime(left, (0, time.time() - 3600))
    sweep_temp_dirs()
    assert not left.exists()


def test_a_recorded_process_that_is_not_of_ray_lives_on(left: Path) -> None:
    """Even in a record that is believed: process numbers are used again."""
    parent = ProcessIdentity.of(os.getppid())
    directory = PrivateDirectory(left)
    directory.lock(create=True)
    directory.write(Record(owner=DEAD, token_digest="", processes=(parent,)))
    directory.close()
    sweep_temp_dirs()
    assert not left.exists() and parent.is_running


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_directory_of_another_user_is_not_believed(left: Path) -> None:
    leave(left)
    os.chown(left, 4242, 4242)
    sweep_temp_dirs()
    assert left.exists()
