"""Our MAE against Hugging Face's with the same weights and noise, and its basic invariants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.hugging_face_mae import hf_config, mae_to_hf
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mae_core.config import DataConfig, DecoderConfig, EncoderConfig, PretrainRecipe
from mae_core.errors import ConfigError
from mae_core.model.mae import MAE
from mae_core.model.masking import mask_noise
from mae_core.model.patchify import patch_targets, patchify, unpatchify
from mae_core.model.vit import Encoder


def make_recipe(
    pixels: int = 8,
    patch: int = 2,
    channels: int = 1,
    ratio: float = 0.75,
    norm_pix: bool = True,
    mlp_ratio: float = 4.0,
) -> PretrainRecipe:
    return PretrainRecipe(
        data=DataConfig(
            path="unused",
            image_size=pixels,
            num_channels=channels,
            pixel_mean=(0.5,) * channels,
            pixel_std=(0.5,) * channels,
        ),
        encoder=EncoderConfig(
            width=48, depth=3, num_heads=3, patch_size=patch, mlp_ratio=mlp_ratio
        ),
        decoder=DecoderConfig(width=32, depth=2, num_heads=4),
        mask_ratio=ratio,
        norm_pix_loss=norm_pix,
        seed=3,
    )


def make_batch(recipe: PretrainRecipe, size: int = 5) -> tuple[Tensor, Tensor]:
    data = recipe.data
    generator = torch.Generator().manual_seed(11)
    shape = (size, data.num_channels, data.image_size, data.image_size)
    noise = mask_noise(0, 2, np.arange(size), recipe.num_patches)
    return torch.randn(shape, generator=generator), noise


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


SHAPES = {
    "32px_p4_rgb": (32, 4, 3, 0.75),
    "8px_p2_grey": (8, 2, 1, 0.5),
    "32px_p16_4ch": (32, 16, 4, 0.75),
    "30px_p3_2ch_floor": (30, 3, 2, 0.8),  # binary floats would keep 19 of 100, not 20
}


@pytest.mark.parametrize("norm_pix", [True, False], ids=["norm", "raw"])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_gradients_and_pixels_agree_with_hugging_face(shape: str, norm_pix: bool) -> None:
    recipe = make_recipe(*SHAPES[shape], norm_pix=norm_pix)
    ours = MAE(recipe)
    theirs = ViTMAEForPreTraining(ViTMAEConfig(**hf_config(recipe)))
    theirs.load_state_dict(mae_to_hf(ours.state_dict(), recipe), strict=True)
    images, noise = make_batch(recipe)

    loss = ours(images, noise)
    expected = theirs(pixel_values=images, noise=noise)
    loss.backward()
    expected.loss.backward()
    reconstruction = ours.reconstruct(images, noise)
    gradient = ours.encoder.patch_embed.weight.grad
    conv_gradient = theirs.vit.embeddings.patch_embeddings.projection.weight.grad
    assert gradient is not None and conv_gradient is not None

    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert relative(reconstruction.prediction_NLP, expected.logits) < 1e-5
    assert torch.equal(reconstruction.mask_NL, expected.mask)
    assert relative(gradient, conv_gradient.permute(0, 2, 3, 1).reshape(48, -1)) < 1e-5


def test_loss_is_the_mean_over_masked_patches_of_the_reconstruction() -> None:
    recipe = make_recipe(16, 4, 3)
    model = MAE(recipe)
    images, noise = make_batch(recipe)
    said = model.reconstruct(images, noise)
    target = patch_targets(patchify(images, 4), norm_pix=True)
    per_patch = (said.prediction_NLP - target).square().mean(dim=-1)
    expected = (per_patch * said.mask_NL).sum() / said.mask_NL.sum()
    assert model(images, noise).item() == pytest.approx(expected.item(), rel=1e-6)


def test_masked_pixels_do_not_reach_the_prediction() -> None:
    recipe = make_recipe(16, 4, 3)
    model = MAE(recipe)
    images, noise = make_batch(recipe)
    before = model.reconstruct(images, noise)
    patches = patchify(images, 4) + 100 * before.mask_NL.unsqueeze(-1)
    after = model.reconstruct(unpatchify(patches, 4), noise)
    assert torch.equal(before.prediction_NLP, after.prediction_NLP)


def test_visible_tokens_equal_those_of_a_full_pass_when_all_are_kept() -> None:
    recipe = make_recipe(16, 4, 3)
    encoder = MAE(recipe).encoder
    images, _ = make_batch(recipe)
    order = torch.arange(16).expand(5, -1)
    kept = encoder.forward_visible(patchify(images, 4), order)
    assert torch.allclose(kept, encoder.forward_features(images), atol=1e-6)


@pytest.mark.parametrize(("patch", "channels"), [(2, 1), (4, 3), (8, 5)])
def test_unpatchify_undoes_patchify_and_pixels_are_row_column_channel(
    patch: int, channels: int
) -> None:
    images = torch.arange(2 * channels * 64, dtype=torch.float32).reshape(2, channels, 8, 8)
    patches = patchify(images, patch)
    assert torch.equal(unpatchify(patches, patch), images)
    corner = images[0, :, :patch, :patch].permute(1, 2, 0).flatten()
    assert torch.equal(patches[0, 0], corner)


def test_patchify_refuses_sizes_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="9x8"):
        patchify(torch.zeros(1, 1, 9, 8), 2)
    with pytest.raises(ConfigError, match="no square image"):
        unpatchify(torch.zeros(1, 3, 4), 2)


def test_normalised_targets_use_the_unbiased_variance() -> None:
    patch = np.array([1.0, 2.0, 3.0, 6.0])
    expected = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
    target = patch_targets(torch.tensor(patch).view(1, 1, 4), norm_pix=True)
    assert target.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert not patch_targets(torch.full((1, 1, 4), 7.0), norm_pix=True).any()


def test_initialisation_is_a_function_of_the_seed_and_leaves_the_global_rng_alone() -> None:
    recipe = make_recipe()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = MAE(recipe).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    second = MAE(recipe).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = MAE(replace(recipe, seed=4)).state_dict()
    assert not torch.equal(first["encoder.patch_embed.weight"], other["encoder.patch_embed.weight"])
    small = replace(recipe, decoder=DecoderConfig(width=16, depth=1, num_heads=2))
    encoder = MAE(small).encoder.state_dict()
    assert all(torch.equal(first[f"encoder.{key}"], encoder[key]) for key in encoder)


def test_initialisation_follows_the_paper() -> None:
    model = MAE(
        replace(make_recipe(), encoder=EncoderConfig(width=192, depth=1, num_heads=3, patch_size=2))
    )
    block = model.encoder.blocks[0]
    weights = block.get_submodule("attn.qkv").state_dict()
    bound = (6 / (192 + 3 * 192)) ** 0.5
    assert 0.99 * bound < weights["weight"].abs().max().item() <= bound
    assert not weights["bias"].any()
    assert model.encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.4)
    assert torch.equal(model.encoder.norm.weight, torch.ones(192))


def test_bf16_parameters_with_float32_buffers_work_as_deepspeed_leaves_them() -> None:
    recipe = make_recipe(16, 4, 3)
    images, noise = make_batch(recipe)
    model = MAE(recipe)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    assert torch.isfinite(model(images, noise))
    assert model.encoder.forward_features(images).dtype == torch.bfloat16


def test_bf16_weights_take_float32_inputs_and_give_a_float32_loss() -> None:
    recipe = make_recipe(16, 4, 3)
    images, noise = make_batch(recipe)
    model = MAE(recipe)
    expected = model(images, noise).item()
    loss = model.to(torch.bfloat16)(images, noise)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=0.02)
    assert model.reconstruct(images, noise).prediction_NLP.dtype == torch.float32


def drop_path_encoder(rate: float) -> tuple[Encoder, Tensor]:
    recipe = make_recipe(16, 4, 3)
    encoder = Encoder(recipe.encoder, 16, 3, drop_path=rate)
    return encoder, make_batch(recipe)[0]


def test_drop_path_keeps_branches_by_the_noise_of_each_image() -> None:
    encoder, images = drop_path_encoder(0.5)
    plain = encoder.forward_features(images)
    noise = torch.full((5, 6), 0.999)
    noise[1, 5] = 0.1  # drops the last MLP branch of image 1 (rate 0.5)
    dropped = encoder.forward_features(images, noise)
    assert not torch.allclose(dropped[0], plain[0], atol=1e-3)  # kept branches are scaled up
    noise[1, 5] = 0.999
    kept = encoder.forward_features(images, noise)
    same = [bool(torch.equal(kept[i], dropped[i])) for i in range(5)]
    assert same == [True, False, True, True, True]


def test_drop_path_of_zero_or_without_noise_changes_nothing() -> None:
    encoder, images = drop_path_encoder(0.0)
    noise = torch.zeros(5, 6)
    assert torch.equal(encoder.forward_features(images, noise), encoder.forward_features(images))


def test_all_branches_dropped_leave_embedding_and_first_block_only() -> None:
    encoder, images = drop_path_encoder(0.9)
    dropped = encoder.forward_features(images, torch.zeros(5, 6))
    for block in list(encoder.blocks)[1:]:
        for parameter in block.parameters():
            parameter.data.zero_()
    assert torch.allclose(encoder.forward_features(images), dropped, atol=1e-6)


def test_weights_of_another_model_are_refused() -> None:
    recipe = make_recipe()
    with pytest.raises(ConfigError, match="head.weight"):
        mae_to_hf({"head.weight": torch.zeros(1)}, recipe)
