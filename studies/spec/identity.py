"""Science hashes of a cell's stages: recipe, data fingerprint and the parents' hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mae_core.runtime.plugins import source_digest
from studies.spec.canonical_json import canonical, digest
from studies.spec.cell import Cell, Stage

UNKNOWN_DATA = "unknown"
"""Fingerprint of data that has not been read yet; such a stage is never done."""


@dataclass(frozen=True)
class Identity:
    """What a stage computes, canonically, and its hash."""

    science_hash: str
    science: dict[str, Any]


def identify(cell: Cell, fingerprints: Mapping[str, str]) -> dict[str, Identity]:
    """Identity of each stage by name; `fingerprints` maps data paths to sample fingerprints."""
    found: dict[str, Identity] = {}
    for stage in cell.stages:
        science = _science(stage, fingerprints)
        # Parents by hash, in order: a parent that changes makes another stage of its child.
        science["parents"] = [found[p].science_hash for p in stage.parents]
        found[stage.name] = Identity(digest(science), science)
    return found


def _science(stage: Stage, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    recipe = stage.recipe
    science = {
        "kind": stage.kind,
        "version": recipe.VERSION,
        "recipe": canonical(recipe, stage.name),
        "data": fingerprints.get(recipe.data.path, UNKNOWN_DATA),
    }
    if recipe.extensions:
        science["sources"] = {name: source_digest(name) for name in recipe.extensions}
    return science
