"""Recipes as frozen data: what one stage computes (science) and how (execution).

This module imports nothing heavy: studies, `plan` and `--help` load it. A field carries a string
below it with its meaning, unit and source; impossible values are refused on construction.
Paper = arXiv 2111.06377.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar, Literal

from mae_core.errors import ConfigError

EXECUTION: dict[str, bool] = {"execution": True}
"""Field metadata: the field changes how a result is computed, never the result."""

Precision = Literal["fp32", "bf16"]
FeatureKind = Literal["cls", "mean", "pixels"]
EvalSplit = Literal["dev", "test"]

ENCODER_FILE = "encoder.safetensors"  # what evaluations read
DECODER_FILE = "decoder.safetensors"
STATE_FILE = "state.json"
GALLERY_FILE = "gallery.npz"
"""Output of a pretraining that the report draws: images, masks, reconstructions."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class Duration:
    """How long to train. Zero is allowed and means an untrained network."""

    value: float
    """Amount, ≥ 0, in `unit`."""
    unit: Literal["epochs", "steps", "images"]
    """An epoch drops the last incomplete global batch, as the paper's code does."""

    SHORT: ClassVar[dict[str, str]] = {"epochs": "ep", "steps": "st", "images": "img"}

    def __post_init__(self) -> None:
        require(self.unit in self.SHORT, f"duration unit {self.unit!r}: use epochs, steps, images")
        ok = math.isfinite(self.value) and self.value >= 0
        require(ok, f"duration of {self.value} {self.unit}: must be a finite number ≥ 0")

    @classmethod
    def epochs(cls, value: float) -> Duration:
        """`value` passes over the training set."""
        return cls(value, "epochs")

    @classmethod
    def steps(cls, value: float) -> Duration:
        """`value` optimizer updates."""
        return cls(value, "steps")

    @classmethod
    def images(cls, value: float) -> Duration:
        """`value` images seen, rounded down to whole global batches."""
        return cls(value, "images")

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `800ep`, `5000st`, `1000000img` or the long form `800 epochs`."""
        for unit, short in cls.SHORT.items():
            for suffix in (unit, short):
                head = text.strip().removesuffix(suffix).strip()
                if head != text.strip():
                    try:
                        return cls(float(head), unit)  # type: ignore[arg-type]
                    except ValueError:
                        break
        raise ConfigError(f"duration {text!r}: write a number and ep, st or img, such as 800ep")

    def num_steps(self, *, num_images: int, global_batch: int, may_be_zero: bool = False) -> int:
        """Optimizer updates for a training set of `num_images` (Duration → int).

        A duration above 0 that rounds to no step is refused, unless it `may_be_zero` (a warm-up).
        """
        steps_per_epoch = num_images // global_batch
        if self.value == 0:
            return 0
        require(
            steps_per_epoch > 0 or self.unit != "epochs",
            f"global batch {global_batch} is larger than the training set of {num_images} images: "
            "an epoch would have no step; lower the global batch",
        )
        if self.unit == "steps":
            steps = round(self.value)
        elif self.unit == "images":
            steps = int(self.value) // global_batch
        else:
            steps = round(self.value * steps_per_epoch)
        require(
            steps > 0 or may_be_zero,
            f"duration {self} is less than one step at a global batch of {global_batch}: the "
            "network would stay untrained; train longer, lower the global batch, or write 0 for "
            "an untrained network",
        )
        return steps

    def __str__(self) -> str:
        """Short form, `800ep`; exact, so that `parse` gives the same duration back."""
        value = int(self.value) if float(self.value).is_integer() else self.value
        return f"{value}{self.SHORT[self.unit]}"


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
    name: str = field(default="", metadata=EXECUTION)
    """Name for people, such as `B`; the numbers above are the identity."""

    def __post_init__(self) -> None:
        _check_transformer("encoder", self.width, self.depth, self.num_heads)
        require(self.patch_size >= 1, f"patch size {self.patch_size}: must be ≥ 1")


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
    split_seed: int = 0
    """Which of the stratified splits, where the source has no test split of its own (digits)."""
    dev_fraction: float = 0.0
    """Share of train held out as dev where the source brings none; 0 = no dev split."""
    expected_images: int | None = field(default=None, metadata=EXECUTION)
    """Training images, for planning before the data is at hand."""
    expected_classes: int | None = field(default=None, metadata=EXECUTION)
    """Number of classes, for planning before the data is at hand."""

    def __post_init__(self) -> None:
        require(bool(self.path.strip()), "data.path is empty: name a folder, a file or `digits`")
        require(self.image_size >= 1, f"image size {self.image_size}: must be ≥ 1")
        require(0 <= self.dev_fraction < 1, f"dev fraction {self.dev_fraction}: must be in [0, 1)")
        channels = (self.num_channels, len(self.pixel_mean), len(self.pixel_std))
        require(
            len(set(channels)) == 1,
            f"num_channels {channels[0]} with {channels[1]} pixel means and {channels[2]} stds: "
            "must be equal",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Random resized crop and flip (paper Table 1e); drawn per (seed, epoch, sample index)."""

    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    """Area of the crop over the image's; None = no random crop (resize + centre crop)."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height of the crop, drawn log-uniformly."""
    flip: bool = True
    """Horizontal flip with probability ½."""

    def __post_init__(self) -> None:
        low, high = self.crop_scale or (1.0, 1.0)
        require(0 < low <= high <= 1, f"crop scale {self.crop_scale}: must satisfy 0 < a ≤ b ≤ 1")

    @property
    def is_deterministic(self) -> bool:
        """True if a sample looks the same in every epoch."""
        return self.crop_scale is None and not self.flip


NO_AUGMENTATION = AugmentationConfig(crop_scale=None, flip=False)


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
        require(self.base_lr >= 0, f"base_lr {self.base_lr}: must be ≥ 0")
        require(self.weight_decay >= 0, f"weight decay {self.weight_decay}: must be ≥ 0")

    def lr(self, global_batch: int) -> float:
        """Peak learning rate."""
        return self.base_lr * global_batch / 256


@dataclass(frozen=True, kw_only=True)
class LrScheduleConfig:
    """Linear warm-up, then half a cosine to `min_lr`, per iteration (paper Table 8)."""

    warmup: Duration = field(default_factory=lambda: Duration.epochs(40))
    min_lr: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every stage's recipe has."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1
    """Raise it when a bug fix changes this stage kind's results: old results become stale."""

    data: DataConfig
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Recipe):
    """MAE pretraining (paper Table 8)."""

    KIND: ClassVar[str] = "pretrain"

    encoder: EncoderConfig
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    mask_ratio: float = 0.75
    """Share of patches hidden from the encoder (paper Fig. 5)."""
    norm_pix_loss: bool = True
    """Predict pixels normalised per patch (paper Table 1d)."""
    duration: Duration = field(default_factory=lambda: Duration.epochs(800))
    global_batch: int = 4096
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: LrScheduleConfig = field(default_factory=LrScheduleConfig)
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        _check_patches(self.data, self.encoder)
        check_global_batch(self.global_batch)
        kept = num_keep(self.num_patches, self.mask_ratio)
        require(
            0 < kept < self.num_patches,
            f"mask ratio {self.mask_ratio} keeps {kept} of {self.num_patches} patches: "
            "at least one must stay visible and one must be masked",
        )

    @property
    def num_patches(self) -> int:
        """Patches per image."""
        return num_patches(self.data.image_size, self.encoder.patch_size)


@dataclass(frozen=True, kw_only=True)
class EvalRecipe(Recipe):
    """What every evaluation's recipe has."""

    features: FeatureKind = "cls"
    """Class token, mean of patch tokens (both after the final LN), or raw pixels (no encoder)."""
    num_labels: int | None = None
    """Labelled training images in all, class-balanced, drawn by `label_seed`; None = all."""
    label_seed: int = 0
    eval_split: EvalSplit = "test"
    """`dev` for anything that is selected on; `test` is scored once, by the chosen."""


@dataclass(frozen=True, kw_only=True)
class KnnRecipe(EvalRecipe):
    """Weighted k-nearest neighbours on frozen features (Wu et al. 2018, arXiv 1805.01978)."""

    KIND: ClassVar[str] = "knn"

    features: FeatureKind = "mean"
    k: int = 20
    metric: Literal["cosine"] = "cosine"
    temperature: float = 0.07
    """Votes weigh exp(similarity / temperature)."""

    def __post_init__(self) -> None:
        require(self.k >= 1, f"k = {self.k}: must be ≥ 1")
        require(self.temperature > 0, f"temperature {self.temperature}: must be > 0")


@dataclass(frozen=True, kw_only=True)
class LinearProbeRecipe(EvalRecipe):
    """Affine-free BatchNorm and one linear layer on a frozen encoder (paper Table 10, A.1)."""

    KIND: ClassVar[str] = "linear_probe"

    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    duration: Duration = field(default_factory=lambda: Duration.epochs(90))
    global_batch: int = 16384
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="lars", base_lr=0.1, weight_decay=0.0)
    )
    lr_schedule: LrScheduleConfig = field(
        default_factory=lambda: LrScheduleConfig(warmup=Duration.epochs(10))
    )

    def __post_init__(self) -> None:
        check_global_batch(self.global_batch)


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(EvalRecipe):
    """End-to-end fine-tuning of the encoder (paper Table 9)."""

    KIND: ClassVar[str] = "finetune"

    features: FeatureKind = "mean"
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    duration: Duration = field(default_factory=lambda: Duration.epochs(100))
    global_batch: int = 1024
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(base_lr=1e-3, betas=(0.9, 0.999))
    )
    lr_schedule: LrScheduleConfig = field(
        default_factory=lambda: LrScheduleConfig(warmup=Duration.epochs(5), min_lr=1e-6)
    )
    layer_decay: float = 0.75
    """Learning rate of layer i is scaled by layer_decay^(depth + 1 − i)."""
    drop_path: float = 0.1
    """Stochastic depth rate of the last block, linear from 0 (paper Table 9)."""
    label_smoothing: float = 0.1
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_global_batch(self.global_batch)
        require(self.features != "pixels", "fine-tuning needs an encoder: features cls or mean")
        require(0 <= self.drop_path < 1, f"drop path {self.drop_path}: must be in [0, 1)")
        require(0 < self.layer_decay <= 1, f"layer decay {self.layer_decay}: must be in (0, 1]")


AnyRecipe = PretrainRecipe | KnnRecipe | LinearProbeRecipe | FinetuneRecipe
RECIPES: dict[str, type[Any]] = {
    r.KIND: r for r in (PretrainRecipe, KnnRecipe, LinearProbeRecipe, FinetuneRecipe)
}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a stage is computed. Never part of its identity."""

    world_size: int = 1
    """Ranks of the gang."""
    micro_batch: int | None = None
    """Images per rank per forward; None = the largest divisor of global/world up to 256."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    loader_threads: int = 2
    """Threads that decode images on each rank; 0 = in the training thread."""
    checkpoint_every_s: float = 600.0
    """Seconds between checkpoints inside a pretraining or fine-tuning."""
    checkpoint_every_steps: int | None = None
    """Steps between checkpoints, instead of seconds."""
    record_state: bool = False
    """Save after the last step too, and leave its digests with the outputs (`state.json`)."""
    min_world_size: int | None = None
    """Elastic: the gang may shrink to any size from this on that divides the global batch."""
    on_numerics: Literal["stop", "rollback"] = "rollback"
    """After a loss that is not finite, or a spike: give up, or go back to an older checkpoint."""
    numerics_retries: int = 2
    """Rollbacks at most; the k-th failure passes over the k newest checkpoints."""
    spike_factor: float | None = None
    """A loss above this multiple of the running median counts as numerics; None = never."""
    keep_checkpoints: int = 2
    """Newest checkpoints to keep of a stage that is not done."""
    grace_s: float = 30.0
    """Seconds that a run which is told to stop has for its last checkpoint."""
    snapshot: Literal["background", "blocking"] = "background"
    """Write checkpoints beside training from a copy, or while training waits."""
    checkpoint_uri: str | None = None
    """Another place for checkpoints, any URI of `pyarrow.fs`; None = in the store."""

    def __post_init__(self) -> None:
        world, low, spike = self.world_size, self.min_world_size, self.spike_factor
        every, uri = self.checkpoint_every_steps, self.checkpoint_uri
        require(world >= 1, f"world size {world}: must be ≥ 1")
        require(self.zero_stage in (0, 1, 2, 3), f"ZeRO stage {self.zero_stage}: use 0, 1, 2 or 3")
        for name in ("loader_threads", "numerics_retries", "grace_s"):
            require(getattr(self, name) >= 0, f"{name} {getattr(self, name)}: must be ≥ 0")
        require(self.keep_checkpoints >= 1, "keep_checkpoints must be ≥ 1")
        require(self.checkpoint_every_s > 0, "checkpoint_every_s must be > 0")
        require(every is None or every >= 1, f"checkpoint_every_steps {every}: must be ≥ 1")
        require(low is None or 1 <= low <= world, f"min_world_size {low}: must be 1 to {world}")
        require(self.on_numerics in ("stop", "rollback"), "on_numerics: use stop or rollback")
        require(spike is None or spike > 1, f"spike_factor {spike}: must be > 1, or none")
        require(self.snapshot in ("background", "blocking"), "snapshot: use background or blocking")
        require(uri is None or "://" in uri, f"checkpoint_uri {uri!r}: must be a URI, like s3://…")


@dataclass(frozen=True)
class BatchSplit:
    """micro × accumulation × world = global, exactly."""

    micro: int
    accumulation: int
    world: int

    @property
    def global_batch(self) -> int:
        """Images per optimizer update."""
        return self.micro * self.accumulation * self.world


MAX_AUTO_MICRO_BATCH = 256


def split_batch(global_batch: int, execution: Execution) -> BatchSplit:
    """Split a global batch over the ranks; raises `ConfigError` if it does not divide exactly."""
    world, micro = execution.world_size, execution.micro_batch
    per_rank, rest = divmod(global_batch, world)
    require(
        rest == 0,
        f"global batch {global_batch} is not divisible by a world size of {world}: "
        "micro × accumulation × world must equal the global batch exactly",
    )
    if micro is None:
        fits = range(1, min(per_rank, MAX_AUTO_MICRO_BATCH) + 1)
        micro = max(n for n in fits if per_rank % n == 0)
    require(
        micro >= 1 and per_rank % micro == 0,
        f"global batch {global_batch} ≠ micro-batch {micro} × accumulation × world {world}: "
        f"choose a micro-batch that divides {per_rank}",
    )
    return BatchSplit(micro, per_rank // micro, world)


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


def _check_patches(data: DataConfig, encoder: EncoderConfig) -> None:
    require(
        data.image_size % encoder.patch_size == 0,
        f"image size {data.image_size} is not divisible by the patch size {encoder.patch_size}: "
        f"choose a multiple of {encoder.patch_size}, or another patch size",
    )
