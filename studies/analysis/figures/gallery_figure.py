"""Reconstructions as one picture: originals, masked images, and what each network makes of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from studies.analysis.figures.drawing import Drawing, finish, new_figure, style

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    Array = np.ndarray[Any, np.dtype[Any]]

_MAX_GALLERY_IMAGES = 8


_TILE_PX = 72


@dataclass(frozen=True, kw_only=True)
class GalleryEntry:
    """Reconstructions of one cell: an npz with images, mask, reconstruction and note."""

    cell: str
    label: str
    path: Path


@style()
def gallery(entries: Sequence[GalleryEntry], name: str) -> tuple[Drawing | None, list[str]]:
    """Original, masked and reconstructed images; and a line for each file that was no use."""
    loaded, problems = [], []
    for entry in entries:
        try:
            loaded.append((entry, _load(entry.path)))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            problems.append(f"{entry.label} ({entry.cell}): {error}")
    if not loaded:
        return None, problems
    columns, notes = _gallery_columns(loaded)
    caption = "One row per image. Grey patches were hidden from the encoder. " + " ".join(notes)
    return finish(_tile(columns), name, caption), problems


def _load(path: Path) -> dict[str, Array]:
    """The arrays of one gallery file, checked. Raises ValueError where shapes disagree."""
    import numpy as np

    with np.load(path, allow_pickle=False) as data:
        found = {key: np.asarray(data[key]) for key in ("images", "mask", "reconstruction")}
        found["note"] = np.asarray(data["note"] if "note" in data else "")
    images, mask, count = found["images"], found["mask"], len(found["images"])
    if images.ndim != 4 or images.shape[3] not in (1, 3) or count == 0:
        raise ValueError(f"images must be (n, H, W, 1 or 3) with n >= 1, got {images.shape}")
    if found["reconstruction"].shape != images.shape:
        raise ValueError(f"reconstruction is {found['reconstruction'].shape}, not {images.shape}")
    if mask.ndim != 2 or len(mask) != count:
        raise ValueError(f"mask must be ({count}, patches), got {mask.shape}")
    _patch_side(images.shape[1], images.shape[2], mask.shape[1])
    return found


def _patch_side(height: int, width: int, patches: int) -> int:
    """Pixels along a square patch, from the number of patches."""
    side = math.isqrt(height * width // max(patches, 1))
    if side == 0 or (height // side) * (width // side) != patches or height % side or width % side:
        raise ValueError(f"{patches} patches do not tile an image of {height} x {width}")
    return side


def _masked(images: Array, mask: Array) -> Array:
    """Images with hidden patches in grey."""
    import numpy as np

    _, height, width, _ = images.shape
    side = _patch_side(height, width, mask.shape[1])
    hidden = mask.reshape(-1, height // side, width // side).astype(bool)
    hidden = hidden.repeat(side, axis=1).repeat(side, axis=2)[..., None]
    return np.where(hidden, 0.6, images)


def _gallery_columns(
    loaded: Sequence[tuple[GalleryEntry, dict[str, Array]]],
) -> tuple[list[tuple[str, Array]], list[str]]:
    """(title, images) per column; originals and masks are repeated only where they differ."""
    import numpy as np

    columns: list[tuple[str, Array]] = []
    before: dict[str, Array] = {}
    notes: dict[str, None] = {}
    for entry, data in loaded:
        same = bool(before) and np.array_equal(before["images"], data["images"])
        if not same:
            columns.append(("original", data["images"]))
        if not same or not np.array_equal(before["mask"], data["mask"]):
            share = 100 * float(data["mask"].astype(bool).mean())
            columns.append((f"{share:.0f}% masked", _masked(data["images"], data["mask"])))
        columns.append((entry.label, data["reconstruction"]))
        if note := str(data["note"]).strip():
            notes.setdefault(note[0].upper() + note[1:].rstrip(".") + ".")
        before = data
    return columns, list(notes)


def _tile(columns: Sequence[tuple[str, Array]]) -> Figure:
    """One picture of all columns: fewer objects in the page than an axes per image."""
    import numpy as np

    rows, gap = min(_MAX_GALLERY_IMAGES, max(len(images) for _, images in columns)), 4
    step = _TILE_PX + gap
    sheet = np.ones((rows * step - gap, len(columns) * step - gap, 3))
    for c, (_, images) in enumerate(columns):
        for r, image in enumerate(images[:rows]):
            tile = _resized(np.clip(np.nan_to_num(image.astype(np.float64)), 0.0, 1.0))
            sheet[r * step : r * step + _TILE_PX, c * step : c * step + _TILE_PX] = tile
    labels = [textwrap.fill(title, 11) for title, _ in columns]
    heading = 0.15 + 0.14 * max(label.count("\n") + 1 for label in labels)
    inch = 0.78
    figure = new_figure(inch * len(columns) + 0.1, inch * rows + heading)
    axes = figure.add_subplot()
    axes.imshow(sheet, interpolation="none")
    axes.xaxis.tick_top()
    axes.set_xticks([c * step + _TILE_PX / 2 for c in range(len(columns))], labels)
    axes.tick_params(length=0, labelsize=8)
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def _resized(image: Array) -> Array:
    """Nearest-neighbour copy with the gallery's tile size; small images stay crisp."""
    import numpy as np

    rows = np.arange(_TILE_PX) * image.shape[0] // _TILE_PX
    columns = np.arange(_TILE_PX) * image.shape[1] // _TILE_PX
    return np.broadcast_to(image[rows][:, columns], (_TILE_PX, _TILE_PX, 3))
