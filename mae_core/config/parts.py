"""The parts that recipes are made of: networks, data, augmentation, optimizer, learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from mae_core.config.base import (
    DOTTED,
    EXECUTION,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Duration,
    require,
    require_no_secret,
)
from mae_core.config.execution import Execution


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Shape of the ViT encoder (paper section 3; ViT: arXiv 2010.11929)."""

    width: int
    """Token width; divisible by 4 (2-D sin-cos positions) and by `num_heads`."""
    depth: int
    """Number of pre-LN blocks."""
    num_heads: int
    """Attention heads."""
    patch_size: int
    """Side of a square patch in pixels."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP over `width`."""
    norm_eps: float = 1e-6
    """Added to the variance by every LN; some imported encoders have 1e-12."""
    name: str = field(default="", metadata=EXECUTION)
    """Name for people, such as `B`; the numbers above are the identity."""

    def __post_init__(self) -> None:
        _check_transformer("encoder", self.width, self.depth, self.num_heads)
        require(self.patch_size >= 1, f"patch size {self.patch_size}: must be ≥ 1")
        require(self.norm_eps > 0, f"norm_eps {self.norm_eps}: must be > 0")
        ratio = self.mlp_ratio
        require(
            math.isfinite(ratio) and self.width * ratio >= 1,
            f"mlp_ratio {ratio}: must be a number above 0, such as 4",
        )


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of the decoder (paper section 3, Table 1a, 1b: 8 blocks of width 512)."""

    width: int = 512
    depth: int = 8
    num_heads: int = 16
    """Attention heads; 16 in the paper's code."""

    def __post_init__(self) -> None:
        _check_transformer("decoder", self.width, self.depth, self.num_heads)


def _check_transformer(part: str, width: int, depth: int, num_heads: int) -> None:
    require(width >= 4 and depth >= 1 and num_heads >= 1, f"{part} {width}x{depth}: too small")
    require(
        width % num_heads == 0,
        f"{part} width {width} is not divisible by its {num_heads} heads; "
        f"choose a multiple of {num_heads}",
    )
    require(
        width % 4 == 0,
        f"{part} width {width} is not divisible by 4, which 2-D sin-cos positions need",
    )


CHANNELS = (1, 3)
"""What readers give: grey or RGB."""
SMALL_IMAGE = 128
"""Pixels of a side; sets below are evaluated on whole images."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, cut how. The path is execution; the fingerprint of the samples is science."""

    path: str = field(metadata=EXECUTION)
    """`digits`, a folder or file of Parquet, or a URI that `pyarrow.fs` opens (s3://, gs://)."""
    image_size: int = 224
    """Side in pixels of what the network sees."""
    num_channels: int = 3
    pixel_mean: tuple[float, ...] = IMAGENET_MEAN
    """Per channel, of pixels scaled to 0..1."""
    pixel_std: tuple[float, ...] = IMAGENET_STD
    eval_crop: float | None = None
    """Side of the central window that an evaluation sees, over the image's short side; None = by
    `image_size` alone: 224/256 from 128 to 224 pixels, 1 above (the paper's code) and below, where
    sets are small images (CIFAR, digits) without a margin to spare. One rule for a whole set."""
    split_seed: int = 0
    """Which of the stratified splits, where the source has no test split of its own (digits)."""
    dev_fraction: float = 0.0
    """Share of train held out as dev where the source brings none; 0 = no dev split."""
    train_fraction: float = 1.0
    """Share of train that is used, class-balanced; a smaller share lies within a larger one."""
    subset_seed: int = 0
    """Which of the nested subsets `train_fraction` takes."""
    expected_images: int | None = field(default=None, metadata=EXECUTION)
    """Training images, for planning before the data is at hand."""
    expected_classes: int | None = field(default=None, metadata=EXECUTION)
    """Number of classes, for planning before the data is at hand."""

    def __post_init__(self) -> None:
        require(bool(self.path.strip()), "data.path is empty: name a folder, a file or `digits`")
        require_no_secret(self.path, "data.path")
        require(self.image_size >= 1, f"image size {self.image_size}: must be ≥ 1")
        crop = self.eval_crop
        require(crop is None or 0.1 <= crop <= 1, f"eval_crop {crop}: must be 0.1 to 1, or none")
        require(0 <= self.dev_fraction < 1, f"dev fraction {self.dev_fraction}: must be in [0, 1)")
        share = self.train_fraction
        require(0 < share <= 1, f"train fraction {share}: must be in (0, 1]")
        channels = (self.num_channels, len(self.pixel_mean), len(self.pixel_std))
        require(
            len(set(channels)) == 1,
            f"num_channels {channels[0]} with {channels[1]} pixel means and {channels[2]} stds: "
            "must be equal",
        )
        for name, values in (("mean", self.pixel_mean), ("std", self.pixel_std)):
            require(all(map(math.isfinite, values)), f"pixel_{name} {values}: use finite numbers")
        require(min(self.pixel_std) > 0, f"pixel_std {self.pixel_std}: each must be > 0")

    def check_channels(self) -> None:
        """Refuse (`ConfigError`) channels that no reader gives; a network may have them."""
        require(
            self.num_channels in CHANNELS,
            f"num_channels {self.num_channels}: images are read as 1 (grey) or 3 (RGB)",
        )

    @property
    def evaluation_crop(self) -> float:
        """`eval_crop`, or what stands for it."""
        if self.eval_crop is not None:
            return self.eval_crop
        return 224 / 256 if SMALL_IMAGE <= self.image_size <= 224 else 1.0


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random resized crop and flip (paper Table 1e); drawn per (seed, epoch, sample index)."""

    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    """Area of the crop over the image's; None = no random crop (resize + centre crop)."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the crop, drawn log-uniformly."""
    crop_misfit: Literal["retry", "clip"] = "retry"
    """A crop that is longer than a side of the image: draw again, up to ten times (torchvision),
    or cut it to the side (the paper's linear probe)."""
    flip: bool = True
    """Horizontal flip with probability ½."""
    fixed_crop_margin: float | None = None
    """Crop of fixed size (Table 1e): the short side becomes margin × the image size, then a
    window is cut at random; instead of `crop_scale`."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation (Table 1e: 0.4); 0 = none."""
    custom: str | None = field(default=None, metadata=DOTTED)
    """Custom augmentation, after the others: `module:function` (see `docs/extending.md`)."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale or (1.0, 1.0)
        require(0 < low <= high <= 1, f"crop scale {self.crop_scale}: must satisfy 0 < a ≤ b ≤ 1")
        margin, jitter = self.fixed_crop_margin, self.color_jitter
        narrow, wide = self.crop_aspect
        require(
            0 < narrow <= wide < math.inf,
            f"crop aspect {self.crop_aspect}: must satisfy 0 < a ≤ b",
        )
        if margin is not None:
            require(
                margin >= 1, f"fixed_crop_margin {margin}: must be ≥ 1, such as 1.143 (256/224)"
            )
            require(self.crop_scale is None, "fixed_crop_margin needs crop_scale none: one crop")
        require(0 <= jitter <= 1, f"color_jitter {jitter}: must be in [0, 1]")

    @property
    def crops(self) -> bool:
        """True if a part of the image is cut out at random."""
        return self.crop_scale is not None or self.fixed_crop_margin is not None

    @property
    def is_deterministic(self) -> bool:
        """True if a sample looks the same in every epoch."""
        return not (self.crops or self.flip or self.color_jitter or self.custom)


NO_AUGMENTATION = AugmentationConfig(crop_scale=None, flip=False)
SUPERVISED_CROP = AugmentationConfig(crop_scale=(0.08, 1.0))
"""What training with labels sees, unlike pretraining: Inception's crop (the paper's code)."""
PROBE_CROP = AugmentationConfig(crop_scale=(0.08, 1.0), crop_misfit="clip")
"""What the paper's linear probe sees."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer with linear lr scaling: lr = base_lr · global_batch / 256 (Goyal et al. 2017)."""

    name: Literal["adamw", "lars", "sgd"] = "adamw"
    base_lr: float = 1.5e-4
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW only (paper Table 8)."""
    momentum: float = 0.9
    """LARS and SGD only (paper Table 10)."""
    weight_decay: float = 0.05
    """Not applied to biases and other 1-D parameters."""
    clip_grad_norm: float | None = None
    """Global gradient norm; None = no clipping, as in the paper."""

    def __post_init__(self) -> None:
        for name in ("base_lr", "weight_decay"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} {value}: must be a number ≥ 0")
        for name, values in (("betas", self.betas), ("momentum", (self.momentum,))):
            require(
                all(0 <= value < 1 for value in values),
                f"{name} {getattr(self, name)}: must be in [0, 1)",
            )
        clip = self.clip_grad_norm
        require(clip is None or clip > 0, f"clip_grad_norm {clip}: must be > 0, or none")

    def check_execution(self, execution: Execution) -> None:
        """Refuse (`ConfigError`) LARS on weights that ZeRO has cut into flat pieces.

        It would find vectors only, which it neither adapts nor decays: plain SGD, in silence.
        """
        require(
            self.name != "lars" or execution.zero_stage == 0,
            f"LARS needs whole layers, and ZeRO stage {execution.zero_stage} divides them: use "
            "execution.zero_stage=0",
        )

    def lr(self, global_batch: int) -> float:
        """Peak learning rate."""
        return self.base_lr * global_batch / 256


@dataclass(frozen=True, kw_only=True)
class LrScheduleConfig:
    """Linear warm-up, then half a cosine to `min_lr`, per iteration (paper Table 8)."""

    warmup: Duration = field(default_factory=lambda: Duration.epochs(40))
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.min_lr < math.inf, f"min_lr {self.min_lr}: must be a number ≥ 0")


def check_global_batch(global_batch: int) -> None:
    """Refuse a global batch below one image."""
    require(global_batch >= 1, f"global batch {global_batch}: must be ≥ 1")


def num_patches(image_size: int, patch_size: int) -> int:
    """Patches of a square image."""
    return (image_size // patch_size) ** 2


def num_keep(patches: int, mask_ratio: float) -> int:
    """Visible patches: floor(patches · (1 − ratio)) in exact decimals.

    Binary floats would keep 19 of 100 at 0.8; the decimal that was written keeps 20.
    """
    require(0 <= mask_ratio <= 1, f"mask ratio {mask_ratio}: must be in (0, 1)")
    return math.floor(patches * (1 - Fraction(repr(float(mask_ratio)))))


def check_patches(data: DataConfig, encoder: EncoderConfig) -> None:
    """Refuse images that do not divide into patches."""
    require(
        data.image_size % encoder.patch_size == 0,
        f"image size {data.image_size} is not divisible by the patch size {encoder.patch_size}: "
        f"choose a multiple of {encoder.patch_size}, or another patch size",
    )


def check_takes(data: DataConfig, encoder: EncoderConfig, of: DataConfig) -> None:
    """Refuse images of another size or channel count than those (`of`) an encoder was made for."""
    check_patches(data, encoder)
    require(
        data.image_size == of.image_size,
        f"the encoder takes images of {of.image_size} px, and these have {data.image_size} px: a "
        "frozen encoder is judged at its own size; set data.image_size alike, or fine-tune",
    )
    check_channels(data, of)


def check_channels(data: DataConfig, of: DataConfig) -> None:
    """Refuse images of another channel count than an encoder's."""
    require(
        data.num_channels == of.num_channels,
        f"the encoder takes {of.num_channels} channels, and these images have "
        f"{data.num_channels}: set data.num_channels alike",
    )


def check_spread(patch_size: int, num_channels: int) -> None:
    """Refuse patches of one value, which have no variance to be normalised by."""
    require(
        patch_size**2 * num_channels > 1,
        "a patch of one value cannot be normalised (its variance is of one number, the loss would "
        "be NaN): use larger patches or norm_pix_loss=false",
    )
