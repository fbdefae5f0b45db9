"""Recipe of the contrastive baseline: MoCo v3 (arXiv 2104.02057).

The defaults are its ViT recipe, the same for S, B and L: 300 epochs, batch 4096, base learning
rate 1.5e-4, decay 0.1, 40 epochs of warm-up, crops from 8 % of the area on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mae_core.config.augmentation import MOCO_V3_VIEWS, ViewConfig
from mae_core.config.base import ENCODER_FILE, Duration, Precision, require
from mae_core.config.execution import Execution
from mae_core.config.parts import (
    AugmentationConfig,
    EncoderConfig,
    LrScheduleConfig,
    OptimizerConfig,
    check_patches,
)
from mae_core.config.recipe import Recipe

NUM_VIEWS = 2


@dataclass(frozen=True, kw_only=True)
class ContrastiveRecipe(Recipe):
    """Tell each image's two views from all other images' (MoCo v3, Algorithm 1 and Table 1).

    The encoder and its initialisation are MAE's: only the objective differs. The class token is
    what is contrasted. Biases and norms get no weight decay, unlike in the published code.
    """

    KIND: ClassVar[str] = "contrastive"
    ENTRY: ClassVar[str] = "mae_core.pretrain.contrastive:run_contrastive"
    YIELDS: ClassVar[tuple[str, ...]] = (ENCODER_FILE,)
    TRAINS: ClassVar[bool] = True

    encoder: EncoderConfig
    augmentation: AugmentationConfig = field(
        default_factory=lambda: AugmentationConfig(crop_scale=(0.08, 1.0))
    )
    """Crop and flip, drawn anew for each view; colours are `views`' to change."""
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
            "augmentation.color_jitter and augmentation.custom do not serve a contrastive stage: "
            "colours are changed as `views` says, for each view on its own",
        )

    def check_execution(self, execution: Execution) -> None:
        """Refuse ZeRO-3: the momentum update and the heads need the whole weights at once."""
        require(
            execution.zero_stage != 3,
            "ZeRO stage 3 cannot train contrastively: the momentum encoder follows whole weights "
            "and the heads are trained outside the engine's forward; use execution.zero_stage=2",
        )

    @property
    def protocol(self) -> str:
        """What a reader must know to compare two losses."""
        return f"MoCo v3 pretraining, temperature {self.temperature:g}, batch {self.global_batch}"
