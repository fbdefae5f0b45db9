"""Checkpoints that are either whole or not there.

Each rank copies its state aside and writes it, in a thread, with digests; when the writers of all
ranks are done, rank 0 publishes a manifest that names every file. A reader knows only manifests:
it checks every byte before anything is unpickled, agrees with the other ranks on one checkpoint,
and skips a damaged one with a message. Nothing here follows a `latest` pointer.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from mae_core.checkpoint.manifest import (
    MANIFEST,
    FileEntry,
    Manifest,
    directory_name,
    parse_directory,
)
from mae_core.checkpoint.shards import Copier, foreign_types, num_bytes, write_shard
from mae_core.errors import CheckpointError
from mae_core.runtime import collectives
from mae_core.runtime.storage import Storage

SPACE_MARGIN = 1.05
"""Of the bytes in memory: a shard's own structure comes on top."""
OVER = "this attempt was declared over, by a driver that took its stage over"
Digests = dict[str, tuple[int, str]]


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Found:
    """A checkpoint that all ranks have verified."""

    name: str
    manifest: Manifest


@dataclass(frozen=True)
class Saved:
    """How a save ended."""

    step: int
    num_bytes: int
    write_s: float
    """Longest of the ranks, in the background or not."""
    problem: str | None = None
    """Why nothing was committed; the previous checkpoint stands."""


@dataclass
class _Pending:
    facts: Manifest
    began: float
    result: Future[Digests]


class Checkpoints:
    """The checkpoints of one training. All methods that say so are collective.

    Args:
        attempt: its number; part of the names of directories.
        keep: whole checkpoints to keep.
        types: what shards may contain beyond tensors and plain values.
        is_over: whether the attempt was declared over while this gang lives. It commits nothing
            then, and deletes nothing: its successor may be reading or writing here.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        science_hash: str,
        attempt: int,
        keep: int,
        types: Iterable[type],
        is_over: Callable[[], bool] = _never,
    ) -> None:
        self._storage, self._science_hash, self.attempt = storage, science_hash, attempt
        self._is_over = is_over
        self._keep, self._types = max(1, keep), tuple(types)
        self._copier = Copier()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None
        self._in_use: str | None = None

    @property
    def is_pending(self) -> bool:
        """True between `begin` and `commit`, on every rank alike."""
        return self._pending is not None

    @property
    def is_writing(self) -> bool:
        """True while this rank's thread writes."""
        return self._pending is not None and not self._pending.result.done()

    def copy(self, files: Mapping[str, object]) -> dict[str, object]:
        """Copy state aside: until the copy is written, training may change the original."""
        return {name: self._copier.copy(name, tree) for name, tree in files.items()}

    def begin(self, facts: Manifest, files: Mapping[str, object]) -> str | None:
        """Start to write this rank's files (collective); return why not, if there is no room."""
        sizes = collectives.all_gather_object(num_bytes(dict(files)))
        directory = directory_name(facts.step, self.attempt)
        problem = None
        if collectives.rank() == 0:
            problem = self._make_room(directory, int(sum(sizes) * SPACE_MARGIN))
        # Nobody writes before rank 0 has cleared the directory.
        if problem := collectives.broadcast_object(problem):
            return str(problem)
        self._pending = _Pending(
            facts, time.monotonic(), self._writer.submit(self._write, directory, files)
        )
        return None

    def commit(self) -> Saved:
        """Wait for the writers, publish the manifest, drop what is too old (collective)."""
        pending, self._pending = self._pending, None
        assert pending is not None, "commit without begin"
        digests, problem = _outcome(pending.result)
        seconds = time.monotonic() - pending.began
        parts: list[tuple[Digests, str | None, float]] = collectives.all_gather_object(
            (digests, problem, seconds)
        )
        problem = next((p for _, p, _ in parts if p), None)
        files = {
            name: FileEntry(size, sha, rank)
            for rank, (mine, _, _) in enumerate(parts)
            for name, (size, sha) in mine.items()
        }
        if collectives.rank() == 0:
            problem = problem or self._publish(pending.facts, files)
        problem = collectives.broadcast_object(problem)
        total = sum(f.size for f in files.values())
        return Saved(pending.facts.step, total, max(s for _, _, s in parts), problem)

    def find(self, *, rollback: int = 0) -> Found | None:
        """Return the newest whole checkpoint of this run, agreed by all ranks (collective).

        Args:
            rollback: newest whole checkpoints to pass over; the oldest is never passed over. They
                are deleted once one is committed that follows from an older one.
        """
        last: Found | None = None
        for name in collectives.broadcast_object(list(reversed(self._candidates()))):
            manifest, problem = self._inspect(name)
            problems = [p for p in collectives.all_gather_object(problem) if p]
            if problems:
                _say(f"checkpoint {name} is not used: {problems[0]}")
                continue
            assert manifest is not None
            if last is not None:
                _say(f"checkpoint {last.name} is passed over: rolling back")
            last = Found(name, manifest)
            if rollback == 0:
                break
            rollback -= 1
        self._in_use = last.name if last else None
        return last

    def verified(self, found: Found, name: str) -> bytes:
        """Content of a file, read once and checked; raises `CheckpointError` if it has changed."""
        entry = found.manifest.files.get(name)
        if entry is None:
            raise CheckpointError(f"{name} is not part of checkpoint {found.name}")
        try:
            content = self._storage.read(f"{found.name}/{name}")
        except OSError as error:
            raise CheckpointError(f"{found.name}/{name} cannot be read ({error})") from error
        if len(content) != entry.size or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise CheckpointError(f"{found.name}/{name} has changed since it was verified")
        return content

    def close(self) -> None:
        """End the writing thread; what it has not finished is not committed."""
        self._writer.shutdown(wait=True, cancel_futures=True)

    def _candidates(self) -> list[str]:
        """Directories of checkpoints, oldest first."""
        named = [(key, n) for n in self._storage.directories() if (key := parse_directory(n))]
        return [name for _, name in sorted(named)]

    def _inspect(self, name: str) -> tuple[Manifest | None, str | None]:
        """Read a manifest and check this rank's share of the files: (manifest, problem)."""
        try:
            manifest = Manifest.from_json(self._storage.read(f"{name}/{MANIFEST}"))
        except OSError:
            return None, "it has no manifest: its saving was cut off"
        except CheckpointError as error:
            return None, str(error)
        if manifest.science_hash != self._science_hash:
            return None, f"it belongs to another run ({manifest.science_hash[:80]})"
        if parse_directory(name) != (manifest.step, manifest.attempt):
            return None, f"its manifest is of step {manifest.step}: it was moved or copied here"
        for file, entry in sorted(manifest.files.items()):
            if _is_mine(entry) and (problem := self._damage(f"{name}/{file}", entry)):
                return None, problem
        return manifest, None

    def _damage(self, path: str, entry: FileEntry) -> str | None:
        """Say what is wrong with a file, None if nothing."""
        try:
            size, sha = self._storage.digest(path)
            if size != entry.size:
                return f"{path} has {size} bytes instead of {entry.size}"
            if sha != entry.sha256:
                return f"{path} is damaged (SHA-256 differs)"
            with self._storage.open(path) as stream:
                foreign = foreign_types(stream, self._types)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror or error})"
        return f"{path} asks for {foreign[0]}" if foreign else None

    def _write(self, directory: str, files: Mapping[str, object]) -> Digests:
        return {
            name: write_shard(self._storage, f"{directory}/{name}", tree)
            for name, tree in files.items()
        }

    def _publish(self, facts: Manifest, files: dict[str, FileEntry]) -> str | None:
        """Commit, then drop what is too old; return what went wrong before the commit."""
        directory = directory_name(facts.step, self.attempt)
        if self._is_over():
            return OVER
        manifest = Manifest(**(facts.__dict__ | {"files": files}))
        try:
            self._storage.publish(f"{directory}/{MANIFEST}", manifest.to_json())
        except OSError as error:
            return _os_problem(error)
        with contextlib.suppress(OSError):  # what cannot be deleted now is deleted next time
            self._retain(directory)
        return None

    def _retain(self, newest: str) -> None:
        """Keep the newest few; cut-off savings go too, and what this one rolls back."""
        found = self._candidates()
        whole = [n for n in found if n <= newest and self._has_manifest(n)]
        self._clear_all(found, kept={*whole[-self._keep :], newest})
        self._in_use = None

    def _has_manifest(self, name: str) -> bool:
        try:
            Manifest.from_json(self._storage.read(f"{name}/{MANIFEST}"))
        except (OSError, CheckpointError):
            return False
        return True

    def _clear_all(self, found: Iterable[str], kept: Container[str | None]) -> None:
        """Delete checkpoints. Asked after they were listed: no successor's can be among them."""
        if not self._is_over():
            for name in found:
                if name not in kept:
                    self._clear(name)

    def _clear(self, name: str) -> None:
        """Delete a directory, its manifest first: a half-deleted one is never read."""
        self._storage.delete(f"{name}/{MANIFEST}")
        self._storage.delete(name)

    def _make_room(self, directory: str, needed: int) -> str | None:
        """Clear the directory, and what is superseded if room is short; say what is missing."""
        try:
            if self._is_over():
                return OVER
            self._clear(directory)
            free = self._storage.free_bytes()
            if free is None or free >= needed:
                return None
            found = self._candidates()
            whole = [n for n in found if self._has_manifest(n)]
            self._clear_all(found, kept={*whole[-1:], self._in_use})
            free = self._storage.free_bytes() or 0
        except OSError as error:
            return _os_problem(error)
        if free >= needed:
            return None
        return f"disk: {needed >> 20} MiB are needed and {free >> 20} MiB are free"


def _is_mine(entry: FileEntry) -> bool:
    """A rank checks what it reads: its own files, rank 0's, and a share of a larger gang's."""
    return entry.rank == 0 or entry.rank % collectives.world() == collectives.rank()


def _outcome(result: Future[Digests]) -> tuple[Digests, str | None]:
    try:
        return result.result(), None
    except OSError as error:
        return {}, _os_problem(error)


def _os_problem(error: OSError) -> str:
    return f"disk: {error.strerror or error}"


def _say(text: str) -> None:
    """Print on rank 0; a full disk must not end the run that a message is about."""
    if collectives.rank() == 0:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)
