"""A classifier under corruptions and on other sets: counted once, mapped by name, comparable."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mae_core.config import (
    CLASSIFIER_FILE,
    CorruptionRecipe,
    DataConfig,
    EncoderConfig,
    Execution,
    FinetuneRecipe,
    ScratchRecipe,
    ShiftRecipe,
)
from mae_core.data.sources import open_data
from mae_core.errors import ConfigError
from mae_core.evaluate import robustness
from mae_core.evaluate.classifier import build_classifier, save_classifier
from mae_core.evaluate.robustness import run_corruptions, run_shift
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent
from studies.errors import StudyError
from studies.spec.cell import Cell, Stage

DIGITS = DataConfig(
    path="digits", image_size=8, num_channels=1, pixel_mean=(0.3,), pixel_std=(0.38,)
)
TINY = EncoderConfig(width=16, depth=1, num_heads=2, patch_size=2)
SCRATCH = ScratchRecipe(data=DIGITS, encoder=TINY)
FEW = CorruptionRecipe(data=DIGITS, families=("contrast", "gaussian_noise"), severities=(1, 5))
NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parent, ...]:
    """A linear classifier of the digits inside a network: enough to be right most of the time."""
    folder = tmp_path_factory.mktemp("classifier")
    model = build_classifier(SCRATCH, None, 10)
    data = open_data(DIGITS).split("train")
    images = torch.stack([torch.from_numpy(data.decode(i)) for i in range(len(data))])
    pixels = ((images.permute(0, 3, 1, 2).float() / 255) - 0.3) / 0.38
    labels = torch.from_numpy(data.labels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.logits(pixels), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    save_classifier(folder / CLASSIFIER_FILE, SCRATCH, model, NAMES)
    files = {CLASSIFIER_FILE: folder / CLASSIFIER_FILE}
    return (Parent(name="finetune", kind="finetune", files=files),)


def corruptions(recipe: CorruptionRecipe, folder: Path, parents: tuple[Parent, ...]) -> Any:
    folder.mkdir(exist_ok=True)
    ctx = RunContext(output_dir=folder, parents=parents)
    metrics = run_corruptions(recipe, Execution(), ctx, open_data(recipe.data)).to_json()
    json.dumps(metrics)
    return metrics


@pytest.mark.slow
def test_every_condition_counts_every_image_once(
    tmp_path: Path, classifier: tuple[Parent, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = corruptions(FEW, tmp_path / "a", classifier)
    monkeypatch.setattr(robustness, "BATCH_SIZE", 7)
    second = corruptions(FEW, tmp_path / "b", classifier)
    assert first["details"]["errors"] == second["details"]["errors"]
    errors = first["details"]["errors"]
    assert errors["gaussian_noise"][0] < errors["gaussian_noise"][1]
    assert first["details"]["clean_top1"] > 70
    assert first["details"]["strengths"] == "cifar10_c"
    table = pq.read_table(tmp_path / "a" / robustness.CORRUPTED_FILE)
    assert table.num_rows == 4 * first["num_images"]
    noisy = table.filter(
        (np.array(table["family"].to_pylist()) == "gaussian_noise")
        & (table["severity"].to_numpy() == 5)
    )
    wrong = float((noisy["label"].to_numpy() != noisy["prediction"].to_numpy()).mean())
    assert wrong == pytest.approx(errors["gaussian_noise"][1])
    mean = np.mean([e for row in errors.values() for e in row])
    assert first["top1"] == pytest.approx(100 * (1 - mean))


@pytest.mark.slow
def test_a_model_is_as_bad_as_itself(tmp_path: Path, classifier: tuple[Parent, ...]) -> None:
    whole = CorruptionRecipe(data=replace(DIGITS, split_seed=1))
    own = corruptions(whole, tmp_path / "own", classifier)
    assert "mce" not in own["details"]
    assert "frost: procedural" in own["details"]["notes"]
    parent = Parent(name="base", kind="corruptions", files={}, metrics=own)
    relative = replace(whole, baseline="parent")
    found = corruptions(relative, tmp_path / "again", (*classifier, parent))
    assert found["details"]["mce"] == pytest.approx(100, abs=0.5)
    assert "base" in found["details"]["baseline"]
    with pytest.raises(ConfigError, match="among the parents"):
        corruptions(relative, tmp_path / "none", classifier)


@pytest.mark.slow
def test_another_set_is_scored_among_its_own_classes(
    tmp_path: Path, classifier: tuple[Parent, ...]
) -> None:
    ctx = RunContext(output_dir=tmp_path, parents=classifier)
    recipe = ShiftRecipe(data=DIGITS, name="the digits again")
    metrics = run_shift(recipe, Execution(), ctx, open_data(DIGITS)).to_json()
    assert metrics["top1"] > 70
    assert metrics["details"] == {"num_classes": 10, "of_classes": 10}


def test_classes_map_by_name_or_by_pair() -> None:
    known = ("cat", "dog", "fox", "owl")
    shift = ShiftRecipe(data=DIGITS, class_pairs=(("hund", "dog"),))
    assert ShiftRecipe(data=DIGITS).columns(("owl", "cat"), known) == (3, 0)
    assert shift.columns(("hund", "cat"), known) == (1, 0)
    with pytest.raises(ConfigError, match=r"2 of the set's 3 classes .* 'bee', 'ant'"):
        ShiftRecipe(data=DIGITS).check_classes(("bee", "cat", "ant"), known)
    with pytest.raises(ConfigError, match="two classes of the set map to one"):
        shift.check_classes(("hund", "dog"), known)
    with pytest.raises(ConfigError, match="'hund', which is not a class of the set"):
        shift.check_classes(("cat",), known)


@pytest.mark.slow
def test_what_cannot_be_is_refused(tmp_path: Path, classifier: tuple[Parent, ...]) -> None:
    with pytest.raises(ConfigError, match="use different ones of"):
        CorruptionRecipe(data=DIGITS, families=("rain",))
    with pytest.raises(ConfigError, match="needs all 15 families"):
        replace(FEW, baseline="alexnet")
    with pytest.raises(ConfigError, match="needs a fine-tuned classifier"):
        corruptions(FEW, tmp_path / "x", ())
    tune = Stage(name="tune", recipe=SCRATCH)
    other = replace(FEW, data=replace(DIGITS, image_size=16))
    with pytest.raises(StudyError, match="data.image_size is 16"):
        Cell(address="c", stages=(tune, Stage(name="c", recipe=other, parents=("tune",))))
    assert isinstance(SCRATCH, FinetuneRecipe)
