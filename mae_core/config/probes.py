"""Recipes of features kept on disk, and of probes of a frozen encoder that are not the paper's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mae_core.config.base import ENCODER_FILE, FEATURES_FILE, Duration, FeatureKind, require
from mae_core.config.evaluation import EvalRecipe, FinetuneRecipe
from mae_core.config.execution import Execution
from mae_core.config.parts import (
    SUPERVISED_CROP,
    AugmentationConfig,
    EncoderConfig,
    LrScheduleConfig,
    OptimizerConfig,
    check_global_batch,
)
from mae_core.config.recipe import (
    EncoderUse,
    Family,
    Recipe,
    Training,
    check_frozen,
    encoder_parent,
)


@dataclass(frozen=True, kw_only=True)
class FeaturesRecipe(Recipe):
    """Vectors of every image, computed once for all probes of an encoder, as Parquet."""

    KIND: ClassVar[str] = "features"
    VERSION: ClassVar[int] = 2
    """2: the evaluation's view of an image follows one rule for a set."""
    FAMILY: ClassVar[Family] = Family.FEATURES
    ENTRY: ClassVar[str] = "mae_core.evaluate.feature_file:run_features"
    YIELDS: ClassVar[tuple[str, ...]] = (FEATURES_FILE,)

    features: FeatureKind = "cls"
    """Class token, or mean of the patch tokens, both after the encoder's final LN."""
    layers: tuple[int, ...] = ()
    """Blocks after which to look, counted from 1, each through the final LN (so that the depth
    gives what the encoder gives); none = after the last one."""

    def __post_init__(self) -> None:
        require(
            self.features != "pixels",
            "features 'pixels' need no encoder and are computed faster than read: use cls or mean",
        )
        check_layers(self.layers)

    @property
    def needs(self) -> tuple[str, ...]:
        """The encoder."""
        return (ENCODER_FILE,)

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse other images than the encoder's, and layers that it does not have."""
        check_frozen(self.data, parents)
        depth = encoder_depth(parents)
        for layer in self.layers:
            check_depth("layer", layer, depth)

    @property
    def protocol(self) -> str:
        """Name for people."""
        kind = {"cls": "class token", "mean": "mean of patch tokens"}[self.features]
        return f"features, {kind}" + layers_text(self.layers)


@dataclass(frozen=True, kw_only=True)
class FeatureProbeRecipe(EvalRecipe):
    """Linear probes on kept features: a whole grid at once, the best on dev scored on test.

    Not the paper's protocol: an image has one vector, without random crops.
    """

    KIND: ClassVar[str] = "feature_probe"
    FAMILY: ClassVar[Family] = Family.FEATURE_PROBE
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.FROZEN
    ENTRY: ClassVar[str] = "mae_core.evaluate.probes.feature_probe:run_feature_probe"

    layers: tuple[int, ...] = ()
    """Layers of the `features` parent to choose among; none = the last one of the encoder."""
    base_lrs: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    """Learning rates to choose among, each scaled by global_batch / 256."""
    weight_decays: tuple[float, ...] = (0.0, 1e-5, 1e-4, 1e-3)
    """Of the weights, not of the biases."""
    optimizer: Literal["sgd", "lars"] = "sgd"
    momentum: float = 0.9
    duration: Duration = field(default_factory=lambda: Duration.epochs(90))
    global_batch: int = 1024
    lr_schedule: LrScheduleConfig = field(
        default_factory=lambda: LrScheduleConfig(warmup=Duration.epochs(10))
    )

    def __post_init__(self) -> None:
        check_global_batch(self.global_batch)
        check_layers(self.layers)
        require(self.features != "pixels", "a feature probe reads features: use cls or mean")
        require(self.optimizer in ("sgd", "lars"), f"optimizer {self.optimizer!r}: sgd or lars")
        for name, low in (("base_lrs", True), ("weight_decays", False)):
            values = getattr(self, name)
            fits = [math.isfinite(v) and (v > 0 if low else v >= 0) for v in values]
            require(
                len(values) > 0 and all(fits) and len(set(values)) == len(values),
                f"{name} {values}: must be one or more different numbers {'>' if low else '≥'} 0",
            )

    @property
    def num_heads(self) -> int:
        """Points of the grid, layers included."""
        return len(self.base_lrs) * len(self.weight_decays) * max(1, len(self.layers))

    @property
    def selects_on_dev(self) -> bool:
        """True if the grid has several heads."""
        return self.num_heads > 1

    @property
    def training(self) -> Training:
        """How it trains."""
        return Training(self.duration, self.global_batch, None)

    @property
    def needs(self) -> tuple[str, ...]:
        """The features."""
        return (FEATURES_FILE,)

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse features of another kind, other images, or without the layers."""
        check_features_parent(self, self.layers or (None,), parents)

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return "linear probe on cached features" + layers_text(self.layers)


def check_layers(layers: tuple[int, ...]) -> None:
    """Refuse layers below 1 or out of order."""
    rising = all(a < b for a, b in zip(layers, layers[1:], strict=False))
    require(
        rising and all(layer >= 1 for layer in layers),
        f"layers {layers}: give rising block numbers, the first block being 1",
    )


def check_depth(what: str, number: float, depth: int | None) -> None:
    """Refuse a block that an encoder of `depth` blocks does not have; None = not known yet."""
    require(
        depth is None or number <= depth,
        f"{what} {number:g} of an encoder with {depth} blocks: use at most {depth}",
    )


def encoder_depth(parents: Mapping[str, Recipe]) -> int | None:
    """Blocks of the encoder that a parent leaves, as far as its recipe says."""
    found = encoder_parent(parents)
    return found[0].depth if found else None


def layers_text(layers: tuple[int, ...]) -> str:
    """`, layer 6` or `, best of layers 2, 4, 6`; nothing for the last one."""
    if not layers:
        return ""
    if len(layers) == 1:
        return f", layer {layers[0]}"
    return f", best of layers {', '.join(map(str, layers))}"


@dataclass(frozen=True, kw_only=True)
class AttentiveProbeRecipe(EvalRecipe):
    """Pooling by a learned query over all tokens of a frozen encoder, and one linear layer.

    As in V-JEPA (arXiv 2404.08471, section 3): what a linear probe of one token cannot reach.
    """

    KIND: ClassVar[str] = "attentive_probe"
    FAMILY: ClassVar[Family] = Family.ATTENTIVE_PROBE
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.FROZEN
    ENTRY: ClassVar[str] = "mae_core.evaluate.probes.attentive_probe:run_attentive_probe"
    TRAINS: ClassVar[bool] = True

    features: FeatureKind = "cls"
    """Not used: it reads the class token and all patch tokens."""
    layer: int | None = None
    """Block after which to look, counted from 1, through the final LN; None = the last one."""
    num_heads: int = 8
    """Heads of the cross-attention; divides the encoder's width."""
    augmentation: AugmentationConfig = SUPERVISED_CROP
    duration: Duration = field(default_factory=lambda: Duration.epochs(20))
    global_batch: int = 1024
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(base_lr=2.5e-4, betas=(0.9, 0.999))
    )
    lr_schedule: LrScheduleConfig = field(
        default_factory=lambda: LrScheduleConfig(warmup=Duration.epochs(2))
    )

    def __post_init__(self) -> None:
        check_global_batch(self.global_batch)
        require(self.features != "pixels", "an attentive probe needs an encoder's tokens")
        require(self.num_heads >= 1, f"num_heads {self.num_heads}: must be ≥ 1")
        require(self.layer is None or self.layer >= 1, f"layer {self.layer}: the first is 1")

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse other images, layers and widths than the encoder's."""
        super().check_parents(parents)
        if found := encoder_parent(parents):
            self.check_encoder(found[0])

    def check_execution(self, execution: Execution) -> None:
        """Refuse an optimizer that cannot be divided."""
        self.optimizer.check_execution(execution)

    def check_encoder(self, encoder: EncoderConfig) -> None:
        """Refuse (`ConfigError`) an encoder without the layer, or of another width."""
        check_depth("layer", self.layer or 1, encoder.depth)
        require(
            encoder.width % self.num_heads == 0,
            f"num_heads {self.num_heads} does not divide the encoder's width {encoder.width}",
        )

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return "attentive probe" + (f", layer {self.layer}" if self.layer else "")

    @property
    def _features_text(self) -> str:
        return ""

    @property
    def training(self) -> Training:
        """How it trains."""
        return Training(self.duration, self.global_batch, self.optimizer.base_lr)


@dataclass(frozen=True, kw_only=True)
class PartialFinetuneRecipe(FinetuneRecipe):
    """Fine-tuning of the last blocks only, the rest frozen (paper section 4.3, Figure 9)."""

    KIND: ClassVar[str] = "partial_finetune"
    FAMILY: ClassVar[Family] = Family.PARTIAL_FINETUNE

    num_blocks: float = 1.0
    """Blocks to tune, from the last: 0 = only the head and the LN before it; 0.5 = also the MLP
    branch of the last block, with its LN; a whole number = that many blocks, and the encoder's
    final LN where the class token is read; the depth = everything, embedding too, which is what
    `finetune` does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        number = self.num_blocks
        require(
            number == 0.5 or (number >= 0 and float(number).is_integer()),
            f"num_blocks {number}: use 0, 0.5 (the MLP of the last block) or a whole number",
        )

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse more blocks than the encoder has."""
        super().check_parents(parents)
        check_depth("num_blocks", self.num_blocks, encoder_depth(parents))

    def tuned_blocks(self, depth: int) -> float:
        """The number in the recipe."""
        return float(self.num_blocks)

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return f"fine-tune of the last {self.num_blocks:g} blocks ({self.duration})"


def check_features_parent(
    recipe: EvalRecipe, layers: tuple[int | None, ...], parents: Mapping[str, Recipe]
) -> None:
    """Refuse a `features` parent without what `recipe` reads; `layers` needs such a parent."""
    sources = [p for p in parents.values() if isinstance(p, FeaturesRecipe)]
    if not sources:
        require(set(layers) == {None}, f"layers {layers} are read from a `features` parent")
        return
    source = sources[0]
    require(
        source.features == recipe.features,
        f"it reads features {recipe.features!r}, its parent keeps {source.features!r}: "
        "set `features` alike",
    )
    require(
        source.data == recipe.data,
        "its data differ from those of its `features` parent: use the same",
    )
    kept = source.layers or (None,)
    missing = [layer for layer in layers if layer not in kept]
    require(
        not missing,
        f"layer {missing[0] if missing else ''} is not among the layers {kept} that its "
        "`features` parent keeps (None = the last): set `layers` alike",
    )


@dataclass(frozen=True, kw_only=True)
class KnnRecipe(EvalRecipe):
    """Weighted k-nearest neighbours on frozen features (Wu et al. 2018, arXiv 1805.01978)."""

    KIND: ClassVar[str] = "knn"
    FAMILY: ClassVar[Family] = Family.KNN
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.FROZEN
    ENTRY: ClassVar[str] = "mae_core.evaluate.knn:run_knn"

    features: FeatureKind = "mean"
    k: int = 20
    metric: Literal["cosine"] = "cosine"
    temperature: float = 0.07
    """Votes weigh exp(similarity / temperature)."""
    layer: int | None = None
    """Layer of a `features` parent, counted from 1; None = the last one of the encoder."""

    INSTEAD: ClassVar[Mapping[str, str]] = {ENCODER_FILE: FEATURES_FILE}

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return f"k-NN (k={self.k})" + (f", layer {self.layer}" if self.layer else "")

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse features of another kind, other images, or without the layer."""
        super().check_parents(parents)
        check_features_parent(self, (self.layer,), parents)

    def check_labels(self, num_labelled: int, num_train: int, num_classes: int) -> None:
        """Refuse more neighbours than there are labelled images, too."""
        super().check_labels(num_labelled, num_train, num_classes)
        if num_labelled:
            self.check_k(num_labelled)

    def check_k(self, num_images: int) -> None:
        """Refuse (`ConfigError`) more neighbours than there are training images."""
        require(
            self.k <= num_images,
            f"k = {self.k} is more than the {num_images} training images: choose a smaller k or "
            "more labels",
        )

    def __post_init__(self) -> None:
        require(self.k >= 1, f"k = {self.k}: must be ≥ 1")
        require(self.temperature > 0, f"temperature {self.temperature}: must be > 0")
        require(self.layer is None or self.layer >= 1, f"layer {self.layer}: the first is 1")
