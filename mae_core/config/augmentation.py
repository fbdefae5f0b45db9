"""Augmentation recipes as frozen data; imports nothing heavy.

The defaults are those of the paper's fine-tuning (arXiv 2111.06377, Table 9) or, for the two
views, of MoCo v3 (arXiv 2104.02057). Everything here is science: another value, other results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mae_core.config.base import require

MAX_LEVEL = 10.0
"""Strongest magnitude of RandAugment."""
MAX_ALPHA = 2.0
"""Largest parameter of the Beta distribution that the sampler of `mixing` serves."""


def _check_probability(name: str, value: float) -> None:
    require(0 <= value <= 1, f"{name} {value}: a probability, use 0..1")


@dataclass(frozen=True, kw_only=True)
class RandAugmentConfig:
    """RandAugment (Cubuk et al. 2019, arXiv 1909.13719) in the variant `rand-m9-mstd0.5-inc1`.

    That is the paper's "RandAug (9, 0.5)": 9 the magnitude, 0.5 its standard deviation.
    """

    num_ops: int = 2
    """Operations in a row per image, drawn with replacement."""
    magnitude: float = 9.0
    """Mean strength, 0..10."""
    magnitude_std: float = 0.5
    """Standard deviation of the strength, drawn per operation and cut to 0..10."""
    probability: float = 0.5
    """Chance that a drawn operation is carried out."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Of the geometric operations."""

    def __post_init__(self) -> None:
        require(self.num_ops >= 1, f"RandAugment with {self.num_ops} operations: must be ≥ 1")
        level = f"RandAugment magnitude {self.magnitude}"
        require(0 <= self.magnitude <= MAX_LEVEL, f"{level}: use 0..{MAX_LEVEL:g}")
        require(self.magnitude_std >= 0, f"{level} with std {self.magnitude_std}: must be ≥ 0")
        _check_probability("RandAugment probability", self.probability)


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899), one or the other per draw."""

    mixup_alpha: float = 0.8
    """Beta(α, α) of mixup's lambda; 0 = no mixup."""
    cutmix_alpha: float = 1.0
    """Beta(α, α) of CutMix's lambda; 0 = no CutMix."""
    switch_probability: float = 0.5
    """Chance of CutMix where both are on."""
    probability: float = 1.0
    """Chance that a draw mixes at all."""
    level: Literal["batch", "pair"] = "batch"
    """One draw for each group of the global batch, or one for each pair of samples."""
    group_size: int = 32
    """Samples that share a draw: the official recipe's images per process (16 for ViT-H). It
    divides the global batch, whatever the world size."""

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup_alpha), ("cutmix", self.cutmix_alpha)):
            require(0 <= alpha <= MAX_ALPHA, f"{name} alpha {alpha}: use 0 (off) to {MAX_ALPHA:g}")
        require(
            self.mixup_alpha > 0 or self.cutmix_alpha > 0,
            "mixup alpha and cutmix alpha are both 0: set one of them, or leave mixing out",
        )
        size = self.group_size
        require(size >= 2 and size % 2 == 0, f"mix.group_size {size}: must be even, to form pairs")
        _check_probability("switch probability", self.switch_probability)
        _check_probability("mixing probability", self.probability)

    def check_batch(self, batch: int) -> None:
        """Refuse (`ConfigError`) a global batch that does not divide into pairs, or into groups."""
        require(batch % 2 == 0, f"global batch {batch}: mixing pairs images, make it even")
        size = self.group_size
        fits = max(n for n in range(2, batch + 1, 2) if batch % n == 0 and n <= max(size, 2))
        require(
            self.level == "pair" or batch % size == 0,
            f"global batch {batch} does not divide into groups of mix.group_size {size}, each of "
            f"which is mixed by one draw: use a multiple of {size}, or mix.group_size={fits}",
        )


@dataclass(frozen=True, kw_only=True)
class ErasingConfig:
    """Random erasing (Zhong et al. 2017, arXiv 1708.04896) with one box of pixel noise."""

    probability: float = 0.25
    """Chance that an image loses a box."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """Area of the box over the image's, uniform."""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Height over width of the box, log-uniform."""

    def __post_init__(self) -> None:
        _check_probability("erasing probability", self.probability)
        require(0 < self.area[0] <= self.area[1] <= 1, f"erased area {self.area}: 0 < a ≤ b ≤ 1")
        require(0 < self.aspect[0] <= self.aspect[1], f"erased aspect {self.aspect}: 0 < a ≤ b")


@dataclass(frozen=True, kw_only=True)
class ColorJitterConfig:
    """Brightness, contrast, saturation and hue in random order (strengths of MoCo v3).

    The MAE paper's "crop + color jit" (Table 1e) does not state its strengths.
    """

    brightness: float = 0.4
    """Factor uniform in 1 ± this."""
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    """Shift uniform in ± this, as a share of the colour circle; at most ½."""
    probability: float = 0.8
    """Chance that an image is jittered at all."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            strength = getattr(self, name)
            require(0 <= strength <= 1, f"{name} jitter {strength}: use 0 (off) to 1")
        require(0 <= self.hue <= 0.5, f"hue jitter {self.hue}: use 0 (off) to 0.5")
        _check_probability("jitter probability", self.probability)


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What one view of a contrastive pair goes through after crop and flip, in this order."""

    jitter: ColorJitterConfig = ColorJitterConfig()
    grayscale: float = 0.2
    """Chance of losing all colour."""
    blur: float = 1.0
    """Chance of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur in pixels, uniform (SimCLR, arXiv 2002.05709)."""
    solarize: float = 0.0
    """Chance that pixels of 128 and more are inverted (BYOL, arXiv 2006.07733)."""

    def __post_init__(self) -> None:
        for name in ("grayscale", "blur", "solarize"):
            _check_probability(f"{name} probability", getattr(self, name))
        low, high = self.blur_sigma
        require(0 < low <= high, f"blur sigma {self.blur_sigma}: must satisfy 0 < a ≤ b")


MOCO_V3_VIEWS = (ViewConfig(blur=1.0, solarize=0.0), ViewConfig(blur=0.1, solarize=0.2))
"""The two unequal views of MoCo v3; both crop 8–100 % of the area before and may be mirrored."""
