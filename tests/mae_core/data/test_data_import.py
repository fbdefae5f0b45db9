"""Importers: trees of images, CIFAR archives, and what they refuse."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.make_data import CLASSES, cifar_files, png, write_set, write_tar, write_tree

from mae_core.config import DataConfig
from mae_core.data.facts import find_facts
from mae_core.data.importers import import_any, import_cifar, import_image_folder
from mae_core.data.parquet import open_source
from mae_core.data.scan import scan
from mae_core.data.sources import open_data
from mae_core.errors import DataError


class Hostile:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("exit 0",)


def test_tree_of_classes_gets_a_stratified_test(tmp_path: Path) -> None:
    tree, out = write_tree(tmp_path / "tree"), tmp_path / "deep" / "out"
    seen: list[tuple[int, int]] = []
    facts = import_any(tree, out, on_progress=lambda done, total: seen.append((done, total)))
    assert (facts.num_train, facts.num_dev, facts.num_test) == (24, 0, 6)
    assert facts.class_names == CLASSES
    assert seen[-1] == (30, 30)
    assert find_facts(str(out)) == facts == scan(str(out))
    assert sorted(p.name for p in out.glob("*.parquet")) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]
    splits = open_source(str(out))
    assert np.bincount(splits["test"].labels).tolist() == [2, 2, 2]
    assert (np.diff(splits["train"].labels) < 0).any(), "rows are permuted, not sorted by class"
    stored = {bytes(rows.encoded(i) or b"") for rows in splits.values() for i in range(len(rows))}
    assert stored == {file.read_bytes() for file in tree.rglob("*.png")}
    assert import_any(tree, tmp_path / "again") == facts
    open_data(DataConfig(path=str(out), image_size=8), facts)


def test_given_splits_are_kept(tmp_path: Path) -> None:
    for name in ("train", "val", "test"):
        write_tree(tmp_path / "a" / name, 3)
    facts = import_image_folder(tmp_path / "a", tmp_path / "out_a")
    assert (facts.num_train, facts.num_dev, facts.num_test) == (9, 9, 9)
    assert lengths(tmp_path / "out_a") == {"train": 9, "dev": 9, "test": 9}
    for name in ("train", "val"):
        write_tree(tmp_path / "b" / name, 3)
    facts = import_image_folder(tmp_path / "b", tmp_path / "out_b")
    assert (facts.num_dev, facts.num_test) == (0, 9)


def lengths(path: Path) -> dict[str, int]:
    return {role: len(rows) for role, rows in open_source(str(path)).items()}


def test_undecodable_files_are_left_out_and_named(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    (tree / "dog" / "broken.jpg").write_bytes(b"junk")
    (tree / "owl" / "empty.png").touch()
    (tree / "owl" / "notes.txt").write_text("not an image")
    facts = import_any(tree, tmp_path / "out")
    assert (facts.num_skipped, facts.num_bad) == (2, 0)
    assert facts.num_train + facts.num_test == 30
    assert any("dog/broken.jpg" in name for name in facts.first_skipped)


def test_trees_that_cannot_be_imported(tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = tmp_path / "image.png"
    file.write_bytes(png(0))
    with pytest.raises(DataError, match="a file, not a folder"):
        import_image_folder(file, out)
    with pytest.raises(DataError, match="neither a folder of images nor a CIFAR"):
        import_any(file, out)
    with pytest.raises(DataError, match="nothing found"):
        import_any(tmp_path / "absent", out)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no class folders"):
        import_any(empty, out)
    (empty / "1.png").write_bytes(png(1))
    with pytest.raises(DataError, match=r"no class folders \(1 images lie directly in it\)"):
        import_any(empty, out)
    (empty / "cat").mkdir()
    with pytest.raises(DataError, match="cat: no images in this class folder"):
        import_any(empty, out)
    (empty / "cat" / "1.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="too few to cut a test split"):
        import_any(empty, out)
    with pytest.raises(DataError, match="already Parquet"):
        import_any(write_set(tmp_path / "parquet"), out)
    (write_tree(tmp_path / "t" / "train"), write_tree(tmp_path / "t" / "val", 1, ("emu",)))
    with pytest.raises(DataError, match="classes emu are not in the train folder"):
        import_any(tmp_path / "t", out)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_links_are_followed_but_loops_refused(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    elsewhere = write_tree(tmp_path / "elsewhere", 4, ("emu",))
    (tree / "emu").symlink_to(elsewhere / "emu")
    assert import_any(tree, tmp_path / "out").class_names == ("cat", "dog", "emu", "owl")
    (tree / "cat" / "loop").symlink_to(tree / "cat")
    with pytest.raises(DataError, match="loop: a symbolic link to a folder above it"):
        import_any(tree, tmp_path / "out2")


def test_destination_must_be_empty_and_a_crash_leaves_nothing(tmp_path: Path) -> None:
    tree, out = write_tree(tmp_path / "tree"), tmp_path / "out"
    out.mkdir()
    import_any(tree, out)
    with pytest.raises(DataError, match="not an empty folder"):
        import_any(tree, out)

    def crash(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_any(tree, tmp_path / "second", on_progress=crash)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "tree"]


@pytest.mark.parametrize("hundred", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar(tmp_path: Path, hundred: bool, packed: bool) -> None:
    files = cifar_files(hundred=hundred)
    if packed:
        source = write_tar(tmp_path / "cifar.tar.gz", files)
    else:
        source = tmp_path / "cifar"
        source.mkdir()
        for name, content in files.items():
            (source / name).write_bytes(content)
    facts = import_any(source, tmp_path / "out")
    assert (facts.num_train, facts.num_test) == (6 if hundred else 30, 6)
    assert facts.class_names == (("apple", "bear") if hundred else ("plane", "car"))
    assert facts.formats[0][0] == "PNG RGB" and facts.width == (32, 32)
    raw = pickle.loads(files["test" if hundred else "test_batch"])[b"data"]
    expected = {row.reshape(3, 32, 32).tobytes() for row in raw}
    split = open_data(DataConfig(path=str(tmp_path / "out"), image_size=32)).split("test")
    assert {split.decode(i).transpose(2, 0, 1).tobytes() for i in range(len(split))} == expected


def test_hostile_and_damaged_archives(tmp_path: Path) -> None:
    files = cifar_files()
    out = tmp_path / "out"

    def refuse(message: str, **changes: bytes) -> None:
        with pytest.raises(DataError, match=message):
            import_cifar(write_tar(tmp_path / "x.tar.gz", files | changes), out)

    refuse("asks for (posix|nt).system", test_batch=pickle.dumps({b"data": Hostile()}))
    refuse("not a CIFAR pickle", test_batch=files["test_batch"][:100])
    refuse("holds a list", test_batch=pickle.dumps([]))
    refuse("labels is missing", test_batch=pickle.dumps({b"data": np.zeros((1, 3072), np.uint8)}))
    wrong = {b"data": np.zeros((2, 7), np.uint8), b"labels": [0, 1]}
    refuse("expected uint8", test_batch=pickle.dumps(wrong))
    wrong = {b"data": np.zeros((1, 3072), np.uint8), b"labels": [9]}
    refuse("labels outside 0..1", test_batch=pickle.dumps(wrong))
    with pytest.raises(DataError, match="points outside"):
        import_cifar(write_tar(tmp_path / "x.tar.gz", files, folder="../../"), out)
    with pytest.raises(DataError, match="no file batches.meta"):
        import_cifar(write_tar(tmp_path / "x.tar.gz", {"other": b""}), out)
    whole = write_tar(tmp_path / "x.tar.gz", files).read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a readable tar archive"):
        import_cifar(tmp_path / "x.tar.gz", out)
    with tarfile.open(tmp_path / "link.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match="points outside"):
        import_cifar(tmp_path / "link.tar.gz", out)
    assert not out.exists()
