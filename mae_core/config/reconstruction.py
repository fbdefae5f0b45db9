"""Recipe of the reconstruction loss on images that were not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mae_core.config.base import DECODER_FILE, ENCODER_FILE, EvalSplit, require
from mae_core.config.parts import num_keep, num_patches
from mae_core.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ReconstructionRecipe(Recipe):
    """Error on masked patches at one reference ratio and target, whatever the pretraining's own.

    So cells of different mask ratios can be set side by side, at one patch size: the target is a
    patch's pixels less its mean, over its deviation. A network that predicts raw pixels has its
    prediction put through the *true* patch's mean and deviation; it had to predict these too, so
    between the two targets the comparison is in favour of normalised pixels. Principal components,
    codes and one's own targets say nothing about all pixels of a patch and are refused.
    """

    KIND: ClassVar[str] = "reconstruction"
    ENTRY: ClassVar[str] = "mae_core.evaluate.reconstruction:run_reconstruction"

    mask_ratio: float = 0.75
    """The reference: the same for every cell that is compared."""
    mask_seed: int = 0
    """Masks are random, and the same for every network of a patch size."""
    gallery_ratios: tuple[float, ...] = (0.75, 0.85, 0.95)
    """Ratios to show reconstructions at (paper Figure 4)."""
    eval_split: EvalSplit = "test"

    def __post_init__(self) -> None:
        for ratio in (self.mask_ratio, *self.gallery_ratios):
            require(0 < ratio < 1, f"mask ratio {ratio}: must be in (0, 1)")
        require(
            len(set(self.gallery_ratios)) == len(self.gallery_ratios),
            f"gallery_ratios {self.gallery_ratios}: name each once",
        )

    @property
    def needs(self) -> tuple[str, ...]:
        """Both halves of the network."""
        return (ENCODER_FILE, DECODER_FILE)

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse networks that do not predict pixels, and ratios that leave no patch."""
        for parent in parents.values():
            if DECODER_FILE in parent.YIELDS and hasattr(parent, "encoder"):
                check_pixels(getattr(parent, "target", ""), getattr(parent, "objective", ""))
                self.check_ratios(parent.encoder.patch_size)

    def check_ratios(self, patch_size: int) -> None:
        """Refuse (`ConfigError`) a ratio that leaves no patch visible, or none masked."""
        patches = num_patches(self.data.image_size, patch_size)
        for ratio in (self.mask_ratio, *self.gallery_ratios):
            kept = num_keep(patches, ratio)
            require(
                0 < kept < patches,
                f"mask ratio {ratio:g} keeps {kept} of {patches} patches: at least one must stay "
                "visible and one must be masked; set mask_ratio or gallery_ratios",
            )

    @property
    def protocol(self) -> str:
        """What a reader must know to compare two losses."""
        split = ", dev" if self.eval_split == "dev" else ""
        return f"reconstruction of normalised pixels, mask {self.mask_ratio:g}{split}"


def gallery_file(ratio: float) -> str:
    """Name of the gallery at a mask ratio, of the form that the report draws."""
    return f"gallery_{ratio:g}.npz"


def check_pixels(target: Any, objective: Any) -> None:
    """Refuse (`ConfigError`) a network whose predictions are no pixels of patches."""
    require(
        objective == "mae" and target == "pixels",
        f"a pretraining with objective {objective!r} and target {target!r} predicts no pixels: "
        "its loss cannot be compared with that of one that does",
    )
