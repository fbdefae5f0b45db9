"""Which evaluations are the same: by their recipes, whatever their sentences say."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mae_core.config import KnnRecipe
from studies.catalog import quickstart
from studies.spec.cell import Cell, Stage
from studies.spec.coordinates import Coordinates, coordinates
from studies.spec.protocols import protocol_keys


@dataclass(frozen=True)
class At:
    cell: Cell
    stage: Stage

    @property
    def coordinates(self) -> Coordinates:
        return coordinates(self.cell)


def knn(size: str, seed: int, name: str = "knn", temperature: float = 0.07) -> At:
    """A k-NN of an encoder; its sentence does not speak of the temperature."""
    cell = quickstart.cell(size, 40, seed)
    stage = next(s for s in cell.stages if isinstance(s.recipe, KnnRecipe))
    assert isinstance(stage.recipe, KnnRecipe)
    recipe = replace(stage.recipe, temperature=temperature)
    stage = replace(stage, name=name, recipe=recipe)
    return At(replace(cell, stages=(cell.stages[0], stage)), stage)


def groups(*stages: At) -> list[list[int]]:
    keys = protocol_keys(stages)
    return [[i for i, k in enumerate(keys) if k == key] for key in dict.fromkeys(keys)]


def test_seeds_names_and_sizes_make_no_protocol() -> None:
    assert groups(knn("N1", 0), knn("N1", 1), knn("N2", 0, name="near")) == [[0, 1, 2]]


def test_one_sentence_and_two_recipes_are_two_protocols() -> None:
    sharp, soft = knn("N1", 0), knn("N1", 0, name="soft", temperature=0.5)
    assert sharp.stage.recipe.protocol == soft.stage.recipe.protocol
    assert groups(sharp, soft, knn("N2", 0), knn("N2", 0, "soft", 0.5)) == [[0, 2], [1, 3]]
    # At another seed of the same place it is no setting of the place.
    assert groups(knn("N1", 0), knn("N1", 1, temperature=0.5)) == [[0], [1]]


def test_a_setting_that_goes_with_the_size_makes_no_protocol() -> None:
    small = [knn("N1", seed) for seed in (0, 1)]
    large = [knn("N2", seed, temperature=0.5) for seed in (0, 1)]
    assert groups(*small, *large) == [[0, 1, 2, 3]]
    # A recipe under another name joins those that it is alike.
    assert groups(*small, *large, knn("N3", 0, "other", 0.5)) == [[0, 1, 2, 3, 4]]
