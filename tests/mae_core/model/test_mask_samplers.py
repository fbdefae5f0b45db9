"""Mask sampling: exact counts over many draws, shapes of blocks and grids, one's own sampler."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mae_core.config import DataConfig, MaskConfig, PretrainRecipe, num_keep
from mae_core.errors import ConfigError
from mae_core.model import sizes
from mae_core.model.mask_samplers import MaskDraw, beit_blocks, block_noise, mask_sampler
from mae_core.model.masking import random_masking
from mae_core.runtime import plugins

DATA = DataConfig(path="digits", image_size=224)
RECIPE = PretrainRecipe(data=DATA, encoder=sizes.encoder("B"))
DRAWS = 10_000
Drawn = tuple[np.ndarray, int]


def masks(recipe: PretrainRecipe, count: int = DRAWS, epoch: int = 0) -> torch.Tensor:
    """Masks of `count` images, (N, G, G) bool, True = hidden."""
    index = np.arange(count, dtype=np.int64)
    noise = mask_sampler(recipe)(np.full(count, epoch, dtype=np.int64), index)
    side = recipe.data.image_size // recipe.encoder.patch_size
    return masks_of(noise, side, num_keep(recipe.num_patches, recipe.mask_ratio))


def masks_of(noise: torch.Tensor, side: int, kept: int) -> torch.Tensor:
    """Masks by noise, (N, G, G) bool, True = hidden."""
    return random_masking(noise, kept)[2].bool().view(-1, side, side)


def with_mask(sampling: str, ratio: float = 0.75, **fields: float) -> PretrainRecipe:
    config = MaskConfig(sampling=sampling, **fields)  # type: ignore[arg-type]
    return replace(RECIPE, mask=config, mask_ratio=ratio)


@pytest.mark.parametrize(
    ("sampling", "ratio"),
    [("random", 0.75), ("random", 0.6), ("block", 0.75), ("block", 0.5), ("block", 0.4)]
    + [("grid", 0.75)],
)
def test_every_image_hides_exactly_as_many(sampling: str, ratio: float) -> None:
    hidden = masks(with_mask(sampling, ratio))
    expected = 196 - num_keep(196, ratio)
    assert set(hidden.sum(dim=(1, 2)).tolist()) == {expected}


@pytest.mark.parametrize("sampling", ["random", "grid"])
def test_every_patch_is_hidden_equally_often(sampling: str) -> None:
    share = masks(with_mask(sampling)).double().mean(dim=0)
    # Five standard deviations of a proportion of .75 over 10,000 draws.
    assert float((share - 0.75).abs().max()) < 5 * (0.75 * 0.25 / DRAWS) ** 0.5


def test_a_grid_keeps_the_same_corner_of_every_square() -> None:
    visible = ~masks(with_mask("grid"), 1000)
    squares = visible.view(-1, 7, 2, 7, 2).permute(0, 1, 3, 2, 4).reshape(-1, 49, 4)
    assert bool((squares.sum(dim=2) == 1).all())
    assert bool((squares == squares[:, :1]).all())
    assert len({tuple(s.tolist()) for s in squares[:, 0]}) == 4  # every phase occurs


def test_blocks_hide_neighbours() -> None:
    def share_of_hidden_neighbours(hidden: torch.Tensor) -> float:
        pairs = hidden[:, :, 1:] & hidden[:, :, :-1]
        return float(pairs.sum() / hidden[:, :, :-1].sum())

    at_random = share_of_hidden_neighbours(masks(with_mask("random", 0.5), 2000))
    in_blocks = share_of_hidden_neighbours(masks(with_mask("block", 0.5), 2000))
    assert at_random == pytest.approx(0.5, abs=0.01)
    assert in_blocks > 0.8


def published_beit(grid: int, quota: int, minimum: int, rng: random.Random) -> Drawn:
    """BEiT's algorithm 1 with its published parameters, patch by patch: the mask and its blocks."""
    hidden: set[tuple[int, int]] = set()
    blocks = refused = 0
    while len(hidden) < quota and refused < 10:
        left = quota - len(hidden)
        area = rng.uniform(minimum, left)
        aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        refused += 1
        if height < grid and width < grid:
            top, first = rng.randint(0, grid - height), rng.randint(0, grid - width)
            rectangle = itertools.product(range(top, top + height), range(first, first + width))
            new = set(rectangle) - hidden
            if 0 < len(new) <= left:
                hidden |= new
                blocks, refused = blocks + 1, 0
    mask = np.zeros((grid, grid))
    mask[tuple(zip(*hidden, strict=True))] = 1
    return mask, blocks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "ratio", "minimum"), [(14, 0.4, 16), (14, 0.5, 16), (14, 0.75, 16), (8, 0.75, 5)]
)
def test_blocks_are_beits(grid: int, ratio: float, minimum: int) -> None:
    quota = round(grid**2 * ratio)
    rng = random.Random(1)
    drawn = [published_beit(grid, quota, minimum, rng) for _ in range(DRAWS)]
    theirs = np.array([mask for mask, _ in drawn])
    index = np.arange(DRAWS, dtype=np.int64)
    draw = MaskDraw(0, index * 0, index, grid, grid**2 - quota)
    found, num_blocks = beit_blocks(draw, MaskConfig(sampling="block"))
    ours = found.double().numpy()
    # Five standard deviations of a difference of two means over 10,000 draws, patch by patch ...
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 5 * deviation(ours, theirs) + 1e-9).all()
    # ... of neighbours hidden together, of the number of blocks, and of what they fall short.
    for a, b in (
        ((ours[:, 1:] * ours[:, :-1]).mean((1, 2)), (theirs[:, 1:] * theirs[:, :-1]).mean((1, 2))),
        (num_blocks.double().numpy(), np.array([blocks for _, blocks in drawn], dtype=float)),
        (quota - ours.sum((1, 2)), quota - theirs.sum((1, 2))),
    ):
        assert abs(a.mean() - b.mean()) < 5 * deviation(a, b)
    # What completes the quota is less than a patch per image, so no patch is far from BEiT's.
    completed = masks_of(block_noise(draw, MaskConfig(sampling="block")), grid, grid**2 - quota)
    assert set(completed.sum(dim=(1, 2)).tolist()) == {quota}
    assert bool((completed | ~found).all())
    assert (quota - ours.sum((1, 2))).mean() < 0.8
    assert np.abs(completed.double().mean(0).numpy() - theirs.mean(0)).max() < 0.03


def deviation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Standard deviation of the difference of two means over the first axis."""
    return np.sqrt((a.var(0) + b.var(0)) / DRAWS)


def test_small_grids_have_small_blocks() -> None:
    least = MaskConfig(sampling="block").smallest_block
    assert [least(grid) for grid in (2, 4, 8, 12, 14, 16, 32)] == [1, 1, 5, 12, 16, 16, 16]
    assert MaskConfig(sampling="block", min_block=3).smallest_block(14) == 3
    with pytest.raises(ConfigError, match="hides 20 of 196 patches, fewer than the 21"):
        with_mask("block", 0.1, min_block=21)


def test_large_minimum_blocks_and_tiny_grids_still_meet_the_quota() -> None:
    recipe = with_mask("block", 0.9, min_block=100)
    assert set(masks(recipe, 500).sum(dim=(1, 2)).tolist()) == {196 - num_keep(196, 0.9)}
    tiny = replace(with_mask("block"), data=replace(DATA, image_size=32))
    assert set(masks(tiny, 500).sum(dim=(1, 2)).tolist()) == {3}


def test_a_mask_depends_on_seed_epoch_and_index_alone() -> None:
    recipe = with_mask("block")
    draw = mask_sampler(recipe)
    index = np.arange(20, dtype=np.int64)
    epoch = np.full(20, 3, dtype=np.int64)
    whole = draw(epoch, index)
    assert torch.equal(draw(epoch[7:9], index[7:9]), whole[7:9])
    assert not torch.equal(draw(epoch + 1, index), whole)
    assert not torch.equal(mask_sampler(replace(recipe, seed=1))(epoch, index), whole)


OWN = """
import torch

def diagonal(draw):
    place = torch.arange(draw.grid)
    distance = (place[:, None] - place[None, :]).abs().flatten().float()
    return distance.expand(len(draw.index), -1)

def wrong(draw):
    return torch.zeros(len(draw.index), 3)
"""


def test_ones_own_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_masks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    hidden = masks(with_mask("own_masks:diagonal"), 3)
    assert not bool(hidden[:, range(14), range(14)].any())
    with pytest.raises(ConfigError, match=r"of shape \(3, 196\), the lowest 49"):
        masks(with_mask("own_masks:wrong"), 3)
    with pytest.raises(ConfigError, match="has no 'missing'"):
        masks(with_mask("own_masks:missing"), 3)
    with pytest.raises(ConfigError, match="no Python file for module 'nowhere'"):
        masks(with_mask("nowhere:x"), 3)
    assert plugins.import_root("own_masks:diagonal") == tmp_path


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs mask ratio 0.75"):
        with_mask("grid", 0.5)
    with pytest.raises(ConfigError, match="use random, block, grid"):
        MaskConfig(sampling="stripes")
    with pytest.raises(ConfigError, match="min_aspect"):
        MaskConfig(min_aspect=0)
