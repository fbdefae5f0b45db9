"""Checkpoints as other libraries write them, made by code, and a ViT in plain torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mae_core.checkpoint.encoder_file import load_encoder
from mae_core.config import ENCODER_FILE
from mae_core.weights import import_weights, save_own

WIDTH, DEPTH, HEADS, PATCH, PIXELS = 128, 2, 2, 4, 16
DECODER_WIDTH, DECODER_DEPTH = 64, 1
TOKENS = 1 + (PIXELS // PATCH) ** 2


def blocks(prefix: str, width: int, depth: int, draw: torch.Generator) -> dict[str, Tensor]:
    shapes = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (4 * width, width),
        "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width),
        "mlp.fc2.bias": (width,),
    }
    return {
        f"{prefix}.{i}.{name}": 0.2 * torch.randn(shape, generator=draw)
        for i in range(depth)
        for name, shape in shapes.items()
    }


def timm_state(seed: int = 0, final_norm: str = "norm", classes: int = 0) -> dict[str, Tensor]:
    """A `VisionTransformer`'s state dict with learned positions; every tensor is random."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=draw)

    state = {
        "cls_token": normal(1, 1, WIDTH),
        "pos_embed": normal(1, TOKENS, WIDTH),
        "patch_embed.proj.weight": normal(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": normal(WIDTH),
        **blocks("blocks", WIDTH, DEPTH, draw),
        f"{final_norm}.weight": 1 + normal(WIDTH),
        f"{final_norm}.bias": normal(WIDTH),
    }
    if classes:
        state |= {"head.weight": normal(classes, WIDTH), "head.bias": normal(classes)}
    return state


def official_full_state(seed: int = 0) -> dict[str, Tensor]:
    """What the official code saves of a pretraining: encoder, decoder, two position tables."""
    draw = torch.Generator().manual_seed(seed + 1)

    def normal(*shape: int) -> Tensor:
        return 0.2 * torch.randn(shape, generator=draw)

    decoder = {
        "mask_token": normal(1, 1, DECODER_WIDTH),
        "decoder_pos_embed": official_positions(DECODER_WIDTH),
        "decoder_embed.weight": normal(DECODER_WIDTH, WIDTH),
        "decoder_embed.bias": normal(DECODER_WIDTH),
        **blocks("decoder_blocks", DECODER_WIDTH, DECODER_DEPTH, draw),
        "decoder_norm.weight": normal(DECODER_WIDTH),
        "decoder_norm.bias": normal(DECODER_WIDTH),
        "decoder_pred.weight": normal(PATCH**2 * 3, DECODER_WIDTH),
        "decoder_pred.bias": normal(PATCH**2 * 3),
    }
    return timm_state(seed) | {"pos_embed": official_positions(WIDTH)} | decoder


def official_positions(width: int) -> Tensor:
    """Fixed 2-D sin-cos table, (1, tokens, width), computed one position at a time."""
    quarter = width // 4
    rows = [[0.0] * width]
    for index in range(TOKENS - 1):
        row, column = divmod(index, PIXELS // PATCH)
        angles = [
            torch.tensor([place / 10000 ** (k / quarter) for k in range(quarter)]).double()
            for place in (column, row)
        ]
        halves = [torch.cat([angle.sin(), angle.cos()]) for angle in angles]
        rows.append(torch.cat(halves).tolist())
    return torch.tensor(rows, dtype=torch.float32).unsqueeze(0)


def reference_features(
    state: dict[str, Tensor], images_NCHW: Tensor, heads: int = HEADS, eps: float = 1e-6
) -> Tensor:
    """Tokens after the last LN, (N, T, D): a ViT written out on timm's keys, nothing shared."""
    width = state["cls_token"].shape[-1]
    patches = F.conv2d(
        images_NCHW, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH
    )
    tokens = torch.stack([p.reshape(width, -1).T for p in patches])
    x = torch.cat([state["cls_token"].repeat(len(tokens), 1, 1), tokens], 1) + state["pos_embed"]
    depth = len([key for key in state if key.endswith("norm1.weight") and key.startswith("blocks")])
    for i in range(depth):
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in state.items()}
        h = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], eps)
        q, k, v = F.linear(h, b["attn.qkv.weight"], b["attn.qkv.bias"]).split(width, dim=-1)
        mixed = []
        for head in range(heads):
            part = slice(head * width // heads, (head + 1) * width // heads)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / (width // heads) ** 0.5
            mixed.append(scores.softmax(-1) @ v[..., part])
        x = x + F.linear(torch.cat(mixed, -1), b["attn.proj.weight"], b["attn.proj.bias"])
        h = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], eps)
        h = F.gelu(F.linear(h, b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        x = x + F.linear(h, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
    if "norm.weight" not in state:
        return x
    return F.layer_norm(x, (width,), state["norm.weight"], state["norm.bias"], eps)


def images(number: int = 3) -> Tensor:
    return torch.randn(number, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(7))


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference, of the norm of theirs."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def features(folder: Path) -> Tensor:
    """Tokens of the images by an adopted encoder, as stages read it."""
    with torch.no_grad():
        return load_encoder(folder / ENCODER_FILE).forward_features(images())


def own(source: Path, folder: Path, **options: Any) -> Path:
    """Take a checkpoint in and leave the files that stages read; returns the folder."""
    folder.mkdir(exist_ok=True)
    save_own(import_weights(source, **options).network, folder, {})
    return folder


def mmpretrain_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The official keys as mmpretrain names them (`VisionTransformer`, `MAEPretrainDecoder`)."""
    renames = (
        ("decoder_norm.", "neck.ln1."),
        ("decoder_", "neck.decoder_"),
        ("mask_token", "neck.mask_token"),
        ("fc_norm.", "backbone.ln2."),
        ("norm1.", "ln1."),
        ("norm2.", "ln2."),
        ("mlp.fc1.", "ffn.layers.0.0."),
        ("mlp.fc2.", "ffn.layers.1."),
        ("patch_embed.proj.", "patch_embed.projection."),
        ("head.", "head.fc."),
    )
    found = {}
    for key, value in state.items():
        for old, new in renames:
            key = (
                new + key.removeprefix(old)
                if key.startswith(old)
                else key.replace("." + old, "." + new)
            )
        key = f"ln1.{key.removeprefix('norm.')}" if key.startswith("norm.") else key
        key = f"layers.{key.removeprefix('blocks.')}" if key.startswith("blocks.") else key
        is_outside = key.startswith(("neck.", "head.", "backbone."))
        found[key if is_outside else f"backbone.{key}"] = value
    return found
