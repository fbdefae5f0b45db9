"""Turn folders of images and CIFAR archives into Parquet, with their facts beside them.

Rows are permuted over the whole split by a keyed hash: sources are sorted by class, and blocks of
neighbouring rows must not be. Encoded bytes are stored unchanged (CIFAR's raw pixels as PNG).
"""

from __future__ import annotations

import dataclasses
import io
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mae_core.data.facts import DataFacts, Progress, write_sidecar
from mae_core.data.order import stratified_order
from mae_core.data.parquet import ROLE_WORDS, SplitWriter
from mae_core.data.scan import SHOWN, SplitSurvey, examine, summarise
from mae_core.errors import DataError
from mae_core.runtime.keyed_random import Stream, bits

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
)
IMPORT_SEED = 0
"""Seed of the permutation and of the test cut: an import is the same every time."""
MAX_MEMBER_BYTES = 1 << 30
"""A CIFAR batch is 31 to 184 MB; a member that claims more is not one."""
CIFAR_SIDE = 32


@dataclass(frozen=True)
class ImageItem:
    """One image to be stored."""

    name: str
    """Path within the source."""
    label: int
    read: Callable[[], bytes]
    """Returns the encoded image."""


def import_any(
    source: str | Path, destination: str | Path, *, on_progress: Progress | None = None
) -> DataFacts:
    """Import an image folder or a CIFAR archive, recognised by content; return the facts.

    Raises:
        DataError: unusable source, or a destination that is not empty.
    """
    path = Path(source)
    with reading(path):
        is_cifar = _is_cifar(path)
    if is_cifar:
        return import_cifar(path, destination, on_progress=on_progress)
    return import_image_folder(path, destination, on_progress=on_progress)


def _is_cifar(path: Path) -> bool:
    if not path.exists():
        raise DataError(f"{path}: nothing found; check the path")
    if path.is_file():
        if not tarfile.is_tarfile(path):
            raise DataError(f"{path}: neither a folder of images nor a CIFAR archive (.tar.gz)")
        return True
    if _cifar_folder(path) is not None:
        return True
    if next(path.rglob("*.parquet"), None) is not None:
        raise DataError(f"{path}: already Parquet; give this path as the data path as it is")
    return False


def import_image_folder(
    source: str | Path,
    destination: str | Path,
    *,
    test_fraction: float = 0.2,
    on_progress: Progress | None = None,
) -> DataFacts:
    """Import `root/{train,val,test}/class/*.jpg`, or `root/class/*.jpg` with a test cut.

    Classes are numbered in order of name. Undecodable files are left out, counted and named in
    the facts. A `val` folder without `test` becomes the test split, as the field has it.

    Raises:
        DataError: no such folder, no classes, a class without images, a loop of symbolic links,
            or a destination that is not empty.
    """
    root = Path(source)
    with reading(root):
        if not root.is_dir():
            what = "a file, not a folder" if root.exists() else "no such folder"
            raise DataError(f"{root}: {what}; give the folder that holds the class folders")
        folders = _split_folders(root)
        class_names = _class_names(folders["train"])
        splits = {name: _items(root, folder, class_names) for name, folder in folders.items()}
    if set(splits) == {"train"}:
        splits = _cut_test(splits["train"], test_fraction)
    return store_items(Path(destination), splits, class_names, on_progress)


def import_cifar(
    source: str | Path, destination: str | Path, *, on_progress: Progress | None = None
) -> DataFacts:
    """Import a CIFAR-10 or CIFAR-100 python archive (.tar.gz, or extracted) as PNG.

    Nothing is extracted, and the pickles may only build arrays, numbers, text and containers.

    Raises:
        DataError: not such an archive, a damaged or a hostile one.
    """
    with reading(Path(source)):
        members = _read_members(Path(source))
    fine = "meta" in members
    names_key, labels_key = (
        (b"fine_label_names", b"fine_labels") if fine else (b"label_names", b"labels")
    )
    batches = (
        {"train": ["train"], "test": ["test"]}
        if fine
        else {
            "train": sorted(name for name in members if name.startswith("data_batch_")),
            "test": ["test_batch"],
        }
    )
    meta = _unpickle(members, "meta" if fine else "batches.meta")
    class_names = tuple(_text(name) for name in _entry(meta, names_key, list, "meta"))
    splits = {
        split: [
            item
            for file in files
            for item in _cifar_items(_unpickle(members, file), file, labels_key, len(class_names))
        ]
        for split, files in batches.items()
    }
    return store_items(Path(destination), splits, class_names, on_progress)


def store_items(
    destination: Path,
    splits: Mapping[str, Sequence[ImageItem]],
    class_names: tuple[str, ...],
    on_progress: Progress | None,
) -> DataFacts:
    """Write splits as Parquet with their facts beside them; the whole folder or nothing."""
    total, done = sum(len(items) for items in splits.values()), 0
    surveys = {name: SplitSurvey() for name in splits}
    skipped: list[str] = []
    with _staged(destination) as folder:
        for split, items in splits.items():
            file_name = "validation" if split == "dev" else split
            writer = SplitWriter(folder, file_name, class_names)
            for item in _permuted(items):
                with reading(Path(item.name)):
                    encoded = item.read()
                sample = examine(encoded)
                if sample.problem:
                    skipped.append(f"{item.name}: {sample.problem}")
                else:
                    surveys[split].add(sample, item.label, str)
                    writer.add(encoded, item.name, item.label)
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
            if not surveys[split].samples:
                raise DataError(f"split {split}: not one of {len(items)} images is decodable")
            writer.close()
        facts = dataclasses.replace(
            summarise(surveys, class_names),
            num_skipped=len(skipped),
            first_skipped=tuple(skipped[:SHOWN]),
        )
        write_sidecar(folder, facts)
    return facts


@contextmanager
def _staged(destination: Path) -> Iterator[Path]:
    """Give a folder that becomes `destination` at the end, or vanishes on an error."""
    if destination.parts[:1] and destination.parts[0].endswith(":"):  # s3://, gs://
        raise DataError(f"{destination}: import writes to a local folder; copy it afterwards")
    parent = destination.parent
    staging = parent / f".{destination.name}.importing-{os.getpid()}"
    with _writing(destination):
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise DataError(f"{destination}: not an empty folder; name a new one")
        made = [p for p in (parent, *parent.parents) if not p.exists()]
    try:
        with _writing(destination):
            parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            yield staging
            staging.rename(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError):  # after a success they are not empty
            for folder in made:
                folder.rmdir()


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Turn an `OSError` of the source into a `DataError` that names the place."""
    try:
        yield
    except OSError as error:
        place = os.fsdecode(error.filename) if error.filename else str(source)
        raise DataError(
            f"{place}: cannot be read ({error.strerror or error}); check its permissions"
        ) from error


@contextmanager
def _writing(destination: Path) -> Iterator[None]:
    """Turn an `OSError` of the destination into a `DataError`; Arrow's own are such."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DataError(
            f"{destination}: cannot be written ({reason}); free space or name another folder"
        ) from error


def _permuted(items: Sequence[ImageItem]) -> list[ImageItem]:
    index = np.arange(len(items), dtype=np.int64)
    order = np.argsort(bits(IMPORT_SEED, Stream.ORDER, 0, index)[:, 0], kind="stable")
    return [items[i] for i in order]


# Folders of images


def _split_folders(root: Path) -> dict[str, Path]:
    """Folders of train, dev and test; the root itself is train if it holds the classes."""
    found: dict[str, Path] = {}
    for folder in _subfolders(root):
        for role, words in ROLE_WORDS.items():
            if folder.name.lower() in words:
                if role in found:
                    raise DataError(f"{root}: both {found[role].name} and {folder.name}; keep one")
                found[role] = folder
    if "train" not in found:
        return {"train": root}
    if "validation" in found:
        found["dev" if "test" in found else "test"] = found.pop("validation")
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_names(train: Path) -> tuple[str, ...]:
    names = tuple(folder.name for folder in _subfolders(train))
    if not names:
        images = sum(1 for p in train.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        raise DataError(
            f"{train}: no class folders ({images} images lie directly in it); "
            "put each class's images into a folder named after the class"
        )
    return names


def _items(root: Path, folder: Path, class_names: Sequence[str]) -> list[ImageItem]:
    unknown = [p.name for p in _subfolders(folder) if p.name not in class_names]
    if unknown:
        raise DataError(f"{folder}: classes {', '.join(unknown[:5])} are not in the train folder")
    items = []
    for label, name in enumerate(class_names):
        files = list(_images(folder / name, ())) if (folder / name).is_dir() else []
        if not files and folder.name.lower() not in ROLE_WORDS["validation"] | ROLE_WORDS["test"]:
            raise DataError(f"{folder / name}: no images in this class folder; fill or remove it")
        items += [ImageItem(f.relative_to(root).as_posix(), label, f.read_bytes) for f in files]
    if not items:
        raise DataError(f"{folder}: no images in its class folders")
    return items


def _images(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """Image files below a folder, in order of name; follows links, refuses loops of them."""
    real = os.path.realpath(folder)
    if real in above:
        raise DataError(f"{folder}: a symbolic link to a folder above it; remove the loop")
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _images(entry, (*above, real))
        elif entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            yield entry


def _cut_test(items: Sequence[ImageItem], fraction: float) -> dict[str, list[ImageItem]]:
    if not 0 < fraction < 1:
        raise DataError(f"test fraction {fraction}: must be between 0 and 1")
    labels = np.array([item.label for item in items], dtype=np.int64)
    index = np.arange(len(items), dtype=np.int64)
    order = stratified_order(labels, index, IMPORT_SEED, Stream.DEV_SPLIT)
    chosen = set(order[: max(1, round(len(items) * fraction))].tolist())
    train = [item for i, item in enumerate(items) if i not in chosen]
    if not train:
        raise DataError(f"{len(items)} images are too few to cut a test split from")
    return {"train": train, "test": [item for i, item in enumerate(items) if i in chosen]}


# CIFAR


def _cifar_folder(path: Path) -> Path | None:
    for folder in (path, *sorted(path.glob("cifar-*"))):
        if (folder / "data_batch_1").is_file():
            return folder
        if all((folder / name).is_file() for name in ("train", "test", "meta")):
            return folder
    return None


def _read_members(source: Path) -> dict[str, bytes]:
    """Files of the archive or folder by base name, in memory."""
    if source.is_dir():
        folder = _cifar_folder(source)
        if folder is None:
            raise DataError(f"{source}: no data_batch_1 and no train, test, meta: not CIFAR")
        return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    try:
        with tarfile.open(source) as archive:
            members = [m for m in archive.getmembers() if not m.isdir()]
            for member in members:
                _check_member(source, member)
            found = {PurePosixPath(m.name).name: archive.extractfile(m) for m in members}
            return {name: file.read() for name, file in found.items() if file is not None}
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{source}: not a readable tar archive ({error})") from error


def _check_member(source: Path, member: tarfile.TarInfo) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or not member.isfile():
        raise DataError(f"{source}: member {member.name!r} points outside: not a CIFAR archive")
    if member.size > MAX_MEMBER_BYTES:
        raise DataError(f"{source}: member {member.name!r} of {member.size} bytes is not CIFAR's")


class _SafeUnpickler(pickle.Unpickler):
    """Admits what CIFAR's pickles contain, so that a hostile one cannot run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which no CIFAR archive does"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _unpickle(members: Mapping[str, bytes], name: str) -> dict[bytes, object]:
    if name not in members:
        raise DataError(f"no file {name}: not a CIFAR-10 or CIFAR-100 python archive")
    try:
        content = _SafeUnpickler(io.BytesIO(members[name]), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{name}: not a CIFAR pickle: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{name}: holds a {type(content).__name__}, not CIFAR's dictionary")
    return content


def _entry(content: Mapping[bytes, object], key: bytes, kind: type, name: str) -> Any:
    value = content.get(key)
    if not isinstance(value, kind):
        raise DataError(f"{name}: {key.decode()} is missing or no {kind.__name__}: not CIFAR")
    return value


def _cifar_items(
    content: Mapping[bytes, object], name: str, labels_key: bytes, num_classes: int
) -> list[ImageItem]:
    pixels: npt.NDArray[np.uint8] = _entry(content, b"data", np.ndarray, name)
    labels = _entry(content, labels_key, list, name)
    shape = (len(labels), 3 * CIFAR_SIDE**2)
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise DataError(f"{name}: data is {pixels.dtype} {pixels.shape}, expected uint8 {shape}")
    if not all(isinstance(label, int) and 0 <= label < num_classes for label in labels):
        raise DataError(f"{name}: labels outside 0..{num_classes - 1}")
    names = [f"{name}-{i}.png".encode() for i in range(len(labels))]
    if content.get(b"filenames"):
        names = _entry(content, b"filenames", list, name)
    images = pixels.reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE).transpose(0, 2, 3, 1)
    return [
        ImageItem(_text(file), label, _png_reader(image))
        for file, label, image in zip(names, labels, images, strict=True)
    ]


def _png_reader(image_HWC: npt.NDArray[np.uint8]) -> Callable[[], bytes]:
    def read() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image_HWC)).save(buffer, "PNG")
        return buffer.getvalue()

    return read


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
