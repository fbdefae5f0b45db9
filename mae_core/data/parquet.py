"""Encoded images in Parquet files: find and group the files, read rows, write new files.

The layout is the Hugging Face Image one: `image: struct<bytes: binary, path: string>` and
`label: int64`, class names in the schema's metadata. Everything goes through `pyarrow.fs`, so a
bucket works as a folder does.
"""

from __future__ import annotations

import json
import os
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mae_core.errors import DataError

I64 = npt.NDArray[np.int64]

ROLE_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
CHUNK_ROWS = 128
"""Larger row groups are kept in pieces of this many rows, so that memory stays bounded."""
ROW_GROUP_ROWS = 128
"""Rows per row group that we write: sequential reads of a few MB, one block of the order."""
CACHE_BYTES = 1 << 30
"""Encoded bytes of a split that stay in memory: a small split is read once."""
SHARD_BYTES = 500 << 20
"""A file of a split is closed once it is this large."""
UNLABELLED = -1
MAX_UNNAMED_CLASSES = 1_000_000
"""Labels beyond this without class names are no class numbers."""


@dataclass(frozen=True)
class Chunk:
    """A run of rows within one row group of one file."""

    file: str
    row_group: int
    start: int
    """First row within the row group."""
    num_rows: int
    first_row: int
    """First row within the split."""
    whole: bool
    """True if it is all of its row group."""


class Rows:
    """One split on disk: labels in memory, encoded images on demand; safe to use from threads."""

    def __init__(self, filesystem: pafs.FileSystem, files: Sequence[str]) -> None:
        self.files = tuple(files)
        self._filesystem = filesystem
        self._metadata: dict[str, pq.FileMetaData] = {}
        self._file_starts: list[int] = []
        self.chunks: list[Chunk] = []
        self.row_group_rows: list[int] = []
        self.num_bytes = 0
        labels = [self._add(file) for file in files]
        self.labels: I64 = np.concatenate(labels)
        self.class_names = self._class_names()
        self._starts = [chunk.first_row for chunk in self.chunks]
        self._cache: OrderedDict[int, Future[pa.Array[Any]]] = OrderedDict()
        self._cached_bytes = 0
        self._min_chunks = 1
        self._lock = threading.Lock()
        if len(self.labels) == 0:
            raise DataError(f"{_listing(self.files)}: no rows; an empty split cannot be used")

    def __len__(self) -> int:
        """Rows."""
        return len(self.labels)

    def keep_open(self, num_blocks: int, block: int) -> None:
        """Keep the chunks of `num_blocks` runs of `block` rows in memory, whatever their size."""
        rows = max(1, int(np.median([chunk.num_rows for chunk in self.chunks])))
        self._min_chunks = num_blocks * (-(-block // rows) + 1)

    def encoded(self, row: int) -> pa.Buffer | None:
        """Encoded bytes of an image, None where it is null; raises `DataError` if unreadable."""
        number = bisect_right(self._starts, row) - 1
        value = self._chunk(number)[row - self._starts[number]]
        buffer: pa.Buffer | None = value.as_buffer()
        return buffer

    def name(self, row: int) -> str:
        """File and row within it, for messages."""
        number = bisect_right(self._file_starts, row) - 1
        return f"{self.files[number]} row {row - self._file_starts[number]}"

    def image_names(self) -> list[str | None]:
        """Each image's own path, None where the set does not keep it."""
        found: list[str | None] = []
        for file in self.files:
            try:
                with self._open(file) as opened:
                    column = opened.read(columns=["image.path"])["image"]
            except (KeyError, OSError, pa.ArrowException) as error:
                if isinstance(error, KeyError):  # a set without paths
                    return [None] * len(self)
                raise _unreadable(file, error) from error
            found += pc.struct_field(column, "path").to_pylist()
        return found

    def iterate(self) -> Iterator[tuple[Chunk, pa.Array[Any]]]:
        """Read every chunk once, in order, past the cache."""
        for chunk in self.chunks:
            yield chunk, self._read(chunk)

    def _add(self, file: str) -> I64:
        metadata = self._open(file).metadata
        self._metadata[file] = metadata
        self._file_starts.append(sum(c.num_rows for c in self.chunks))
        first = self._file_starts[-1]
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            self.row_group_rows.append(rows)
            self.num_bytes += metadata.row_group(group).total_byte_size
            step = CHUNK_ROWS if rows > 2 * CHUNK_ROWS else max(rows, 1)
            for start in range(0, rows, step):
                size = min(step, rows - start)
                self.chunks.append(Chunk(file, group, start, size, first + start, size == rows))
            first += rows
        return self._labels(file)

    def _open(self, file: str) -> pq.ParquetFile:
        known = self._metadata.get(file)
        try:
            opened = pq.ParquetFile(self._filesystem.open_input_file(file), metadata=known)
            if known is None:
                _check_schema(file, opened.schema_arrow)
            return opened
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, error) from error

    def _labels(self, file: str) -> I64:
        try:
            column = self._open(file).read(columns=["label"])["label"]
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(file, error) from error
        if column.null_count:
            raise DataError(f"{file}: {column.null_count} rows have no label; fill or remove them")
        labels: I64 = column.to_numpy().astype(np.int64)
        return labels

    def _class_names(self) -> tuple[str, ...]:
        names: dict[tuple[str, ...] | None, str] = {}
        for file in self.files:
            schema = self._open(file).schema_arrow
            names.setdefault(_names_in(schema.metadata or {}), file)
        if len(names) > 1:
            raise DataError(f"{_listing(list(names.values()))}: class names differ between files")
        found = next(iter(names))
        if found is not None:
            return found
        count = int(self.labels.max(initial=-1)) + 1
        if count > MAX_UNNAMED_CLASSES:
            raise DataError(
                f"{_listing(self.files)}: label {count - 1} is out of range without class names; "
                "number the classes from 0, or name them in the schema's metadata"
            )
        return tuple(str(i) for i in range(count))

    def _chunk(self, number: int) -> pa.Array[Any]:
        with self._lock:
            future = self._cache.get(number)
            if mine := future is None:
                future = self._cache[number] = Future()
            else:
                self._cache.move_to_end(number)
        if mine:
            try:
                array = self._read(self.chunks[number])
            except BaseException as error:
                with self._lock:
                    self._cache.pop(number, None)
                future.set_exception(error)
                raise
            future.set_result(array)
            self._evict(array.nbytes)
        return future.result()

    def _evict(self, added_bytes: int) -> None:
        with self._lock:
            self._cached_bytes += added_bytes
            while self._cached_bytes > CACHE_BYTES and len(self._cache) > self._min_chunks:
                number, oldest = next(iter(self._cache.items()))
                if not oldest.done():
                    break
                del self._cache[number]
                self._cached_bytes -= oldest.result().nbytes

    def _read(self, chunk: Chunk) -> pa.Array[Any]:
        try:
            with self._open(chunk.file) as opened:
                table = opened.read_row_group(chunk.row_group, columns=["image.bytes"])
            image: Any = table["image"].combine_chunks()
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(chunk.file, error) from error
        image = image.chunk(0) if isinstance(image, pa.ChunkedArray) else image
        values: pa.Array[Any] = image.flatten()[0]  # nulls of the struct become nulls of the field
        if chunk.whole:
            return values
        # A copy, so that the rest of a large row group is not kept alive.
        return pa.concat_arrays([values.slice(chunk.start, chunk.num_rows), values.slice(0, 0)])


def open_source(path: str) -> dict[str, Rows]:
    """Open the splits at a file, folder or URI: a dict with `train` and perhaps `dev` and `test`.

    Hugging Face names group the files. With both validation and test, validation is dev; a
    validation split alone is what the field reports on, so it is the test split (and dev is to be
    cut from train). A test split without labels (all -1) is ignored.

    Raises:
        DataError: nothing there, no Parquet, damaged files, wrong columns, labels out of range.
    """
    filesystem, files = find_files(path)
    roles = {role: Rows(filesystem, names) for role, names in group_by_role(path, files).items()}
    if "test" in roles and (roles["test"].labels == UNLABELLED).all():
        del roles["test"]
    if "train" not in roles:
        raise DataError(f"{path}: no training split among {_listing(files)}; name one train-*")
    splits = {"train": roles["train"]}
    if "validation" in roles:
        splits["dev" if "test" in roles else "test"] = roles["validation"]
    if "test" in roles:
        splits["test"] = roles["test"]
    _check_labels(splits)
    return splits


def find_files(path: str) -> tuple[pafs.FileSystem, list[str]]:
    """List the Parquet files of a path or URI, sorted; raises `DataError` if there are none."""
    try:
        filesystem, root = _filesystem(path)
        info = filesystem.get_file_info(root)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{path}: nothing found; check the path")
        if info.type == pafs.FileType.File:
            return filesystem, [_nonempty(info)]
        inside = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: holds a file name that is not UTF-8: rename it") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    files = [i for i in inside if i.is_file and i.base_name.endswith(".parquet")]
    files = [i for i in files if not i.base_name.startswith((".", "_"))]
    if not files:
        raise DataError(
            f"{path}: no Parquet file in this folder ({len(inside)} other entries); "
            "`mae-study data import` turns folders of images or CIFAR archives into Parquet"
        )
    names = sorted(_nonempty(info) for info in files)
    if isinstance(filesystem, pafs.LocalFileSystem):
        _check_links(root, names)
    return filesystem, names


def _check_links(root: str, files: Sequence[str]) -> None:
    """Refuse one file read as two (a loop of links repeats the whole set), and links to nothing."""
    for link in sorted(Path(root).rglob("*.parquet")):
        if link.is_symlink() and not link.exists():
            raise DataError(f"{link}: a link to nothing; restore the file or remove the link")
    seen: dict[str, str] = {}
    for file in sorted(files, key=lambda name: (len(name), name)):
        first = seen.setdefault(os.path.realpath(file), file)
        if first != file:
            raise DataError(
                f"{first} and {file} are one file (a symbolic link, or a loop of them): its "
                "images would count twice; remove the link"
            )


def group_by_role(path: str, files: Sequence[str]) -> dict[str, list[str]]:
    """Group files into train, validation and test by name, else by folder name.

    One file, or files of which none has a role in its name, are train.
    """
    if len(files) == 1:
        return {"train": list(files)}
    root = path.partition("://")[2] or str(Path(path).resolve())
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(_role(file.removeprefix(root)), []).append(file)
    unnamed = groups.pop("", [])
    if unnamed and groups:
        raise DataError(
            f"{path}: {_listing(unnamed)} name no split while others do; "
            "rename or move them (train-*, validation-*, test-*)"
        )
    return groups or {"train": unnamed}


def _role(file: str) -> str:
    for part in reversed(file.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            for role, words in ROLE_WORDS.items():
                if word in words:
                    return role
    return ""


def _filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    if "://" in path:
        filesystem, root = pafs.FileSystem.from_uri(path)
        return filesystem, root
    return pafs.LocalFileSystem(), str(Path(path).resolve())


def _nonempty(info: pafs.FileInfo) -> str:
    if info.size == 0:
        raise DataError(f"{info.path}: the file is empty (0 bytes); fetch it again")
    return str(info.path)


def _check_schema(file: str, schema: pa.Schema) -> None:
    fields = {field.name: field.type for field in schema}
    image, label = fields.get("image"), fields.get("label")
    inner = {f.name: f.type for f in image} if image and pa.types.is_struct(image) else {}
    encoded = inner.get("bytes")
    good_image = encoded and (pa.types.is_binary(encoded) or pa.types.is_large_binary(encoded))
    if not (good_image and label and pa.types.is_integer(label)):
        found = ", ".join(f"{name}: {kind}" for name, kind in fields.items()) or "no columns"
        raise DataError(
            f"{file}: columns are {found}; expected image: struct<bytes: binary, path: string> "
            "and label: int64 (rename or convert them)"
        )


def _names_in(metadata: Mapping[bytes, bytes]) -> tuple[str, ...] | None:
    """Class names from Hugging Face's metadata, or from a plain `class_names` list."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features["label"]["names"])
    except (KeyError, TypeError, ValueError):
        pass
    try:
        return tuple(str(name) for name in json.loads(metadata[b"class_names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _check_labels(splits: Mapping[str, Rows]) -> None:
    names = splits["train"].class_names
    for split, rows in splits.items():
        wrong = np.flatnonzero((rows.labels < 0) | (rows.labels >= len(names)))
        if len(wrong):
            raise DataError(
                f"{len(wrong)} labels of split {split} are outside 0..{len(names) - 1}, the first "
                f"is {rows.labels[wrong[0]]} in {rows.name(int(wrong[0]))}"
            )
        if rows.class_names != names[: len(rows.class_names)]:
            raise DataError(f"{rows.files[0]}: class names differ from those of the train split")


def _unreadable(file: str, error: Exception) -> DataError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"{file}: not a readable Parquet file ({reason}); fetch or write it again")


def _listing(files: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(files) - most} more" if len(files) > most else ""
    return ", ".join(files[:most]) + rest


class SplitWriter:
    """Writes one split as `<split>-00000-of-0000N.parquet` in row groups of about 100 rows."""

    def __init__(self, folder: Path, split: str, class_names: Sequence[str]) -> None:
        self._folder, self._split = folder, split
        self._schema = _schema(class_names)
        self._writer: pq.ParquetWriter | None = None
        self._shards: list[Path] = []
        self._pending: list[dict[str, object]] = []
        self._shard_bytes = 0

    def add(self, encoded: bytes, name: str, label: int) -> None:
        """Append one image as it is encoded."""
        self._pending.append({"image": {"bytes": encoded, "path": name}, "label": label})
        self._shard_bytes += len(encoded)
        if len(self._pending) == ROW_GROUP_ROWS:
            self._flush()

    def close(self) -> list[Path]:
        """Finish the files, give them their final names and return these."""
        self._flush()
        self._end_shard()
        total = len(self._shards)
        return [
            shard.rename(self._folder / f"{self._split}-{i:05d}-of-{total:05d}.parquet")
            for i, shard in enumerate(self._shards)
        ]

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._writer is None:
            self._shards.append(self._folder / f"{self._split}-{len(self._shards):05d}.part")
            # Images are compressed already: compression would cost time and save nothing.
            self._writer = pq.ParquetWriter(self._shards[-1], self._schema, compression="none")
        table = pa.Table.from_pylist(self._pending, schema=self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._pending = []
        if self._shard_bytes >= SHARD_BYTES:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._shard_bytes = None, 0


def _schema(class_names: Sequence[str]) -> pa.Schema:
    label = {"_type": "ClassLabel", "names": list(class_names)}
    features = {"image": {"_type": "Image"}, "label": label}
    metadata: dict[bytes | str, bytes | str] = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "class_names": json.dumps(list(class_names)),
    }
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
