"""Where checkpoints lie: a local directory, or any file system that pyarrow knows.

Both keep one promise: `publish` is all or nothing and comes last. A local directory publishes by
rename; an object store, which has no rename, by the put of one object. Everything else may be
left half-written by whatever kills the process, and is never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mae_core.errors import CheckpointError, ConfigError

CHUNK = 1 << 22
Fault = Callable[[str], None]


def _no_fault(name: str) -> None:
    """Do nothing: the hook of a run in which nothing is rehearsed."""


class Place(ABC):
    """A tree of files. Names are relative POSIX paths; they never leave the place."""

    def __init__(self, fault: Fault = _no_fault) -> None:
        self._fault = fault
        """Called by name before each write, fsync, rename and delete."""

    @abstractmethod
    def directories(self) -> list[str]:
        """Names of the directories at the top, sorted; empty if there is no such place yet."""

    @abstractmethod
    def writer(self, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a new file; it is on the medium once the block has ended."""

    @abstractmethod
    def publish(self, name: str, content: bytes) -> None:
        """Write a small file all or nothing."""

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; raises `OSError`."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove a file; no error if it does not exist."""

    @abstractmethod
    def delete_tree(self, name: str) -> None:
        """Remove a directory and all below it; no error if it does not exist."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Room left, None where nobody knows."""

    @abstractmethod
    def local(self, name: str) -> Path | None:
        """Path of a directory that other libraries may read, None if it is not on this machine."""

    def read(self, name: str) -> bytes:
        """Content of a file; raises `OSError`."""
        with self.open(name) as stream:
            return stream.read()

    def digest(self, name: str) -> tuple[int, str]:
        """Bytes and SHA-256 of a file, read in pieces; raises `OSError`."""
        sha, size = hashlib.sha256(), 0
        with self.open(name) as stream:
            while chunk := stream.read(CHUNK):
                sha.update(chunk)
                size += len(chunk)
        return size, sha.hexdigest()


class LocalPlace(Place):
    """A directory on a local or shared POSIX file system."""

    def __init__(self, root: Path, fault: Fault = _no_fault) -> None:
        super().__init__(fault)
        self.root = root

    def directories(self) -> list[str]:
        """List, without following links out of the place."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            entries = os.scandir(self.root)
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
        return []

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[Any]:
        """Write in place; what is unfinished has no manifest that names it."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            yield _Faulty(stream, self._fault)
            self._fault("fsync")
            stream.flush()
            os.fsync(stream.fileno())

    def publish(self, name: str, content: bytes) -> None:
        """Write aside, sync, rename, sync the directory."""
        path = self.root / name
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            with self.writer(str(aside.relative_to(self.root))) as stream:
                stream.write(content)
            self._fault("rename")
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        self._fault("fsync")
        for directory in (path.parent, self.root):
            _sync_directory(directory)

    def open(self, name: str) -> BinaryIO:
        """Open a regular file; a link is refused, wherever it points."""
        path = self.root / name
        if path.is_symlink() or path.parent.is_symlink():
            raise OSError(f"{path} is a link")
        return path.open("rb")

    def delete(self, name: str) -> None:
        """Unlink."""
        self._fault("delete")
        (self.root / name).unlink(missing_ok=True)

    def delete_tree(self, name: str) -> None:
        """Remove file by file, so that each can be rehearsed to be the last."""
        path = self.root / name
        for file in sorted(path.rglob("*"), reverse=True):
            self._fault("delete")
            with contextlib.suppress(FileNotFoundError):
                if file.is_dir() and not file.is_symlink():
                    file.rmdir()
                else:
                    file.unlink()
        shutil.rmtree(path, ignore_errors=True)

    def free_bytes(self) -> int | None:
        """Free bytes of the file system."""
        return shutil.disk_usage(
            next(p for p in (self.root, *self.root.parents) if p.exists())
        ).free

    def local(self, name: str) -> Path | None:
        """The directory itself."""
        return self.root / name


class RemotePlace(Place):
    """A prefix of a pyarrow file system (S3, GCS, HDFS, …)."""

    def __init__(self, filesystem: Any, prefix: str, fault: Fault = _no_fault) -> None:
        super().__init__(fault)
        self._fs, self._prefix = filesystem, prefix.rstrip("/")

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    def directories(self) -> list[str]:
        """List one level."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self._prefix, allow_not_found=True)
        infos = self._fs.get_file_info(selector)
        return sorted(i.base_name for i in infos if i.type == FileType.Directory)

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[Any]:
        """Upload; the object exists once the stream is closed."""
        self._fs.create_dir(self._path(name).rpartition("/")[0], recursive=True)
        with self._fs.open_output_stream(self._path(name)) as stream:
            yield _Faulty(stream, self._fault)
            self._fault("fsync")

    def publish(self, name: str, content: bytes) -> None:
        """One put."""
        self._fault("rename")
        with self.writer(name) as stream:
            stream.write(content)

    def open(self, name: str) -> BinaryIO:
        """Open for reading."""
        stream: BinaryIO = self._fs.open_input_file(self._path(name))
        return stream

    def delete(self, name: str) -> None:
        """Delete one object."""
        self._fault("delete")
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._path(name))

    def delete_tree(self, name: str) -> None:
        """Delete a prefix."""
        self._fault("delete")
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(self._path(name))

    def free_bytes(self) -> int | None:
        """Nobody knows."""
        return None

    def local(self, name: str) -> Path | None:
        """Never on this machine."""
        return None


class _Faulty:
    """A stream whose writes can be rehearsed to fail."""

    def __init__(self, stream: Any, fault: Fault) -> None:
        self._stream, self._fault = stream, fault

    def write(self, content: Any) -> int:
        self._fault("write")
        self._stream.write(content)
        return len(content)

    def flush(self) -> None:
        self._stream.flush()


def open_place(where: str | Path, fault: Fault = _no_fault) -> Place:
    """Place for a path or URI; raises `ConfigError` for a URI that pyarrow cannot open."""
    text = str(where)
    if "://" not in text:
        return LocalPlace(Path(text), fault)
    import pyarrow
    from pyarrow.fs import FileSystem, LocalFileSystem

    try:
        filesystem, prefix = FileSystem.from_uri(text)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ConfigError(
            f"checkpoint_uri {text!r} cannot be opened ({error}): use a directory, or a URI that "
            "pyarrow knows, such as s3://bucket/prefix"
        ) from error
    if isinstance(filesystem, LocalFileSystem):
        return LocalPlace(Path(prefix), fault)
    return RemotePlace(filesystem, prefix, fault)


def check_name(name: str) -> str:
    """Return a relative name that stays inside its directory; raises `CheckpointError`."""
    parts = name.split("/")
    bad = not name or len(name) > 255 or "\0" in name or "\\" in name
    if bad or any(p in ("", ".", "..") for p in parts):
        raise CheckpointError(f"file name {name[:80]!r} is not one that a checkpoint can hold")
    return name


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
