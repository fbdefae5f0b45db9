"""Where files lie: the contract that every storage keeps, and its smallest keeper, a directory.

Checkpoints and the records of studies both rest on it. `tests/mae_core/runtime/test_storage.py`
is the suite that every implementation passes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

CHUNK = 1 << 22
FaultPoint = Callable[[str], None]


class UnsafeName(ValueError):
    """A name that would leave its storage, or that not every storage can hold."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"name {self.name[:80]!r} leaves the storage, or not every storage can hold it"


class NotAFile(OSError):
    """What stands there has no content to read: a folder, a pipe, a link to nothing, a bad disk."""


NO_CONTENT = frozenset({errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EIO})
"""A folder, links in a circle, a socket, a broken disk."""


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading; a pipe would be waited for, and a device has no end.

    Raises:
        NotAFile: it is there, and is none.
        OSError: it is not there, or may not be read.
    """
    try:
        stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except OSError as error:
        if error.errno in NO_CONTENT:
            raise NotAFile(error.errno, error.strerror, str(path)) from error
        raise
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        return stream
    stream.close()
    raise NotAFile(errno.EINVAL, "not a regular file", str(path))


def digest_file(path: Path) -> str:
    """SHA-256 of a regular file, hex; raises as `open_file` does."""
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _no_fault(name: str) -> None:
    """No fault point is set. A function, since a storage travels to ranks by pickle."""


class Storage(ABC):
    """A tree of files under relative POSIX names.

    What every storage guarantees:

    * A name never leaves the storage; one that would raises `UnsafeName`. "" is the top.
    * `create` is exclusive and atomic: of many writers of one name exactly one succeeds, and no
      reader ever sees half a file. A medium that cannot do this refuses, with `OSError`.
    * `publish` is atomic and replaces: a reader sees the old content or the new, never a mix.
    * A file of `writer` may be left half-written by whatever kills the process: only a file that
      is published or created later may name it.
    * Reading never follows a link, neither as the file nor as its directory, unless it was opened
      so that it does.
    * Whatever the medium refuses is an `OSError`; a missing file is `FileNotFoundError` or
      `NotADirectoryError`.

    A path in the local file system is no part of it: `local` answers None where there is none.
    """

    def __init__(self, where: str, fault: FaultPoint | None = None) -> None:
        self.where = where
        """Directory or prefix, for messages."""
        self._fault = fault or _no_fault
        """Called by name before each write, fsync, link, rename and delete."""

    @abstractmethod
    def check(self, *, writable: bool) -> None:
        """Raise `OSError` unless it can be read or does not exist yet; `writable` makes it."""

    @abstractmethod
    def directories(self, name: str = "") -> list[str]:
        """Those of `list` that are directories, links left out."""

    @abstractmethod
    def list(self, name: str) -> list[str]:
        """Names directly below a directory, sorted, without hidden ones; empty if there is none."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""

    @abstractmethod
    def writer(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a new file; it is on the medium once the block has ended."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Create a small file; False if it exists already, which leaves it untouched."""

    @abstractmethod
    def publish(self, name: str, content: bytes) -> None:
        """Write a small file, or replace it."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file, or a directory and all below it; no error if it does not exist."""

    def free_bytes(self) -> int | None:
        """Room left, None where it is unknown."""
        return None

    def local(self, name: str) -> Path | None:
        """Path that other libraries may use, None if the storage is not of this machine."""
        del name
        return None

    def read(self, name: str) -> bytes:
        """Content of a file."""
        with self.open(name) as stream:
            return stream.read()

    def digest(self, name: str) -> tuple[int, str]:
        """Bytes and SHA-256 of a file, read in pieces."""
        sha, size = hashlib.sha256(), 0
        with self.open(name) as stream:
            while chunk := stream.read(CHUNK):
                sha.update(chunk)
                size += len(chunk)
        return size, sha.hexdigest()


class LocalStorage(Storage):
    """A directory on a local or shared POSIX file system."""

    def __init__(
        self, root: Path, fault: FaultPoint | None = None, *, follow_links: bool = False
    ) -> None:
        super().__init__(str(root), fault)
        self.root, self._follow_links = root, follow_links

    def check(self, *, writable: bool) -> None:
        """List the root, or write a file into it."""
        if writable:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                return
        with contextlib.suppress(FileNotFoundError):
            os.listdir(self.root)

    def directories(self, name: str = "") -> list[str]:
        """List, without following links."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = (e for e in os.scandir(self.local(name)) if e.is_dir(follow_symlinks=False))
            return sorted(e.name for e in found if not e.name.startswith("."))
        return []

    def list(self, name: str) -> list[str]:
        """List a directory."""
        path = self.local(name)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(n for n in os.listdir(path) if not n.startswith("."))
        self._refuse_broken_link(path)
        return []

    def open(self, name: str) -> BinaryIO:
        """Open a regular file."""
        path = self.local(name)
        is_linked = path.is_symlink() or (path.parent.is_symlink() and path.parent != self.root)
        if is_linked and not self._follow_links:
            raise OSError(f"{path} is a link")
        try:
            return open_file(path)
        except FileNotFoundError:
            self._refuse_broken_link(path)
            raise

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[Any]:
        """Write in place, sync."""
        path = self.local(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            yield FaultyStream(stream, self._fault)
            self._fault("fsync")
            stream.flush()
            os.fsync(stream.fileno())

    def create(self, name: str, content: bytes) -> bool:
        """Write aside, sync, link: the one POSIX call that is atomic and refuses a known name."""
        path = self.local(name)
        if path.exists():
            return False
        with self._aside(path, content) as aside:
            self._fault("link")
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
        return True

    def publish(self, name: str, content: bytes) -> None:
        """Write aside, sync, rename, sync the directory."""
        path = self.local(name)
        with self._aside(path, content) as aside:
            self._fault("rename")
            os.replace(aside, path)
        self._fault("fsync")
        for directory in (path.parent, self.root):
            _sync_directory(directory)

    def delete(self, name: str) -> None:
        """Remove file by file, so that each can be rehearsed to be the last."""
        path = self.local(name)
        if not path.is_dir() or path.is_symlink():
            self._fault("delete")
            path.unlink(missing_ok=True)
            return
        for file in sorted(path.rglob("*"), reverse=True):
            self._fault("delete")
            with contextlib.suppress(FileNotFoundError):
                if file.is_dir() and not file.is_symlink():
                    _remove_directory(file)
                else:
                    file.unlink()
        shutil.rmtree(path, ignore_errors=True)

    def free_bytes(self) -> int | None:
        """Free bytes of the file system."""
        return shutil.disk_usage(
            next(p for p in (self.root, *self.root.parents) if p.exists())
        ).free

    def local(self, name: str) -> Path:
        """Path of a file or directory, whether it exists or not."""
        return self.root / check_name(name)

    def _refuse_broken_link(self, path: Path) -> None:
        """What a link led to may be on a disk that is not mounted: it is not just missing."""
        for place in (path, *path.parents):
            if place.is_symlink() and not place.exists():
                raise NotAFile(errno.ENOENT, f"{place} is a link to nothing", str(place))
            if place == self.root:
                return

    @contextlib.contextmanager
    def _aside(self, path: Path, content: bytes) -> Iterator[Path]:
        """Write content beside `path`, on the medium; what is left of it goes at the end."""
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with self.writer(aside.relative_to(self.root).as_posix()) as stream:
                stream.write(content)
            yield aside
        finally:
            with contextlib.suppress(OSError):
                aside.unlink()


class FaultyStream:
    """A stream whose writes can be rehearsed to fail."""

    def __init__(self, stream: Any, fault: FaultPoint) -> None:
        self._stream, self._fault = stream, fault

    def write(self, content: Any) -> int:
        """Write, unless a fault is rehearsed."""
        self._fault("write")
        self._stream.write(content)
        return len(content)

    def flush(self) -> None:
        """Flush."""
        self._stream.flush()


def umasked(mode: int) -> int:
    """Mode of a new file, for one that a library makes with a mode of its own."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return mode & ~int(line.split()[1], 8)
    umask = os.umask(0o077)  # elsewhere it can only be read by a change
    os.umask(umask)
    return mode & ~umask


def is_safe(name: str) -> bool:
    """Tell whether a relative name stays inside its storage, and means the same on every one."""
    return "\0" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def check_name(name: str) -> str:
    """Return a safe name or "", the top; raises `UnsafeName`."""
    if name and not is_safe(name):
        raise UnsafeName(name)
    return name


def _remove_directory(directory: Path) -> None:
    """Remove it if it is empty: NFS keeps files that are open elsewhere, under other names."""
    try:
        directory.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
