"""Foreign checkpoints in and out: features equal the original's, bytes survive a round trip."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.foreign_weights import (
    DEPTH,
    WIDTH,
    features,
    images,
    official_full_state,
    own,
    reference_features,
    relative,
    timm_state,
)
from support.hugging_face_mae import randomised, small_vit
from transformers import (
    AutoModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from mae_core.checkpoint.encoder_file import load_encoder
from mae_core.config import ENCODER_FILE
from mae_core.evaluate.classifier import load_classifier
from mae_core.weights import Hints, import_weights, load_own, tensors_digest, write_layout

TOLERANCE = 1e-5


def test_timm_features_with_learned_positions_equal_a_vit_written_out(tmp_path: Path) -> None:
    state = timm_state()
    save_file(state, tmp_path / "vit.safetensors")
    conversion = import_weights(tmp_path / "vit.safetensors")
    folder = own(tmp_path / "vit.safetensors", tmp_path / "own")
    assert conversion.layout == "timm"
    assert conversion.position_error > 0.1
    assert any("positions are learned" in note for note in conversion.notes)
    assert relative(features(folder), reference_features(state, images())) < TOLERANCE
    assert conversion.network.encoder.depth == DEPTH
    assert set(conversion.mapping) == set(conversion.network.state)


def test_official_encoder_and_decoder_come_back_byte_for_byte(tmp_path: Path) -> None:
    state = official_full_state()
    torch.save({"model": state}, tmp_path / "full.pth")
    assert import_weights(tmp_path / "full.pth").position_error < 1e-6
    folder = own(tmp_path / "full.pth", tmp_path / "own")
    [out] = write_layout(
        load_own(folder / ENCODER_FILE, with_decoder=True), "official", tmp_path / "back.pth"
    )
    back = torch.load(out, weights_only=True)["model"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k].view(torch.int32), state[k].view(torch.int32)) for k in state)
    assert relative(features(folder), reference_features(state, images())) < TOLERANCE
    [alone] = write_layout(load_own(folder / ENCODER_FILE), "official", tmp_path / "alone.pth")
    encoder = torch.load(alone, weights_only=True)["model"]
    assert set(encoder) == set(timm_state())


@pytest.mark.parametrize("eps", [1e-12, 1e-3])
def test_the_epsilon_of_a_hugging_face_vit_is_kept(tmp_path: Path, eps: float) -> None:
    model = randomised(ViTModel(ViTConfig(**small_vit(layer_norm_eps=eps))))
    model.save_pretrained(tmp_path)
    folder = own(tmp_path, tmp_path / "own")
    with torch.no_grad():
        expected = model(images()).last_hidden_state
    assert relative(features(folder), expected) < TOLERANCE
    assert import_weights(tmp_path).left_out  # the pooler


def test_export_to_transformers_gives_the_same_features(tmp_path: Path) -> None:
    save_file(timm_state(), tmp_path / "vit.safetensors")
    folder = own(tmp_path / "vit.safetensors", tmp_path / "own")
    write_layout(load_own(folder / ENCODER_FILE), "hf", tmp_path / "hf")
    model = AutoModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()
    assert isinstance(model, ViTModel)
    with torch.no_grad():
        theirs = model(images()).last_hidden_state
    assert relative(theirs, reference_features(timm_state(), images())) < TOLERANCE
    assert relative(theirs, features(folder)) < TOLERANCE


def test_a_classifier_of_the_class_token_goes_to_transformers_and_back(tmp_path: Path) -> None:
    state = timm_state(classes=5)
    save_file(state, tmp_path / "vit.safetensors")
    folder = own(tmp_path / "vit.safetensors", tmp_path / "own")
    classifier = folder / "finetuned.safetensors"
    ours, names = load_classifier(classifier)
    write_layout(load_own(classifier), "hf", tmp_path / "hf")
    theirs = ViTForImageClassification.from_pretrained(tmp_path / "hf").eval()
    tokens = reference_features(state, images())
    expected = tokens[:, 0] @ state["head.weight"].T + state["head.bias"]
    with torch.no_grad():
        assert relative(ours.logits(images()), expected) < TOLERANCE
        assert relative(theirs(images()).logits, expected) < TOLERANCE
    assert names == ("0", "1", "2", "3", "4")
    again = import_weights(tmp_path / "hf").network
    assert torch.equal(again.state["head.weight"], state["head.weight"])


def test_a_fine_tuned_official_model_keeps_its_norm_after_the_mean(tmp_path: Path) -> None:
    state = timm_state(final_norm="fc_norm", classes=5)
    saved = {"model": state, "optimizer": {"state": {}}, "epoch": 99, "args": Namespace(lr=1e-3)}
    torch.save(saved, tmp_path / "finetuned.pth")
    left = import_weights(tmp_path / "finetuned.pth").source.left_out
    assert left == ("args", "epoch", "optimizer")
    folder = own(tmp_path / "finetuned.pth", tmp_path / "own")
    mean = reference_features(state, images())[:, 1:].mean(dim=1)
    weights = (state["fc_norm.weight"], state["fc_norm.bias"])
    normed = torch.nn.functional.layer_norm(mean, (WIDTH,), *weights, 1e-6)
    expected = normed @ state["head.weight"].T + state["head.bias"]
    classifier = folder / "finetuned.safetensors"
    with torch.no_grad():
        assert relative(load_classifier(classifier)[0].logits(images()), expected) < TOLERANCE
    assert torch.equal(load_encoder(folder / ENCODER_FILE).norm.weight, state["fc_norm.weight"])
    [out] = write_layout(load_own(classifier), "official", tmp_path / "back.pth")
    back = torch.load(out, weights_only=True)["model"]
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("layout", ["official", "timm", "hf"])
def test_every_layout_leads_back_to_the_same_digest(tmp_path: Path, layout: Any) -> None:
    save_file(timm_state(), tmp_path / "vit.safetensors")
    network = import_weights(tmp_path / "vit.safetensors").network
    out = tmp_path / {"official": "a.pth", "timm": "a.safetensors", "hf": "a"}[layout]
    write_layout(network, layout, out)
    assert tensors_digest(import_weights(out).network) == tensors_digest(network)
    other = import_weights(out, hints=Hints(num_heads=4)).network if layout != "hf" else None
    assert other is None or tensors_digest(other) != tensors_digest(network)


def test_exported_files_are_plain(tmp_path: Path) -> None:
    save_file(timm_state(), tmp_path / "vit.safetensors")
    network = import_weights(tmp_path / "vit.safetensors").network
    [out] = write_layout(network, "timm", tmp_path / "out.safetensors")
    back = load_file(out)
    assert all(torch.equal(back[key], value) for key, value in timm_state().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.safetensors", "vit.safetensors"]


@pytest.mark.parametrize("kind", ["shards", "bin", "bare"])
def test_hugging_face_folders_of_every_kind(tmp_path: Path, kind: str) -> None:
    model = randomised(ViTModel(ViTConfig(**small_vit(layer_norm_eps=1e-6))))
    model.save_pretrained(tmp_path / "whole")
    expected = import_weights(tmp_path / "whole")
    folder = tmp_path / kind
    model.save_pretrained(folder, max_shard_size="60KB" if kind == "shards" else "1GB")
    if kind == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    if kind == "bare":
        (folder / "config.json").unlink()
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
        folder = folder / "weights.safetensors"
    found = import_weights(folder, hints=Hints(num_heads=3))
    assert (len(found.source.digests) > 1) == (kind == "shards")
    assert tensors_digest(found.network) == tensors_digest(expected.network)
