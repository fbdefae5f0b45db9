"""Facts of a data set, known without opening it: counts, classes, sizes, fingerprint.

Importers write these facts beside the Parquet files. This module imports only the standard
library, so that `plan` can look facts up at once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mae_core.config import DataConfig
from mae_core.errors import DataError
from mae_core.runtime.json_values import Json

DIGITS = "digits"
"""Path of the embedded set: scikit-learn's handwritten digits, 8 × 8 grey pixels."""
DIGITS_FINGERPRINT = "e76637301f769c9a8913f2ad4e4d85cdec8e2c5f9f5ce02af6a693e8acc66a02"
NUM_DIGITS = 1797
SIDECAR = "mae_study_facts.json"
"""Name of the file of facts in a folder of Parquet files."""
SIDECAR_VERSION = 1
NUM_FOLDS = 5
"""A source without a test split is cut into five stratified folds; `split_seed` picks the test."""


Progress = Callable[[int, int], None]
"""Called with the images that are done, and all."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """A data set as it lies on disk, before test folds and dev are cut from train."""

    fingerprint: str
    """SHA-256 over all samples (bytes and labels, in index order, per split)."""
    num_train: int
    num_dev: int
    """Images of a dev split that the source brings itself; 0 = none."""
    num_test: int
    """Images of a labelled test split that the source brings itself; 0 = none."""
    class_names: tuple[str, ...]
    num_bad: int = 0
    """Null or undecodable images in the set; a set that has any cannot be trained on."""
    first_bad: tuple[str, ...] = ()
    """Names (file, row, reason) of the first bad images."""
    num_skipped: int = 0
    """Undecodable files that the importer left out."""
    first_skipped: tuple[str, ...] = ()
    """Names of the first files left out."""
    width: tuple[int, int] = (0, 0)
    """Smallest and largest width in pixels."""
    height: tuple[int, int] = (0, 0)
    """Smallest and largest height in pixels."""
    formats: tuple[tuple[str, int], ...] = ()
    """Image format and colour mode, such as `JPEG RGB`, with its count; most frequent first."""
    num_bytes: int = 0
    """Encoded bytes of all images."""
    in_train_too: tuple[tuple[str, int], ...] = ()
    """Split and number of its images that are in train as well, byte for byte; only if any."""
    smallest_class: int | None = None
    """Training images of the class that has fewest; None = not counted (older facts)."""

    def to_json(self) -> dict[str, Json]:
        """Return plain JSON types; `from_json` gives an equal object back."""
        plain: dict[str, Json] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, plain: Mapping[str, Json]) -> DataFacts:
        """Rebuild facts; raises `DataError` if they are not what `to_json` returns."""
        try:
            return cls(**{name: _frozen(value) for name, value in plain.items()})
        except (TypeError, AttributeError) as error:
            raise DataError(f"not the facts of a data set: {error}; scan the data again") from error


def _frozen(value: Json) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def facts_for_digits() -> DataFacts:
    """Facts of the embedded digits (a test recomputes them)."""
    return DataFacts(
        fingerprint=DIGITS_FINGERPRINT,
        num_train=NUM_DIGITS,
        num_dev=0,
        num_test=0,
        class_names=tuple("0123456789"),
        width=(8, 8),
        height=(8, 8),
        formats=(("raw L", NUM_DIGITS),),
        num_bytes=NUM_DIGITS * 64,
        smallest_class=174,
    )


def fold_size(num_images: int, split_seed: int) -> int:
    """Size of test fold `split_seed % 5`: the first `num_images % 5` folds have one more."""
    return num_images // NUM_FOLDS + (split_seed % NUM_FOLDS < num_images % NUM_FOLDS)


def dev_size(num_images: int, dev_fraction: float) -> int:
    """Images that are cut from `num_images` training images as dev."""
    return round(num_images * dev_fraction)


def subset_size(num_images: int, train_fraction: float) -> int:
    """Images of `num_images` that a share keeps."""
    return round(num_images * train_fraction)


def split_sizes(facts: DataFacts, config: DataConfig) -> dict[str, int]:
    """Count train, dev and test as `open_data` will cut them."""
    train, dev, test = facts.num_train, facts.num_dev, facts.num_test
    if test == 0:
        test = fold_size(train, config.split_seed)
        train -= test
    if dev == 0:
        dev = dev_size(train, config.dev_fraction)
        train -= dev
    train = subset_size(train, config.train_fraction)
    return {"train": train, "dev": dev, "test": test}


def find_facts(path: str) -> DataFacts | None:
    """Facts of the embedded set, or of a local folder whose sidecar still fits its files.

    None where there is no sidecar, where it is damaged, or where a Parquet file was added,
    removed or changed its size since.
    """
    if path == DIGITS:
        return facts_for_digits()
    folder = Path(path)
    if "://" in path or not folder.is_dir():
        return None
    try:
        content = json.loads((folder / SIDECAR).read_text(encoding="utf-8"))
        if content["version"] != SIDECAR_VERSION or content["files"] != _file_sizes(folder):
            return None
        return DataFacts.from_json(content["facts"])
    except (OSError, ValueError, KeyError, TypeError, DataError):
        return None


def write_sidecar(folder: Path, facts: DataFacts) -> None:
    """Write the facts beside the finished Parquet files of `folder`."""
    content = {"version": SIDECAR_VERSION, "files": _file_sizes(folder), "facts": facts.to_json()}
    (folder / SIDECAR).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _file_sizes(folder: Path) -> dict[str, int]:
    files = sorted(folder.rglob("*.parquet"))
    return {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
