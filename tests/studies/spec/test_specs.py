"""Specifications, overrides, JSON and loading: what is accepted, what is refused and how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mae_core.config import Duration, EncoderConfig, Execution, PretrainRecipe, split_batch
from mae_core.errors import ConfigError
from studies.catalog import CATALOG, quickstart
from studies.errors import StudyError
from studies.load import load_study, study_from_plain
from studies.spec.cell import Cell, Stage
from studies.spec.codec import to_plain
from studies.spec.overrides import override_cell, parse
from studies.spec.study import Study, override_study
from studies.spec.sweep import Choices, Sweep


@pytest.mark.parametrize("name", CATALOG)
def test_catalogue_studies_survive_json(name: str, tmp_path: Path) -> None:
    study = load_study(name)
    path = tmp_path / "study.json"
    path.write_text(json.dumps(to_plain(study)))
    assert load_study(str(path)) == study


def test_overrides_reach_stages_by_name_kind_and_section() -> None:
    study = override_study(
        load_study("quickstart"),
        parse(
            (
                "pretrain.global_batch=128",
                "pretrain.duration=7ep",
                "linear_100.num_labels=50",
                "data.dev_fraction=0.2",
                "execution.world_size=2",
                "pretrain.execution.zero_stage=2",
            )
        ),
    )
    cell = study.cell("N1/e40/s0")
    recipe = cell.stage("pretrain").recipe
    assert isinstance(recipe, PretrainRecipe)
    assert (recipe.global_batch, recipe.duration) == (128, Duration.epochs(7))
    assert cell.stage("linear_100").recipe.num_labels == 50  # type: ignore[union-attr]
    assert cell.stage("linear_probe").recipe.num_labels is None  # type: ignore[union-attr]
    assert {s.recipe.data.dev_fraction for s in study.all_stages()} == {0.2}
    assert {s.execution.world_size for s in study.all_stages()} == {2}
    assert cell.stage("pretrain").execution.zero_stage == 2
    assert cell.stage("knn").execution.zero_stage == 1


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("pretrain.mask_ration=0.5", "did you mean 'mask_ratio'"),
        ("pretain.mask_ratio=0.5", "did you mean"),
        ("pretrain.mask_ratio=high", "expected float"),
        ("pretrain.mask_ratio=1.0", "at least one must stay visible"),
        ("pretrain.mask_ratio=0.0", "at least one must stay visible"),
        ("pretrain.duration=5", "800ep"),
        ("pretrain.duration=5 lightyears", "800ep"),
        ("pretrain.precision=fp64", "'fp32'"),
        ("data.image_size=9", "not divisible by the patch size"),
        ("pretrain.decoder.width=30", "divisible by 4"),
        ("pretrain.encoder.num_heads=7", "not divisible by its 7 heads"),
        ("execution.world_size=0", "must be ≥ 1"),
        ("execution.zero_stage=4", "0, 1, 2"),
        ("nonsense", "key=value"),
        ("pretrain.mask_ratio.deeper=1", "no settings below"),
        ("pretrain=1", "write one of pretrain, such as pretrain.augmentation"),
        ("execution=1", "write one of execution, such as execution.checkpoint_every_s"),
        ("pretrain.execution=1", "'pretrain.execution' names no setting"),
        ("pretrain..mask_ratio=0.5", "write one of pretrain.mask_ratio"),
    ],
)
def test_a_bad_setting_says_what_and_what_to_do(setting: str, expected: str) -> None:
    with pytest.raises((StudyError, ConfigError)) as caught:
        override_study(load_study("quickstart"), parse((setting,)))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("pretrain.decoder.num_head", "did you mean 'pretrain.decoder.num_heads'"),
        ("mask_ratio+pretrain.mask.samplng", "did you mean 'pretrain.mask.sampling'"),
        ("pretrain.mask_ratio.deeper", "unknown axis"),
        ("pretrian.mask_ratio", "did you mean 'pretrain.mask_ratio'"),
        ("data.image_size", "unknown axis"),
    ],
)
def test_an_axis_that_no_stage_has_is_refused(axis: str, expected: str) -> None:
    study = replace(load_study("quickstart"), axes=("knn.k", "pretrain.decoder.num_heads"))
    with pytest.raises(StudyError, match="unknown axis") as caught:
        replace(study, axes=(axis,))
    assert expected in str(caught.value)


def test_the_global_batch_divides_exactly_or_not_at_all() -> None:
    assert split_batch(96, Execution(world_size=2, micro_batch=16)).accumulation == 3
    assert split_batch(4096, Execution(world_size=8)).micro == 256
    for execution in (Execution(world_size=5), Execution(world_size=2, micro_batch=7)):
        with pytest.raises(ConfigError, match="global batch 96"):
            split_batch(96, execution)


def test_unknown_study_names_the_nearest() -> None:
    with pytest.raises(StudyError, match="did you mean 'quickstart'"):
        load_study("quikstart")


def test_a_study_file_is_run_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import replace\n"
        "from studies.catalog.quickstart import study as base\n"
        "def study():\n"
        "    return replace(base(), name='mine', sweep=None, cells=base().cells[:3])\n"
    )
    assert load_study(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def study():\n    return 1\n", "returned a int"),
        ("x = 1\n", "def study"),
        ("import nonsense_module\n", r"ModuleNotFoundError.*line 1"),
        ("def study():\n    return 1 / 0\n", "ZeroDivisionError"),
        ("raise SystemExit(3)\n", r"fails: SystemExit: 3 \(line 1\)"),
        ("class E(Exception):\n    __str__ = None\nraise E\n", r"fails: .*E: <exception str"),
    ],
)
def test_a_broken_study_file_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(StudyError, match=expected):
        load_study(str(path))


def test_study_json_with_an_unknown_key_names_the_nearest() -> None:
    plain = to_plain(load_study("small/images"))
    plain["cells"][0]["stages"][0]["recipe"]["mask_ration"] = 0.5
    with pytest.raises(StudyError, match="did you mean 'mask_ratio'"):
        study_from_plain(plain)


@pytest.mark.parametrize("address", ["../x", "/abs", "a//b", "", "a b", "x" * 300, "a\0b", ".hid"])
def test_addresses_never_become_dangerous_paths(address: str) -> None:
    with pytest.raises(StudyError):
        Cell(address=address, stages=())


def test_a_sweep_never_looks_at_test_or_at_reconstruction() -> None:
    quick = load_study("quickstart")
    assert quick.sweep is not None
    axis = Choices(key="pretrain.mask_ratio", values=(0.5,))
    with pytest.raises(StudyError, match="reconstruction losses"):
        Sweep(base=quick.sweep.base, space=(axis,), objective="pretrain", num_trials=1)
    with pytest.raises(StudyError, match="eval_split='dev'"):
        Sweep(base=quick.cells[-1], space=(axis,), objective="knn", num_trials=1)


def test_cells_are_unique_and_parents_exist() -> None:
    cell = load_study("small/images").cells[0]
    with pytest.raises(StudyError, match="two cells"):
        Study(name="s", question="?", cells=(cell, cell))
    knn = cell.stage("knn")
    with pytest.raises(StudyError, match="unknown parent 'pretrain'"):
        Cell(address="c", stages=(knn,))
    orphan = Stage(name="knn", recipe=knn.recipe)
    with pytest.raises(StudyError, match="needs one parent that leaves encoder"):
        Cell(address="c", stages=(orphan,))


def test_durations() -> None:
    assert Duration.parse("800ep") == Duration.epochs(800)
    assert Duration.parse(" 1.5 epochs") == Duration.epochs(1.5)
    assert Duration.parse(str(Duration.images(1_281_167))) == Duration.images(1_281_167)
    assert Duration.epochs(2).num_steps(num_images=1000, global_batch=300) == 6
    assert Duration.images(1000).num_steps(num_images=1, global_batch=300) == 3
    with pytest.raises(ConfigError, match="larger than the training set"):
        Duration.epochs(1).num_steps(num_images=10, global_batch=300)


def test_widths_that_heads_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="not divisible by its 3 heads"):
        EncoderConfig(width=64, depth=1, num_heads=3, patch_size=4)


def test_a_choice_reaches_its_candidates_and_no_stage_that_is_named_alike() -> None:
    """Candidates are the parents of a `best_of` stage, whatever they are called."""
    cell = next(c for c in load_study("small/transfer").cells if c.address == "mae/s0")
    pretrain, *candidates, choice = cell.stages
    stages = (
        pretrain,
        *(replace(one, name=f"rate-{i}") for i, one in enumerate(candidates)),
        replace(candidates[0], name=f"{choice.name}_few"),
        replace(choice, parents=tuple(f"rate-{i}" for i in range(len(candidates)))),
    )
    cell = replace(cell, stages=stages)
    changed = override_cell(cell, {f"{choice.name}.data.path": "another"})
    moved = [s.name for s in changed.stages if s.recipe.data.path == "another"]
    assert moved == [*stages[-1].parents, "elsewhere"]
    assert changed.stage("elsewhere_few") == stages[-2]


def test_a_stage_is_not_changed_by_the_name_of_another() -> None:
    probe, few = quickstart.evaluations(0, features="pixels")[1:3]
    stages = (replace(probe, name="probe"), replace(few, name="probe_few"))
    study = Study(name="x", question="?", cells=(Cell(address="a", stages=stages),))
    first, second = override_study(study, {"probe.global_batch": 7}).cells[0].stages
    assert first.recipe.global_batch == 7  # type: ignore[union-attr]
    assert second == stages[1]
