"""Small image sets made by code, for the tests of the data part."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = ("cat", "dog", "owl")


def pixels(number: int, height: int = 8, width: int = 8) -> npt.NDArray[np.uint8]:
    """Random colours, another picture for every number: uint8 (H, W, 3)."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: npt.NDArray[np.uint8], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def png(number: int, height: int = 8, width: int = 8) -> bytes:
    return encode(pixels(number, height, width))


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    classes: Sequence[str] | None = CLASSES,
    row_group_size: int = 10,
) -> Path:
    """Write one file in the Hugging Face layout."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(classes or ())}}
    metadata: dict[str | bytes, str | bytes] = {
        "huggingface": json.dumps({"info": {"features": features}})
    }
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fields: list[Any] = [("image", struct), ("label", pa.int64())]
    schema = pa.schema(fields, metadata=metadata if classes else None)
    rows = [
        {"image": {"bytes": image, "path": f"{i}.png"}, "label": label}
        for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=row_group_size)
    return path


def write_set(folder: Path, num_train: int = 60, num_test: int = 15, size: int = 8) -> Path:
    """Write a folder with train and test, three classes in turn."""
    for name, first, count in (("train", 0, num_train), ("test", 10_000, num_test)):
        if count:
            images = [png(first + i, size, size) for i in range(count)]
            labels = [i % 3 for i in range(count)]
            write_parquet(folder / f"{name}-00000-of-00001.parquet", images, labels)
    return folder


def write_tree(root: Path, per_class: int = 10, classes: Sequence[str] = CLASSES) -> Path:
    """Write `root/class/number.png`."""
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            (root / name / f"{i}.png").write_bytes(png(1000 * c + i))
    return root


def cifar_files(per_batch: int = 6, hundred: bool = False) -> dict[str, bytes]:
    """Name and content of the files of a tiny CIFAR archive."""
    generator = np.random.default_rng(0)

    def batch() -> dict[bytes, Any]:
        data = generator.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        labels = [i % 2 for i in range(per_batch)]
        return {b"data": data, (b"fine_labels" if hundred else b"labels"): labels}

    if hundred:
        files: dict[str, Any] = {"train": batch(), "test": batch()}
        files["meta"] = {b"fine_label_names": [b"apple", b"bear"]}
    else:
        files = {f"data_batch_{i}": batch() for i in range(1, 6)} | {"test_batch": batch()}
        files["batches.meta"] = {b"label_names": [b"plane", b"car"]}
    return {name: pickle.dumps(content, protocol=2) for name, content in files.items()}


def write_tar(path: Path, files: dict[str, bytes], folder: str = "cifar-10-batches-py/") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(folder + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
