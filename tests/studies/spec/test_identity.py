"""Identity: what changes it, what does not, what has none."""

from __future__ import annotations

import dataclasses
import math

import pytest

from mae_core.config import (
    NO_AUGMENTATION,
    DataConfig,
    Duration,
    KnnRecipe,
    MaskConfig,
    PretrainRecipe,
)
from mae_core.model.sizes import encoder
from studies.errors import StudyError
from studies.load import load_study
from studies.spec.canonical_json import canonical, differences, digest
from studies.spec.cell import Cell, Stage
from studies.spec.identity import identify

DATA = DataConfig(path="digits", image_size=8, num_channels=1, pixel_mean=(0.3,), pixel_std=(0.4,))
RECIPE = PretrainRecipe(data=DATA, encoder=encoder("N1"))


def cell(recipe: PretrainRecipe = RECIPE) -> Cell:
    knn = Stage(name="knn", recipe=KnnRecipe(data=DATA), parents=("pretrain",))
    return Cell(address="c", stages=(Stage(name="pretrain", recipe=recipe), knn))


def hashes(recipe: PretrainRecipe) -> list[str]:
    return [i.science_hash for i in identify(cell(recipe), {"digits": "f"}).values()]


def test_integers_and_whole_floats_are_the_same_number() -> None:
    assert canonical(800.0) == canonical(800)
    assert canonical(0.5) == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, print, {1: "a"}, object()])
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(StudyError):
        canonical(value)


def test_execution_does_not_change_identity() -> None:
    moved = dataclasses.replace(RECIPE, data=dataclasses.replace(DATA, path="digits"))
    named = dataclasses.replace(
        RECIPE, encoder=dataclasses.replace(RECIPE.encoder, name="another name")
    )
    assert hashes(RECIPE) == hashes(moved) == hashes(named)


@pytest.mark.parametrize(
    "change",
    [
        {"mask_ratio": 0.5},
        {"seed": 1},
        {"duration": Duration.epochs(801)},
        {"global_batch": 2048},
        {"precision": "bf16"},
        {"precision": "bf16-mixed"},
        {"norm_pix_loss": False},
    ],
)
def test_science_changes_the_stage_and_its_children(change: dict[str, object]) -> None:
    changed = dataclasses.replace(RECIPE, **change)  # type: ignore[arg-type]
    for before, after in zip(hashes(RECIPE), hashes(changed), strict=True):
        assert before != after


def test_data_is_identified_by_its_fingerprint() -> None:
    one = identify(cell(), {"digits": "a"})["pretrain"].science_hash
    other = identify(cell(), {"digits": "b"})["pretrain"].science_hash
    assert one != other


def test_the_window_of_evaluations_changes_no_pretraining_that_crops() -> None:
    data = dataclasses.replace(DATA, eval_crop=0.9)
    other = dataclasses.replace(RECIPE, data=data)
    assert hashes(other) == hashes(RECIPE)
    whole = dataclasses.replace(other, augmentation=NO_AUGMENTATION)
    assert hashes(whole) != hashes(dataclasses.replace(whole, data=DATA))
    knn = Stage(name="knn", recipe=KnnRecipe(data=data), parents=("pretrain",))
    both = dataclasses.replace(cell(other), stages=(cell(other).stages[0], knn))
    found = [i.science_hash for i in identify(both, {"digits": "f"}).values()]
    assert found[0] == hashes(RECIPE)[0] and found[1] != hashes(RECIPE)[1]


def test_pretrainings_that_version_2_left_alone_are_found_again() -> None:
    """Of random crops and masks: their hash is what it was, though the defaults of others moved."""
    versions = {
        "random": RECIPE,
        "grid": dataclasses.replace(RECIPE, mask=MaskConfig(sampling="grid")),
        "block": dataclasses.replace(RECIPE, mask=MaskConfig(sampling="block")),
        "whole": dataclasses.replace(RECIPE, augmentation=NO_AUGMENTATION),
    }
    found = {name: recipe.version for name, recipe in versions.items()}
    assert found == {"random": 1, "grid": 1, "block": 2, "whole": 2}
    assert hashes(RECIPE)[0] == "3197b7287f1a492bfeeb"


def test_a_new_field_at_its_default_leaves_old_identities_alone() -> None:
    @dataclasses.dataclass(frozen=True)
    class Old:
        a: int = 1

    @dataclasses.dataclass(frozen=True)
    class New:
        a: int = 1
        b: tuple[int, ...] = dataclasses.field(default_factory=tuple)

    assert digest(canonical(Old(2))) == digest(canonical(New(2)))
    assert digest(canonical(New(2, (1,)))) != digest(canonical(New(2)))


def test_differences_name_the_dotted_key() -> None:
    old = {"recipe": {"mask_ratio": 0.75}, "seed": 1}
    new = {"recipe": {"mask_ratio": 0.5, "x": 2}, "seed": 1}
    assert differences(old, new) == [("recipe.mask_ratio", 0.75, 0.5), ("recipe.x", None, 2)]


GOLDEN = {
    "quickstart": "52cdaaee94c29d55bce8",
    "paper/size_by_duration": "d1fffa04796569d36923",
    "scaling/vit_ladder": "33df62328cb24b26a634",
    "small/images": "edf8b28a3d9f37a6c9fb",
}
"""Digest of all identities of a catalogue study with the fingerprint `golden`. If one changes,
results that people have paid for are no longer found: change it only together with a reason."""


@pytest.mark.parametrize("name", GOLDEN)
def test_identities_of_the_catalogue_are_golden(name: str) -> None:
    study = load_study(name)
    paths = {s.recipe.data.path: "golden" for s in study.all_stages()}
    found = [
        [c.address, {n: i.science_hash for n, i in identify(c, paths).items()}] for c in study.cells
    ]
    assert digest(found) == GOLDEN[name]
