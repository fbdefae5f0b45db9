"""Targets, mask tokens in the encoder, losses on all patches, and one's own: trained for real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from mae_core.config import (
    BASIS_FILE,
    NO_AUGMENTATION,
    TOKENIZER_FILE,
    BasisRecipe,
    DataConfig,
    DecoderConfig,
    Duration,
    EncoderConfig,
    Execution,
    LrScheduleConfig,
    OptimizerConfig,
    PretrainRecipe,
    TokenizerRecipe,
)
from mae_core.data.loader import eval_batches, normalise
from mae_core.data.sources import ImageData, open_data
from mae_core.errors import ConfigError
from mae_core.model.flops import pretrain_flops_per_image, pretrain_params
from mae_core.model.mae import MAE
from mae_core.model.patchify import patchify
from mae_core.model.vq_vae import Tokenizer, TokenizerConfig
from mae_core.pretrain.masked import run_pretrain
from mae_core.pretrain.pca import read_basis, run_basis
from mae_core.pretrain.tokenizer import load_tokenizer, run_tokenizer
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent

DIGITS = DataConfig(
    path="digits", image_size=8, num_channels=1, pixel_mean=(0.3,), pixel_std=(0.38,)
)
TINY = EncoderConfig(width=32, depth=2, num_heads=2, patch_size=2)
QUICK = LrScheduleConfig(warmup=Duration.epochs(1))
PRETRAIN = PretrainRecipe(
    data=DIGITS,
    encoder=TINY,
    decoder=DecoderConfig(width=32, depth=1, num_heads=2),
    augmentation=NO_AUGMENTATION,
    duration=Duration.epochs(3),
    global_batch=128,
    norm_pix_loss=False,
    optimizer=OptimizerConfig(base_lr=4e-3),
    lr_schedule=QUICK,
)
BASIS = BasisRecipe(data=DIGITS, patch_size=2, num_components=3)
TOKENIZER = TokenizerRecipe(
    data=DIGITS,
    patch_size=2,
    vocabulary=32,
    width=16,
    augmentation=NO_AUGMENTATION,
    duration=Duration.epochs(4),
    global_batch=128,
    optimizer=OptimizerConfig(base_lr=8e-3, weight_decay=0.0),
    lr_schedule=QUICK,
)
EXECUTION = Execution(zero_stage=0, loader_threads=0)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_data(DIGITS)


def losses(recipe: PretrainRecipe, ctx: RunContext, data: ImageData) -> list[float]:
    """Train; return the logged losses after checking what was left behind."""
    logged: list[float] = []
    listening = replace(ctx, log_metrics=lambda step, m: logged.append(m["loss"]))
    metrics = run_pretrain(recipe, EXECUTION, listening, data).to_json()
    json.dumps(metrics)
    with np.load(ctx.output_dir / "gallery.npz") as gallery:
        assert gallery["reconstruction"].shape == (8, 8, 8, 1)
    return logged


def all_patches(data: ImageData) -> np.ndarray[Any, Any]:
    batch = next(eval_batches(data.split("train"), DIGITS, 2000, rank=0, world=1))
    images = normalise(batch.images, DIGITS.pixel_mean, DIGITS.pixel_std, torch.device("cpu"))
    return patchify(images, 2).flatten(0, 1).double().numpy()


def test_the_basis_is_scikit_learns(tmp_path: Path, data: ImageData) -> None:
    metrics = run_basis(BASIS, EXECUTION, RunContext(output_dir=tmp_path), data).to_json()
    basis = read_basis(tmp_path / BASIS_FILE)
    reference = PCA(3).fit(all_patches(data))
    assert np.allclose(basis.mean, reference.mean_, atol=1e-5)
    for ours, theirs in zip(basis.components.numpy(), reference.components_, strict=True):
        assert abs(float(ours @ theirs)) == pytest.approx(1, abs=1e-5)
    assert np.allclose(basis.explained, reference.explained_variance_ratio_, atol=1e-5)
    assert metrics["num_patches"] == len(all_patches(data))


def test_principal_components_are_learnt(gang: None, tmp_path: Path, data: ImageData) -> None:
    run_basis(BASIS, EXECUTION, RunContext(output_dir=tmp_path), data)
    parent = Parent(name="basis", kind="basis", files={BASIS_FILE: tmp_path / BASIS_FILE})
    recipe = replace(PRETRAIN, target="pca", target_dim=3)
    found = losses(recipe, RunContext(output_dir=tmp_path, parents=(parent,)), data)
    assert found[-1] < 0.75 * found[0]
    with pytest.raises(ConfigError, match="4 principal components are asked for, the basis has 3"):
        run_pretrain(
            replace(recipe, target_dim=4),
            EXECUTION,
            RunContext(output_dir=tmp_path, parents=(parent,)),
            data,
        )


def test_a_tokenizer_learns_and_its_codes_are_learnt(
    gang: None, tmp_path: Path, data: ImageData
) -> None:
    logged: list[float] = []
    ctx = RunContext(output_dir=tmp_path, log_metrics=lambda step, m: logged.append(m["loss"]))
    facts = run_tokenizer(TOKENIZER, EXECUTION, ctx, data).to_json()
    assert logged[-1] < 0.7 * logged[0]
    assert facts["codes_used"] > 8
    tokenizer = load_tokenizer(tmp_path / TOKENIZER_FILE)
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    codes = tokenizer.tokenize(images)
    assert codes.shape == (3, 16)
    assert codes.dtype == torch.int64
    assert tokenizer.pixels_of(codes).shape == images.shape
    parent = Parent(
        name="tokenizer", kind="tokenizer", files={TOKENIZER_FILE: tmp_path / TOKENIZER_FILE}
    )
    ctx = RunContext(output_dir=tmp_path, parents=(parent,))
    recipe = replace(PRETRAIN, target="tokens", target_dim=32)
    found = losses(recipe, ctx, data)
    assert found[0] == pytest.approx(np.log(32), rel=0.4)
    assert found[-1] < 0.8 * found[0]
    wrong = replace(recipe, encoder=replace(TINY, patch_size=4))
    with pytest.raises(ConfigError, match=r"one code per 2 px .* patches of 4 px"):
        run_pretrain(wrong, EXECUTION, ctx, data)


def test_straight_through_trains_encoder_codes_and_decoder() -> None:
    tokenizer = Tokenizer(TokenizerConfig.of(TOKENIZER))
    tokenizer(torch.randn(4, 1, 8, 8)).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in tokenizer.parameters())


@pytest.mark.parametrize(
    "changes", [{"mask_tokens_in_encoder": True}, {"loss_on": "all"}], ids=["tokens", "all"]
)
def test_variants_of_the_paper_learn(
    gang: None, tmp_path: Path, data: ImageData, changes: dict[str, Any]
) -> None:
    found = losses(replace(PRETRAIN, **changes), RunContext(output_dir=tmp_path), data)
    assert found[-1] < 0.9 * found[0]


def test_mask_tokens_in_the_encoder_see_every_place() -> None:
    recipe = replace(PRETRAIN, mask_tokens_in_encoder=True)
    module = MAE(recipe)
    images, noise = torch.randn(2, 1, 8, 8), torch.rand(2, 16)
    seen: list[int] = []
    module.encoder.blocks[0].register_forward_hook(lambda m, x, y: seen.append(x[0].shape[1]))
    module(images, noise).backward()
    assert seen == [17]
    assert module.mask_token is not None
    assert module.mask_token.grad is not None
    plain = MAE(PRETRAIN)
    for name, value in plain.state_dict().items():  # the same start but for the new token
        assert torch.equal(module.state_dict()[name], value)
    assert sum(p.numel() for p in module.parameters()) == pretrain_params(recipe)


def test_hidden_pixels_do_not_reach_the_encoder_with_mask_tokens() -> None:
    module = MAE(replace(PRETRAIN, mask_tokens_in_encoder=True)).eval()
    images, noise = torch.randn(1, 1, 8, 8), torch.arange(16.0)[None]
    changed = images.clone()
    changed[..., 4:, :] += 1  # patches 8..15 are hidden at ratio .75, which keeps 0..3
    first, second = module.reconstruct(images, noise), module.reconstruct(changed, noise)
    assert torch.equal(first.prediction_NLP, second.prediction_NLP)


def test_loss_on_all_is_the_mean_over_all_patches() -> None:
    recipe = replace(PRETRAIN, loss_on="all")
    module = MAE(recipe).eval()
    images, noise = torch.randn(2, 1, 8, 8), torch.rand(2, 16)
    prediction, _ = module.reconstruct(images, noise)
    expected = F.mse_loss(prediction, patchify(images, 2))
    assert float(module(images, noise).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_mask_tokens_cost_what_the_paper_says() -> None:
    """Paper Table 1c: 3.3 × the FLOPs for ViT-L; counted 3.23 ×."""
    from mae_core.model import sizes

    paper = PretrainRecipe(
        data=DataConfig(path="imagenet"), encoder=sizes.encoder("L"), decoder=DecoderConfig()
    )
    dear = replace(paper, mask_tokens_in_encoder=True)
    ratio = pretrain_flops_per_image(dear).algorithmic / pretrain_flops_per_image(paper).algorithmic
    assert ratio == pytest.approx(3.23, abs=0.005)


OWN = """
import torch
from torch import nn
from mae_core.model.mae import MAE
from mae_core.model.patchify import patchify


class Brightness:
    dim = 1

    def __call__(self, images):
        return patchify(images, 2).mean(dim=-1, keepdim=True)

    def to_patches(self, prediction):
        return prediction.expand(-1, -1, 4)


def brightness(recipe):
    return Brightness()


class Half(nn.Module):
    def __init__(self, recipe):
        super().__init__()
        self.mae = MAE(recipe)
        self.encoder = self.mae.encoder
        self.decoder = self.mae.decoder
        del self.mae
        self.body = [MAE(recipe)]

    def forward(self, images, noise):
        whole = self.body[0]
        whole.encoder, whole.decoder = self.encoder, self.decoder
        return whole(images, noise) / 2


def half(recipe):
    return Half(recipe)


def nothing(recipe):
    return nn.Linear(1, 1)
"""


def test_ones_own_target_and_objective(
    gang: None, tmp_path: Path, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    ctx = RunContext(output_dir=tmp_path)
    found = losses(replace(PRETRAIN, target="own_parts:brightness", target_dim=1), ctx, data)
    assert found[-1] < found[0]
    with pytest.raises(ConfigError, match=r"is 1 wide, but target_dim is 96"):
        run_pretrain(replace(PRETRAIN, target="own_parts:brightness"), EXECUTION, ctx, data)
    own = run_pretrain(
        replace(PRETRAIN, objective="own_parts:half"), EXECUTION, ctx, data
    ).to_json()
    plain = run_pretrain(PRETRAIN, EXECUTION, ctx, data).to_json()
    assert own["loss"] == pytest.approx(plain["loss"] / 2, rel=0.1)
    with pytest.raises(ConfigError, match="whose `encoder` is"):
        run_pretrain(replace(PRETRAIN, objective="own_parts:nothing"), EXECUTION, ctx, data)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="set norm_pix_loss=false"):
        replace(PRETRAIN, target="pca", norm_pix_loss=True)
    with pytest.raises(ConfigError, match="5 principal components of patches with 4 values"):
        replace(PRETRAIN, target="pca", target_dim=5)
    with pytest.raises(ConfigError, match="5 principal components of patches with 4 values"):
        replace(BASIS, num_components=5)
    with pytest.raises(ConfigError, match="power of two"):
        replace(TOKENIZER, patch_size=3)
    with pytest.raises(ConfigError, match="use pixels, pca, tokens"):
        replace(PRETRAIN, target="hog")


def test_subsets_are_nested_and_balanced(data: ImageData) -> None:
    splits = {
        share: open_data(replace(DIGITS, train_fraction=share)).split("train")
        for share in (0.1, 0.5, 1.0)
    }
    sizes = {share: len(split) for share, split in splits.items()}
    total = len(data.split("train"))
    assert sizes == {0.1: round(0.1 * total), 0.5: round(0.5 * total), 1.0: total}
    small, half, whole = (set(splits[s].sample_index.tolist()) for s in (0.1, 0.5, 1.0))
    assert small < half < whole
    counts = np.bincount(splits[0.1].labels)
    assert counts.max() - counts.min() <= 2
    other = open_data(replace(DIGITS, train_fraction=0.1, subset_seed=1)).split("train")
    assert set(other.sample_index.tolist()) != small
