"""Records of a store, changed by hand and damaged in every way that one thinks of."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.store.driver import MARK, RECORD_BYTES, LocalStore

WRONG: tuple[object, ...] = (None, "x", "1.5", 3, -1, 1.5, True, [], [None], {}, {"x": None})
"""Values that a key of a record may hold by accident."""


def rewrite(store: LocalStore, key: str, **changes: object) -> None:
    """Replace a record by one that was written so."""
    plain = (store.read_json(key) or {}) | changes
    store.delete(key)
    assert store.create_json(key, plain)


def edit(path: Path, **changes: object) -> None:
    """Change keys of a record as with an editor: its digest stays."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def as_older_version(path: Path, plain: object) -> None:
    """Write a record as versions did that kept no digest in it, in a store of theirs."""
    for folder in path.parents:
        (folder / MARK).unlink(missing_ok=True)
    path.write_text(json.dumps(plain))


def variants(plain: object) -> Iterator[object]:
    """Every record that differs from this one in one value, at any depth: wrong, or left out."""
    for place in _places(plain):
        for wrong in WRONG:
            changed = _changed(plain, place, wrong)
            if changed != plain:
                yield changed
        if isinstance(place[-1], str):
            yield _changed(plain, place, ...)


def _places(plain: object, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys: Any = ()
    if isinstance(plain, dict):
        keys = plain.keys()
    elif isinstance(plain, list):
        keys = range(len(plain))
    for key in keys:
        yield (*above, key)
        yield from _places(plain[key], (*above, key))  # type: ignore[index]


def _changed(plain: object, place: tuple[Any, ...], value: object) -> object:
    found: Any = copy.deepcopy(plain)
    inner = found
    for key in place[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return found


def _flip(content: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def _nested(content: bytes, draw: random.Random) -> bytes:
    return b'{"a":' * 100_000


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "truncated": lambda content, draw: content[: draw.randrange(1, len(content))],
    "empty": lambda content, draw: b"",
    "zeros": lambda content, draw: b"\0" * len(content),
    "no JSON": lambda content, draw: b"precious",
    "no mapping": lambda content, draw: b"[1]",
    "no UTF-8": lambda content, draw: b"\xff\xfe" + content,
    "nested": _nested,
    "one bit": _flip,
}
"""What disks, editors and transfers do to a file."""


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a device without an end": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("/nowhere/x"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "larger than any record": lambda path: path.touch() or os.truncate(path, RECORD_BYTES + 1),
}
"""What may stand where a record was, after a slip or an attack; none may be waited for."""
