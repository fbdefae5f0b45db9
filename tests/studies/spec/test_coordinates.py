"""Coordinates of cells: read off recipes, whatever the cells are called."""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import AdoptedRecipe, DataConfig, Duration, EncoderConfig
from studies.catalog import quickstart
from studies.spec.cell import Cell, Stage
from studies.spec.coordinates import coordinates, stage_family
from studies.spec.overrides import override_cell
from studies.spec.search import repeats


def test_a_cell_stands_where_its_recipes_say() -> None:
    cell = replace(quickstart.cell("N2", 40, 2), address="any/s7/e9")
    at = coordinates(cell, ("mask_ratio", "severity"))
    assert (at.seed, at.size, at.duration) == (2, "N2", Duration.epochs(40))
    assert at.axes == {"mask_ratio": 0.75}


def test_cells_that_differ_in_seeds_alone_are_of_one_family() -> None:
    first, second = (coordinates(quickstart.cell("N2", 40, seed)) for seed in (0, 1))
    assert first.family == second.family and first.seed != second.seed
    others = (quickstart.cell("N1", 40, 0), quickstart.cell("N2", 10, 0), quickstart.pixels(0))
    families = {first.family, *(coordinates(other).family for other in others)}
    assert len(families) == 4


def test_cells_that_read_other_data_do_not_repeat_each_other() -> None:
    """The path is no part of a recipe's identity, and the images are."""
    digits = quickstart.cell("N2", 40, 0)
    other = override_cell(digits, {"data.path": "other"})
    assert coordinates(digits).family != coordinates(other).family
    knn, of_other = digits.stage("knn"), other.stage("knn")
    assert stage_family(digits, knn) != stage_family(other, of_other)


def test_the_address_is_no_part_of_a_family() -> None:
    cell = quickstart.cell("N2", 40, 0)
    assert coordinates(replace(cell, address="s16")).family == coordinates(cell).family


def test_a_baseline_has_no_encoder_and_an_imported_encoder_no_duration() -> None:
    pixels = coordinates(quickstart.pixels(1), ("mask_ratio", "size"))
    assert (pixels.seed, pixels.size, pixels.duration, pixels.axes) == (1, None, None, {})
    encoder = EncoderConfig(width=192, depth=12, num_heads=3, patch_size=16)
    recipe = AdoptedRecipe(name="theirs", encoder=encoder, data=DataConfig(path="x"), seed=4)
    imported = coordinates(Cell(address="theirs", stages=(Stage(name="adopt", recipe=recipe),)))
    assert (imported.seed, imported.size, imported.duration) == (4, "192x12", None)


def test_a_trial_stands_at_its_settings_and_its_repeats_are_its_family() -> None:
    sweep = replace(quickstart.sweep(), repeat_seeds=(7, 8))
    trials = [
        replace(override_cell(sweep.base, {"pretrain.mask_ratio": m}), address=f"t{m}")
        for m in (0.5, 0.6)
    ]
    found = [coordinates(trial, ("mask_ratio",)) for trial in trials]
    assert [at.axes["mask_ratio"] for at in found] == [0.5, 0.6]
    assert found[0].family != found[1].family
    again = [coordinates(cell) for cell in repeats(sweep, trials[0])]
    assert again and {at.family for at in again} == {found[0].family}
    assert [at.seed for at in again] == list(sweep.repeat_seeds)


def test_a_trial_stands_where_its_sweep_varies_it() -> None:
    sweep = quickstart.sweep()
    cell = override_cell(sweep.base, {"pretrain.mask_ratio": 0.5})
    assert coordinates(cell, (), ("pretrain.mask_ratio",)).axes == {"pretrain.mask_ratio": 0.5}
