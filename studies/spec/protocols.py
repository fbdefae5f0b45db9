"""Which evaluations are the same: those whose recipes are, whatever they are called.

Two results may be compared, and a law fitted to them, if they were measured in the same way. A
recipe may depend on where its cell stands (a larger network is fine-tuned at another rate): such
settings do not make another protocol, where they are the same for all cells of one place. Seeds
never do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Protocol

from studies.spec.canonical_json import digest, leaves
from studies.spec.cell import Cell, Stage
from studies.spec.coordinates import Coordinates, seedless

Leaves = Mapping[str, object]


class Measured(Protocol):
    """A stage of a cell, and where the cell stands."""

    @property
    def cell(self) -> Cell: ...  # noqa: D102
    @property
    def stage(self) -> Stage: ...  # noqa: D102
    @property
    def coordinates(self) -> Coordinates: ...  # noqa: D102


def protocol_keys(stages: Sequence[Measured]) -> list[str]:
    """A key for each stage, alike for those of one protocol; of all that are shown together."""
    keys = [""] * len(stages)
    alike: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, one in enumerate(stages):
        alike[one.stage.kind, one.stage.recipe.protocol].append(i)
    for name, members in alike.items():
        for i, rest in zip(members, _rests([stages[i] for i in members]), strict=True):
            keys[i] = digest([*name, rest])
    return keys


def _rests(stages: Sequence[Measured]) -> list[str]:
    """Of stages with one description, what distinguishes those that are not the same."""
    settings = [leaves(_settings(one)) for one in stages]
    names: dict[str, list[int]] = defaultdict(list)
    for i, one in enumerate(stages):
        names[one.stage.name].append(i)
    rests = [""] * len(stages)
    for members in names.values():
        free = _free([stages[i] for i in members], [settings[i] for i in members])
        for i in members:
            rests[i] = digest({k: v for k, v in settings[i].items() if k not in free})
    return _joined(rests, [digest(one) for one in settings])


def _joined(rests: Sequence[str], recipes: Sequence[str]) -> list[str]:
    """One name for all rests that share a recipe: the least of them."""
    least: dict[str, str] = {rest: rest for rest in rests}
    is_settled = False
    while not is_settled:
        shared: dict[str, str] = {}
        for rest, recipe in zip(rests, recipes, strict=True):
            shared[recipe] = min(shared.get(recipe, least[rest]), least[rest])
        before = dict(least)
        for rest, recipe in zip(rests, recipes, strict=True):
            least[rest] = min(least[rest], shared[recipe])
        is_settled = before == least
    return [least[rest] for rest in rests]


def _free(stages: Sequence[Measured], settings: Sequence[Leaves]) -> set[str]:
    """Settings that go with the place of a cell: one value wherever cells stand alike."""
    alike: dict[object, list[Leaves]] = defaultdict(list)
    for one, found in zip(stages, settings, strict=True):
        at = one.coordinates
        alike[at.size, at.duration, tuple(at.axes.items())].append(found)
    return {
        key
        for key in {key for found in settings for key in found}
        if _differs(key, settings) and not any(_differs(key, group) for group in alike.values())
    }


def _differs(key: str, settings: Sequence[Leaves]) -> bool:
    """What is at its default is left out, which is no value at all."""
    return len({repr(one[key]) if key in one else "" for one in settings}) > 1


def _settings(one: Measured) -> dict[str, object]:
    """A recipe without seeds; of a choice also those of its candidates."""
    found = seedless(one.stage)
    if one.stage.kind == "best_of":
        candidates = [one.cell.stage(name) for name in one.stage.parents]
        found["candidates"] = [[stage.kind, seedless(stage)] for stage in candidates]
    return found
