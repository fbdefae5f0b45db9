"""The store: a directory that holds the truth, behind a contract small enough for any medium.

Nothing in it is ever appended to or changed: records are created exclusively, whole or not at
all, and later ones have later names. Ray, MLflow and Optuna can be lost and rebuilt from it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from orchestrator.errors import FULL, StoreError, UserError

MIN_FREE_BYTES = 64 << 20


class Store(ABC):
    """What the orchestrator needs of a medium.

    Keys are relative POSIX paths. `create` is atomic and exclusive: of two writers of one key
    exactly one succeeds, and no reader ever sees half a record.
    """

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """Content of `key`, None if it does not exist."""

    @abstractmethod
    def create(self, key: str, content: bytes) -> bool:
        """Create `key`; False if it exists already, which leaves it untouched."""

    @abstractmethod
    def list(self, prefix: str) -> list[str]:
        """Names directly below the directory `prefix`, sorted; empty if there is none."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Remove `prefix` and all below it; no error if it does not exist."""

    @abstractmethod
    def path(self, key: str) -> Path:
        """Path where a process of this study reads and writes large files of `key`."""

    def read_json(self, key: str) -> dict[str, Any] | None:
        """Record at `key` as a dict, None if it does not exist."""
        content = self.read(key)
        if content is None:
            return None
        try:
            value = json.loads(content)
        except ValueError as error:
            raise StoreError(f"record {key!r} in the store is damaged: {error}") from error
        if not isinstance(value, dict):
            raise StoreError(f"record {key!r} in the store is damaged: not a mapping")
        return value

    def create_json(self, key: str, value: dict[str, Any]) -> bool:
        """`create` with JSON content."""
        return self.create(key, json.dumps(value, sort_keys=True, indent=1).encode())

    def append_numbered(self, prefix: str, value: dict[str, Any]) -> int:
        """Create the next of the records `000001.json`, … below `prefix`; return its number."""
        names = self.list(prefix)
        number = max((int(n.split(".")[0]) for n in names if n[:6].isdigit()), default=0)
        while True:
            number += 1
            if self.create_json(f"{prefix}/{number:06d}.json", value):
                return number

    def last_numbered(self, prefix: str) -> tuple[int, dict[str, Any]] | None:
        """Newest of the numbered records below `prefix`."""
        names = [n for n in self.list(prefix) if n[:6].isdigit() and n.endswith(".json")]
        if not names:
            return None
        value = self.read_json(f"{prefix}/{names[-1]}")
        return None if value is None else (int(names[-1][:6]), value)


class LocalStore(Store):
    """A directory on a local or shared POSIX file system."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def check_readable(self) -> None:
        """Raise `StoreError` if something that is no directory of ours stands at the root."""
        try:
            os.listdir(self.root)
        except FileNotFoundError:
            return  # an empty store: the first run makes it
        except OSError as error:
            raise _explain(self.root, error) from error

    def check_writable(self) -> None:
        """Raise `StoreError` unless records can be created here."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
            free = shutil.disk_usage(self.root).free
        except OSError as error:
            raise _explain(self.root, error) from error
        if free < MIN_FREE_BYTES:
            raise StoreError(
                f"store {self.root} has {free >> 20} MiB free, less than the "
                f"{MIN_FREE_BYTES >> 20} MiB that a run needs at least: free some space"
            )

    def read(self, key: str) -> bytes | None:
        """Read a file."""
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _explain(self.root, error) from error

    def create(self, key: str, content: bytes) -> bool:
        """Write a synced temporary file and link it to its name."""
        path = self.path(key)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            if path.exists():
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # FileExistsError here is a file in place of a directory
            raise _explain(self.root, error) from error
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            # A link is the one POSIX call that is atomic and refuses an existing name.
            os.link(temporary, path)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            raise _explain(self.root, error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def list(self, prefix: str) -> list[str]:
        """List a directory, without hidden files."""
        try:
            names = os.listdir(self.path(prefix))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise _explain(self.root, error) from error
        return sorted(n for n in names if not n.startswith("."))

    def delete(self, prefix: str) -> None:
        """Remove a file or a tree."""
        path = self.path(prefix)
        try:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _explain(self.root, error) from error

    def path(self, key: str) -> Path:
        """Join, refusing to leave the store."""
        path = self.root / key
        if ".." in path.parts or Path(key).is_absolute():
            raise StoreError(f"key {key!r} leaves the store")
        return path


def output_dir(named: Path | None, default: Path) -> Path:
    """Make the directory of `--out`, or the store's own, before any work is done for it."""
    directory = named or default
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))
    except OSError as error:
        if named is None:
            raise _explain(default, error) from error
        reason = error.strerror or error
        raise UserError(f"--out {named}: cannot be written to ({reason}); name another") from error
    return directory


def _explain(root: Path, error: OSError) -> StoreError:
    if error.errno in FULL:
        return StoreError(f"store {root} is full: free some space, then run the same command")
    reason = os.strerror(error.errno) if error.errno else str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file stands where a directory should be"
    place = os.fsdecode(error.filename) if error.filename else str(root)
    where = "" if Path(place) == root else f" at {place}"
    return StoreError(
        f"store {root} is not usable ({reason}{where}): choose another directory with --store"
    )
