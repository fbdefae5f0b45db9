"""Look at every image of a data set once: fingerprint, problems, and what `inspect` shows.

The fingerprint is over the samples (bytes and labels, in index order), not over files: the same
images written with other shards or row groups are the same data.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from mae_core.config import DataConfig
from mae_core.data.facts import DIGITS, DataFacts, Progress, find_facts
from mae_core.data.order import BLOCK, FULL_PERMUTATION_MAX
from mae_core.data.parquet import Rows, open_source
from mae_core.data.sources import bad_images_message, decode_image, load_digits
from mae_core.errors import DataError
from mae_core.runtime.json_values import Json

I64 = npt.NDArray[np.int64]

SHOWN = 5
"""Problems that are named; the rest are counted."""
MAX_CLUSTERING = 0.05
"""Largest excess of pairs of one class among neighbouring rows, of what sorted rows have."""
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Sample:
    """What an encoded image's header and digest say."""

    digest: bytes
    """SHA-256 of the encoded bytes."""
    num_bytes: int
    problem: str = ""
    """Why it cannot be used; empty if it can."""
    format: str = ""
    """File format and colour mode, such as `JPEG RGB`."""
    width: int = 0
    height: int = 0


@dataclass
class SplitSurvey:
    """Samples of one split, in index order."""

    labels: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """File, row and reason of each bad image."""

    def add(self, sample: Sample, label: int, name: Callable[[], str]) -> None:
        """Append a sample; `name` says where it is, should it be bad."""
        self.samples.append(sample)
        self.labels.append(label)
        if sample.problem:
            self.problems.append(f"{name()}: {sample.problem}")


def examine(encoded: Any | None) -> Sample:
    """Hash and decode one image; a bad one is described, not raised."""
    if encoded is None:
        return Sample(hashlib.sha256(b"").digest(), 0, "the image is null")
    view = memoryview(encoded)
    digest = hashlib.sha256(view).digest()
    try:
        image = decode_image(view)
    except DataError as error:
        return Sample(digest, len(view), str(error))
    kind = f"{image.format} {image.mode}"
    return Sample(digest, len(view), "", kind, image.width, image.height)


def scan(
    path: str | DataConfig,
    *,
    on_progress: Progress | None = None,
    threads: int | None = None,
    strict: bool = True,
) -> DataFacts:
    """Read every sample and return the facts; `on_progress(done, total)` counts images.

    Raises:
        DataError: unusable data (`open_source`); with `strict` also null or undecodable images,
            counted and named, and rows that are sorted by class.
    """
    source = path.path if isinstance(path, DataConfig) else path
    surveys, class_names, _ = _survey(source, on_progress, threads)
    facts = summarise(surveys, class_names)
    if strict and facts.num_bad:
        raise DataError(bad_images_message(source, facts))
    if strict:
        check_mixed(source, np.array(surveys["train"].labels, np.int64))
    return facts


def check_mixed(path: str, labels: I64) -> None:
    """Refuse (`DataError`) a large set whose neighbouring rows are of one class.

    Its order moves blocks of neighbours (`data.order`): of ImageNet sorted by class a batch of
    1,024 would hold 150 classes instead of 640.
    """
    if len(labels) <= FULL_PERMUTATION_MAX:
        return
    blocks = labels[: len(labels) // BLOCK * BLOCK].reshape(-1, BLOCK)
    in_blocks = blocks + np.arange(len(blocks))[:, None] * (labels.max() + 1)
    counts = np.unique(in_blocks, return_counts=True)[1]
    found = float((counts * (counts - 1)).sum() / (blocks.size * (BLOCK - 1)))
    expected = float(np.square(np.unique(labels, return_counts=True)[1] / len(labels)).sum())
    if found - expected > MAX_CLUSTERING * (1 - expected):
        raise DataError(
            f"{path}: its rows are sorted by class ({found:.0%} of neighbouring images are of one "
            f"class, {expected:.0%} in random order), so batches would hold few classes: shuffle "
            "the rows and write them again"
        )


def summarise(surveys: Mapping[str, SplitSurvey], class_names: tuple[str, ...]) -> DataFacts:
    """Reduce what was seen of all splits to facts."""
    samples = [s for name in SPLITS if name in surveys for s in surveys[name].samples]
    problems = [p for name in SPLITS if name in surveys for p in surveys[name].problems]
    good = [s for s in samples if not s.problem]
    counts = {name: len(surveys[name].samples) if name in surveys else 0 for name in SPLITS}
    return DataFacts(
        fingerprint=fingerprint(surveys),
        num_train=counts["train"],
        num_dev=counts["dev"],
        num_test=counts["test"],
        class_names=class_names,
        num_bad=len(problems),
        first_bad=tuple(problems[:SHOWN]),
        width=_range([s.width for s in good]),
        height=_range([s.height for s in good]),
        formats=tuple(Counter(s.format for s in good).most_common()),
        num_bytes=sum(s.num_bytes for s in samples),
        smallest_class=min(_class_counts(surveys["train"], len(class_names)), default=0),
        in_train_too=tuple(
            (name, count)
            for name, survey in surveys.items()
            if name != "train" and (count := _shared(surveys["train"], survey))
        ),
    )


def fingerprint(surveys: Mapping[str, SplitSurvey]) -> str:
    """SHA-256 over, for each split, its name, its size and each sample's label and digest."""
    total = hashlib.sha256()
    for name in SPLITS:
        if name not in surveys:
            continue
        survey = surveys[name]
        total.update(f"{name} {len(survey.samples)}\n".encode())
        for label, sample in zip(survey.labels, survey.samples, strict=True):
            total.update(struct.pack("<q", label) + sample.digest)
    return total.hexdigest()


def inspect(path: str, *, on_progress: Progress | None = None) -> dict[str, Json]:
    """Describe a data set for people: splits, classes, sizes, duplicates, problems."""
    surveys, class_names, row_groups = _survey(path, on_progress, None)
    facts = summarise(surveys, class_names)
    imported = find_facts(path)
    return {
        "path": path,
        "splits": {name: len(survey.samples) for name, survey in surveys.items()},
        "classes": len(class_names),
        "images_per_class": {
            name: dict(zip(class_names, _class_counts(survey, len(class_names)), strict=True))
            for name, survey in surveys.items()
        },
        "width": list(facts.width),
        "height": list(facts.height),
        "formats": dict(facts.formats),
        "bytes": facts.num_bytes,
        "rows_per_row_group": row_groups,
        "duplicates_within_train": _repeats(surveys["train"]),
        "duplicates_of_train": {
            name: _shared(surveys["train"], survey)
            for name, survey in surveys.items()
            if name != "train"
        },
        "bad_images": facts.num_bad,
        "problems": list(facts.first_bad),
        "left_out_by_import": imported.num_skipped if imported else 0,
        "first_left_out": list(imported.first_skipped) if imported else [],
        "fingerprint": facts.fingerprint,
    }


def _survey(
    path: str, on_progress: Progress | None, threads: int | None
) -> tuple[dict[str, SplitSurvey], tuple[str, ...], dict[str, list[int]]]:
    """Survey all splits; also class names and the smallest and largest row group of each."""
    if path == DIGITS:
        return _survey_digits()
    source = open_source(path)
    total, done = sum(len(rows) for rows in source.values()), 0
    surveys = {name: SplitSurvey() for name in source}
    with ThreadPoolExecutor(threads or os.cpu_count() or 1, "scan") as pool:
        for name, rows in source.items():
            for first_row, samples in _examined(rows, pool):
                for row, sample in enumerate(samples, start=first_row):
                    label = int(rows.labels[row])
                    surveys[name].add(sample, label, lambda row=row, rows=rows: rows.name(row))  # type: ignore[misc]
                done += len(samples)
                if on_progress is not None:
                    on_progress(done, total)
    row_groups = {name: list(_range(rows.row_group_rows)) for name, rows in source.items()}
    return surveys, source["train"].class_names, row_groups


def _examined(rows: Rows, pool: ThreadPoolExecutor) -> Iterator[tuple[int, list[Sample]]]:
    """Examine a split chunk by chunk, in order, a few chunks ahead."""
    ahead: deque[tuple[int, Future[list[Sample]]]] = deque()
    for chunk, images in rows.iterate():
        ahead.append((chunk.first_row, pool.submit(_examine_all, images)))
        if len(ahead) > 2 * (os.cpu_count() or 1):
            first_row, future = ahead.popleft()
            yield first_row, future.result()
    for first_row, future in ahead:
        yield first_row, future.result()


def _examine_all(images: Any) -> list[Sample]:
    return [examine(value.as_buffer()) for value in images]


def _survey_digits() -> tuple[dict[str, SplitSurvey], tuple[str, ...], dict[str, list[int]]]:
    digits, survey = load_digits(1), SplitSurvey()
    pixels = digits.pixels(np.arange(len(digits.labels), dtype=np.int64))
    for image, label in zip(pixels, digits.labels, strict=True):
        encoded = image.tobytes()
        sample = Sample(hashlib.sha256(encoded).digest(), len(encoded), "", "raw L", 8, 8)
        survey.add(sample, int(label), str)
    return {"train": survey}, digits.class_names, {}


def _class_counts(survey: SplitSurvey, num_classes: int) -> list[int]:
    counts: list[int] = np.bincount(survey.labels, minlength=num_classes).tolist()
    return counts


def _repeats(survey: SplitSurvey) -> int:
    return len(survey.samples) - len({sample.digest for sample in survey.samples})


def _shared(train: SplitSurvey, other: SplitSurvey) -> int:
    known = {sample.digest for sample in train.samples if not sample.problem}
    return sum(sample.digest in known for sample in other.samples)


def _range(values: list[int]) -> tuple[int, int]:
    return (min(values), max(values)) if values else (0, 0)
