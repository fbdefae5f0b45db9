"""Storage on any file system that pyarrow knows (S3, GCS, HDFS, …), and how a URI is opened."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mae_core.errors import ConfigError
from mae_core.runtime.storage import FaultPoint, FaultyStream, LocalStorage, Storage, check_name


class ArrowStorage(Storage):
    """A prefix of a pyarrow file system. One put of an object is what publishes.

    Without a conditional put there is no exclusive create: it is refused, not imitated.
    """

    def __init__(self, filesystem: Any, prefix: str, fault: FaultPoint | None = None) -> None:
        super().__init__(prefix.rstrip("/"), fault)
        self._fs = filesystem

    def check(self, *, writable: bool) -> None:
        """Look at the prefix, or make it."""
        from pyarrow.fs import FileType

        if writable:
            self._fs.create_dir(self.where, recursive=True)
        if self._fs.get_file_info(self.where).type == FileType.File:
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", self.where)

    def directories(self, name: str = "") -> list[str]:
        """List one level."""
        from pyarrow.fs import FileType

        found = (info for info in self._infos(name) if info.type == FileType.Directory)
        return sorted(info.base_name for info in found)

    def list(self, name: str) -> list[str]:
        """List one level."""
        return sorted(info.base_name for info in self._infos(name))

    def open(self, name: str) -> BinaryIO:
        """Open an object."""
        stream: BinaryIO = self._fs.open_input_file(self._path(name))
        return stream

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[Any]:
        """Upload; the object exists once the stream is closed."""
        path = self._path(name)
        self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        with self._fs.open_output_stream(path) as stream:
            yield FaultyStream(stream, self._fault)
            self._fault("fsync")

    def create(self, name: str, content: bytes) -> bool:
        """Refuse: two writers would both succeed."""
        del content
        raise OSError(f"{self._path(name)}: this storage cannot create a file exclusively")

    def publish(self, name: str, content: bytes) -> None:
        """One put."""
        self._fault("rename")
        with self.writer(name) as stream:
            stream.write(content)

    def delete(self, name: str) -> None:
        """Delete one object or a prefix."""
        from pyarrow.fs import FileType

        self._fault("delete")
        path = self._path(name)
        is_prefix = self._fs.get_file_info(path).type == FileType.Directory
        with contextlib.suppress(FileNotFoundError):
            (self._fs.delete_dir if is_prefix else self._fs.delete_file)(path)

    def _infos(self, name: str) -> Iterator[Any]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path(name), allow_not_found=True)
        with contextlib.suppress(NotADirectoryError):
            found = self._fs.get_file_info(selector)
            yield from (info for info in found if not info.base_name.startswith("."))

    def _path(self, name: str) -> str:
        return f"{self.where}/{check_name(name)}".rstrip("/")


def open_storage(where: str | Path, fault: FaultPoint | None = None) -> Storage:
    """Storage at a path or URI; raises `ConfigError` for a URI that pyarrow cannot open."""
    text = str(where)
    if "://" not in text:
        return LocalStorage(Path(text), fault)
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
        return LocalStorage(Path(prefix), fault)
    return ArrowStorage(filesystem, prefix, fault)
