"""Recipes of the stages that make an encoder, or what its pretraining needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mae_core.config.augmentation import MOCO_V3_VIEWS, ViewConfig
from mae_core.config.base import (
    BASIS_FILE,
    DECODER_FILE,
    DOTTED,
    ENCODER_FILE,
    EXECUTION,
    TOKENIZER_FILE,
    Duration,
    Precision,
    require,
)
from mae_core.config.execution import Execution
from mae_core.config.parts import (
    AugmentationConfig,
    DecoderConfig,
    EncoderConfig,
    LrScheduleConfig,
    OptimizerConfig,
    check_global_batch,
    check_patches,
    check_spread,
    num_keep,
    num_patches,
)
from mae_core.config.recipe import EncoderUse, Family, Recipe, Training

NUM_VIEWS = 2
BEIT_BLOCK, BEIT_GRID = 16, 14
"""Least area of a rectangle, and patches along a side, in BEiT's pretraining."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which patches are hidden (paper Table 1f, Figure 6); how many is `mask_ratio`'s to say."""

    sampling: str = field(default="random", metadata=DOTTED)
    """`random`, `block`, `grid`, or a custom one as `module:function` (see `docs/extending.md`)."""
    min_block: int | None = None
    """Least area of a rectangle of block-wise sampling, in patches; None = BEiT's 16 (arXiv
    2106.08254) from its 14 x 14 patches on, on fewer their share of these: 5 on 8 x 8."""
    min_aspect: float = 0.3
    """Height over width of a rectangle is log-uniform between this and its inverse."""

    def __post_init__(self) -> None:
        known = ("random", "block", "grid")
        require(
            self.sampling in known or ":" in self.sampling,
            f"mask sampling {self.sampling!r}: use {', '.join(known)}, or module:function",
        )
        least = self.min_block
        require(least is None or least >= 1, f"min_block {least}: must be ≥ 1, or none")
        require(0 < self.min_aspect <= 1, f"min_aspect {self.min_aspect}: must be in (0, 1]")

    def smallest_block(self, grid: int) -> int:
        """`min_block`, or what stands for it on `grid` patches a side."""
        if self.min_block is not None:
            return self.min_block
        return max(1, round(BEIT_BLOCK * min(1.0, (grid / BEIT_GRID) ** 2)))


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Recipe):
    """MAE pretraining (paper Table 8)."""

    KIND: ClassVar[str] = "pretrain"
    VERSION: ClassVar[int] = 2
    """2: block masks are BEiT's; without random crops, images are seen as evaluations see them."""
    FAMILY: ClassVar[Family] = Family.PRETRAINING
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.TRAINS
    ENTRY: ClassVar[str] = "mae_core.pretrain.masked:run_pretrain"
    YIELDS: ClassVar[tuple[str, ...]] = (ENCODER_FILE, DECODER_FILE)
    TRAINS: ClassVar[bool] = True

    encoder: EncoderConfig
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    mask_ratio: float = 0.75
    """Share of patches hidden from the encoder (paper Fig. 5)."""
    norm_pix_loss: bool = True
    """Predict pixels normalised per patch (paper Table 1d)."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """How the hidden patches are chosen (paper Table 1f)."""
    mask_tokens_in_encoder: bool = False
    """Encode mask tokens in place of hidden patches (paper Table 1c): about 3.3 × the compute."""
    target: str = field(default="pixels", metadata=DOTTED)
    """`pixels`, `pca`, `tokens` (paper Table 1d), or a custom one as `module:function`."""
    target_dim: int = 96
    """Width of a target that is not pixels: leading principal components (paper: 96), the
    tokenizer's vocabulary (paper: 8192), or the width of a custom target."""
    loss_on: Literal["masked", "all"] = "masked"
    """Patches in the loss; the paper's 0.5 points worse variant takes all (section 3)."""
    objective: str = field(default="mae", metadata=DOTTED)
    """`mae`, or a custom module with an `encoder`, as `module:function`."""
    duration: Duration = field(default_factory=lambda: Duration.epochs(800))
    global_batch: int = 4096
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_schedule: LrScheduleConfig = field(default_factory=LrScheduleConfig)
    precision: Precision = "fp32"
    """`bf16-mixed` as the paper's code, `bf16` for less memory; see `mae_core.config.base`."""

    def __post_init__(self) -> None:
        check_patches(self.data, self.encoder)
        check_global_batch(self.global_batch)
        kept = num_keep(self.num_patches, self.mask_ratio)
        require(
            0 < kept < self.num_patches,
            f"mask ratio {self.mask_ratio} keeps {kept} of {self.num_patches} patches: "
            "at least one must stay visible and one must be masked",
        )
        self._check_grid(kept)
        self._check_target()

    def _check_grid(self, kept: int) -> None:
        side = self.data.image_size // self.encoder.patch_size
        least, hidden = self.mask.smallest_block(side), self.num_patches - kept
        require(
            self.mask.sampling != "block" or (least <= hidden and side > 1),
            f"mask ratio {self.mask_ratio} hides {hidden} of {self.num_patches} patches, fewer "
            f"than the {least} of the smallest block: lower mask.min_block",
        )
        if self.mask.sampling == "grid":
            require(
                side % 2 == 0 and kept * 4 == self.num_patches,
                f"grid-wise masking keeps one patch of every 2x2: needs mask ratio 0.75 and an "
                f"even grid, not {self.mask_ratio} on {side}x{side} patches",
            )

    def _check_target(self) -> None:
        known = ("pixels", "pca", "tokens")
        require(
            self.target in known or ":" in self.target,
            f"target {self.target!r}: use {', '.join(known)}, or module:function",
        )
        require(
            self.target == "pixels" or not self.norm_pix_loss,
            f"target {self.target!r} with norm_pix_loss: only pixels are normalised per patch; "
            "set norm_pix_loss=false",
        )
        if self.norm_pix_loss:
            check_spread(self.encoder.patch_size, self.data.num_channels)
        values = self.encoder.patch_size**2 * self.data.num_channels
        require(
            self.target != "pca" or 1 <= self.target_dim <= values,
            f"{self.target_dim} principal components of patches with {values} values: "
            f"use 1 to {values}",
        )
        require(
            self.objective == "mae" or ":" in self.objective,
            f"objective {self.objective!r}: use mae, or module:function",
        )

    @property
    def version(self) -> int:
        """1 for what version 2 changed nothing of: random crops, no block masks, the usual LN."""
        is_usual = self.encoder.norm_eps == EncoderConfig.norm_eps
        is_old = is_usual and not self.sees_windows and self.mask.sampling != "block"
        return 1 if is_old else self.VERSION

    @property
    def new_encoder(self) -> EncoderConfig:
        """The encoder that it makes."""
        return self.encoder

    @property
    def training(self) -> Training:
        """How it trains."""
        return Training(self.duration, self.global_batch, self.optimizer.base_lr, self.precision)

    def check_execution(self, execution: Execution) -> None:
        """Refuse an optimizer that cannot be divided."""
        self.optimizer.check_execution(execution)

    @property
    def objective_name(self) -> str:
        """`MAE`, or the path of the user's."""
        return "MAE" if self.objective == "mae" else self.objective

    @property
    def needs(self) -> tuple[str, ...]:
        """The tokenizer or the basis that makes its targets."""
        return {"tokens": (TOKENIZER_FILE,), "pca": (BASIS_FILE,)}.get(self.target, ())

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse a tokenizer or basis of other patches than the encoder's."""
        for parent in parents.values():
            is_needed = bool(set(parent.YIELDS) & set(self.needs))
            if is_needed and isinstance(parent, BasisRecipe | TokenizerRecipe):
                _check_maker(self, parent)

    @property
    def protocol(self) -> str:
        """What a reader must know to compare two losses."""
        target = "normalised pixels" if self.norm_pix_loss else self.target
        return f"MAE pretraining, {target}, mask {self.mask_ratio:g}"

    @property
    def num_patches(self) -> int:
        """Patches per image."""
        return num_patches(self.data.image_size, self.encoder.patch_size)


def _check_maker(recipe: PretrainRecipe, maker: BasisRecipe | TokenizerRecipe) -> None:
    """Refuse what makes targets of other patches, or fewer of them than are asked for."""
    for name, has, wants in (
        ("patch_size", maker.patch_size, recipe.encoder.patch_size),
        ("data.image_size", maker.data.image_size, recipe.data.image_size),
        ("data.num_channels", maker.data.num_channels, recipe.data.num_channels),
        ("data.pixel_mean", maker.data.pixel_mean, recipe.data.pixel_mean),
        ("data.pixel_std", maker.data.pixel_std, recipe.data.pixel_std),
    ):
        require(
            has == wants,
            f"the {maker.KIND} has {name} {has}, the pretraining {wants}: they must see the same "
            "patches",
        )
    wanted = recipe.target_dim
    if isinstance(maker, BasisRecipe):
        found = maker.num_components
        require(wanted <= found, f"target_dim {wanted} of a basis with {found} components")
        return
    width = maker.vocabulary
    require(
        width == wanted,
        f"the tokenizer has {width} codes, target_dim is {wanted}: set pretrain.target_dim={width}",
    )


@dataclass(frozen=True, kw_only=True)
class BasisRecipe(Recipe):
    """Principal components of the training set's patches, a target (paper Table 1d)."""

    KIND: ClassVar[str] = "basis"
    VERSION: ClassVar[int] = 2
    """2: the evaluation's view of an image follows one rule for a set."""
    FAMILY: ClassVar[Family] = Family.BASIS
    ENTRY: ClassVar[str] = "mae_core.pretrain.pca:run_basis"
    YIELDS: ClassVar[tuple[str, ...]] = (BASIS_FILE,)

    patch_size: int = 16
    """Pixels."""
    num_components: int = 96
    """Leading components to keep."""
    num_images: int = 50_000
    """Training images to fit on, the first of a seeded order; all if there are fewer."""

    def __post_init__(self) -> None:
        values = self.patch_size**2 * self.data.num_channels
        require(
            1 <= self.num_components <= values,
            f"{self.num_components} principal components of patches with {values} values: "
            f"use 1 to {values}",
        )
        require(self.num_images >= 1, f"num_images {self.num_images}: must be ≥ 1")
        require(
            self.data.image_size % self.patch_size == 0,
            f"image size {self.data.image_size} is not divisible by the patch size "
            f"{self.patch_size}",
        )

    def check_images(self, num_images: int) -> None:
        """Refuse (`ConfigError`) as many components as these images have patches, or more."""
        count = num_images * num_patches(self.data.image_size, self.patch_size)
        require(
            count > self.num_components,
            f"{self.num_components} principal components of only {count} patches: use more images",
        )

    @property
    def protocol(self) -> str:
        """Name for people."""
        return f"principal components of {self.patch_size} px patches"


@dataclass(frozen=True, kw_only=True)
class TokenizerRecipe(Recipe):
    """Small VQ-VAE whose codes are a target (paper Table 1d; arXiv 1711.00937)."""

    KIND: ClassVar[str] = "tokenizer"
    FAMILY: ClassVar[Family] = Family.TOKENIZER
    ENTRY: ClassVar[str] = "mae_core.pretrain.tokenizer:run_tokenizer"
    YIELDS: ClassVar[tuple[str, ...]] = (TOKENIZER_FILE,)
    TRAINS: ClassVar[bool] = True

    patch_size: int = 16
    """Pixels that one code stands for, a power of two; the patch size of the encoder it serves."""
    vocabulary: int = 8192
    """Number of codes."""
    width: int = 64
    """Channels of the convolutions."""
    code_dim: int = 16
    """Width of a code; few dimensions keep the code book in use (ViT-VQGAN, arXiv 2110.04627)."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    duration: Duration = field(default_factory=lambda: Duration.epochs(100))
    global_batch: int = 512
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(base_lr=5e-4, weight_decay=0.0)
    )
    lr_schedule: LrScheduleConfig = field(
        default_factory=lambda: LrScheduleConfig(warmup=Duration.epochs(5))
    )
    precision: Precision = "fp32"
    """`bf16-mixed` as the paper's code, `bf16` for less memory; see `mae_core.config.base`."""

    def __post_init__(self) -> None:
        check_global_batch(self.global_batch)
        size, patch = self.data.image_size, self.patch_size
        require(
            patch >= 2 and patch & (patch - 1) == 0,
            f"tokenizer patch size {patch}: must be a power of two ≥ 2",
        )
        require(size % patch == 0, f"image size {size} is not divisible by the patch size {patch}")
        require(self.vocabulary >= 2, f"vocabulary {self.vocabulary}: must be ≥ 2 codes")
        require(self.width >= 1, f"tokenizer width {self.width}: must be ≥ 1")
        require(self.code_dim >= 1, f"code_dim {self.code_dim}: must be ≥ 1")

    @property
    def training(self) -> Training:
        """How it trains."""
        return Training(self.duration, self.global_batch, self.optimizer.base_lr, self.precision)

    def check_execution(self, execution: Execution) -> None:
        """Refuse an optimizer that cannot be divided."""
        self.optimizer.check_execution(execution)

    @property
    def protocol(self) -> str:
        """Name for people."""
        return f"tokenizer, {self.vocabulary} codes of {self.patch_size} px"


@dataclass(frozen=True, kw_only=True)
class AdoptedRecipe(Recipe):
    """An encoder that `mae-study adopt` imported, as a finished stage and a point of its own."""

    KIND: ClassVar[str] = "adopted"
    FAMILY: ClassVar[Family] = Family.ADOPTED
    ENTRY: ClassVar[str] = "mae_core.pretrain.encoder_output:run_adopted"
    YIELDS: ClassVar[tuple[str, ...]] = (ENCODER_FILE,)

    encoder: EncoderConfig
    """Shape that the study expects; another one is refused."""
    sha256: str = ""
    """Digest of its tensors, as `adopt` prints it; empty = that of `name` in the store."""
    name: str = field(default="", metadata=EXECUTION)
    """Name that it was adopted under."""

    def __post_init__(self) -> None:
        check_patches(self.data, self.encoder)
        require(bool(self.sha256 or self.name), "an adopted encoder needs a name or a sha256")

    @property
    def sees_windows(self) -> bool:
        """It looks at no image."""
        return False

    @property
    def new_encoder(self) -> EncoderConfig:
        """The encoder that it makes."""
        return self.encoder

    @property
    def absence(self) -> str:
        """What to do where the store has no such encoder."""
        return (
            f"encoder {self.name or self.sha256!r} has not been adopted into this store: "
            f"mae-study adopt FILE --name {self.name or 'NAME'}"
        )

    @property
    def protocol(self) -> str:
        """Name for people."""
        return f"adopted encoder {self.name or self.sha256[:12]}"


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe(Recipe):
    """Match the two views of each image against all other images (MoCo v3, Alg. 1 and Table 1).

    The encoder and its initialisation are MAE's: only the objective differs. The class token is
    what is contrasted. Biases and norms get no weight decay, unlike in the published code.
    The defaults are its ViT recipe, the same for S, B and L: 300 epochs, batch 4096, base learning
    rate 1.5e-4, decay 0.1, 40 epochs of warm-up, crops from 8 % of the area on.
    """

    KIND: ClassVar[str] = "contrastive"
    FAMILY: ClassVar[Family] = Family.PRETRAINING
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.TRAINS
    ENTRY: ClassVar[str] = "mae_core.pretrain.contrastive:run_contrastive"
    YIELDS: ClassVar[tuple[str, ...]] = (ENCODER_FILE,)
    TRAINS: ClassVar[bool] = True

    encoder: EncoderConfig
    augmentation: AugmentationConfig = field(
        default_factory=lambda: AugmentationConfig(crop_scale=(0.08, 1.0))
    )
    """Crop and flip, drawn for each view; `views` says how colours change."""
    views: tuple[ViewConfig, ViewConfig] = MOCO_V3_VIEWS
    """What happens to the first and to the second view after its crop."""
    head_width: int = 4096
    """Hidden width of the projector (3 layers) and of the predictor (2 layers)."""
    output_width: int = 256
    """Width of what is compared."""
    temperature: float = 0.2
    """Cosine similarities are divided by it."""
    momentum: float = 0.99
    """Of the encoder that makes the keys, at the first step; rises to 1 along half a cosine."""
    train_patch_embed: bool = False
    """False keeps the patch projection random and fixed, for stability (MoCo v3 section 4)."""
    duration: Duration = field(default_factory=lambda: Duration.epochs(300))
    global_batch: int = 4096
    """Images per update; each one's negatives are all the others."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(betas=(0.9, 0.999), weight_decay=0.1)
    )
    lr_schedule: LrScheduleConfig = field(default_factory=LrScheduleConfig)
    precision: Precision = "fp32"
    """`bf16-mixed` as the paper's code, `bf16` for less memory; see `mae_core.config.base`."""
    """Of the encoders; projector, predictor and loss are always fp32."""

    def __post_init__(self) -> None:
        check_patches(self.data, self.encoder)
        require(
            self.global_batch >= 2,
            f"global batch {self.global_batch}: a contrast needs at least two images",
        )
        require(
            len(self.views) == NUM_VIEWS,
            f"{len(self.views)} views: name {NUM_VIEWS} (may be equal)",
        )
        require(self.temperature > 0, f"temperature {self.temperature}: must be > 0")
        require(0 <= self.momentum <= 1, f"momentum {self.momentum}: must be in [0, 1]")
        for name in ("head_width", "output_width"):
            require(getattr(self, name) >= 1, f"{name} {getattr(self, name)}: must be ≥ 1")
        crop = self.augmentation
        require(
            not crop.color_jitter and crop.custom is None,
            "augmentation.color_jitter and augmentation.custom are ignored by a contrastive stage: "
            "colours are changed as `views` says, for each view on its own",
        )

    @property
    def new_encoder(self) -> EncoderConfig:
        """The encoder that it makes."""
        return self.encoder

    @property
    def training(self) -> Training:
        """How it trains."""
        return Training(self.duration, self.global_batch, self.optimizer.base_lr, self.precision)

    @property
    def objective_name(self) -> str:
        """Name of the method."""
        return "MoCo v3"

    def check_execution(self, execution: Execution) -> None:
        """Refuse ZeRO-3: the momentum update and the heads need the whole weights at once."""
        self.optimizer.check_execution(execution)
        require(
            execution.zero_stage != 3,
            "ZeRO stage 3 cannot train contrastively: the momentum encoder follows whole weights "
            "and the heads are trained outside the engine's forward; use execution.zero_stage=2",
        )

    @property
    def protocol(self) -> str:
        """What a reader must know to compare two losses."""
        return f"MoCo v3 pretraining, temperature {self.temperature:g}, batch {self.global_batch}"
