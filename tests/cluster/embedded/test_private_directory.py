"""Where Ray's files lie, so that no other user can reach them and a socket's path fits."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.embedded.private_directory import (
    RAY_SOCKET,
    PrivateDirectory,
    Record,
    make_private_directory,
    places,
)
from cluster.errors import ClusterUnreachable
from cluster.process_identity import ProcessIdentity


@pytest.fixture(autouse=True)
def no_place_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)


def made_in(place: Path | str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place in which a private directory is made where TMPDIR names this one."""
    monkeypatch.setenv("TMPDIR", str(place))
    directory = make_private_directory()
    try:
        assert len(str(directory.for_ray / RAY_SOCKET)) <= 107
        return directory.path.parent
    finally:
        assert directory.remove()
        directory.close()


def test_all_of_it_is_private_from_the_first_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.umask(0)
    try:
        directory = make_private_directory()
    finally:
        os.umask(old)
    directory.write(Record(owner=ProcessIdentity.of_this_process(), token_digest="0"))
    modes = {
        str(p.relative_to(directory.path)): stat.S_IMODE(p.lstat().st_mode)
        for p in [directory.path, *directory.path.iterdir()]
    }
    assert modes == {".": 0o700, "lock": 0o600, "record.json": 0o600, "r": 0o700}
    assert directory.remove()
    directory.close()


def test_a_record_comes_back() -> None:
    me = ProcessIdentity.of_this_process()
    record = Record(owner=me, token_digest="ab", processes=(me, replace(me, pid=7)))
    assert Record.from_json(record.to_json()) == record


def test_the_lock_is_held_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    first, second = PrivateDirectory(tmp_path), PrivateDirectory(tmp_path)
    assert first.lock(create=True) and not second.lock()
    first.close()
    assert second.lock()
    second.close()


def test_a_place_that_is_too_deep_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made_in("/tmp", monkeypatch) == Path("/tmp")
    assert made_in(tmp_path / ("a" * 50), monkeypatch) != tmp_path
    deep = tmp_path / ("a" * 50)
    deep.mkdir()
    assert made_in(deep, monkeypatch) != deep


def test_a_place_whose_names_others_can_change_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory(prefix="x", dir="/tmp") as folder:
        place = Path(folder)
        place.chmod(0o1777)
        assert made_in(place, monkeypatch) == place
        place.chmod(0o777)
        assert made_in(place, monkeypatch) != place


def test_where_no_place_will_do_each_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.embedded.private_directory.MIN_FREE_BYTES", 1 << 60)
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("a" * 50)))
    with pytest.raises(ClusterUnreachable, match="set TMPDIR to a directory of at most") as caught:
        make_private_directory()
    assert all(f"{place}: " in str(caught.value) for place in places())
    assert "too long for a socket" in str(caught.value) and "MiB are free" in str(caught.value)
