"""A data set with only the training images of a list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.command import mae_study
from support.make_data import CLASSES, png, write_set, write_tree

from mae_core.data.importers import import_image_folder
from mae_core.data.parquet import SplitWriter, open_source
from mae_core.data.scan import scan
from mae_core.data.subset import key, write_subset
from mae_core.errors import DataError


def listed(folder: Path, *names: str) -> Path:
    path = folder / "names.txt"
    path.write_text("\n".join(names) + "\n")
    return path


def test_listed_training_images_and_all_of_test(tmp_path: Path) -> None:
    source = write_set(tmp_path / "all")
    names = listed(tmp_path, "3.png", "n/7.PNG", "", "20.png")
    out = str(tmp_path / "few")
    facts = write_subset(str(source), names, out)
    assert (facts.num_train, facts.num_dev, facts.num_test) == (3, 0, 15)
    assert facts.class_names == CLASSES
    assert facts == scan(out)
    train = open_source(out)["train"]
    content = {bytes(train.encoded(i) or b""): int(train.labels[i]) for i in range(3)}
    assert content == {png(i): i % 3 for i in (3, 7, 20)}
    assert sorted(map(str, train.image_names())) == ["20.png", "3.png", "7.png"]


def test_a_folder_tells_images_of_one_name_apart(tmp_path: Path) -> None:
    import_image_folder(write_tree(tmp_path / "tree"), tmp_path / "all")
    train = open_source(str(tmp_path / "all"))["train"]
    names = [str(name) for name in train.image_names()]
    twice = next(n for n in names if sum(key(n) == key(m) for m in names) > 1)
    facts = write_subset(str(tmp_path / "all"), listed(tmp_path, twice), tmp_path / "one")
    assert facts.num_train == 1
    one = open_source(str(tmp_path / "one"))["train"]
    assert one.image_names() == [twice]
    assert one.labels[0] == train.labels[names.index(twice)]
    with pytest.raises(DataError, match=r"1 names fit several training images .* '\d.png'"):
        write_subset(str(tmp_path / "all"), listed(tmp_path, f"{key(twice)}.png"), tmp_path / "two")


def test_imagenet_is_one_set_however_it_was_packed() -> None:
    for name in (
        "n01440764_10026.JPEG",
        "train/n01440764/n01440764_10026.JPEG",
        "n01440764_10026_n01440764.JPEG",
    ):
        assert key(name) == "n01440764_10026"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["0.png", "x.png", "y.png"],
            r"2 of 3 names are not training images of .*'x.png', 'y.png'",
        ),
        (["0.png", "a/0.png"], r"2 images are listed more than once: '0.png', 'a/0.png'"),
        ([""], "an empty list"),
    ],
)
def test_a_list_that_does_not_fit_writes_nothing(
    tmp_path: Path, names: list[str], message: str
) -> None:
    source = write_set(tmp_path / "all")
    with pytest.raises(DataError, match=message):
        write_subset(str(source), listed(tmp_path, *names), tmp_path / "few")
    assert not (tmp_path / "few").exists()


def test_images_without_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    for split in ("train", "test"):
        writer = SplitWriter(tmp_path / "all", split, CLASSES)
        for number in range(3):
            writer.add(png(number), None, number)  # type: ignore[arg-type]
        writer.close()
    with pytest.raises(DataError, match="its images have no names"):
        write_subset(str(tmp_path / "all"), listed(tmp_path, "0.png"), tmp_path / "few")


def test_the_command(tmp_path: Path) -> None:
    source = str(write_set(tmp_path / "all"))
    names = str(listed(tmp_path, *(f"{i}.png" for i in range(9))))
    done = mae_study("data", "subset", source, names, str(tmp_path / "few"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train"] == 9
    assert np.bincount(open_source(str(tmp_path / "few"))["train"].labels).tolist() == [3, 3, 3]
    again = mae_study("data", "subset", source, names, str(tmp_path / "few"))
    assert again.returncode == 2 and "not an empty folder" in again.stderr
    binary = tmp_path / "binary"
    binary.write_bytes(png(0))
    other = mae_study("data", "subset", source, str(binary), str(tmp_path / "other"))
    assert other.returncode == 2 and "not a text file" in other.stderr
    assert mae_study("data", "subset", "digits", names, "x").returncode == 2
