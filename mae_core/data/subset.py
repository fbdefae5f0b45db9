"""A data set with only the training images of a list: the field's published 1 % and 10 % splits.

A list names image files, one per line. Names are compared as the file's own name without its
suffix, because every copy of a set has other folders: `n01440764/n01440764_10026.JPEG` of a tree,
and `n01440764_10026_n01440764.JPEG` of a Parquet copy that repeats the class, are both what a list
calls `n01440764_10026.JPEG`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from mae_core.data.facts import DIGITS, DataFacts, Progress
from mae_core.data.importers import ImageItem, reading, store_items
from mae_core.data.parquet import Rows, open_source
from mae_core.data.scan import SHOWN
from mae_core.errors import DataError

REPEATED_CLASS = re.compile(r"^((n\d{8})_\d+)_\2$")
"""Ends in the WordNet id that it begins with."""


def write_subset(
    source: str,
    names_file: str | Path,
    destination: str | Path,
    *,
    on_progress: Progress | None = None,
) -> DataFacts:
    """Write Parquet of the listed training images and of all others of dev and test.

    Classes keep their numbers, also those without an image in the list.

    Raises:
        DataError: a name that no training image has, or two have; a name given twice; an empty
            list; images without names; a destination that is not empty.
    """
    if source == DIGITS:
        raise DataError("the embedded digits have no file names to choose by; set train_fraction")
    wanted = _listed(Path(names_file))
    splits = open_source(source)
    chosen = _chosen(splits["train"], wanted, source, str(names_file))
    items = {role: _items(rows, range(len(rows))) for role, rows in splits.items()}
    items["train"] = [items["train"][row] for row in chosen]
    return store_items(Path(destination), items, splits["train"].class_names, on_progress)


def _listed(path: Path) -> list[str]:
    try:
        with reading(path):
            lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not a text file; give a list of image names, one per line") from (
            None
        )
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: an empty list; name at least one training image")
    return names


def _chosen(rows: Rows, wanted: Sequence[str], source: str, where: str) -> list[int]:
    """Rows of the wanted names, ascending."""
    named = [(row, name) for row, name in enumerate(rows.image_names()) if name]
    if not named:
        raise DataError(f"{source}: its images have no names (`image.path`); import the set again")
    by_key: dict[str, list[tuple[int, str]]] = {}
    for row, name in named:
        by_key.setdefault(key(name), []).append((row, name))
    matches = {name: _matching(name, by_key.get(key(name), [])) for name in wanted}
    _refuse(
        [name for name, found in matches.items() if not found],
        f"{where}: {{count}} of {len(wanted)} names are not training images of {source}: {{shown}}",
    )
    _refuse(
        [name for name, found in matches.items() if len(found) > 1],
        f"{where}: {{count}} names fit several training images of {source} (give their folders "
        "too): {shown}",
    )
    counts = Counter(matches[name][0] for name in wanted)
    _refuse(
        [name for name in matches if counts[matches[name][0]] > 1],
        f"{where}: {{count}} images are listed more than once: {{shown}}",
    )
    return sorted(counts)


def _matching(name: str, candidates: Sequence[tuple[int, str]]) -> list[int]:
    """Rows of that name; of several, those whose folders are the listed ones."""
    exact = [row for row, path in candidates if f"/{path}".endswith(f"/{name}")]
    return exact if len(candidates) > 1 and exact else [row for row, _ in candidates]


def key(name: str) -> str:
    """What two copies of a data set have alike in the name of an image."""
    stem = PurePosixPath(name.replace("\\", "/")).stem
    repeated = REPEATED_CLASS.match(stem)
    return repeated[1] if repeated else stem


def _refuse(names: Sequence[str], message: str) -> None:
    if names:
        shown = ", ".join(map(repr, names[:SHOWN])) + (", …" if len(names) > SHOWN else "")
        raise DataError(message.format(count=len(names), shown=shown))


def _items(rows: Rows, which: Sequence[int]) -> list[ImageItem]:
    names = rows.image_names()
    return [
        ImageItem(names[row] or rows.name(row), int(rows.labels[row]), _reader(rows, row))
        for row in which
    ]


def _reader(rows: Rows, row: int) -> Callable[[], bytes]:
    return lambda: bytes(rows.encoded(row) or b"")
