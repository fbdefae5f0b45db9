"""Files that are not what they should be: refused, key by key, and without running their code."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.foreign_weights import WIDTH, official_full_state, timm_state

from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights import Hints, import_weights, load_own, save_own, write_layout


class Payload:
    """Runs on unpickling: makes the folder that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def written(folder: Path, state: dict[str, Any]) -> Path:
    path = folder / "vit.safetensors"
    save_file(state, path)
    return path


def test_what_does_not_match_is_listed_key_by_key(tmp_path: Path) -> None:
    state = timm_state()
    del state["blocks.0.attn.proj.bias"]
    state["blocks.1.norm2.weight"] = torch.zeros(7)
    state["blocks.0.ls1.gamma"] = torch.zeros(WIDTH)
    with pytest.raises(ConfigError) as refused:
        import_weights(written(tmp_path, state))
    text = str(refused.value)
    assert "missing (1): blocks.0.attn.proj.bias" in text
    assert "unexpected (1): blocks.0.ls1.gamma" in text
    assert f"wrong shape (1): blocks.1.norm2.weight: (7,), expected ({WIDTH},)" in text


def test_a_block_that_is_missing_in_the_middle_is_named(tmp_path: Path) -> None:
    state = {k: v for k, v in timm_state().items() if not k.startswith("blocks.0.norm1")}
    with pytest.raises(ConfigError, match=r"missing \(2\): blocks.0.norm1.weight"):
        import_weights(written(tmp_path, state))


def test_a_decoder_has_no_place_in_timms_layout(tmp_path: Path) -> None:
    torch.save({"model": official_full_state()}, tmp_path / "full.pth")
    with pytest.raises(ConfigError, match=r"unexpected \(\d+\): decoder_blocks"):
        import_weights(tmp_path / "full.pth", "timm")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickle_with_code_is_refused_by_the_name_of_its_type_and_not_run(
    tmp_path: Path, is_zip: bool
) -> None:
    trap = tmp_path / "trap"
    content = {"model": timm_state(), "extra": Payload(trap)}
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ConfigError, match="its pickle asks for .*mkdir") as refused:
        import_weights(tmp_path / "bad.pth")
    assert "may run code" in str(refused.value)
    assert not trap.exists()


def hostile(where: str, payload: Payload) -> dict[str, Any]:
    """A checkpoint that is whole but for a payload in one of the places that are read."""
    name = WIDTH  # any number: settings are plain data
    return {
        "settings": {"model": timm_state(), "args": argparse.Namespace(lr=payload, width=name)},
        "hyper-parameters": {"state_dict": timm_state(), "hyper_parameters": {"a": [payload]}},
        "another network": {"model": timm_state(), "model_ema": payload},
        "a key": {"model": timm_state() | {"x": payload}},
        "DeepSpeed": {"module": timm_state(), "ds_config": {"optimizer": payload}},
    }[where]


@pytest.mark.parametrize(
    "where", ["settings", "hyper-parameters", "another network", "a key", "DeepSpeed", "a shard"]
)
def test_a_payload_is_refused_wherever_it_is(tmp_path: Path, where: str) -> None:
    payload = Payload(tmp_path / "trap")
    path = tmp_path / "last.pth.tar"
    if where == "a shard":
        path = tmp_path / "pytorch_model.bin.index.json"
        names = dict.fromkeys(timm_state(), "pytorch_model-00001-of-00001.bin")
        path.write_text(json.dumps({"weight_map": names}))
        torch.save(timm_state() | {"x": payload}, tmp_path / "pytorch_model-00001-of-00001.bin")
    else:
        torch.save(hostile(where, payload), path)
    with pytest.raises(ConfigError, match="its pickle asks for .*mkdir.*may run code"):
        import_weights(path)
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_paths_and_numbers_of_numpy_among_settings_are_passed_over(
    tmp_path: Path, is_zip: bool
) -> None:
    settings = argparse.Namespace(output_dir=tmp_path, lr=np.float64(1e-3), mask_ratio=0.75)
    content = {"model": official_full_state(), "args": settings, "best": np.arange(3)}
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    found = import_weights(path)
    assert found.network.mask_ratio == 0.75
    settings.mask_ratio = np.float64(0.75)
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    again = import_weights(path)
    assert again.network.mask_ratio is None
    assert any("mask_ratio = (a type that is not read) is not a number" in n for n in again.notes)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        import_weights(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises((CheckpointError, ConfigError)):
        import_weights(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ConfigError, match="holds a list"):
        import_weights(path)
    torch.save({"epoch": 3, "history": {"loss": [1.0]}}, path)
    with pytest.raises(ConfigError, match="holds no tensors, only: epoch, history"):
        import_weights(path)
    torch.save({"model": timm_state() | {"epoch": 3}}, path)
    with pytest.raises(ConfigError, match="not tensors among the weights: epoch"):
        import_weights(path)
    with pytest.raises(ConfigError, match="no such file"):
        import_weights(tmp_path / "absent.pth")
    with pytest.raises(ConfigError, match="neither model.safetensors nor"):
        import_weights(tmp_path)
    with pytest.raises(ConfigError, match="no known layout"):
        import_weights(written(tmp_path, {"conv1.weight": torch.zeros(1)}))


@pytest.mark.parametrize("kind", ["zip", "older", "safetensors"])
def test_damage_anywhere_is_refused_or_read_never_a_traceback(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    small = {"patch_embed.proj.weight": torch.zeros(4, 1, 2, 2), "a": torch.zeros(2)}
    if kind == "safetensors":
        save_file(small, path)
    else:
        torch.save({"model": small}, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    draw = random.Random(0)
    for number in range(150):
        damaged = bytearray(whole)
        if number % 3 == 0:
            del damaged[draw.randrange(len(damaged)) :]
        for _ in range(draw.choice((1, 3, 20)) if damaged else 0):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises((ConfigError, CheckpointError)):
            import_weights(path)
    path.write_bytes(whole.replace(b"data/0", b"\xc8ata/0"))
    with pytest.raises((ConfigError, CheckpointError)):
        import_weights(path)


def test_sizes_and_heads_must_agree(tmp_path: Path) -> None:
    path = written(tmp_path, timm_state())
    assert import_weights(path).network.encoder.num_heads == 2
    assert import_weights(path, hints=Hints(num_heads=4)).network.encoder.num_heads == 4
    with pytest.raises(ConfigError, match="--size B has width 768 and depth 12, but the file has"):
        import_weights(path, hints=Hints(size="B"))
    with pytest.raises(ConfigError, match="not divisible by its 3 heads"):
        import_weights(path, hints=Hints(num_heads=3))


def test_the_heads_of_h_are_eighty_wide(tmp_path: Path) -> None:
    width = 1280
    state = {k: v for k, v in timm_state().items() if not k.startswith("blocks.1")}
    wide = {}
    for name, value in state.items():
        shape = [n // WIDTH * width if n % WIDTH == 0 else n for n in value.shape]
        wide[name] = torch.zeros(shape, dtype=torch.bfloat16)
    found = import_weights(written(tmp_path, wide))
    assert (found.network.encoder.num_heads, found.network.encoder.depth) == (16, 1)
    assert any("stored as float32, was bfloat16" in note for note in found.notes)


@pytest.mark.parametrize("width", [48, 64])
def test_an_unknown_width_asks_for_the_heads(tmp_path: Path, width: int) -> None:
    state = timm_state()
    narrow = {k: v[..., :width] if v.shape[-1] == WIDTH else v for k, v in state.items()}
    narrow["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:width]
    with pytest.raises(ConfigError, match="with --heads"):
        import_weights(written(tmp_path, {k: v.contiguous() for k, v in narrow.items()}))


def test_positions_that_are_no_square_are_refused(tmp_path: Path) -> None:
    state = timm_state() | {"pos_embed": torch.zeros(1, 19, WIDTH)}
    with pytest.raises(ConfigError, match="19 positions are not one class token and a square"):
        import_weights(written(tmp_path, state))


def test_exports_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    network = import_weights(written(tmp_path, timm_state())).network
    with pytest.raises(ConfigError, match="hf writes a folder"):
        write_layout(network, "hf", tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="ends in .pth"):
        write_layout(network, "official", tmp_path / "x.npz")
    torch.save({"model": official_full_state()}, tmp_path / "full.pth")
    full = import_weights(tmp_path / "full.pth").network
    with pytest.raises(ConfigError, match="timm layout has no place for 'decoder"):
        write_layout(full, "timm", tmp_path / "x.pth")
    torch.save({"model": timm_state(final_norm="fc_norm", classes=3)}, tmp_path / "tuned.pth")
    tuned = import_weights(tmp_path / "tuned.pth").network
    with pytest.raises(ConfigError, match="mean patch token has no place"):
        write_layout(tuned, "hf", tmp_path / "hf")
    save_own(network, tmp_path, {})
    with pytest.raises(ConfigError, match=r"no decoder.safetensors beside it"):
        load_own(tmp_path / "encoder.safetensors", with_decoder=True)
    with pytest.raises(ConfigError, match="file of mae-study itself"):
        import_weights(tmp_path / "encoder.safetensors")


def test_weights_that_are_no_finite_numbers_are_refused(tmp_path: Path) -> None:
    state = timm_state()
    state["blocks.1.attn.qkv.bias"][3] = float("nan")
    with pytest.raises(ConfigError, match="not finite: blocks.1.attn.qkv.bias"):
        import_weights(written(tmp_path, state))
    state = timm_state() | {"cls_token": torch.zeros(1, 1, WIDTH, dtype=torch.int8)}
    with pytest.raises(ConfigError, match="no floating-point numbers: cls_token"):
        import_weights(written(tmp_path, state))
    torch.save({"model": timm_state() | {1: torch.zeros(1)}}, tmp_path / "odd.pth")
    with pytest.raises(ConfigError, match="not tensors among the weights: 1"):
        import_weights(tmp_path / "odd.pth")


def test_an_mlp_of_any_width_is_read_exactly(tmp_path: Path) -> None:
    width, hidden = 44, 98
    assert int(width * (hidden / width)) == hidden - 1  # what floats make of the ratio
    state = {}
    for name, value in timm_state().items():
        shape = [n // WIDTH * width if n % WIDTH == 0 else n for n in value.shape]
        state[name] = torch.zeros([hidden if n == 4 * width else n for n in shape])
    found = import_weights(written(tmp_path, state), hints=Hints(num_heads=2)).network
    assert found.state["encoder.blocks.0.mlp.fc1.bias"].shape == (hidden,)
