"""The data set of a run, as MLflow shows it; and data sets as a store remembers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mae_core.data.facts import DataFacts, split_sizes
from orchestrator.plan.plan import PlannedStage
from orchestrator.store.data_facts import Datasets
from orchestrator.tracking.mlflow_runs import DataUse

DIGEST_LENGTH = 32
"""Hex digits of a fingerprint that fit where MLflow shows a digest; the whole is in the profile."""


def data_use(planned: PlannedStage, datasets: Datasets) -> DataUse | None:
    """What a stage reads; None while nobody has looked at the data."""
    recipe = planned.stage.recipe
    facts = datasets.facts(recipe.data.path)
    if facts is None:
        return None
    sizes = split_sizes(facts, recipe.data)
    cut: dict[str, Any] = {f"num_{split}": count for split, count in sizes.items()}
    cut |= {"split_seed": recipe.data.split_seed, "image_size": recipe.data.image_size}
    if recipe.scored_on is not None:
        cut["eval_split"] = recipe.scored_on
    return DataUse(
        name=Path(recipe.data.path).name or recipe.data.path,
        digest=facts.fingerprint[:DIGEST_LENGTH],
        source=recipe.data.path,
        context="evaluation" if recipe.IS_EVALUATION else "training",
        profile=_profile(facts),
        cut=cut,
    )


def _profile(facts: DataFacts) -> dict[str, Any]:
    return {
        "fingerprint": facts.fingerprint,
        "num_train": facts.num_train,
        "num_dev": facts.num_dev,
        "num_test": facts.num_test,
        "num_classes": len(facts.class_names),
        "num_bytes": facts.num_bytes,
        "width": list(facts.width),
        "height": list(facts.height),
        "formats": {name: count for name, count in facts.formats},
    }
