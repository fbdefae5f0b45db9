"""Recipes of evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from mae_core.config.augmentation import ErasingConfig, MixConfig, RandAugmentConfig
from mae_core.config.base import (
    CLASSIFIER_FILE,
    DOTTED,
    ENCODER_FILE,
    Duration,
    EvalSplit,
    FeatureKind,
    Precision,
    require,
)
from mae_core.config.execution import BatchSplit, Execution
from mae_core.config.parts import (
    PROBE_CROP,
    SUPERVISED_CROP,
    AugmentationConfig,
    EncoderConfig,
    LrScheduleConfig,
    OptimizerConfig,
    check_channels,
    check_global_batch,
    check_patches,
)
from mae_core.config.recipe import (
    EncoderUse,
    Family,
    Recipe,
    Training,
    check_frozen,
    encoder_parent,
)

Option = tuple[str, float | int | str]
"""Name and value."""


@dataclass(frozen=True, kw_only=True)
class EvalRecipe(Recipe):
    """What every evaluation's recipe has."""

    VERSION: ClassVar[int] = 2
    """2: crops, in training and for scoring, are those of the paper's code."""
    IS_EVALUATION: ClassVar[bool] = True

    features: FeatureKind = "cls"
    """Class token, mean of patch tokens (both after the final LN), or raw pixels (no encoder)."""
    num_labels: int | None = None
    """Labelled training images in all, class-balanced, drawn by `label_seed`; None = all."""
    label_seed: int = 0
    eval_split: EvalSplit = "test"
    """`dev` for anything that is selected on; `test` is scored once, by the chosen."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The encoder, unless raw pixels are the features."""
        return () if self.features == "pixels" else (ENCODER_FILE,)

    @property
    def label(self) -> str:
        """Name of the protocol without features, labels and split: `k-NN (k=20)`."""
        raise NotImplementedError

    @property
    def protocol(self) -> str:
        """What a reader must know to compare two numbers."""
        labels = f", {self.num_labels} labels" if self.num_labels else ""
        return f"{self.label}{self._features_text}{labels}{self._view_text}"

    @property
    def _view_text(self) -> str:
        """What it is scored on, where that is not the usual."""
        crop = self.data.eval_crop
        window = "" if crop is None else f", window {crop:g}"
        return window + (", dev" if self.eval_split == "dev" else "")

    @property
    def _features_text(self) -> str:
        # The raw-pixel baseline belongs to the same protocol: only its features differ.
        return {"cls": ", class token", "mean": ", mean of patch tokens", "pixels": ""}[
            self.features
        ]

    @property
    def selects_on_dev(self) -> bool:
        """It looks at the dev split, whatever it is scored on."""
        return False

    @property
    def scored_on(self) -> EvalSplit:
        """The split that it scores."""
        return self.eval_split

    def tuned_blocks(self, depth: int) -> float | None:
        """Blocks of an encoder of `depth` blocks that it tunes; None if that says nothing."""
        return None

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse images that the encoder of a parent does not take."""
        check_frozen(self.data, parents)

    def check_labels(self, num_labelled: int, num_train: int, num_classes: int) -> None:
        """Refuse (`ConfigError`) labels that a data set does not have; counts of 0 are unknown."""
        if self.num_labels is None:
            return
        require(
            self.num_labels >= max(num_classes, 1),
            f"{self.num_labels} labels for {num_classes} classes: ask for at least one per class",
        )
        require(
            not num_train or self.num_labels <= num_train,
            f"{self.num_labels} labels are more than the {num_train} training images: ask for "
            "fewer",
        )


@dataclass(frozen=True, kw_only=True)
class LinearProbeRecipe(EvalRecipe):
    """Affine-free BatchNorm and one linear layer on a frozen encoder (paper Table 10, A.1)."""

    KIND: ClassVar[str] = "linear_probe"
    FAMILY: ClassVar[Family] = Family.LINEAR_PROBE
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.FROZEN
    ENTRY: ClassVar[str] = "mae_core.evaluate.probes.linear_probe:run_linear_probe"

    augmentation: AugmentationConfig = PROBE_CROP
    duration: Duration = field(default_factory=lambda: Duration.epochs(90))
    global_batch: int = 16384
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(name="lars", base_lr=0.1, weight_decay=0.0)
    )
    lr_schedule: LrScheduleConfig = field(
        default_factory=lambda: LrScheduleConfig(warmup=Duration.epochs(10))
    )

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return "linear probe"

    @property
    def training(self) -> Training:
        """How it trains."""
        return Training(self.duration, self.global_batch, self.optimizer.base_lr)

    @property
    def encodes_once(self) -> bool:
        """An image has one vector, which is kept for all epochs."""
        return self.augmentation.is_deterministic

    def tuned_blocks(self, depth: int) -> float:
        """None: the encoder is frozen."""
        return 0.0

    def __post_init__(self) -> None:
        check_global_batch(self.global_batch)


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(EvalRecipe):
    """End-to-end fine-tuning of the encoder (paper Table 9)."""

    KIND: ClassVar[str] = "finetune"
    FAMILY: ClassVar[Family] = Family.FINETUNE
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.TUNES
    ENTRY: ClassVar[str] = "mae_core.evaluate.finetune:run_finetune"
    YIELDS: ClassVar[tuple[str, ...]] = (CLASSIFIER_FILE,)
    TRAINS: ClassVar[bool] = True

    features: FeatureKind = "mean"
    augmentation: AugmentationConfig = SUPERVISED_CROP
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
    """`bf16-mixed` as the paper's code, `bf16` for less memory; see `mae_core.config.base`."""
    rand_augment: RandAugmentConfig | None = None
    """RandAugment after the crop (paper Table 9: `rand-m9-mstd0.5-inc1`)."""
    mix: MixConfig | None = None
    """Mixup and CutMix, by groups of the global batch (paper Table 9: .8 and 1.0)."""
    erasing: ErasingConfig | None = None
    """Random erasing (the paper's code: .25)."""
    ema_decay: float | None = None
    """Score the moving average of the weights, of this decay per step (Table 11: .9999)."""

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return f"fine-tune ({self.duration})"

    @property
    def training(self) -> Training:
        """How it trains."""
        return Training(self.duration, self.global_batch, self.optimizer.base_lr, self.precision)

    def tuned_blocks(self, depth: int) -> float | None:
        """All blocks."""
        return float(depth)

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse images that do not divide into patches; another size of them is fine.

        The positions are resized to it, and tuned.
        """
        if found := encoder_parent(parents):
            check_patches(self.data, found[0])
            check_channels(self.data, found[1])

    def check_execution(self, execution: Execution) -> None:
        """Refuse to average weights that no rank has as a whole, and what LARS refuses."""
        self.optimizer.check_execution(execution)
        require(
            self.ema_decay is None or execution.zero_stage < 3,
            "ema_decay needs whole weights: use execution.zero_stage 0, 1 or 2",
        )

    def check_split(self, split: BatchSplit) -> None:
        """Refuse a rank's share of a step that does not divide into the pairs that are mixed."""
        require(
            self.mix is None or split.micro * split.accumulation % 2 == 0,
            f"mixing pairs the {split.micro * split.accumulation} samples that a rank has of a "
            "step: make the global batch divisible by twice the number of ranks",
        )

    def __post_init__(self) -> None:
        check_global_batch(self.global_batch)
        require(self.features != "pixels", "fine-tuning needs an encoder: features cls or mean")
        require(0 <= self.drop_path < 1, f"drop path {self.drop_path}: must be in [0, 1)")
        require(0 < self.layer_decay <= 1, f"layer decay {self.layer_decay}: must be in (0, 1]")
        decay = self.ema_decay
        require(decay is None or 0 < decay < 1, f"ema_decay {decay}: must be in (0, 1)")
        if self.mix is not None:
            self.mix.check_batch(self.global_batch)

    def check_labels(self, num_labelled: int, num_train: int, num_classes: int) -> None:
        """Refuse a set smaller than the batch, which is then the batch, that cannot be mixed."""
        super().check_labels(num_labelled, num_train, num_classes)
        if self.mix is not None and num_labelled:
            self.mix.check_batch(min(self.global_batch, num_labelled))


@dataclass(frozen=True, kw_only=True)
class ScratchRecipe(FinetuneRecipe):
    """Supervised training from scratch (paper Table 11): the baseline curve of Figure 8."""

    KIND: ClassVar[str] = "scratch"
    FAMILY: ClassVar[Family] = Family.FINETUNE
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.TRAINS

    encoder: EncoderConfig
    duration: Duration = field(default_factory=lambda: Duration.epochs(300))
    global_batch: int = 4096
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(base_lr=1e-4, weight_decay=0.3)
    )
    lr_schedule: LrScheduleConfig = field(
        default_factory=lambda: LrScheduleConfig(warmup=Duration.epochs(20))
    )
    layer_decay: float = 1.0

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing: it starts from random weights."""
        return ()

    @property
    def new_encoder(self) -> EncoderConfig:
        """The encoder that it makes."""
        return self.encoder

    @property
    def objective_name(self) -> str:
        """It has no pretraining."""
        return "from scratch"

    def tuned_blocks(self, depth: int) -> None:
        """None: there was no encoder to tune."""

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return f"from scratch ({self.duration})"


@dataclass(frozen=True, kw_only=True)
class CustomEvalRecipe(EvalRecipe):
    """An evaluation that the user's code makes; see `docs/extending.md` for its contract."""

    KIND: ClassVar[str] = "custom_eval"
    FAMILY: ClassVar[Family] = Family.CUSTOM_EVAL
    ENTRY: ClassVar[str] = "mae_core.evaluate.custom:run_custom_eval"

    entry: str = field(metadata=DOTTED)
    """`module:function`; its source is part of the identity."""
    name: str = ""
    """Name of the protocol; empty = the function's."""
    options: tuple[Option, ...] = ()
    """Settings for the function, as pairs of name and number or text."""

    def __post_init__(self) -> None:
        require(":" in self.entry, f"entry {self.entry!r}: write module:function")
        names = [name for name, _ in self.options]
        require(
            len(set(names)) == len(names) and all(name.isidentifier() for name in names),
            f"options {names}: give each name once, of letters, digits and _",
        )
        numbers = [value for _, value in self.options if isinstance(value, float)]
        require(all(map(math.isfinite, numbers)), f"options {self.options}: use finite numbers")

    @property
    def label(self) -> str:
        """Name of the protocol, with its options."""
        name = self.name or self.entry.partition(":")[2]
        shown = ", ".join(f"{key}={value}" for key, value in self.options)
        return f"{name} ({shown})" if shown else name
