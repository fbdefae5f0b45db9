"""Parquet in: grouping of files, bad files, cuts, facts, scans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.digit_cases import DIGITS
from support.make_data import encode, pixels, png, write_parquet, write_set

from mae_core.config import DataConfig
from mae_core.data import parquet
from mae_core.data.facts import SIDECAR, DataFacts, find_facts, split_sizes, write_sidecar
from mae_core.data.parquet import Rows, find_files, open_source
from mae_core.data.scan import inspect, scan
from mae_core.data.sources import open_data
from mae_core.errors import ConfigError, DataError


def config(path: Path, **changes: object) -> DataConfig:
    return replace(DataConfig(path=str(path), image_size=8), **changes)  # type: ignore[arg-type]


def lengths(path: Path | str) -> dict[str, int]:
    return {role: len(rows) for role, rows in open_source(str(path)).items()}


# What lies where


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"train-0": 3, "train-1": 3, "test-0": 2}, {"train": 6, "test": 2}),
        ({"train": 3, "validation": 2, "test": 4}, {"train": 3, "dev": 2, "test": 4}),
        ({"train": 3, "val-00000-of-00001": 2}, {"train": 3, "test": 2}),
        ({"train/0": 3, "test/0": 2}, {"train": 3, "test": 2}),
        ({"0000": 3}, {"train": 3}),
        ({"a": 3, "b": 2}, {"train": 5}),
        ({"test": 3}, {"train": 3}),
    ],
)
def test_files_are_grouped_by_name(
    tmp_path: Path, names: dict[str, int], expected: dict[str, int]
) -> None:
    for name, count in names.items():
        write_parquet(tmp_path / f"{name}.parquet", [png(i) for i in range(count)], [0] * count)
    assert lengths(tmp_path) == expected
    assert lengths(tmp_path.as_uri()) == expected


def test_unlabelled_test_is_ignored(tmp_path: Path) -> None:
    for name, label in (("train", 1), ("validation", 2), ("test", -1)):
        write_parquet(tmp_path / f"{name}.parquet", [png(0)], [label])
    splits = open_source(str(tmp_path))
    assert {role: rows.labels.tolist() for role, rows in splits.items()} == {
        "train": [1],
        "test": [2],
    }


def test_files_without_split_among_named_ones(tmp_path: Path) -> None:
    for name in ("train", "extra"):
        write_parquet(tmp_path / f"{name}.parquet", [png(0)], [0])
    with pytest.raises(DataError, match="extra.parquet name no split"):
        open_source(str(tmp_path))


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing found"):
        find_files(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="no Parquet file in this folder"):
        find_files(str(tmp_path))
    with pytest.raises(DataError, match="cannot be read"):
        find_files("nosuchscheme://bucket/data")
    empty = tmp_path / "train.parquet"
    empty.touch()
    with pytest.raises(DataError, match=r"train.parquet: the file is empty \(0 bytes\)"):
        open_source(str(tmp_path))
    empty.write_text("not parquet")
    with pytest.raises(DataError, match="train.parquet: not a readable Parquet file"):
        open_source(str(tmp_path))
    write_parquet(empty, [], [])
    with pytest.raises(DataError, match="no rows"):
        open_source(str(tmp_path))


def test_truncated_and_corrupt_files_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", [png(i) for i in range(50)], [0] * 50)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="train.parquet: not a readable Parquet file"):
        open_source(str(tmp_path))
    path.write_bytes(content[:4] + b"\xff" * 400 + content[404:])
    with pytest.raises(DataError, match="train.parquet"):
        scan(str(tmp_path))


def test_wrong_columns_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"img": [b"x"], "label": [0]}), path)
    with pytest.raises(DataError, match="columns are img: binary, label: int64; expected image"):
        open_source(str(path))
    write_parquet(path, [png(0), png(1)], [0, 3])
    with pytest.raises(DataError, match=r"1 labels of split train are outside 0..2.*is 3.*row 1"):
        open_source(str(path))
    write_parquet(path, [png(0)], [-1])
    with pytest.raises(DataError, match="outside 0..2"):
        open_source(str(path))
    write_parquet(path, [png(0)], [None])
    with pytest.raises(DataError, match="1 rows have no label"):
        open_source(str(path))


def test_class_names_must_agree(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [png(0)], [0])
    write_parquet(tmp_path / "test.parquet", [png(0)], [0], classes=("dog", "cat", "owl"))
    with pytest.raises(DataError, match="class names differ"):
        open_source(str(tmp_path))
    write_parquet(tmp_path / "test.parquet", [png(0)], [0], classes=None)
    write_parquet(tmp_path / "train.parquet", [png(0)] * 2, [0, 4], classes=None)
    assert open_source(str(tmp_path))["train"].class_names == tuple("01234")


# Reading


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_rows_in_any_order_from_any_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_bytes: int
) -> None:
    monkeypatch.setattr(parquet, "CACHE_BYTES", cache_bytes)
    monkeypatch.setattr(parquet, "CHUNK_ROWS", 8)
    images = [png(i) for i in range(100)]
    for name, start, end, group in (("a", 0, 37, 10), ("b", 37, 100, 50)):
        write_parquet(
            tmp_path / f"{name}.parquet", images[start:end], [0] * (end - start), None, group
        )
    filesystem, files = find_files(str(tmp_path))
    rows = Rows(filesystem, files)
    rows.keep_open(1, 8)
    for row in np.random.default_rng(0).permutation(100):
        found = rows.encoded(int(row))
        assert found is not None and found.to_pybytes() == images[row]
    assert rows.name(37).endswith("b.parquet row 0")


def test_grey_and_colour(tmp_path: Path) -> None:
    colour = pixels(3)
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    write_parquet(tmp_path / "train.parquet", [encode(colour), encode(grey)] * 4, [0] * 8)
    split = open_data(config(tmp_path)).split("train")
    index = split.sample_index.tolist()
    for position, row in enumerate(index):
        expected = colour if row % 2 == 0 else np.repeat(grey[..., None], 3, axis=2)
        np.testing.assert_array_equal(split.decode(position), expected)
    one = config(tmp_path, num_channels=1, pixel_mean=(0.5,), pixel_std=(0.5,))
    np.testing.assert_array_equal(open_data(one).split("train").decode(0)[..., 0], grey)
    two = config(tmp_path, num_channels=2, pixel_mean=(0.5,) * 2, pixel_std=(0.5,) * 2)
    with pytest.raises(ConfigError, match="read as 1 .grey. or 3"):
        open_data(two)


# Cuts


@pytest.mark.parametrize("split_seed", range(6))
def test_digits_are_five_stratified_splits(split_seed: int) -> None:
    cut = replace(DIGITS, split_seed=split_seed)
    facts = find_facts("digits")
    assert facts is not None
    data = open_data(cut, facts)
    splits = {name: data.split(name) for name in ("train", "dev", "test")}
    assert {n: len(s) for n, s in splits.items()} == split_sizes(facts, cut)
    assert len(splits["test"]) == (360 if split_seed % 5 < 2 else 359)
    rows = np.concatenate([s.sample_index for s in splits.values()])
    np.testing.assert_array_equal(np.sort(rows), np.arange(1797))
    for split in splits.values():
        counts = np.bincount(split.labels, minlength=10)
        assert counts.max() - counts.min() <= 0.1 * counts.mean() + 2
    assert splits["train"].decode(0).shape == (8, 8, 1)


def test_facts_of_digits_are_those_of_a_scan() -> None:
    assert scan("digits") == find_facts("digits")


def test_dev_and_test_are_cut_from_train(tmp_path: Path) -> None:
    path = write_set(tmp_path, 60, 0)
    cut = config(path, dev_fraction=0.25)
    facts = scan(str(path))
    data = open_data(cut, facts)
    counts = {n: np.bincount(data.split(n).labels).tolist() for n in ("train", "dev", "test")}
    assert counts == {"train": [12, 12, 12], "dev": [4, 4, 4], "test": [4, 4, 4]}
    assert split_sizes(facts, cut) == {"train": 36, "dev": 12, "test": 12}
    again = open_data(cut).split("dev").sample_index
    np.testing.assert_array_equal(again, data.split("dev").sample_index)
    other = open_data(replace(cut, split_seed=1)).split("test").sample_index
    assert not set(other.tolist()) & set(data.split("test").sample_index.tolist())


def test_missing_dev_says_what_to_do(tmp_path: Path) -> None:
    data = open_data(config(write_set(tmp_path)))
    with pytest.raises(DataError, match="set dev_fraction"):
        data.split("dev")
    with pytest.raises(DataError, match="use one of train, dev, test"):
        data.split("nope")


@pytest.mark.parametrize("seed", [0, 1])
def test_label_subsets_are_balanced_and_nested(seed: int) -> None:
    split = open_data(DIGITS).split("train")
    smaller: set[int] = set()
    for count in (10, 13, 101, 400):
        subset = split.subset(count, seed)
        assert len(subset) == count
        per_class = np.bincount(subset.labels, minlength=10)
        assert per_class.max() - per_class.min() <= 1
        assert smaller <= set(subset.sample_index.tolist()) <= set(split.sample_index.tolist())
        smaller = set(subset.sample_index.tolist())
    assert split.subset(None, seed) is split
    assert not np.array_equal(split.subset(50, 5).sample_index, split.subset(50, 6).sample_index)


def test_label_subsets_that_cannot_be(tmp_path: Path) -> None:
    split = open_data(config(write_set(tmp_path))).split("train")
    with pytest.raises(DataError, match="2 labels for 3 classes"):
        split.subset(2, 0)
    with pytest.raises(DataError, match=r"63 class-balanced labels need 21 images of class 'cat'"):
        split.subset(63, 0)


# Facts and scans


def test_fingerprint_is_of_the_samples_not_the_files(tmp_path: Path) -> None:
    images, labels = [png(i) for i in range(30)], [i % 3 for i in range(30)]
    write_parquet(tmp_path / "a" / "train.parquet", images, labels)
    write_parquet(tmp_path / "b" / "train-0.parquet", images[:11], labels[:11], row_group_size=3)
    write_parquet(tmp_path / "b" / "train-1.parquet", images[11:], labels[11:], row_group_size=50)
    write_parquet(tmp_path / "c" / "train.parquet", images, [0, *labels[1:-1], 0])
    write_parquet(tmp_path / "d" / "train.parquet", images[::-1], labels)
    prints = {name: scan(str(tmp_path / name)).fingerprint for name in "abcd"}
    assert prints["a"] == prints["b"]
    assert len(set(prints.values())) == 3


def test_bad_images_are_counted_and_named(tmp_path: Path) -> None:
    images: list[bytes | None] = [png(i, 40, 40) for i in range(30)]
    images[3], images[7], images[8] = None, b"junk", png(8, 40, 40)[:-400]
    sixteen = np.zeros((8, 8), dtype=np.uint16)
    images[9] = encode(sixteen)  # type: ignore[arg-type]
    path = write_parquet(tmp_path / "train.parquet", images, [0] * 30)
    with pytest.raises(DataError, match=r"4 null or undecodable images.*row 3: the image is null"):
        scan(str(tmp_path))
    facts = scan(str(tmp_path), strict=False)
    assert facts.num_bad == 4
    assert "train.parquet row 7: 4 bytes that are not an image" in facts.first_bad[1]
    assert "undecodable" in facts.first_bad[2] and "mode I;16" in facts.first_bad[3]
    assert inspect(str(path))["bad_images"] == 4
    with pytest.raises(DataError, match="4 null or undecodable"):
        open_data(config(tmp_path), facts)
    split = open_data(config(tmp_path)).split("train")
    bad = int(np.flatnonzero(split.sample_index == 7)[0]) if 7 in split.sample_index else None
    if bad is not None:
        with pytest.raises(DataError, match="train.parquet row 7"):
            split.decode(bad)


def test_inspect_tells_duplicates_and_counts(tmp_path: Path) -> None:
    write_set(tmp_path, 60, 15)
    images = [png(0), png(1), png(0), png(20_000)]
    write_parquet(tmp_path / "test-00000-of-00001.parquet", images, [0, 1, 2, 0])
    progress: list[tuple[int, int]] = []
    found = inspect(str(tmp_path), on_progress=lambda done, total: progress.append((done, total)))
    json.dumps(found)
    assert found["duplicates_of_train"] == {"test": 3}
    assert found["splits"] == {"train": 60, "test": 4}
    assert found["images_per_class"]["test"] == {"cat": 2, "dog": 1, "owl": 1}
    assert found["rows_per_row_group"] == {"train": [10, 10], "test": [4, 4]}
    assert progress[-1] == (64, 64)
    assert inspect("digits")["classes"] == 10


def test_sidecar_is_believed_only_while_it_fits(tmp_path: Path) -> None:
    path = write_set(tmp_path)
    assert find_facts(str(path)) is None
    facts = scan(str(path))
    write_sidecar(path, facts)
    assert find_facts(str(path)) == facts == DataFacts.from_json(facts.to_json())
    write_parquet(path / "test-00001-of-00002.parquet", [png(1)], [0])
    assert find_facts(str(path)) is None
    (path / "test-00001-of-00002.parquet").unlink()
    assert find_facts(str(path)) == facts
    (path / SIDECAR).write_text("{")
    assert find_facts(str(path)) is None
    assert find_facts("s3://bucket/data") is None
    with pytest.raises(DataError, match="not the facts of a data set"):
        DataFacts.from_json({"nonsense": 1})


def test_facts_that_no_longer_fit_are_refused(tmp_path: Path) -> None:
    facts = scan(str(write_set(tmp_path)))
    with pytest.raises(DataError, match="changed since it was scanned"):
        open_data(config(tmp_path), replace(facts, num_train=61))
