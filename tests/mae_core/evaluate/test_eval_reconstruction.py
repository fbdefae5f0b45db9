"""Held-out reconstruction: one mask ratio and target for all, and galleries at several ratios."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from support.digit_cases import DIGITS

from mae_core.checkpoint.encoder_file import save_encoder
from mae_core.checkpoint.tensor_file import write_tensors
from mae_core.config import (
    DECODER_FILE,
    ENCODER_FILE,
    BasisRecipe,
    DecoderConfig,
    EncoderConfig,
    Execution,
    PretrainRecipe,
    ReconstructionRecipe,
)
from mae_core.config.inference import gallery_file
from mae_core.data.loader import eval_batches, normalise
from mae_core.data.sources import ImageData
from mae_core.errors import CheckpointError, ConfigError
from mae_core.evaluate.reconstruction import run_reconstruction
from mae_core.model.mae import MAE
from mae_core.model.masking import mask_noise
from mae_core.model.patchify import patchify
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent
from studies.analysis.figures.gallery_figure import GalleryEntry, gallery
from studies.errors import StudyError
from studies.spec.cell import Cell, Stage
from studies.spec.codec import to_plain

PRETRAIN = PretrainRecipe(
    data=DIGITS,
    encoder=EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2),
    decoder=DecoderConfig(width=16, depth=1, num_heads=2),
    mask_ratio=0.5,
    seed=4,
)
RECIPE = ReconstructionRecipe(data=DIGITS, gallery_ratios=(0.5, 0.75), eval_split="dev")


def pretrained(folder: Path, trained: PretrainRecipe, **fields: Any) -> tuple[Parent, ...]:
    """Parents of the evaluation: a pretraining that left its first weights."""
    state = MAE(trained).state_dict()
    encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    decoder = {k: v for k, v in state.items() if not k.startswith("encoder.")}
    paths = {name: folder / name for name in (ENCODER_FILE, DECODER_FILE)}
    save_encoder(paths[ENCODER_FILE], encoder, trained.encoder, 8, 1, extra={})
    write_tensors(paths[DECODER_FILE], decoder, fields.pop("metadata", {}))
    plain = fields.pop("recipe", to_plain(trained))
    return (Parent(name="pretrain", kind="pretrain", files=paths, recipe=plain, **fields),)


def loss_of(recipe: PretrainRecipe, folder: Path, data: ImageData) -> dict[str, Any]:
    folder.mkdir()
    ctx = RunContext(output_dir=folder, parents=pretrained(folder, recipe))
    return run_reconstruction(RECIPE, Execution(), ctx, data).to_json()


def dev_images(data: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
    (batch,) = eval_batches(data.split("dev"), DIGITS, 256, rank=0, world=1)
    images = normalise(batch.images, DIGITS.pixel_mean, DIGITS.pixel_std, torch.device("cpu"))
    return images, mask_noise(RECIPE.mask_seed, 0, batch.index, 16)


@pytest.mark.parametrize("mask_tokens", [False, True])
def test_is_the_pretraining_loss_at_the_reference_ratio(
    mask_tokens: bool, tmp_path: Path, data: ImageData
) -> None:
    recipe = replace(PRETRAIN, mask_tokens_in_encoder=mask_tokens)
    metrics = loss_of(recipe, tmp_path / "out", data)
    json.dumps(metrics)
    reference = MAE(replace(recipe, mask_ratio=0.75))
    reference.load_state_dict(MAE(recipe).state_dict())
    with torch.inference_mode():
        expected = float(reference(*dev_images(data)))
        own = float(MAE(recipe)(*dev_images(data)))
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["loss"] != pytest.approx(own, rel=1e-3)
    assert metrics["details"]["num_visible"] == 4
    rows = pq.read_table(tmp_path / "out" / "reconstruction.parquet")
    np.testing.assert_array_equal(rows["sample_index"].to_numpy(), data.split("dev").sample_index)
    assert rows["loss"].to_numpy().mean() == pytest.approx(metrics["loss"])


def test_positions_that_came_with_adopted_weights_are_used(tmp_path: Path, data: ImageData) -> None:
    reference = MAE(replace(PRETRAIN, mask_ratio=0.75))
    reference.encoder.positions += 0.3
    reference.decoder.positions -= 0.3
    parents = pretrained(tmp_path, PRETRAIN)
    encoder = MAE(PRETRAIN).encoder.state_dict() | {"positions": reference.encoder.positions}
    save_encoder(parents[0].files[ENCODER_FILE], encoder, PRETRAIN.encoder, 8, 1, extra={})
    decoder = {f"decoder.{k}": v for k, v in MAE(PRETRAIN).decoder.state_dict().items()}
    decoder |= {"decoder.positions": reference.decoder.positions}
    write_tensors(parents[0].files[DECODER_FILE], decoder, {})
    ctx = RunContext(output_dir=tmp_path, parents=parents)
    metrics = run_reconstruction(RECIPE, Execution(), ctx, data)
    with torch.inference_mode():
        expected = float(reference(*dev_images(data)))
    assert metrics.values["loss"] == pytest.approx(expected, rel=1e-5)


def test_raw_pixels_go_through_the_true_patch_statistics(tmp_path: Path, data: ImageData) -> None:
    recipe = replace(PRETRAIN, norm_pix_loss=False)
    metrics = loss_of(recipe, tmp_path / "out", data)
    images, noise = dev_images(data)
    module = MAE(replace(recipe, mask_ratio=0.75))
    prediction, mask = module.reconstruct(images, noise)
    patches = patchify(images, 2)
    total, count = 0.0, 0
    for n, place in zip(*np.nonzero(mask.numpy()), strict=True):
        true = patches[n, place].double()
        scale = (true.var(unbiased=True) + 1e-6).sqrt()
        total += float(((prediction[n, place].double() - true) / scale).square().mean())
        count += 1
    assert count == len(images) * 12
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-4)
    assert metrics["details"]["trained_on"] == "raw pixels"


def test_galleries_at_several_ratios_can_be_drawn(tmp_path: Path, data: ImageData) -> None:
    loss_of(PRETRAIN, tmp_path / "out", data)
    masked = []
    for ratio in RECIPE.gallery_ratios:
        with np.load(tmp_path / "out" / gallery_file(ratio)) as arrays:
            masked.append(float(arrays["mask"].mean()))
            assert arrays["reconstruction"].shape == (8, 8, 8, 1)
    assert masked == list(RECIPE.gallery_ratios)
    entries = [
        GalleryEntry(cell="c", label=f"{ratio:g}", path=tmp_path / "out" / gallery_file(ratio))
        for ratio in RECIPE.gallery_ratios
    ]
    drawing, problems = gallery(entries, "gallery")
    assert drawing is not None and problems == []


def test_a_decoder_may_describe_itself(tmp_path: Path, data: ImageData) -> None:
    said = {"decoder": json.dumps(to_plain(PRETRAIN.decoder)), "norm_pix_loss": "true"}
    parents = pretrained(tmp_path, PRETRAIN, metadata=said, recipe={})
    ctx = RunContext(output_dir=tmp_path, parents=parents)
    described = run_reconstruction(RECIPE, Execution(), ctx, data).to_json()
    assert described["loss"] == loss_of(PRETRAIN, tmp_path / "out", data)["loss"]
    silent = replace(ctx, parents=pretrained(tmp_path, PRETRAIN, recipe={}))
    with pytest.raises(CheckpointError, match="it does not give the decoder and norm_pix_loss"):
        run_reconstruction(RECIPE, Execution(), silent, data)


def test_what_cannot_be_compared_is_refused(tmp_path: Path, data: ImageData) -> None:
    tokens = to_plain(replace(PRETRAIN, target="tokens", norm_pix_loss=False))
    ctx = RunContext(output_dir=tmp_path, parents=pretrained(tmp_path, PRETRAIN, recipe=tokens))
    with pytest.raises(ConfigError, match="target 'tokens' predicts no pixels"):
        run_reconstruction(RECIPE, Execution(), ctx, data)
    with pytest.raises(ConfigError, match="leaves encoder"):
        run_reconstruction(RECIPE, Execution(), RunContext(output_dir=tmp_path), data)
    for change in ({"mask_ratio": 1.0}, {"gallery_ratios": (0.5, 0.5)}):
        with pytest.raises(ConfigError):
            replace(RECIPE, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pretrain", "recipe", "expected"),
    [
        (
            {"target": "pca", "target_dim": 4, "norm_pix_loss": False},
            {},
            "target 'pca' predicts no pixels",
        ),
        ({"objective": "my.code:make"}, {}, "objective 'my.code:make'"),
        ({}, {"mask_ratio": 0.97}, "mask ratio 0.97 keeps 0 of 16 patches"),
        ({}, {"gallery_ratios": (0.99,)}, "mask ratio 0.99 keeps 0 of 16 patches"),
    ],
)
def test_a_plan_refuses_it(pretrain: dict[str, Any], recipe: dict[str, Any], expected: str) -> None:
    needs = BasisRecipe(data=DIGITS, patch_size=2, num_components=4)
    parents = ("basis",) if pretrain.get("target") == "pca" else ()
    stages = (
        Stage(name="basis", recipe=needs),
        Stage(name="pretrain", recipe=replace(PRETRAIN, **pretrain), parents=parents),
        Stage(name="loss", recipe=replace(RECIPE, **recipe), parents=("pretrain",)),
    )
    with pytest.raises(StudyError, match=expected):
        Cell(address="c", stages=stages)
