"""The data set of a run, as MLflow shows it; and data sets as a store remembers them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_core.config import EvalRecipe
from mae_core.data.facts import DataFacts, split_sizes
from orchestrator.plan.plan import PlannedStage
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import Store
from orchestrator.tracking.mlflow_runs import DataUse
from studies.spec.identity import UNKNOWN_DATA

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
    is_evaluation = isinstance(recipe, EvalRecipe)
    if hasattr(recipe, "eval_split"):
        cut["eval_split"] = recipe.eval_split
    return DataUse(
        name=Path(recipe.data.path).name or recipe.data.path,
        digest=facts.fingerprint[:DIGEST_LENGTH],
        source=recipe.data.path,
        context="evaluation" if is_evaluation else "training",
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


class KeptDatasets(Datasets):
    """Data sets as they were when a study was run, whether or not they are still there."""

    def __init__(self, store: Store, fingerprints: Mapping[str, str]) -> None:
        super().__init__(store)
        self._fingerprints = fingerprints
        """By path."""

    def facts(self, path: str) -> DataFacts | None:
        """Facts that were kept, else those at the path if they are of the same samples."""
        wanted = self._fingerprints.get(path)
        if wanted is None:
            return super().facts(path)
        kept = self._store.read_json(_key(wanted))
        found = DataFacts.from_json(kept) if kept is not None else super().facts(path)
        return found if found is not None and found.fingerprint == wanted else None

    def fingerprint(self, path: str) -> str:
        """What the study was run with."""
        return self._fingerprints.get(path) or super().fingerprint(path)


def keep_facts(store: Store, datasets: Datasets, paths: list[str]) -> None:
    """Remember facts by fingerprint: what lies at a path may change, or go away."""
    for path in paths:
        facts = datasets.facts(path)
        if facts is not None:
            store.create(_key(facts.fingerprint), json.dumps(facts.to_json()).encode())


def fingerprints_of(resolved: Mapping[str, Any]) -> dict[str, str]:
    """Fingerprints by path of a resolved study's data sets, from what its stages were hashed with.

    `resolved` is what the store keeps of a study: `study`, and `stages` by address.
    """
    paths = {
        f"{cell['address']}#{stage['name']}": stage["recipe"]["data"]["path"]
        for cell in resolved["study"]["cells"]
        for stage in cell["stages"]
    }
    found = {
        paths[address]: known["science"].get("data", UNKNOWN_DATA)
        for address, known in resolved["stages"].items()
        if address in paths
    }
    return {path: value for path, value in found.items() if value != UNKNOWN_DATA}


def _key(fingerprint: str) -> str:
    return f"datasets/facts-{fingerprint}.json"
