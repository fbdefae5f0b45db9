"""The contract of storages, as one suite that every implementation inherits."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import pytest

from mae_core.runtime.arrow_storage import ArrowStorage, open_storage
from mae_core.runtime.storage import LocalStorage, Storage, UnsafeName

HOSTILE_NAMES = [
    "../outside",
    "/etc/passwd",
    "a/../../b",
    "..",
    ".",
    "a//b",
    "a/",
    "a/./b",
    "a\0b",
]
VERBS: dict[str, Callable[[Storage, str], object]] = {
    "read": lambda storage, name: storage.read(name),
    "open": lambda storage, name: storage.open(name),
    "digest": lambda storage, name: storage.digest(name),
    "list": lambda storage, name: storage.list(name),
    "directories": lambda storage, name: storage.directories(name),
    "publish": lambda storage, name: storage.publish(name, b"x"),
    "delete": lambda storage, name: storage.delete(name),
}


def put(storage: Storage, name: str, content: bytes) -> None:
    with storage.writer(name) as stream:
        stream.write(content)


def failing(point: str) -> Callable[[str], None]:
    """A fault hook: the medium fails at one kind of step."""

    def fail(name: str) -> None:
        if name == point:
            raise OSError(errno.ENOSPC, "rehearsed")

    return fail


class StorageContract(ABC):
    """What every storage guarantees. A storage lies in `tmp_path / "storage"`."""

    @abstractmethod
    def open(self, root: Path, fault: Callable[[str], None] | None = None) -> Storage: ...

    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return self.open(tmp_path / "storage")

    def test_what_was_written_is_read(self, storage: Storage) -> None:
        put(storage, "a/large", b"x" * 5_000_000)
        storage.publish("a/small", b"y")
        assert storage.read("a/large") == b"x" * 5_000_000
        assert storage.read("a/small") == b"y"

    def test_another_process_can_be_given_it(self, storage: Storage) -> None:
        storage.publish("a", b"x")
        assert pickle.loads(pickle.dumps(storage)).read("a") == b"x"

    @pytest.mark.parametrize("name", ["missing", "no/such/directory", "file/below"])
    def test_a_missing_file_is_said_so(self, storage: Storage, name: str) -> None:
        storage.publish("file", b"")
        for verb in (storage.read, storage.open, storage.digest):
            with pytest.raises((FileNotFoundError, NotADirectoryError)):
                verb(name)

    def test_a_directory_is_no_file(self, storage: Storage) -> None:
        storage.publish("d/a", b"")
        with pytest.raises(OSError):
            storage.read("d")

    def test_the_digest_is_of_the_content(self, storage: Storage) -> None:
        content = os.urandom(9_000_000)
        put(storage, "large", content)
        assert storage.digest("large") == (len(content), hashlib.sha256(content).hexdigest())

    def test_publish_replaces(self, storage: Storage) -> None:
        storage.publish("d/a", b"1")
        storage.publish("d/a", b"2")
        assert storage.read("d/a") == b"2" and storage.list("d") == ["a"]

    def test_lists_are_sorted_and_of_one_level(self, storage: Storage) -> None:
        for name in ("d/b", "d/a", "d/sub/c", "d/.hidden", "d/z/e", "other"):
            storage.publish(name, b"")
        assert storage.list("d") == ["a", "b", "sub", "z"]
        assert storage.directories("d") == ["sub", "z"]
        assert storage.list("") == ["d", "other"] and storage.directories() == ["d"]

    def test_the_list_of_nothing_is_empty(self, storage: Storage) -> None:
        assert storage.list("") == storage.directories() == []
        storage.publish("file", b"")
        for name in ("nothing", "file", "file/below"):
            assert storage.list(name) == storage.directories(name) == []

    def test_delete_takes_files_and_trees(self, storage: Storage) -> None:
        for name in ("d/a", "d/sub/b", "d/sub/deep/c", "kept", "kept2/d"):
            storage.publish(name, b"")
        for name in ("kept2/d", "kept2/d", "d", "d", "nothing", "no/thing"):
            storage.delete(name)
        assert storage.list("d") == storage.list("kept2") == [] and storage.read("kept") == b""

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    @pytest.mark.parametrize("verb", VERBS)
    def test_no_name_leaves_the_storage(
        self, storage: Storage, tmp_path: Path, verb: str, name: str
    ) -> None:
        storage.publish("a/file", b"")
        (tmp_path / "outside").write_text("kept")
        with pytest.raises(UnsafeName):
            VERBS[verb](storage, name)
        with pytest.raises(UnsafeName):
            put(storage, name, b"")
        with pytest.raises((UnsafeName, OSError)):
            storage.create(name, b"")
        assert (tmp_path / "outside").read_text() == "kept"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["outside", "storage"]

    recoverable = ("write", "fsync", "rename")
    """Fault points of `publish` at which the old content stands."""

    def test_an_error_while_publishing_leaves_the_old_content(self, tmp_path: Path) -> None:
        for point in self.recoverable:
            storage = self.open(tmp_path / "storage", failing(point))
            self.open(tmp_path / "storage").publish("d/a", b"old")
            with pytest.raises(OSError, match="rehearsed"):
                storage.publish("d/a", b"new")
            assert storage.read("d/a") == b"old" and storage.list("d") == ["a"], point

    def test_faults_are_asked_for_before_each_step(self, tmp_path: Path) -> None:
        points: list[str] = []
        storage = self.open(tmp_path / "storage", points.append)
        storage.publish("d/a", b"x")
        assert {"write", "fsync", "rename"} <= set(points)
        storage.delete("d")
        assert points[-1] == "delete"

    def test_a_rehearsed_error_of_delete_keeps_the_file(self, tmp_path: Path) -> None:
        storage = self.open(tmp_path / "storage", failing("delete"))
        storage.publish("d/a", b"x")
        for name in ("d/a", "d"):
            with pytest.raises(OSError, match="rehearsed"):
                storage.delete(name)
        assert storage.read("d/a") == b"x"

    def test_checking_makes_the_storage_only_to_write(self, storage: Storage) -> None:
        storage.check(writable=False)
        storage.check(writable=True)
        storage.publish("a", b"")
        assert storage.list("") == ["a"]

    def test_a_file_in_place_of_the_storage_is_refused(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        (tmp_path / "storage").write_text("")
        for writable in (False, True):
            with pytest.raises(OSError):
                storage.check(writable=writable)


class TestLocalStorage(StorageContract):
    def open(self, root: Path, fault: Callable[[str], None] | None = None) -> Storage:
        return LocalStorage(root, fault)

    def test_create_is_exclusive_and_leaves_the_first(self, storage: Storage) -> None:
        assert storage.create("d/k", b"1") and not storage.create("d/k", b"2")
        assert storage.read("d/k") == b"1" and storage.list("d") == ["k"]

    def test_of_many_writers_exactly_one_succeeds(self, storage: Storage) -> None:
        barrier, won = threading.Barrier(8), []

        def write(i: int) -> None:
            barrier.wait()
            if storage.create("race", str(i).encode()):
                won.append(i)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(won) == 1 and storage.read("race") == str(won[0]).encode()

    @pytest.mark.parametrize("point", ["write", "fsync", "link"])
    def test_an_error_while_creating_leaves_nothing(self, tmp_path: Path, point: str) -> None:
        with pytest.raises(OSError, match="rehearsed"):
            LocalStorage(tmp_path / "storage", failing(point)).create("d/a", b"x")
        assert list((tmp_path / "storage" / "d").iterdir()) == []

    def test_links_are_not_followed(self, storage: Storage, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "secret").write_text("x")
        storage.publish("d/a", b"")
        root = tmp_path / "storage"
        (root / "d" / "file").symlink_to(tmp_path / "outside" / "secret")
        (root / "d" / "folder").symlink_to(tmp_path / "outside")
        for name in ("d/file", "d/folder/secret"):
            for verb in (storage.read, storage.open, storage.digest):
                with pytest.raises(OSError, match="is a link"):
                    verb(name)
        assert storage.directories("d") == []
        assert not storage.create("d/file", b"y")
        storage.delete("d")
        assert (tmp_path / "outside" / "secret").read_text() == "x"

    def test_a_directory_that_does_not_empty_is_left(
        self, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on NFS, where a file that is open elsewhere stays under another name."""
        storage.publish("d/below/a", b"")

        def refuse(path: Path) -> None:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rmdir", refuse)
            patch.setattr("shutil.rmtree", lambda path, ignore_errors: None)
            storage.delete("d")
        assert storage.list("d/below") == []

    def test_a_storage_that_is_itself_a_link_is_read(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        storage.publish("top", b"x")
        (tmp_path / "link").symlink_to(tmp_path / "storage")
        assert LocalStorage(tmp_path / "link").read("top") == b"x"

    def test_it_has_paths(self, storage: Storage, tmp_path: Path) -> None:
        assert storage.local("a/b") == tmp_path / "storage" / "a" / "b"
        assert (storage.free_bytes() or 0) > 0
        with pytest.raises(UnsafeName):
            storage.local("../a")


class TestArrowStorage(StorageContract):
    def open(self, root: Path, fault: Callable[[str], None] | None = None) -> Storage:
        """A directory behind pyarrow: what an object store looks like, with no rename of ours."""
        from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

        filesystem = SubTreeFileSystem(str(root.parent), LocalFileSystem())
        return ArrowStorage(filesystem, root.name, fault)

    # An object store drops an upload that was not finished; the directory here is changed at once.
    recoverable = ("rename",)

    def test_exclusive_creation_is_refused_aloud(self, storage: Storage) -> None:
        with pytest.raises(OSError, match="exclusively"):
            storage.create("k", b"1")
        assert storage.list("") == []

    def test_it_has_no_paths(self, storage: Storage) -> None:
        storage.publish("a", b"")
        assert storage.local("a") is None and storage.free_bytes() is None


def test_a_uri_opens_its_file_system(tmp_path: Path) -> None:
    assert isinstance(open_storage(f"file://{tmp_path}"), LocalStorage)
    assert isinstance(open_storage(tmp_path), LocalStorage)
    assert isinstance(open_storage("mock:///bucket"), ArrowStorage)
