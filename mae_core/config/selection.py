"""Recipe of the choice among finished candidates: all scored on dev, the best scored on test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mae_core.config.base import CLASSIFIER_FILE, EXECUTION, FeatureKind, require
from mae_core.config.evaluation import EvalRecipe
from mae_core.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class BestOfRecipe(EvalRecipe):
    """The best of several fine-tunings by dev top-1, scored once (paper section 4.3: epochs).

    Its parents are the candidates, each scored on dev; which settings they vary is theirs to say.
    """

    KIND: ClassVar[str] = "best_of"
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
        """It does nothing else."""
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
    recipe: BestOfRecipe, name: str, eval_split: str, settings: Mapping[str, Any]
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


def _shared(recipe: EvalRecipe) -> dict[str, Any]:
    return {key: getattr(recipe, key) for key in BestOfRecipe.ALIKE}
