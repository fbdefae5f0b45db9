"""Files of other kinds: one sentence that names what it looks like and what is accepted."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from support.foreign_weights import TOKENS, WIDTH, timm_state
from support.hugging_face_mae import small_vit

from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights import import_weights

DINO = {k: v for k, v in small_vit().items() if k != "intermediate_size"}
SWIN: dict[str, Any] = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "window_size": 4}
NARROW: dict[str, Any] = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}
MODELS: dict[str, tuple[Any, Any, str]] = {
    "DINOv2": (hf.Dinov2Model, hf.Dinov2Config(**DINO), "layer scale"),
    "DINOv2 with registers": (
        hf.Dinov2WithRegistersModel,
        hf.Dinov2WithRegistersConfig(**DINO),
        "register tokens",
    ),
    "CLIP": (hf.CLIPVisionModel, hf.CLIPVisionConfig(**small_vit()), "CLIP or SigLIP"),
    "SigLIP": (hf.SiglipVisionModel, hf.SiglipVisionConfig(**small_vit()), "CLIP or SigLIP"),
    "Swin": (hf.SwinModel, hf.SwinConfig(depths=[1, 1], num_heads=[1, 2], **SWIN), "Swin"),
    "BEiT": (
        hf.BeitModel,
        hf.BeitConfig(**small_vit(), use_relative_position_bias=True),
        "relative positions",
    ),
    "ConvNeXt": (hf.ConvNextModel, hf.ConvNextConfig(**NARROW), "ConvNeXt"),
    "DeiT": (hf.DeiTModel, hf.DeiTConfig(**small_vit()), "distilled DeiT"),
    "ResNet": (hf.ResNetModel, hf.ResNetConfig(embedding_size=8, **NARROW), "ResNet"),
    "VideoMAE": (hf.VideoMAEModel, hf.VideoMAEConfig(**small_vit()), "VideoMAE"),
}


@pytest.mark.parametrize("name", MODELS)
def test_other_models_of_transformers_are_named(tmp_path: Path, name: str) -> None:
    kind, config, said = MODELS[name]
    kind(config).save_pretrained(tmp_path / "folder")
    shutil.copy(tmp_path / "folder" / "model.safetensors", tmp_path / "weights.safetensors")
    for path in (tmp_path / "folder", tmp_path / "weights.safetensors"):
        with pytest.raises(ConfigError, match=rf"looks like .*{said}.*; accepted are plain ViTs"):
            import_weights(path)


def optimizer_state() -> dict[str, Any]:
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.zeros(3)
    optimizer = torch.optim.AdamW([parameter])
    optimizer.step()
    return optimizer.state_dict()


QKV = "blocks.0.attn.qkv.weight"
PICKLED: dict[str, tuple[Any, str]] = {
    "optimizer": (optimizer_state(), "looks like the state of an optimizer"),
    "optimizer of a checkpoint": (
        {"optimizer": optimizer_state(), "epoch": 3},
        "looks like the state of an optimizer",
    ),
    "LoRA": (
        {f"base_model.model.{QKV}.lora_A.weight": torch.zeros(2, WIDTH)},
        "looks like a LoRA adapter",
    ),
    "distilled": (
        timm_state()
        | {"dist_token": torch.zeros(1, 1, WIDTH), "pos_embed": torch.zeros(1, TOKENS + 1, WIDTH)},
        "looks like a distilled DeiT",
    ),
    "layer scale": (
        timm_state() | {"blocks.0.ls1.gamma": torch.zeros(WIDTH)},
        r"unexpected \(1\): blocks.0.ls1.gamma; it looks like a ViT with layer scale",
    ),
    "registers": (
        timm_state() | {"reg_token": torch.zeros(1, 4, WIDTH)},
        "looks like a ViT with register tokens",
    ),
    "pre-norm": (
        timm_state() | {"norm_pre.weight": torch.zeros(WIDTH)},
        "looks like a ViT with an LN before its blocks",
    ),
    "linear probe": (
        timm_state() | {"head.0.running_mean": torch.zeros(WIDTH)},
        "looks like the official linear probe",
    ),
    "torchvision": (
        {"conv_proj.weight": torch.zeros(8, 3, 4, 4), "encoder.layers.encoder_layer_0.ln_1": 1}
        | {"encoder.layers.encoder_layer_0.ln_1.weight": torch.zeros(8)},
        "looks like torchvision's",
    ),
    "ResNet": (
        {"conv1.weight": torch.zeros(8, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(8)},
        "looks like a ResNet",
    ),
    "no bias": (
        {k: v for k, v in timm_state().items() if not k.endswith("qkv.bias")},
        r"missing \(2\): blocks.0.attn.qkv.bias, .*; accepted are plain ViTs",
    ),
    "no class token": (
        {k: v for k, v in timm_state().items() if k != "cls_token"},
        r"missing \(1\): cls_token; accepted are plain ViTs",
    ),
    "empty": ({}, "holds no tensors; accepted are"),
    "ZeRO-3": (
        {"module": {k: torch.zeros(0) for k in timm_state()}},
        "holds no values: these are the shards of ZeRO-3",
    ),
    "meta": ({k: v.to("meta") for k, v in timm_state().items()}, "without plain values"),
    "sparse": (
        timm_state() | {"cls_token": torch.zeros(1, 1, WIDTH).to_sparse()},
        "without plain values .* among the weights: cls_token",
    ),
    "complex": (
        timm_state() | {"cls_token": torch.zeros(1, 1, WIDTH, dtype=torch.complex64)},
        "no floating-point numbers: cls_token",
    ),
    "NaN": (
        {"state_dict": {f"model.{k}": v * float("nan") for k, v in timm_state().items()}},
        "weights are not finite",
    ),
    "a wide SO400M": (
        {"patch_embed.proj.weight": torch.zeros(1152, 3, 4, 4)}
        | {"pos_embed": torch.zeros(1, 17, 1152)}
        | {"blocks.0.mlp.fc1.weight": torch.zeros(4, 1152)},
        r"two readings of width 1152 at depth 0: 16 \(SO400M\) or 18",
    ),
}


@pytest.mark.parametrize("name", PICKLED)
def test_checkpoints_of_other_kinds_are_named(tmp_path: Path, name: str) -> None:
    content, said = PICKLED[name]
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ConfigError, match=said):
        import_weights(tmp_path / "file.pth")


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    pointer = tmp_path / "lfs.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n")
    page = tmp_path / "page.bin"
    page.write_text("\n<!DOCTYPE html><html>")
    np.savez(tmp_path / "flax.npz", a=np.zeros(3))
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "program.pt")
    save_file({}, tmp_path / "none.safetensors", metadata={"format": "pt"})
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for file, said in (
        ("lfs.pth", "pointer of Git LFS"),
        ("page.bin", "web page"),
        ("flax.npz", "an archive that torch did not write"),
        ("program.pt", "TorchScript program"),
        ("none.safetensors", "holds no tensors; accepted are"),
        ("adapter", "is an adapter .*merge it into its base model"),
    ):
        with pytest.raises(ConfigError, match=said):
            import_weights(tmp_path / file)
    for depth, damaged in (("5", "no mapping"), ("[" * 100_000, "not a readable safetensors")):
        save_file(timm_state(), tmp_path / "odd.safetensors", metadata={"mae_study": depth})
        with pytest.raises(CheckpointError, match=damaged):
            import_weights(tmp_path / "odd.safetensors")
