"""Recipes of evaluations that train nothing: they score what others left, or choose among it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from mae_core.config.base import (
    CLASSIFIER_FILE,
    DECODER_FILE,
    ENCODER_FILE,
    EXECUTION,
    EvalSplit,
    FeatureKind,
    require,
)
from mae_core.config.evaluation import EvalRecipe
from mae_core.config.parts import check_spread, check_takes, num_keep, num_patches
from mae_core.config.pretraining import PretrainRecipe
from mae_core.config.recipe import EncoderUse, Family, Recipe

FAMILIES = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
"""In the published order, which is part of each family's random key: never reorder."""


SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True, kw_only=True)
class InferenceRecipe(EvalRecipe):
    """An evaluation of a parent's classifier, without any training."""

    features: FeatureKind = "mean"
    """Not used: the classifier has its own."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The fine-tuned classifier."""
        return (CLASSIFIER_FILE,)

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse images of another size or normalisation than the classifier's."""
        tuned = next(p for p in parents.values() if CLASSIFIER_FILE in p.YIELDS)
        for name in ("image_size", "num_channels", "pixel_mean", "pixel_std"):
            has, wants = getattr(self.data, name), getattr(tuned.data, name)
            require(
                has == wants,
                f"data.{name} is {has}, the classifier was trained with {wants}: set the same",
            )

    def check_classes(self, of_set: tuple[str, ...], of_classifier: tuple[str, ...]) -> None:
        """Refuse (`ConfigError`) a set with classes that the classifier cannot be scored on."""

    def __post_init__(self) -> None:
        require(self.num_labels is None, "num_labels: inference uses no labels for training")

    @property
    def protocol(self) -> str:
        """What a reader must know to compare two numbers."""
        return self.label + self._view_text


@dataclass(frozen=True, kw_only=True)
class CorruptionRecipe(InferenceRecipe):
    """Corruptions computed on the fly (Hendrycks & Dietterich, arXiv 1903.12261; Table 13)."""

    KIND: ClassVar[str] = "corruptions"
    FAMILY: ClassVar[Family] = Family.CORRUPTIONS
    ENTRY: ClassVar[str] = "mae_core.evaluate.robustness:run_corruptions"

    families: tuple[str, ...] = FAMILIES
    severities: tuple[int, ...] = SEVERITIES
    baseline: Literal["none", "alexnet", "parent"] = "none"
    """What the mean corruption error is relative to: nothing (the plain mean error is reported),
    AlexNet on ImageNet-C as published, or the stage of this kind among the parents."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values, known in (
            ("families", self.families, FAMILIES),
            ("severities", self.severities, SEVERITIES),
        ):
            unknown = [v for v in values if v not in known]
            require(
                len(values) > 0 and not unknown and len(set(values)) == len(values),
                f"{name} {values}: use different ones of {', '.join(map(str, known))}",
            )
        require(
            self.is_whole or self.baseline == "none",
            f"baseline {self.baseline!r} needs all {len(FAMILIES)} families at all severities",
        )

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse a baseline that no parent has measured as a whole, too."""
        super().check_parents(parents)
        found = [p for p in parents.values() if isinstance(p, CorruptionRecipe)]
        require(
            self.baseline != "parent" or (bool(found) and found[0].is_whole),
            "baseline 'parent' needs a stage of kind corruptions among the parents, with all "
            f"{len(FAMILIES)} families at all severities",
        )

    def check_classes(self, of_set: tuple[str, ...], of_classifier: tuple[str, ...]) -> None:
        """Refuse other classes than the classifier's."""
        require(
            of_set == of_classifier,
            f"the classifier knows {len(of_classifier)} classes, the set has {len(of_set)} or "
            "other ones: corruptions are of the set it was tuned for",
        )

    @property
    def is_whole(self) -> bool:
        """All families at all severities, which a relative error needs."""
        return len(self.families) == len(FAMILIES) and len(self.severities) == len(SEVERITIES)

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return f"corruptions ({len(self.families)} families x {len(self.severities)})"


@dataclass(frozen=True, kw_only=True)
class ShiftRecipe(InferenceRecipe):
    """Another labelled image set: ImageNet-A, -R, -Sketch as data that the user has (Table 13)."""

    KIND: ClassVar[str] = "shift"
    FAMILY: ClassVar[Family] = Family.SHIFT
    ENTRY: ClassVar[str] = "mae_core.evaluate.robustness:run_shift"

    class_pairs: tuple[tuple[str, str], ...] = ()
    """(class of the set, class of the classifier) where the names differ; equal names map by
    themselves. Scores are taken among the mapped classes only, as published for -A and -R."""
    name: str = ""
    """Of the set, for people, such as `ImageNet-R`."""

    def check_classes(self, of_set: tuple[str, ...], of_classifier: tuple[str, ...]) -> None:
        """Refuse classes that cannot be mapped."""
        self.columns(of_set, of_classifier)

    def columns(self, of_set: tuple[str, ...], of_classifier: tuple[str, ...]) -> tuple[int, ...]:
        """Number among the classifier's classes of each class of the set.

        Raises:
            ConfigError: a class maps to none, two map to one, or a pair names no class.
        """
        column = {name: number for number, name in enumerate(of_classifier)}
        renamed = dict(self.class_pairs)
        strangers = sorted(set(renamed) - set(of_set))
        stranger = repr(strangers[0]) if strangers else ""
        require(not strangers, f"class_pairs name {stranger}, which is not a class of the set")
        missing = [name for name in of_set if renamed.get(name, name) not in column]
        shown = ", ".join(map(repr, missing[:5])) + (", …" if len(missing) > 5 else "")
        require(
            not missing,
            f"{len(missing)} of the set's {len(of_set)} classes are none of the classifier's: "
            f"{shown}; the classifier has {', '.join(map(repr, of_classifier[:3]))}, …: map them "
            "with class_pairs",
        )
        found = tuple(column[renamed.get(name, name)] for name in of_set)
        is_double = len(set(found)) < len(found)
        require(not is_double, "two classes of the set map to one of the classifier's: join them")
        return found

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return f"shifted set {self.name or self.data.path}"


@dataclass(frozen=True, kw_only=True)
class ReconstructionRecipe(Recipe):
    """Error on masked patches at one reference ratio and target, whatever the pretraining's own.

    So cells of different mask ratios can be set side by side, at one patch size: the target is a
    patch's pixels less its mean, over its deviation. A network that predicts raw pixels has its
    prediction put through the *true* patch's mean and deviation; it had to predict these too, so
    between the two targets the comparison is in favour of normalised pixels. Principal components,
    codes and custom targets say nothing about all pixels of a patch and are refused.
    """

    KIND: ClassVar[str] = "reconstruction"
    VERSION: ClassVar[int] = 2
    """2: the evaluation's view of an image follows one rule for a set."""
    FAMILY: ClassVar[Family] = Family.RECONSTRUCTION
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
        """Encoder and decoder."""
        return (ENCODER_FILE, DECODER_FILE)

    @property
    def scored_on(self) -> EvalSplit:
        """The split that it scores."""
        return self.eval_split

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse networks that do not predict pixels, and ratios that leave no patch."""
        for parent in parents.values():
            if isinstance(parent, PretrainRecipe):
                check_takes(self.data, parent.encoder, parent.data)
                check_spread(parent.encoder.patch_size, parent.data.num_channels)
                check_pixels(parent.target, parent.objective)
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


def check_pixels(target: object, objective: object) -> None:
    """Refuse (`ConfigError`) a network whose predictions are no pixels of patches."""
    require(
        objective == "mae" and target == "pixels",
        f"a pretraining with objective {objective!r} and target {target!r} predicts no pixels: "
        "its loss cannot be compared with that of one that does",
    )


@dataclass(frozen=True, kw_only=True)
class BestOfRecipe(EvalRecipe):
    """The best of several fine-tunings by dev top-1, scored once (paper section 4.3: epochs).

    Its parents are the candidates, each scored on dev; which settings they vary is theirs to say.
    """

    KIND: ClassVar[str] = "best_of"
    FAMILY: ClassVar[Family] = Family.FINETUNE
    ENCODER_USE: ClassVar[EncoderUse] = EncoderUse.TUNES
    ENTRY: ClassVar[str] = "mae_core.evaluate.best_of:run_best_of"
    YIELDS: ClassVar[tuple[str, ...]] = (CLASSIFIER_FILE,)

    ALIKE: ClassVar[tuple[str, ...]] = ("features", "num_labels", "label_seed")
    """Settings that candidates and choice must have alike: they are part of the protocol."""

    features: FeatureKind = "mean"
    what: str = field(default="fine-tune", metadata=EXECUTION)
    """What was searched, for the protocol's name: `fine-tune of the last 4 blocks`."""

    def __post_init__(self) -> None:
        require(bool(self.what.strip()), "`what` is empty: name what was searched")
        require(self.features != "pixels", "a choice among classifiers: features cls or mean")

    @property
    def needs(self) -> tuple[str, ...]:
        """No file of exactly one parent: every parent is a candidate."""
        return ()

    @property
    def selects_on_dev(self) -> bool:
        """Always: it chooses by dev accuracy."""
        return True

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse too few candidates, and those that leave no classifier or are not comparable."""
        require(len(parents) >= 2, f"best_of of {len(parents)} candidates: give two or more")
        for name, parent in parents.items():
            require(
                isinstance(parent, EvalRecipe) and CLASSIFIER_FILE in parent.YIELDS,
                f"candidate {name!r} is a {parent.KIND} stage, which leaves no classifier",
            )
            assert isinstance(parent, EvalRecipe)
            check_candidate(self, name, parent.eval_split, _shared(parent))
            require(
                parent.data == self.data,
                f"candidate {name!r} saw other data than best_of scores: use the same",
            )

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return f"{self.what}, best of a search on dev"


def check_candidate(
    recipe: BestOfRecipe, name: str, eval_split: str, settings: Mapping[str, object]
) -> None:
    """Refuse (`ConfigError`) a candidate scored on test, or of another protocol."""
    require(
        eval_split == "dev",
        f"candidate {name!r} is scored on {eval_split!r}: nothing is chosen on the test set, use "
        "eval_split='dev'",
    )
    for key, wanted in _shared(recipe).items():
        require(
            settings[key] == wanted,
            f"candidate {name!r} has {key} {settings[key]!r}, best_of {wanted!r}: set them alike",
        )


def _shared(recipe: EvalRecipe) -> dict[str, object]:
    return {key: getattr(recipe, key) for key in BestOfRecipe.ALIKE}
