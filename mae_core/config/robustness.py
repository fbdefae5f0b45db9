"""Recipes of evaluations that only look: a fine-tuned model on images it was not tuned for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mae_core.config.base import CLASSIFIER_FILE, FeatureKind, require
from mae_core.config.evaluation import EvalRecipe
from mae_core.config.recipe import Recipe
from mae_core.corruptions.severity import FAMILIES, SEVERITIES


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
        tuned: Any = next(p for p in parents.values() if CLASSIFIER_FILE in p.YIELDS)
        for name in ("image_size", "num_channels", "pixel_mean", "pixel_std"):
            has, wants = getattr(self.data, name), getattr(tuned.data, name)
            require(
                has == wants,
                f"data.{name} is {has}, the classifier was trained with {wants}: set the same",
            )

    def __post_init__(self) -> None:
        require(self.num_labels is None, "num_labels: inference uses no labels for training")

    @property
    def protocol(self) -> str:
        """What a reader must know to compare two numbers."""
        return self.label + (", dev" if self.eval_split == "dev" else "")


@dataclass(frozen=True, kw_only=True)
class CorruptionRecipe(InferenceRecipe):
    """Corruptions computed on the fly (Hendrycks & Dietterich, arXiv 1903.12261; Table 13)."""

    KIND: ClassVar[str] = "corruptions"
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
        whole = len(self.families) == len(FAMILIES) and len(self.severities) == len(SEVERITIES)
        require(
            whole or self.baseline == "none",
            f"baseline {self.baseline!r} needs all {len(FAMILIES)} families at all severities",
        )

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return f"corruptions ({len(self.families)} families x {len(self.severities)})"


@dataclass(frozen=True, kw_only=True)
class ShiftRecipe(InferenceRecipe):
    """Another labelled image set: ImageNet-A, -R, -Sketch as data that the user has (Table 13)."""

    KIND: ClassVar[str] = "shift"
    ENTRY: ClassVar[str] = "mae_core.evaluate.robustness:run_shift"

    class_pairs: tuple[tuple[str, str], ...] = ()
    """(class of the set, class of the classifier) where the names differ; equal names map by
    themselves. Scores are taken among the mapped classes only, as published for -A and -R."""
    name: str = ""
    """Of the set, for people, such as `ImageNet-R`."""

    @property
    def label(self) -> str:
        """Name of the protocol."""
        return f"shifted set {self.name or self.data.path}"
