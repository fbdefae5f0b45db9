"""The store: records that hold the truth, on a storage small enough a contract for any medium.

Nothing in it is ever appended to or changed: records are created exclusively, whole or not at
all, and later ones have later names. Ray, MLflow and Optuna can be lost and rebuilt from it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_core.runtime.storage import LocalStorage, NotAFile, Storage, UnsafeName
from orchestrator.errors import FULL, DamagedRecord, StoreError, UserError

MIN_FREE_BYTES = 64 << 20
SEAL = "record_sha256"
"""Key of a record's own digest. Readers never see it; records of older versions have none."""
MARK = "record_digests.txt"
"""File of a store in which every record bears its digest: one that bears none is damaged there."""
FOLDERS = frozenset(("stages", "studies", "adopted", "datasets", "sweeps", "models", "store.json"))
"""What a store holds once anything was recorded in it."""
RECORD_BYTES = 256 << 20
"""More than any record has; reading a file without an end would take all memory."""
ASIDE = "damaged"
"""Folder of the store for damaged records, by the keys that they had."""


class Store:
    """JSON records on a storage. Whatever the storage refuses is a `StoreError`."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._is_marked = False
        self._said: set[str] = set()

    def note(self, text: str) -> None:
        """Say something about the store to people, once."""
        if text not in self._said:
            self._said.add(text)
            print(f"mae-study: note: {text}", file=sys.stderr, flush=True)

    @property
    def is_empty(self) -> bool:
        """True while nothing was ever recorded here."""
        return not FOLDERS & set(self.list(""))

    def check_readable(self) -> None:
        """Raise `StoreError` if something that is no directory of ours stands at the root."""
        with self._explained():
            self._storage.check(writable=False)

    def check_writable(self) -> None:
        """Raise `StoreError` unless records can be created here."""
        with self._explained():
            self._storage.check(writable=True)
            free = self._storage.free_bytes()
        if free is not None and free < MIN_FREE_BYTES:
            raise StoreError(
                f"store {self._storage.where} has {free >> 20} MiB free, less than the "
                f"{MIN_FREE_BYTES >> 20} MiB that a run needs at least: free some space"
            )

    def read(self, key: str) -> bytes | None:
        """Content of the record `key`, None if it does not exist.

        Raises:
            DamagedRecord: something else stands there.
        """
        try:
            with self._explained(), contextlib.suppress(FileNotFoundError, NotADirectoryError):
                with self._storage.open(_name(key)) as stream:
                    if stream.seek(0, os.SEEK_END) > RECORD_BYTES:
                        raise NotAFile(errno.EFBIG, f"it has more than {RECORD_BYTES >> 20} MiB")
                    stream.seek(0)
                    return stream.read()
        except StoreError as error:
            if isinstance(reason := error.__cause__, NotAFile):
                problem = f"record {key!r} in the store is damaged: {reason.strerror}"
                raise DamagedRecord(problem) from error
            raise
        return None

    def create(self, key: str, content: bytes) -> bool:
        """Create `key`; False if it exists already, which leaves it untouched."""
        with self._explained():
            return self._storage.create(_name(key), content)

    def list(self, prefix: str) -> list[str]:
        """Names directly below the directory `prefix`, sorted; empty if there is none."""
        with self._explained():
            return self._storage.list(_name(prefix))

    def delete(self, prefix: str) -> None:
        """Remove `prefix` and all below it; no error if it does not exist."""
        with self._explained():
            self._storage.delete(_name(prefix))

    def path(self, key: str) -> Path:
        """Path where a process of this study reads and writes large files of `key`."""
        with self._explained():
            path = self._storage.local(_name(key))
        if path is None:
            where = self._storage.where
            raise StoreError(f"store {where} is not a directory of this machine: name one")
        return path

    def read_json(self, key: str) -> dict[str, Any] | None:
        """Record at `key` as a dict, None if it does not exist.

        Raises:
            DamagedRecord: it is not what was written there.
        """
        return self.read_sealed(key)[0]

    def read_sealed(self, key: str) -> tuple[dict[str, Any] | None, bool]:
        """`read_json`, and whether the record bears its own digest, which agrees."""
        content = self.read(key)
        if content is None:
            return None, False
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DamagedRecord(f"record {key!r} in the store is damaged: {error}") from error
        if not isinstance(value, dict):
            raise DamagedRecord(f"record {key!r} in the store is damaged: not a mapping")
        found = value.pop(SEAL, None)
        if found is not None and found != _seal(key, value):
            raise DamagedRecord(
                f"record {key!r} in the store is damaged: its own digest differs: it was edited, "
                "or is of another place"
            )
        if found is None and self._bears_digests():
            raise DamagedRecord(
                f"record {key!r} in the store is damaged: it bears no digest, as every record here "
                "does: it was edited, or written by an older version"
            )
        return value, found is not None

    def _bears_digests(self) -> bool:
        self._is_marked = self._is_marked or self.read(MARK) is not None
        return self._is_marked

    def create_json(self, key: str, value: Mapping[str, object]) -> bool:
        """`create` with JSON content and its digest."""
        if not self._is_marked and self.is_empty:
            self._is_marked = self.create(MARK, b"Every record of this store bears its digest.\n")
        plain = json.loads(json.dumps(value))  # as it will be read
        sealed = plain | {SEAL: _seal(key, plain)}
        return self.create(key, json.dumps(sealed, sort_keys=True, indent=1).encode())

    def append_numbered(self, prefix: str, value: Mapping[str, object]) -> int:
        """Create the next of the records `000001.json`, … below `prefix`; return its number."""
        names = self.list(prefix) + self.list(f"{ASIDE}/{prefix}")
        number = max((int(n.split(".")[0]) for n in names if n[:6].isdigit()), default=0)
        while True:
            number += 1
            if self.create_json(numbered_key(prefix, number), value):
                return number

    def numbered(self, prefix: str) -> Sequence[int]:
        """Numbers of the records below `prefix`, in their order."""
        names = [name for name in self.list(prefix) if name.endswith(".json")]
        stems = [name[:-5] for name in names if name[:-5].isascii() and name[:-5].isdigit()]
        return [int(stem) for stem in stems if stem == f"{int(stem):06d}"]

    def numbered_keys(self, prefix: str) -> Sequence[str]:
        """Keys of the records below `prefix`, in their order."""
        return [numbered_key(prefix, number) for number in self.numbered(prefix)]

    def set_apart(self, keys: Iterable[str]) -> Sequence[str]:
        """Move damaged records and folders below `damaged/`, as they are; return where they are.

        One that is not there any more, since another command has moved it, is left out.
        """
        return [self._set_apart(key) for key in keys if os.path.lexists(self.path(key))]

    def _set_apart(self, key: str) -> str:
        copies = (f"{ASIDE}/{key}{f'.{n}' if n else ''}" for n in itertools.count())
        place = next(copy for copy in copies if not os.path.lexists(self.path(copy)))
        with self._explained():
            self.path(place).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(self.path(key), self.path(place))
        return place

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UnsafeName as error:
            raise StoreError(f"key {error.name!r} leaves the store") from error
        except OSError as error:
            raise _explain(self._storage.where, error) from error


class LocalStore(Store):
    """A store in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        # Records are only parsed, and people move the folder of a stage to another disk by a link.
        super().__init__(LocalStorage(self.root, follow_links=True))


def numbered_key(prefix: str, number: int) -> str:
    """Key of one of the numbered records below `prefix`."""
    return f"{prefix}/{number:06d}.json"


def _seal(key: str, plain: Mapping[str, object]) -> str:
    """Digest of a record and its place: neither an edit nor an exchange of two goes unseen."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{_name(key)}\n{text}".encode()).hexdigest()


def _name(key: str) -> str:
    """Name of a key in the storage: what a user typed may hold "//", which means nothing."""
    if key.startswith("/"):
        raise UnsafeName(key)
    return "/".join(part for part in key.split("/") if part not in ("", "."))


def output_dir(named: Path | None, default: Path) -> Path:
    """Make the directory of `--out`, or the store's own, before any work is done for it."""
    directory = named or default
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(directory))
    except OSError as error:
        if named is None:
            raise _explain(str(default), error) from error
        reason = error.strerror or error
        raise UserError(f"--out {named}: cannot be written to ({reason}); name another") from error
    return directory


def _explain(root: str, error: OSError) -> StoreError:
    if error.errno in FULL:
        return StoreError(f"store {root} is full: free some space, then run the same command")
    if isinstance(error, NotAFile):
        return StoreError(f"store {root} is not usable: {error.strerror}; mount what it led to")
    reason = os.strerror(error.errno) if error.errno else str(error)
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file stands where a directory should be"
    place = os.fsdecode(error.filename) if error.filename else root
    where = "" if place == root else f" at {place}"
    return StoreError(
        f"store {root} is not usable ({reason}{where}): choose another directory with --store"
    )
