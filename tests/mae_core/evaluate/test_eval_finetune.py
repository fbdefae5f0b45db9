"""Fine-tuning through the real training loop, and the classifier it trains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from support.command import encoder_parent
from support.digit_cases import DIGITS

from mae_core.checkpoint.encoder_file import save_encoder
from mae_core.checkpoint.tensor_file import read_tensors
from mae_core.config import (
    NO_AUGMENTATION,
    Duration,
    EncoderConfig,
    Execution,
    FeatureKind,
    FinetuneRecipe,
    LrScheduleConfig,
    Precision,
    ScratchRecipe,
)
from mae_core.data.sources import ImageData
from mae_core.errors import CheckpointError, ConfigError
from mae_core.evaluate.classifier import build_classifier, load_classifier
from mae_core.evaluate.finetune import run_finetune
from mae_core.model.ema import WeightAverage
from mae_core.model.positions import sincos_positions
from mae_core.model.vit import Encoder
from mae_core.runtime.context import RunContext
from mae_core.train.loop import Stopped

TINY = EncoderConfig(width=32, depth=2, num_heads=2, patch_size=2)
FINETUNE = FinetuneRecipe(
    data=DIGITS,
    augmentation=NO_AUGMENTATION,
    duration=Duration.epochs(6),
    global_batch=64,
    lr_schedule=LrScheduleConfig(warmup=Duration.epochs(1), min_lr=1e-6),
    eval_split="dev",
)
FINETUNE = replace(FINETUNE, optimizer=replace(FINETUNE.optimizer, base_lr=1e-2))
SCRATCH = ScratchRecipe(
    encoder=TINY, **{f.name: getattr(FINETUNE, f.name) for f in fields(FINETUNE)}
)


@pytest.fixture
def encoder_path(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    encoder = Encoder(TINY, 8, 1, generator=torch.Generator().manual_seed(5))
    save_encoder(path, encoder.state_dict(), TINY, 8, 1, extra={})
    return path


def test_fine_tunes_evaluates_and_saves(
    gang: None, encoder_path: Path, tmp_path: Path, data: ImageData
) -> None:
    ctx = RunContext(output_dir=tmp_path, parents=encoder_parent(encoder_path))
    metrics = run_finetune(FINETUNE, Execution(zero_stage=0), ctx, data).to_json()
    json.dumps(metrics)
    assert metrics["top1"] > 60
    assert metrics["num_images"] == len(data.split("dev"))
    assert metrics["details"]["effective_batch"] == 64
    assert (tmp_path / "predictions.parquet").is_file()
    model, class_names = load_classifier(tmp_path / "finetuned.safetensors")
    assert class_names == tuple(data.split("dev").class_names)
    assert not model.training
    before = build_classifier(FINETUNE, encoder_path, len(class_names))
    moved = [
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    ]
    assert set(moved) == set(model.state_dict())  # positions and class token too


def test_few_labels_from_scratch_use_the_whole_set(
    gang: None, tmp_path: Path, data: ImageData
) -> None:
    recipe = replace(SCRATCH, num_labels=20, global_batch=1024, duration=Duration.epochs(2))
    ctx = RunContext(output_dir=tmp_path)
    metrics = run_finetune(recipe, Execution(zero_stage=0), ctx, data).to_json()
    assert metrics["num_train_images"] == metrics["details"]["effective_batch"] == 20
    assert metrics["details"]["steps"] == 2
    assert metrics["details"]["peak_lr"] == pytest.approx(1e-2 * 20 / 256)


@pytest.mark.parametrize(("precision", "zero"), [("fp32", 1), ("bf16", 0), ("bf16", 2)])
def test_the_average_of_the_weights_is_scored(
    gang: None, tmp_path: Path, data: ImageData, precision: Precision, zero: Literal[0, 1, 2]
) -> None:
    recipe = replace(SCRATCH, duration=Duration.epochs(2), ema_decay=0.5, precision=precision)
    seen: list[dict[str, torch.Tensor]] = []

    class Watched(WeightAverage):
        def follow(self, parameters: Mapping[str, torch.Tensor]) -> None:
            seen.append({n: p.detach().float().clone() for n, p in parameters.items()})
            super().follow(parameters)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mae_core.evaluate.finetune.WeightAverage", Watched)
        metrics = run_finetune(
            recipe, Execution(zero_stage=zero), RunContext(output_dir=tmp_path), data
        ).to_json()
    for weights in seen:  # not what bf16 rounded
        assert not torch.equal(weights["head.weight"].bfloat16().float(), weights["head.weight"])
    assert len(seen) == metrics["details"]["steps"] + 1
    expected = seen[0]
    for weights in seen[1:]:
        expected = {n: 0.5 * expected[n] + 0.5 * weights[n] for n in expected}
    saved = load_classifier(tmp_path / "finetuned.safetensors")[0].state_dict()
    assert all(torch.allclose(saved[n], expected[n], atol=1e-6) for n in expected)
    assert not torch.allclose(saved["head.weight"], seen[-1]["head.weight"], atol=1e-6)
    with pytest.raises(ConfigError, match="zero_stage 0, 1 or 2"):
        run_finetune(recipe, Execution(zero_stage=3), RunContext(output_dir=tmp_path), data)


def test_an_interrupted_average_goes_on_where_it_was(
    gang: None, tmp_path: Path, data: ImageData
) -> None:
    recipe = replace(SCRATCH, duration=Duration.steps(10), ema_decay=0.9)
    execution = Execution(zero_stage=1, snapshot="blocking", loader_threads=0)
    steps: list[int] = []
    digests = []
    for name, stop in (("whole", False), ("parts", True), ("parts", False)):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        steps.clear()
        ctx = RunContext(
            output_dir=folder,
            checkpoint_dir=folder / "checkpoints",
            fault_point=lambda point: steps.append(1) if point == "step" else None,
            should_stop=lambda stop=stop: stop and len(steps) == 5,  # type: ignore[misc]
        )
        try:
            metrics = run_finetune(recipe, execution, ctx, data).to_json()
        except Stopped:
            continue
        digests.append((folder / "finetuned.safetensors").read_bytes())
    assert metrics["details"]["resumed_from"] == 5
    assert digests[0] == digests[1]


def test_drop_path_only_with_noise(encoder_path: Path) -> None:
    recipe = replace(FINETUNE, drop_path=0.9)
    model = build_classifier(recipe, encoder_path, 10).train()
    torch.nn.init.normal_(model.head.weight)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = build_classifier(replace(recipe, drop_path=0.0), encoder_path, 10)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.logits(images), plain.logits(images))
    dropped = model.logits(images, torch.zeros(4, 4))
    assert not torch.allclose(dropped, plain.logits(images))


@pytest.mark.parametrize("features", ["mean", "cls"])
def test_pooling(encoder_path: Path, features: FeatureKind) -> None:
    recipe = replace(FINETUNE, features=features)
    model = build_classifier(recipe, encoder_path, 10)
    has_final_norm = any(name.startswith("encoder.norm.") for name in model.state_dict())
    assert has_final_norm == (features == "cls")
    assert ("norm.weight" in model.state_dict()) == (features == "mean")
    assert float(model.head.weight.detach().std()) == pytest.approx(2e-5, rel=0.2)
    assert model.encoder.positions.requires_grad
    start = read_tensors(encoder_path)[0]["blocks.0.attn.qkv.weight"]
    assert torch.equal(model.encoder.state_dict()["blocks.0.attn.qkv.weight"], start)
    images = torch.randn(3, 1, 8, 8)
    labels, noise = torch.tensor([0, 1, 2]), torch.ones(3, 4) * 0.5
    loss = model(images, labels, noise)
    assert loss.ndim == 0
    assert float(loss.detach()) == pytest.approx(2.3026, abs=0.01)


def test_same_seed_same_start() -> None:
    first, second, other = (
        build_classifier(replace(SCRATCH, seed=seed), None, 10).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_larger_images_get_interpolated_positions(encoder_path: Path) -> None:
    bigger = replace(FINETUNE, data=replace(DIGITS, image_size=16))
    positions = build_classifier(bigger, encoder_path, 10).encoder.positions.detach()
    same = build_classifier(FINETUNE, encoder_path, 10).encoder.positions.detach()
    assert torch.equal(same, sincos_positions(TINY.width, 4))
    assert positions.shape == (65, TINY.width)
    # The four new places about an old one average to about what it was (bicubic, inside).
    old = same[1:].reshape(4, 4, -1)[1:3, 1:3]
    new = positions[1:].reshape(4, 2, 4, 2, -1).mean(dim=(1, 3))[1:3, 1:3]
    assert float((old - new).abs().mean()) < 0.05


def test_what_cannot_be_is_refused(encoder_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the encoder file of a parent"):
        build_classifier(FINETUNE, None, 10)
    with pytest.raises(ConfigError, match="takes no encoder file"):
        build_classifier(SCRATCH, encoder_path, 10)
    odd = replace(FINETUNE, data=replace(DIGITS, image_size=15))
    with pytest.raises(ConfigError, match="not divisible by the patch size 2"):
        build_classifier(odd, encoder_path, 10)
    colour = replace(DIGITS, num_channels=3, pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3)
    with pytest.raises(ConfigError, match="3 channels give 16 patches of 12"):
        build_classifier(replace(FINETUNE, data=colour), encoder_path, 10)
    with pytest.raises(CheckpointError, match="expected 'mae-study-classifier-1'"):
        load_classifier(encoder_path)
