"""Mixup and CutMix by groups of the global batch, the same at any world size and micro-batch.

Sample i of a global batch of B is mixed with sample (i + B/2) mod B. A batch is in random order,
so this pairs as well as any permutation, and where it beats i ↔ B − 1 − i (a flipped batch) is the
interleaved deal of `data.order`: rank r holds i ≡ r (mod world), so the partner is on the same
rank, half its share of the step further, and nothing is sent or decoded twice. That needs an
even share per rank.
The official recipe mixes the 32 images of a process by one draw and the flipped batch. Here a
group of n takes the place of the process: the samples i with one i mod (B/n). It holds both
samples of a pair, which is the flip of the group whose second half is read backwards. Lambda and
box are keyed by (seed, step, group or pair); every rank draws the same.
Mix after all that happens to a single image, on normalised floats.
Legend: N samples of a rank at a step, C channels, H, W pixels, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.augment.erasing import box_mask
from mae_core.config.augmentation import MixConfig
from mae_core.errors import ConfigError
from mae_core.runtime.keyed_random import F64, Stream, uniform

I64 = npt.NDArray[np.int64]

BETA_TRIES = 128
"""Tries per Beta draw; all are refused with probability below 1e-10 at the largest α."""
DRAWS = 4
"""Other numbers per draw: mix?, CutMix?, and the centre of the box."""


@dataclass(frozen=True, kw_only=True)
class Mix:
    """How N samples are mixed."""

    lam: F64
    """Share of a sample's own label, and of its pixels where it has no box: (N,), 0..1."""
    boxes: I64
    """Top, left, height, width of what CutMix takes from the partner: (N, 4)."""
    uses_box: npt.NDArray[np.bool_]
    """CutMix (true) or mixup (false): (N,)."""


def partner_position(position: I64, global_batch: int) -> I64:
    """Position in the global batch of each sample's partner; an involution.

    Raises:
        ConfigError: the global batch is odd.
    """
    if global_batch % 2:
        raise ConfigError(f"global batch {global_batch}: mixing needs an even number of samples")
    return (position + global_batch // 2) % global_batch


def partner_rows(num_local: int) -> I64:
    """Row of each sample's partner among a rank's samples of a step, in order: int64 (N,).

    Raises:
        ConfigError: the rank's share is odd, so that partners lie on another rank.
    """
    if num_local % 2:
        raise ConfigError(
            f"mixing pairs the {num_local} samples that a rank has of a step: make the global "
            "batch divisible by twice the number of ranks"
        )
    return partner_position(np.arange(num_local, dtype=np.int64), num_local)


def draw_mix(
    config: MixConfig,
    *,
    seed: int,
    step: int,
    positions: I64,
    global_batch: int,
    height: int,
    width: int,
) -> Mix:
    """Draw how the samples at `positions` of the global batch of `step` are mixed.

    Raises:
        ConfigError: the global batch is odd, or does not divide into the groups.
    """
    config.check_batch(global_batch)
    group = np.minimum(positions, partner_position(positions, global_batch))
    if config.level == "batch":
        group = positions % (global_batch // config.group_size)
    group, row = np.unique(group, return_inverse=True)
    draws = uniform(seed, Stream.MIX, step, group, DRAWS + 2 * BETA_TRIES)
    mixes = draws[:, 0] < config.probability
    switch = draws[:, 1] < config.switch_probability
    uses_box = (switch & (config.cutmix_alpha > 0)) | (config.mixup_alpha == 0)
    tries = draws[:, DRAWS:]
    lam = np.where(
        uses_box, beta(config.cutmix_alpha or 1.0, tries), beta(config.mixup_alpha or 1.0, tries)
    )
    boxes = cut_boxes(lam, height, width, draws[:, 2], draws[:, 3])
    lam = np.where(uses_box, 1 - boxes[:, 2] * boxes[:, 3] / (height * width), lam)
    lam = np.where(mixes, lam, 1.0)
    boxes = np.where((mixes & uses_box)[:, None], boxes, 0)
    return Mix(lam=lam[row], boxes=boxes[row], uses_box=uses_box[row])


def mix_images(images_NCHW: Tensor, partners_NCHW: Tensor, mix: Mix) -> Tensor:
    """Mix normalised float images with their partners; returns new images.

    Mixup: λ · own + (1 − λ) · partner. CutMix: the partner's pixels inside the box, the image's own
    outside.
    """
    if not images_NCHW.is_floating_point():
        raise ConfigError(f"images of {images_NCHW.dtype}: mix after normalising")
    blended = partners_NCHW
    if not mix.uses_box.all():
        share = torch.from_numpy(np.where(mix.uses_box, 0.0, mix.lam)).to(images_NCHW)
        blended = torch.lerp(partners_NCHW, images_NCHW, share.view(-1, 1, 1, 1))
    if not mix.uses_box.any():
        return blended
    height, width = images_NCHW.shape[-2:]
    boxes = np.array(mix.boxes)
    partner = box_mask(boxes, height, width, images_NCHW.device)
    mixup = torch.from_numpy(~mix.uses_box).to(images_NCHW.device)
    return torch.where((partner | mixup[:, None, None])[:, None], blended, images_NCHW)


def soft_targets(
    labels_N: Tensor,
    partner_labels_N: Tensor,
    lam_N: F64,
    num_classes: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Target distribution λ · s(own) + (1 − λ) · s(partner): float32 (N, K).

    s gives the label 1 − ε + ε/K and every other class ε/K (Szegedy et al. 2015, section 7).
    """
    lam = torch.from_numpy(np.array(lam_N)).float().to(labels_N.device)[:, None]
    own, partner = (F.one_hot(v, num_classes).float() for v in (labels_N, partner_labels_N))
    floor = label_smoothing / num_classes
    return floor + (1 - label_smoothing) * (lam * own + (1 - lam) * partner)


def cut_boxes(lam: F64, height: int, width: int, centre_y: F64, centre_x: F64) -> I64:
    """CutMix's box: √(1 − λ) of both sides about a uniform centre, cut at the border: (n, 4)."""
    side = np.sqrt(1 - lam)
    top, box_height = _span(height, (height * side).astype(np.int64), centre_y)
    left, box_width = _span(width, (width * side).astype(np.int64), centre_x)
    return np.stack([top, left, box_height, box_width], axis=1)


def _span(size: int, length: I64, centre: F64) -> tuple[I64, I64]:
    middle = (centre * size).astype(np.int64)
    start = np.clip(middle - length // 2, 0, size)
    return start, np.clip(middle + length // 2, 0, size) - start


def beta(alpha: float, draws: F64) -> F64:
    """Beta(α, α) by Jöhnk's method (1964): draws (n, 2 · tries) in [0, 1) → float64 (n,).

    Of pairs x = u^(1/α), y = v^(1/α) the first with x + y ≤ 1 gives x / (x + y).
    """
    x, y = (part ** (1 / alpha) for part in np.split(draws, 2, axis=1))
    accepted = ((x + y <= 1) & (x + y > 0)).argmax(axis=1)[:, None]
    x, y = np.take_along_axis(x, accepted, 1)[:, 0], np.take_along_axis(y, accepted, 1)[:, 0]
    share: F64 = x / (x + y)
    return share
