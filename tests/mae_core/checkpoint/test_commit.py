"""The commit protocol without a gang: cut off anywhere, damaged anyhow, hostile, on a full disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from support.checkpoint_cases import (
    DAMAGES,
    HOSTILE_NAMES,
    Canary,
    count_points,
    crash_at,
    facts_of,
    is_whole,
    loaded,
    make,
    open_checkpoints,
    save,
    sign,
    state,
)

from mae_core.checkpoint.commit import Saved
from mae_core.checkpoint.manifest import MANIFEST, Manifest
from mae_core.errors import CheckpointError, ConfigError
from mae_core.runtime.arrow_storage import ArrowStorage, open_storage
from mae_core.runtime.storage import LocalStorage, Storage


def test_a_crash_at_every_fault_point_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    make(tmp_path / "counted")
    points = count_points(tmp_path / "counted")
    assert {"write", "fsync", "rename", "delete"} <= set(points)
    found = []
    for number in range(len(points)):
        root = tmp_path / str(number)
        storage = make(root)
        crash_at(root, number)
        step = is_whole(storage)
        assert step in (2, 3), (number, points[number])
        found.append(step)
        # The next save works, and leaves nothing behind of the one that was cut off.
        saved = save(open_checkpoints(storage, attempt=2), 4)
        assert isinstance(saved, Saved) and saved.problem is None
        assert len(storage.directories()) <= 3
    assert found == sorted(found), "once committed, always committed"
    renamed = points.index("rename")
    assert found[renamed] == 2 and found[renamed + 1] == 3


@pytest.mark.parametrize("number", range(100))
def test_damage_is_found_before_anything_is_unpickled(tmp_path: Path, number: int) -> None:
    draw = random.Random(number)
    storage = make(tmp_path)
    what = ""
    while not what:
        what = DAMAGES[number % len(DAMAGES)](tmp_path / "step-000000002-000001", draw)
    checkpoints = open_checkpoints(storage)
    with mock.patch("torch.load", side_effect=AssertionError("unpickled")):
        found = checkpoints.find()
    assert found is not None and found.manifest.step == 1, what


def test_a_file_that_changes_after_its_verification_is_refused(tmp_path: Path) -> None:
    storage = make(tmp_path)
    checkpoints = open_checkpoints(storage)
    found = checkpoints.find()
    assert found is not None
    name = sorted(found.manifest.files)[0]
    with (tmp_path / found.name / name).open("r+b") as stream:
        stream.write(b"x")
    with pytest.raises(CheckpointError, match="has changed since"):
        checkpoints.verified(found, name)


def resign(directory: Path) -> None:
    """Make the manifest true again, as an attacker who can write would."""
    path = directory / MANIFEST
    raw = json.loads(path.read_text())
    for name in raw["files"]:
        content = (directory / name).read_bytes()
        raw["files"][name] |= {
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    sign(path, raw)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("part", range(4))
def test_a_hostile_shard_never_runs(tmp_path: Path, part: int, signed: bool) -> None:
    storage = make(tmp_path)
    directory, canary = tmp_path / "step-000000002-000001", tmp_path / "canary"
    torch.save({"weights": Canary(str(canary))}, directory / f"shards/part-{part}.pt")
    if signed:
        resign(directory)
    assert is_whole(storage) == 1
    assert not canary.exists()


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / MANIFEST
    raw = json.loads(path.read_text())
    change(raw)
    sign(path, raw)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_manifest_with_a_hostile_name_is_refused(tmp_path: Path, name: str) -> None:
    storage = make(tmp_path)
    entry = {"size": 1, "sha256": "0" * 64, "rank": 0}
    edit(tmp_path / "step-000000002-000001", lambda raw: raw["files"].update({name: entry}))
    assert is_whole(storage) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw.pop("files"),
        lambda raw: raw.update(files={}),
        lambda raw: raw.update(files=[]),
        lambda raw: raw.update(step="2"),
        lambda raw: raw.update(step=-1),
        lambda raw: raw.update(step=5),
        lambda raw: raw.update(science_hash="another"),
        lambda raw: raw.update(probe_loss=None),
        lambda raw: raw.update(layout=None),
        lambda raw: raw["layout"].update(world_size=0),
        lambda raw: raw["layout"].update(world_size=1e9),
        lambda raw: raw["layout"].update(surprise=1),
        lambda raw: raw.update(surprise=1),
        lambda raw: next(iter(raw["files"].values())).update(size=-1),
        lambda raw: next(iter(raw["files"].values())).update(sha256="abc"),
        lambda raw: next(iter(raw["files"].values())).update(rank="0"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    storage = make(tmp_path)
    edit(tmp_path / "step-000000002-000001", change)
    assert is_whole(storage) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError):
        Manifest.from_json(content)


def test_no_bit_of_a_manifest_can_change_unseen(tmp_path: Path) -> None:
    make(tmp_path, steps=(1,))
    content = (tmp_path / "step-000000001-000001" / MANIFEST).read_bytes()
    assert Manifest.from_json(content).step == 1
    for position in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            with pytest.raises(CheckpointError):
                Manifest.from_json(bytes(changed))


def test_links_are_not_followed(tmp_path: Path) -> None:
    storage = make(tmp_path / "store")
    directory = tmp_path / "store" / "step-000000002-000001"
    shard = directory / "shards" / "part-0.pt"
    shutil.move(shard, tmp_path / "elsewhere.pt")
    shard.symlink_to(tmp_path / "elsewhere.pt")
    assert is_whole(storage) == 1
    shutil.move(directory, tmp_path / "outside")
    directory.symlink_to(tmp_path / "outside")
    assert is_whole(storage) == 1


def test_a_checkpoint_that_was_copied_to_another_name_is_refused(tmp_path: Path) -> None:
    storage = make(tmp_path)
    shutil.copytree(tmp_path / "step-000000001-000001", tmp_path / "step-000000009-000001")
    assert is_whole(storage) == 2


@pytest.mark.slow
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_an_error_of_the_disk_at_any_point_costs_no_checkpoint(tmp_path: Path, code: int) -> None:
    make(tmp_path / "counted")
    points = count_points(tmp_path / "counted")
    for number in range(len(points)):
        root = tmp_path / str(number)
        make(root)
        passed: list[str] = []

        def fail(name: str, passed: list[str] = passed, number: int = number) -> None:
            passed.append(name)
            if len(passed) == number + 1:
                raise OSError(code, os.strerror(code))

        saved = save(open_checkpoints(LocalStorage(root, fail)), 3)
        step = is_whole(LocalStorage(root))
        failed = isinstance(saved, str) or saved.problem is not None
        assert step == (2 if failed and step != 3 else 3), points[number]
        # What was said to be saved is there.
        assert failed or step == 3


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    storage = make(tmp_path)
    with mock.patch.object(LocalStorage, "free_bytes", return_value=1 << 20):
        problem = save(open_checkpoints(storage), 3, state(3, size=1_000_000))
    assert isinstance(problem, str) and "MiB are needed and 1 MiB are free" in problem
    assert storage.directories() == ["step-000000002-000001"], "only what is superseded went"
    assert is_whole(storage) == 2


def test_retention_keeps_the_newest_and_what_was_asked(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    checkpoints = open_checkpoints(storage, keep=3)
    for step in range(1, 7):
        save(checkpoints, step)
    assert [n[:14] for n in storage.directories()] == [f"step-{s:09d}" for s in (4, 5, 6)]


@pytest.mark.parametrize(("rollback", "step"), [(0, 3), (1, 2), (2, 1), (9, 1)])
def test_a_rollback_passes_over_the_newest_but_never_the_last(
    tmp_path: Path, rollback: int, step: int
) -> None:
    """Asking twice is the same as asking once, until something new is committed."""
    storage = LocalStorage(tmp_path)
    checkpoints = open_checkpoints(storage, keep=3)
    for number in (10, 20, 30):
        save(checkpoints, number)
    for _ in range(2):
        found = checkpoints.find(rollback=rollback)
        assert found is not None and found.manifest.step == 10 * step
    save(checkpoints, 10 * step + 5)
    assert is_whole(storage) == 10 * step + 5


def test_a_gang_whose_attempt_is_over_commits_and_deletes_nothing(tmp_path: Path) -> None:
    """Its driver was frozen or cut off, and another one has begun the next attempt."""
    storage = LocalStorage(tmp_path)
    over: list[bool] = []
    stale = open_checkpoints(storage, is_over=lambda: bool(over))
    for step in (3, 5):
        save(stale, step)
    begun = stale.begin(facts_of(stale, 7), stale.copy(state(7)))
    over.append(True)
    (tmp_path / "step-000000006-000002").mkdir()  # the successor has begun to write
    assert begun is None and "declared over" in str(stale.commit().problem)
    assert "declared over" in str(save(stale, 9))
    steps = [int(name.split("-")[1]) for name in storage.directories()]
    assert steps == [3, 5, 6, 7] and is_whole(storage) == 5


def test_a_newer_lease_of_another_study_hinders_no_checkpoint(tmp_path: Path) -> None:
    """Older versions named directories by the epoch of a lease, which is one study's alone."""
    storage = LocalStorage(tmp_path)
    save(open_checkpoints(storage, attempt=7), 5)
    edit(tmp_path / "step-000000005-000007", lambda raw: raw.update(lease_epoch=raw.pop("attempt")))
    checkpoints = open_checkpoints(storage, attempt=2)
    found = checkpoints.find()
    assert found is not None and (found.manifest.step, found.manifest.attempt) == (5, 7)
    assert isinstance(saved := save(checkpoints, 9), Saved) and saved.problem is None
    assert is_whole(storage) == 9


def remote(root: Path, fault: Callable[[str], None] = lambda _: None) -> Storage:
    """A file system of pyarrow without a rename of ours: what an object store looks like."""
    from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

    root.mkdir(parents=True, exist_ok=True)
    return ArrowStorage(SubTreeFileSystem(str(root), LocalFileSystem()), "checkpoints", fault)


def test_a_file_system_without_rename_commits_by_the_manifest(tmp_path: Path) -> None:
    storage = remote(tmp_path)
    checkpoints = open_checkpoints(storage)
    for step in (1, 2, 3):
        saved = save(checkpoints, step)
        assert isinstance(saved, Saved) and saved.problem is None
    found = open_checkpoints(storage).find()
    assert found is not None and found.manifest.step == 3
    assert torch.equal(
        loaded(checkpoints, found)["shards/part-0.pt"]["weights"],
        state(3)["shards/part-0.pt"]["weights"],
    )
    assert len(storage.directories()) == 2
    (tmp_path / "checkpoints" / found.name / MANIFEST).unlink()
    assert is_whole(storage) == 2


def test_a_uri_opens_its_file_system(tmp_path: Path) -> None:
    assert isinstance(open_storage(f"file://{tmp_path}"), LocalStorage)
    with pytest.raises(ConfigError, match="nonsense://x"):
        open_storage("nonsense://x")


def test_a_snapshot_is_of_its_moment(tmp_path: Path) -> None:
    """Training changes the tensors while the copy is written."""
    storage = LocalStorage(tmp_path)
    checkpoints = open_checkpoints(storage)
    files = state(1)
    copied = checkpoints.copy(files)
    for tree in files.values():
        tree["weights"].zero_()
    save(checkpoints, 1, copied)
    assert is_whole(storage) == 1
