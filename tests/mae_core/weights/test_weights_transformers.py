"""What `save_pretrained` of transformers writes, and what its `from_pretrained` reads of ours."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.foreign_weights import (
    WIDTH,
    features,
    images,
    official_full_state,
    own,
    relative,
    timm_state,
)
from support.hugging_face_mae import legacy_folder, legacy_names, randomised, small_vit
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from mae_core.config import ENCODER_FILE, DataConfig, PretrainRecipe
from mae_core.errors import ConfigError
from mae_core.model.mae import MAE
from mae_core.weights import Hints, import_weights, load_own, write_layout

TOLERANCE = 1e-5
ORDER = torch.arange(16.0).repeat(3, 1)
DECODER: dict[str, Any] = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 128,
}


def mae(**options: Any) -> Any:
    return randomised(ViTMAEForPreTraining(ViTMAEConfig(**small_vit(), **DECODER, **options)))


@pytest.mark.parametrize("generation", ["installed", "4, safetensors", "4, pickle"])
@pytest.mark.parametrize("is_normalised", [True, False])
def test_a_whole_mae_of_transformers_goes_in_and_back_with_the_same_loss(
    tmp_path: Path, generation: str, is_normalised: bool
) -> None:
    model = mae(norm_pix_loss=is_normalised, mask_ratio=0.5)
    if generation == "installed":
        model.save_pretrained(tmp_path / "theirs")
        written = load_file(tmp_path / "theirs" / "model.safetensors")
        assert any(key.startswith("decoder.decoder_encoder.layer.1.") for key in written)
    else:
        legacy_folder(model, tmp_path / "theirs", is_pickle=generation.endswith("pickle"))
    found = import_weights(tmp_path / "theirs")
    assert (found.network.norm_pix_loss, found.network.mask_ratio) == (is_normalised, 0.5)
    ours = own(tmp_path / "theirs", tmp_path / "own")
    with torch.no_grad():
        expected = model(images(), noise=ORDER)
        bare = ViTMAEModel.from_pretrained(tmp_path / "theirs", mask_ratio=0.0).eval()
        whole = bare(images(), noise=ORDER).last_hidden_state
    assert relative(features(ours), whole) < TOLERANCE
    write_layout(load_own(ours / ENCODER_FILE, with_decoder=True), "hf", tmp_path / "back")
    back, said = ViTMAEForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(said.values()), said
    with torch.no_grad():
        again = back.eval()(images(), noise=ORDER)
    assert abs(again.loss - expected.loss) <= 1e-6 * abs(expected.loss)
    assert torch.equal(again.logits, expected.logits)


def test_an_adopted_mae_reconstructs_as_transformers_does(tmp_path: Path) -> None:
    """With its LN epsilon on both sides, and with positions that are not the fixed ones."""
    model = mae(layer_norm_eps=0.1, mask_ratio=0.5, norm_pix_loss=True)
    model.save_pretrained(tmp_path / "theirs")
    network = load_own(own(tmp_path / "theirs", tmp_path / "own") / ENCODER_FILE, with_decoder=True)
    assert network.decoder is not None
    recipe = PretrainRecipe(
        data=DataConfig(path="x", image_size=16, num_channels=3),
        encoder=network.encoder,
        decoder=network.decoder,
        mask_ratio=0.5,
        norm_pix_loss=True,
    )
    module = MAE(recipe)
    module.load_state_dict(module.take_positions(network.state))
    with torch.no_grad():
        assert relative(module(images(), ORDER), model(images(), noise=ORDER).loss) < TOLERANCE
    usual = replace(network.encoder, norm_eps=1e-6)
    assert (recipe.version, replace(recipe, encoder=usual).version) == (2, 1)


def test_encoders_and_classifiers_as_save_pretrained_writes_them(tmp_path: Path) -> None:
    models = {
        "mae": ViTMAEModel(ViTMAEConfig(**small_vit(), mask_ratio=0.0)),
        "vit": ViTModel(ViTConfig(**small_vit()), add_pooling_layer=False),
        "simmim": ViTForMaskedImageModeling(ViTConfig(**small_vit(), encoder_stride=4)),
        "classifier": ViTForImageClassification(ViTConfig(**small_vit(), num_labels=5)),
    }
    for name, model in models.items():
        randomised(model).save_pretrained(tmp_path / name)
        ours = own(tmp_path / name, tmp_path / f"{name}-own")
        base: Any = model if name in ("mae", "vit") else model.vit  # type: ignore[attr-defined]
        options = {"noise": ORDER} if name == "mae" else {}
        with torch.no_grad():
            expected = base(images(), **options).last_hidden_state
        assert relative(features(ours), expected) < TOLERANCE, name
        file = "finetuned.safetensors" if name == "classifier" else ENCODER_FILE
        write_layout(load_own(ours / file), "hf", tmp_path / f"{name}-back")
        kind: Any = ViTForImageClassification if name == "classifier" else ViTModel
        bare = {} if name == "classifier" else {"add_pooling_layer": False}
        _, said = kind.from_pretrained(tmp_path / f"{name}-back", output_loading_info=True, **bare)
        assert not any(said.values()), (name, said)


@pytest.mark.parametrize("generation", [4, 5])
def test_a_model_of_transformers_inside_a_training_program(tmp_path: Path, generation: int) -> None:
    model = mae(mask_ratio=0.0, layer_norm_eps=1e-6)
    names = legacy_names(model.state_dict()) if generation == 4 else model.state_dict()
    inside = {f"_forward_module.model._orig_mod.{key}": value for key, value in names.items()}
    hints = Hints(num_heads=3, decoder_heads=2)
    torch.save({"state_dict": inside, "epoch": 1}, tmp_path / "last.ckpt")
    found = import_weights(tmp_path / "last.ckpt", hints=hints)
    with torch.no_grad():
        expected = model.vit(images(), noise=ORDER).last_hidden_state
    ours = own(tmp_path / "last.ckpt", tmp_path / "own", hints=hints)
    assert relative(features(ours), expected) < TOLERANCE
    assert found.network.decoder is not None
    assert found.source.prefix == "model."
    assert "LN epsilon 1e-06 (assumed; transformers' own default is 1e-12)" in found.notes
    bare = ViTModel(ViTConfig(**small_vit(layer_norm_eps=1e-6)), add_pooling_layer=False)
    inner = {f"net.vit.{k}": v for k, v in randomised(bare).state_dict().items()}
    torch.save(inner | {"net.probe.weight": torch.zeros(2)}, tmp_path / "last.ckpt")
    assert import_weights(tmp_path / "last.ckpt", hints=hints).left_out == ("net.probe.weight",)


def test_what_is_unknown_is_never_written_as_false(tmp_path: Path) -> None:
    torch.save({"model": official_full_state()}, tmp_path / "full.pth")
    network = import_weights(tmp_path / "full.pth").network
    assert network.norm_pix_loss is None
    write_layout(network, "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert not {"norm_pix_loss", "mask_ratio"} & set(config)
    assert import_weights(tmp_path / "hf").network.norm_pix_loss is None
    said = import_weights(tmp_path / "full.pth", hints=Hints(norm_pix_loss=True)).network
    write_layout(said, "hf", tmp_path / "said")
    assert import_weights(tmp_path / "said").network.norm_pix_loss is True


def test_a_config_without_a_word_means_the_defaults_of_transformers(tmp_path: Path) -> None:
    model = randomised(ViTModel(ViTConfig(**small_vit(num_attention_heads=12))))
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    left = {k: v for k, v in config.items() if k not in ("num_attention_heads", "layer_norm_eps")}
    path.write_text(json.dumps(left))
    found = import_weights(tmp_path)
    encoder = found.network.encoder
    assert (encoder.num_heads, encoder.norm_eps) == (12, 1e-12)
    assert "12 heads, which transformers takes where config.json says none" in found.notes
    assert import_weights(tmp_path, hints=Hints(num_heads=4)).network.encoder.num_heads == 4


def test_heads_that_contradict_a_config_are_refused(tmp_path: Path) -> None:
    mae().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="--heads says 4 heads, and the file's config.json 3"):
        import_weights(tmp_path, hints=Hints(num_heads=4))
    with pytest.raises(ConfigError, match="--decoder-heads says 4 heads, .* config.json 2"):
        import_weights(tmp_path, hints=Hints(decoder_heads=4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "dinov2"}, "model_type = 'dinov2'; accepted are plain ViTs"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "only 'gelu' is supported"),
        ({"qkv_bias": False}, "qkv_bias = False"),
        ({"image_size": 224}, "image_size = 224, but the tensors say 16"),
        ({"num_attention_heads": "many"}, "num_attention_heads = 'many' is not a number"),
        ({"layer_norm_eps": -1}, "layer_norm_eps = -1 is not a number above 0"),
        ({"num_attention_heads": 2.5}, "is not a number above 0"),
        ({"layer_norm_eps": float("inf")}, "is not a number above 0"),
        ({"intermediate_size": 5}, "intermediate_size = 5, but the tensors say"),
        ({"norm_pix_loss": "no"}, "norm_pix_loss = 'no' is not true or false"),
        ({"mask_ratio": 1.5}, "mask_ratio = 1.5 is not a number from 0 to less than 1"),
    ],
)
def test_a_config_of_another_network_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    mae().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=said):
        import_weights(tmp_path)


def test_the_mean_and_deviation_of_pixels_are_kept_where_they_are_said(tmp_path: Path) -> None:
    mae().save_pretrained(tmp_path)
    assert import_weights(tmp_path).facts.pixel_mean is None
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pixels))
    assert import_weights(tmp_path).facts.pixel_mean == (0.5, 0.4, 0.3)
    path = tmp_path / "preprocessor_config.json"
    for change, mean, std in (
        ({"do_normalize": False}, (0, 0, 0), (1, 1, 1)),
        ({"do_rescale": True, "rescale_factor": 1 / 255}, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2)),
        ({"rescale_factor": 2 / 255}, (0.25, 0.2, 0.15), (0.1, 0.1, 0.1)),
        (
            {"do_rescale": False, "image_std": [51] * 3},
            (0.5 / 255, 0.4 / 255, 0.3 / 255),
            (0.2,) * 3,
        ),
    ):
        path.write_text(json.dumps(pixels | change))
        facts = import_weights(tmp_path).facts
        assert (facts.pixel_mean, facts.pixel_std) == (pytest.approx(mean), pytest.approx(std))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": "x"}')
    with pytest.raises(ConfigError, match="image_mean = 'x' is no list of numbers"):
        import_weights(tmp_path)


def test_timms_config_says_heads_and_changes_that_tensors_do_not_show(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(timm_state(), tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architecture": "vit", "model_args": {"num_heads": 4}}))
    found = import_weights(tmp_path)
    assert (found.layout, found.network.encoder.num_heads) == ("timm", 4)
    assert found.network.encoder.width == WIDTH
    path.write_text(json.dumps({"model_args": {"act_layer": "quick_gelu"}}))
    with pytest.raises(ConfigError, match="model_args change act_layer"):
        import_weights(tmp_path)
    save_file(timm_state(classes=2), tmp_path / "model.safetensors")
    for change, said in (("global_pool", "avg"), ("qkv_bias", False), ("patch_size", 16)):
        path.write_text(json.dumps({"model_args": {change: said}}))
        with pytest.raises(ConfigError, match=f"config.json: {change} = {said!r}"):
            import_weights(tmp_path)
