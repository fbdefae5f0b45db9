"""Science hashes of a cell's stages: recipe, data fingerprint and the parents' hashes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from mae_core.config import PRECISION_VERSION
from mae_core.runtime.plugins import source_digest
from studies.spec.canonical_json import canonical, digest
from studies.spec.cell import Cell, Stage

UNKNOWN_DATA = "unknown"
"""Fingerprint of data that has not been read yet; such a stage is never done."""


@dataclass(frozen=True)
class Identity:
    """What a stage computes, canonically, and its hash."""

    science_hash: str
    science: Mapping[str, object]
    parents: tuple[str, ...] = ()
    """Hashes of the parents, in order."""


def identify(cell: Cell, fingerprints: Mapping[str, str]) -> dict[str, Identity]:
    """Identity of each stage by name; `fingerprints` maps data paths to sample fingerprints."""
    found: dict[str, Identity] = {}
    for stage in cell.stages:
        # Parents by hash, in order: a parent that changes makes another stage of its child.
        parents = tuple(found[p].science_hash for p in stage.parents)
        science = _science(stage, fingerprints) | {"parents": list(parents)}
        found[stage.name] = Identity(digest(science), science, parents)
    return found


def _science(stage: Stage, fingerprints: Mapping[str, str]) -> dict[str, object]:
    recipe = stage.recipe
    if recipe.data.eval_crop is not None and not recipe.sees_windows:
        # `--set data.eval_crop` is about evaluations; it must not pretrain anything again.
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, eval_crop=None))
    science: dict[str, object] = {
        "kind": stage.kind,
        "version": recipe.version,
        "recipe": canonical(recipe, stage.name),
        "data": fingerprints.get(recipe.data.path, UNKNOWN_DATA),
    }
    training = recipe.training
    if training is not None and training.precision in PRECISION_VERSION:
        science["precision_version"] = PRECISION_VERSION[training.precision]
    if recipe.extensions:
        science["sources"] = {name: source_digest(name) for name in recipe.extensions}
    return science
