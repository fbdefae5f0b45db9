"""Stages with imported encoders: finished from the store, never run."""

from __future__ import annotations

from collections.abc import Iterable

from mae_core.config import AdoptedRecipe
from orchestrator.plan.plan import PlannedStage
from orchestrator.store.adopted import adopted_key
from orchestrator.store.records import Records
from orchestrator.weights.adopt import finish_adopted


def take_adopted(stages: Iterable[PlannedStage], records: Records) -> bool:
    """Finish the planned stages whose encoders are in the store; True if there were any.

    Raises:
        StudyError: an encoder has another shape than its recipe says.
    """
    taken = False
    for planned in stages:
        recipe, identity = planned.stage.recipe, planned.identity
        if (
            isinstance(recipe, AdoptedRecipe)
            and planned.record is None
            and _is_held(recipe, records)
        ):
            finish_adopted(records, identity.science_hash, identity.science, recipe.sha256, recipe)
            taken = True
    return taken


def _is_held(recipe: AdoptedRecipe, records: Records) -> bool:
    if not recipe.sha256:
        return False
    return records.store.read_json(f"{adopted_key(recipe.sha256)}/record.json") is not None
