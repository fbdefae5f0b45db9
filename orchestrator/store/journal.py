"""The journal of an attempt: rank 0 appends metrics to a local file, a reader follows it.

A line has a sequence number and its own timestamp, so that shipping it twice is the same as
shipping it once. Training never waits for anything but this write.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from cluster.ranks.outcome import JsonObject
from mae_core.runtime.storage import NotAFile, open_file

JOURNAL_FILE = "journal.jsonl"
OF_A_STEP = ("restored", "saved", "finished")
"""Events that say their `step`."""
NUMBERS = ("t", "step", "write_s", "stall_s", "seconds")
NO_JOURNAL = (FileNotFoundError, NotADirectoryError, NotAFile)
"""There is none, or something else stands there: only history is lost."""
MAX_WAITING = 100_000
"""Lines kept in memory while the disk is full; the oldest go first."""


@dataclass(frozen=True)
class Entry:
    """One line."""

    sequence: int
    timestamp_ms: int
    step: int
    metrics: dict[str, float]


class JournalWriter:
    """Appends lines; each is flushed, so that a killed process loses none.

    Where the disk is full, lines wait in memory: a training outlives the messages about it.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: TextIO = path.open("a", encoding="utf-8")
        self._sequence = 0
        self._waiting: list[str] = []
        self._is_torn = False
        self._lock = threading.Lock()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics of a step."""
        self._append({"step": step, "metrics": dict(metrics)})

    def event(self, name: str, fields: Mapping[str, object]) -> None:
        """Append something that happened and is no metric, such as `saved`."""
        self._append({"event": name, **fields})

    def _append(self, content: JsonObject) -> None:
        with self._lock:  # checkpoints are written, and say so, in a thread of their own
            line = {"seq": self._sequence, "t": time.time_ns() // 1_000_000, **content}
            self._sequence += 1
            self._waiting.append(json.dumps(line) + "\n")
            self._flush()

    def _flush(self) -> None:
        """Write what waits. A line that is torn by a full disk is written again, whole."""
        try:
            # A torn line, if any, ends here, and is skipped by readers.
            self._stream.write("".join(("\n" if self._is_torn else "", *self._waiting)))
            self._stream.flush()
            self._waiting, self._is_torn = [], False
        except OSError:
            self._is_torn = True
            del self._waiting[:-MAX_WAITING]
            self._reopen()

    def _reopen(self) -> None:
        """Drop what Python has buffered: it would be written twice."""
        descriptor = os.dup(self._stream.fileno())
        with contextlib.suppress(OSError):
            self._stream.close()
        self._stream = os.fdopen(descriptor, "a", encoding="utf-8")

    def close(self) -> None:
        """Close the file; what could not be written by now is lost."""
        with contextlib.suppress(OSError):
            self._stream.close()


class JournalReader:
    """Follows a journal that is being written; a torn last line waits for its rest.

    Args:
        strict: raise `OSError` where something that is no file stands, for a reader that must say
            what it has not read; it may be a disk that is away for a while.
    """

    def __init__(self, path: Path, *, strict: bool = False) -> None:
        self._path, self._offset = path, 0
        self._absent = (FileNotFoundError,) if strict else NO_JOURNAL

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Go back to where the block began if it fails: what was not shipped is read again."""
        before = self._offset
        try:
            yield
        except BaseException:
            self._offset = before
            raise

    def read_new(self) -> list[Entry]:
        """Entries since the last call; empty if the file does not exist yet."""
        try:
            with open_file(self._path) as stream:
                stream.seek(self._offset)
                content = stream.read()
        except self._absent:
            return []
        whole, newline, _ = content.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return [e for line in whole.splitlines() if (e := _parse(line)) is not None]


class StageReader:
    """Follows the journals of a stage's attempts, oldest first, as one curve per key.

    An attempt that resumes replays steps from its checkpoint on; the first record of a key at a
    step stands, and what later attempts say of it is left out.
    """

    def __init__(self) -> None:
        self._readers: dict[Path, JournalReader] = {}
        self._seen: set[tuple[str, int]] = set()

    def follow(self, directories: Iterable[Path]) -> None:
        """Follow the journals of these attempts too; those already followed go on."""
        for path in (d / JOURNAL_FILE for d in directories):
            self._readers.setdefault(path, JournalReader(path, strict=True))

    @property
    def keys(self) -> set[str]:
        """Keys that have a curve."""
        return {key for key, _ in self._seen}

    @contextlib.contextmanager
    def reading(self) -> Iterator[list[Entry]]:
        """Yield what is new; if the block fails, it is yielded again next time."""
        fresh: set[tuple[str, int]] = set()
        with contextlib.ExitStack() as stack:
            entries = []
            for reader in self._readers.values():
                stack.enter_context(reader.transaction())
                entries += [self._first(entry, fresh) for entry in reader.read_new()]
            yield [entry for entry in entries if entry.metrics]
        self._seen |= fresh

    def _first(self, entry: Entry, fresh: set[tuple[str, int]]) -> Entry:
        """The part of an entry that no earlier one has said; it is added to `fresh`."""
        points = {(key, entry.step) for key in entry.metrics} - self._seen - fresh
        fresh |= points
        kept = {k: v for k, v in entry.metrics.items() if (k, entry.step) in points}
        return replace(entry, metrics=kept)


def read_events(path: Path) -> list[JsonObject]:
    """Events of a journal, oldest first: `event`, `t` (Unix milliseconds) and their own fields.

    A line that is torn, or whose values have other types, is left out.
    """
    found = []
    with contextlib.suppress(*NO_JOURNAL), open_file(path) as stream:
        for line in stream.read().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                raw = json.loads(line)
                if isinstance(raw, dict) and _is_event(raw):
                    found.append(raw)
    return found


def _is_event(raw: JsonObject) -> bool:
    needed = ("t", "step") if raw.get("event") in OF_A_STEP else ("t",)
    known = [name for name in NUMBERS if name in raw or name in needed]
    return isinstance(raw.get("event"), str) and all(_is_number(raw.get(name)) for name in known)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _parse(line: bytes) -> Entry | None:
    """A line as an entry; None for an event, and for one that is torn or of other types."""
    try:
        raw = json.loads(line)
        sequence, at, step, metrics = raw["seq"], raw["t"], raw["step"], raw["metrics"]
        values = [value for value in metrics.values() if not isinstance(value, int | float)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    whole = all(type(number) is int for number in (sequence, at, step))
    return None if values or not whole else Entry(sequence, at, step, metrics)
