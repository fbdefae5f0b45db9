"""Data sets as splits of decoded images: Parquet anywhere, or the embedded digits.

A split is a choice of rows of a split on disk. `sample_index` is the row on disk, which keys all
randomness, so a subset of the labels sees its images cropped and masked as the whole set does.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mae_core.config import DataConfig
from mae_core.data.facts import (
    DIGITS,
    NUM_FOLDS,
    DataFacts,
    dev_size,
    fold_size,
    split_sizes,
    subset_size,
)
from mae_core.data.order import BLOCK, rank_in_class, stratified_order
from mae_core.data.parquet import Rows, open_source
from mae_core.errors import DataError
from mae_core.runtime.keyed_random import Stream, bits

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

PIXEL_CACHE_BYTES = 256 << 20
"""A split on disk whose decoded images are of one size and fit in this stays decoded."""
CUT_SEED = 0
"""Seed of dev cuts and test folds: a data set is cut the same way in every study."""
MODES = {1: "L", 3: "RGB"}
"""Pillow mode for a number of channels."""


class Samples(Protocol):
    """One split on disk, decoded on demand; safe to use from threads."""

    labels: I64
    class_names: tuple[str, ...]

    def decode(self, row: int) -> U8:
        """Image of a row: uint8 (H, W, C)."""
        ...

    def pixels(self, rows: I64) -> U8 | None:
        """Images of some rows as uint8 (N, C, H, W); None if this split is not kept decoded."""
        ...

    def is_decoded(self, rows: I64) -> bool:
        """True if these images are in memory, decoded."""
        ...

    def keep_open(self, num_blocks: int) -> None:
        """Expect reads from that many blocks of neighbouring rows at a time."""
        ...


class ArraySamples:
    """Images that are in memory anyway."""

    def __init__(self, pixels_NCHW: U8, labels: I64, class_names: tuple[str, ...]) -> None:
        self._pixels, self.labels, self.class_names = pixels_NCHW, labels, class_names

    def decode(self, row: int) -> U8:
        """Image of a row: uint8 (H, W, C)."""
        return np.ascontiguousarray(self._pixels[row].transpose(1, 2, 0))

    def pixels(self, rows: I64) -> U8:
        """Images of some rows: uint8 (N, C, H, W)."""
        return self._pixels[rows]

    def is_decoded(self, rows: I64) -> bool:
        """Return True: all is in memory."""
        return True

    def keep_open(self, num_blocks: int) -> None:
        """Do nothing: all is in memory."""


class EncodedSamples:
    """Images in Parquet; small splits of one image size stay decoded once they were read."""

    def __init__(self, rows: Rows, num_channels: int) -> None:
        self._rows, self._channels = rows, num_channels
        self.labels, self.class_names = rows.labels, rows.class_names
        self._known = np.zeros(len(rows), dtype=bool)
        self._cache: U8 | None = None
        first = self._decode(0)
        if first.nbytes * len(rows) <= PIXEL_CACHE_BYTES:
            height, width, channels = first.shape
            self._cache = np.empty((len(rows), channels, height, width), dtype=np.uint8)

    def decode(self, row: int) -> U8:
        """Image of a row: uint8 (H, W, C); raises `DataError` if it is null or undecodable."""
        cache = self._cache
        if cache is None:
            return self._decode(row)
        if not self._known[row]:
            image = self._decode(row)
            if image.transpose(2, 0, 1).shape != cache.shape[1:]:
                self._cache = None  # sizes differ: nothing can be stacked
                return image
            cache[row] = image.transpose(2, 0, 1)
            self._known[row] = True
        return np.ascontiguousarray(cache[row].transpose(1, 2, 0))

    def pixels(self, rows: I64) -> U8 | None:
        """Images of some rows as uint8 (N, C, H, W); None if this split is not kept decoded."""
        for row in rows[~self._known[rows]]:
            if self._cache is None:
                return None
            self.decode(int(row))
        cache = self._cache
        return None if cache is None else cache[rows]

    def is_decoded(self, rows: I64) -> bool:
        """True if these images are in memory, decoded."""
        return self._cache is not None and bool(self._known[rows].all())

    def keep_open(self, num_blocks: int) -> None:
        """Expect reads from that many blocks of neighbouring rows at a time."""
        self._rows.keep_open(num_blocks, BLOCK)

    def _decode(self, row: int) -> U8:
        encoded = self._rows.encoded(row)
        try:
            if encoded is None:
                raise DataError("the image is null")
            image = decode_image(memoryview(encoded)).convert(MODES[self._channels])
        except DataError as error:
            raise DataError(f"{self._rows.name(row)}: {error}") from error
        return np.array(image, dtype=np.uint8).reshape(image.height, image.width, self._channels)


def decode_image(encoded: bytes | memoryview) -> Image.Image:
    """Decode all pixels of an image file given as bytes; EXIF orientation is ignored.

    Raises:
        DataError: not an image, truncated, too large to be meant, or more than 8 bits a channel
            (which would clip to white when converted).
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except UnidentifiedImageError:
        raise DataError(f"{len(encoded)} bytes that are not an image of a known format") from None
    except Exception as error:  # decoders raise whatever their plug-in raises on damaged input
        raise DataError(f"undecodable: {error}") from error
    if image.mode.startswith(("I", "F")):
        raise DataError(f"pixels of mode {image.mode}: convert the image to 8 bits per channel")
    return image


@dataclass(frozen=True)
class Split:
    """Some rows of a split on disk, ascending."""

    name: str
    samples: Samples
    sample_index: I64
    """Row on disk of each image: int64 (N,); the key of its randomness."""

    def __len__(self) -> int:
        """Images."""
        return len(self.sample_index)

    @property
    def labels(self) -> I64:
        """Class of each image: int64 (N,)."""
        return self.samples.labels[self.sample_index]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each class."""
        return self.samples.class_names

    def decode(self, position: int) -> U8:
        """Image at a position of this split: uint8 (H, W, C)."""
        return self.samples.decode(int(self.sample_index[position]))

    def pixels(self, positions: I64) -> U8 | None:
        """Images as uint8 (N, C, H, W), None if the split is not kept decoded."""
        return self.samples.pixels(self.sample_index[positions])

    @property
    def is_decoded(self) -> bool:
        """True if all images are in memory, decoded."""
        return self.samples.is_decoded(self.sample_index)

    def subset(self, num_labels: int | None, label_seed: int = 0) -> Split:
        """Draw `num_labels` images, class sizes differing by at most one; None = all.

        Draws of one `label_seed` are nested: a larger one contains the smaller.

        Raises:
            DataError: fewer labels than classes, or a class has too few images.
        """
        if num_labels is None:
            return self
        num_classes = len(self.class_names)
        if num_labels < num_classes:
            raise DataError(
                f"{num_labels} labels for {num_classes} classes: ask for at least one per class"
            )
        labels = self.labels
        keys = bits(label_seed, Stream.LABEL_SUBSET, 0, self.sample_index)[:, 0]
        rank, counts = rank_in_class(labels, keys)
        counts = np.pad(counts, (0, num_classes - len(counts)))
        index = -1 - np.arange(num_classes, dtype=np.int64)  # not the index of any sample
        turn = np.argsort(np.argsort(bits(label_seed, Stream.LABEL_SUBSET, 0, index)[:, 0]))
        need = num_labels // num_classes + (turn < num_labels % num_classes)
        short = np.flatnonzero(counts < need)
        if len(short):
            name, has, wants = self.class_names[short[0]], counts[short[0]], need[short[0]]
            raise DataError(
                f"{num_labels} class-balanced labels need {wants} images of class {name!r}, "
                f"which has {has}: ask for fewer labels"
            )
        return Split(self.name, self.samples, self.sample_index[rank < need[labels]])

    def sample(self, count: int, seed: int) -> Split:
        """The first `count` images of a seeded order; a larger sample contains the smaller."""
        keys = bits(seed, Stream.SAMPLE, 0, self.sample_index)[:, 0]
        chosen = self.sample_index[np.argsort(keys, kind="stable")[:count]]
        return Split(self.name, self.samples, np.sort(chosen))


class ImageData:
    """A data set, cut into train, dev and test."""

    def __init__(self, config: DataConfig, splits: dict[str, Split]) -> None:
        self.config = config
        self._splits = splits

    @property
    def names(self) -> tuple[str, ...]:
        """Splits that have an image."""
        return tuple(name for name, split in self._splits.items() if len(split))

    def split(self, name: str) -> Split:
        """One of `train`, `dev`, `test`; raises `DataError` if it is unknown or has no image."""
        if name not in self._splits:
            raise DataError(f"split {name!r}: use one of {', '.join(self._splits)}")
        found = self._splits[name]
        if name == "dev" and len(found) == 0:
            raise DataError(
                f"{self.config.path} has no dev split and dev_fraction is "
                f"{self.config.dev_fraction}: set dev_fraction to cut one from train"
            )
        return found


def open_data(config: DataConfig, facts: DataFacts | None = None) -> ImageData:
    """Open a data set and cut what it lacks: test folds and dev, both from train.

    `facts` are those of the last scan; the data must still have these counts.

    Raises:
        DataError: unusable data, bad images known from `facts`, or other counts than `facts`.
    """
    if facts is not None and facts.num_bad:
        raise DataError(bad_images_message(config.path, facts))
    config.check_channels()
    disk = open_samples(config.path, config.num_channels)
    splits = _cut(config, disk)
    if facts is not None:
        counts = {name: len(split) for name, split in splits.items()}
        if counts != split_sizes(facts, config) or facts.class_names != disk["train"].class_names:
            raise DataError(
                f"{config.path} has {counts} images, but its facts say "
                f"{split_sizes(facts, config)}: it changed since it was scanned; scan it again"
            )
    return ImageData(config, splits)


def bad_images_message(path: str, facts: DataFacts) -> str:
    """Say how many images are unusable and name the first."""
    named = "; ".join(facts.first_bad)
    return (
        f"{path}: {facts.num_bad} null or undecodable images, the first: {named}. "
        "Remove them (importing a folder of images leaves such files out)"
    )


def open_samples(path: str, num_channels: int) -> dict[str, Samples]:
    """Open the splits as they are on disk."""
    if path == DIGITS:
        return {"train": load_digits(num_channels)}
    return {role: EncodedSamples(rows, num_channels) for role, rows in open_source(path).items()}


def load_digits(num_channels: int) -> ArraySamples:
    """Load scikit-learn's digits: 1,797 images of 8 × 8, its levels 0..16 scaled to 0..255."""
    from sklearn import datasets

    digits = datasets.load_digits()
    grey_NHW = np.rint(digits.images * 255 / 16).astype(np.uint8)
    pixels_NCHW = np.repeat(grey_NHW[:, None], num_channels, axis=1)
    names = tuple(str(name) for name in digits.target_names)
    return ArraySamples(pixels_NCHW, digits.target.astype(np.int64), names)


def _cut(config: DataConfig, disk: dict[str, Samples]) -> dict[str, Split]:
    train = disk["train"]
    rows = np.arange(len(train.labels), dtype=np.int64)
    if "test" in disk:
        test = Split("test", disk["test"], np.arange(len(disk["test"].labels), dtype=np.int64))
    else:
        fold = _digits_fold if config.path == DIGITS else stratified_fold
        chosen = fold(train.labels, config.split_seed)
        test, rows = Split("test", train, chosen), np.setdiff1d(rows, chosen)
    if "dev" in disk:
        dev = Split("dev", disk["dev"], np.arange(len(disk["dev"].labels), dtype=np.int64))
    else:
        chosen = stratified_draw(train.labels, rows, dev_size(len(rows), config.dev_fraction))
        dev, rows = Split("dev", train, chosen), np.setdiff1d(rows, chosen)
    if config.train_fraction < 1:
        order = stratified_order(train.labels[rows], rows, config.subset_seed, Stream.TRAIN_SUBSET)
        rows = np.sort(rows[order[: subset_size(len(rows), config.train_fraction)]])
    if len(rows) == 0:
        raise DataError(
            f"{config.path}: nothing is left to train on: lower dev_fraction, raise train_fraction"
        )
    return {"train": Split("train", train, rows), "dev": dev, "test": test}


def stratified_draw(labels: I64, rows: I64, count: int) -> I64:
    """Choose `count` of `rows`, each class in proportion, the same for ever: ascending rows."""
    order = stratified_order(labels[rows], rows, CUT_SEED, Stream.DEV_SPLIT)
    return np.sort(rows[order[:count]])


def stratified_fold(labels: I64, split_seed: int) -> I64:
    """Rows of one of five stratified folds, ascending."""
    rows = np.arange(len(labels), dtype=np.int64)
    order = stratified_order(labels, rows, CUT_SEED, Stream.DEV_SPLIT)
    fold = split_seed % NUM_FOLDS
    start = sum(fold_size(len(labels), number) for number in range(fold))
    return np.sort(rows[order[start : start + fold_size(len(labels), fold)]])


def _digits_fold(labels: I64, split_seed: int) -> I64:
    from sklearn.model_selection import StratifiedKFold

    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=CUT_SEED)
    test: I64 = [test for _, test in folds.split(labels, labels)][split_seed % NUM_FOLDS]
    return test
