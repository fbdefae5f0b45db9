"""Checkpoints as training programs leave them: containers, prefixes, settings, several networks."""

from __future__ import annotations

import argparse
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.foreign_weights import (
    features,
    images,
    mmpretrain_names,
    official_full_state,
    own,
    reference_features,
    relative,
    timm_state,
)
from support.largest_file import largest_file
from torch import Tensor

from mae_core.config import ENCODER_FILE
from mae_core.errors import CheckpointError, ConfigError
from mae_core.weights import (
    Hints,
    import_weights,
    load_own,
    save_own,
    tensors_digest,
    write_layout,
)

PART = Hints(part="teacher.backbone")


def prefixed(prefix: str, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in (state or timm_state()).items()}


def compiled_blocks() -> dict[str, Tensor]:
    """FSDP and torch.compile wrap each block, so their names stand in the middle of keys."""
    inner = "._fsdp_wrapped_module._checkpoint_wrapped_module"
    return {
        "_fsdp_wrapped_module._orig_mod."
        + key.replace("blocks.0", "blocks.0" + inner).replace(
            "blocks.1", "blocks.1._orig_mod"
        ): value
        for key, value in timm_state().items()
    }


def lightning(prefix: str) -> dict[str, Any]:
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(prefix) | {"loss.scale": torch.ones(1)},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "hyper_parameters": {"lr": 1e-3, "mask_ratio": 0.6},
    }


def deepspeed() -> dict[str, Any]:
    """Keys of `mp_rank_00_model_states.pt`."""
    return {
        "module": prefixed("module."),
        "optimizer": None,
        "lr_scheduler": {"last_batch_iteration": 7},
        "param_shapes": [{"cls_token": torch.Size([1, 1, 128])}],
        "ds_config": {"train_batch_size": 8},
        "ds_version": "0.19.8",
        "global_steps": 7,
    }


WILD: dict[str, tuple[Any, Hints]] = {
    "bare": (timm_state(), Hints()),
    "data parallel": ({"model": prefixed("module.")}, Hints()),
    "compiled": ({"model": prefixed("_orig_mod.")}, Hints()),
    "compiled data parallel": ({"model": prefixed("module._orig_mod.")}, Hints()),
    "wrapped blocks": (compiled_blocks(), Hints()),
    "Lightning": (lightning("model."), Hints()),
    "Lightning, another attribute": (lightning("net.encoder."), Hints()),
    "Lightning, compiled": (lightning("model._orig_mod.module."), Hints()),
    "DeepSpeed": (deepspeed(), Hints()),
    "any container": ({"epoch": 1, "weights": timm_state()}, Hints()),
    "nested containers": ({"ema": {"state": prefixed("backbone.")}, "step": 1}, Hints()),
    "EMA": (
        {"model": timm_state(seed=3), "model_ema": prefixed("module.")},
        Hints(part="model_ema"),
    ),
    "averaged model": (prefixed("module.") | {"n_averaged": torch.tensor(3)}, Hints()),
    "DINO": (
        {
            "student": prefixed("module.backbone.", timm_state(seed=3)),
            "teacher": prefixed("backbone.") | {"head.mlp.0.weight": torch.zeros(2, 2)},
        },
        PART,
    ),
    "MoCo v3": (
        {
            "state_dict": prefixed("module.base_encoder.", timm_state(seed=3))
            | prefixed("module.momentum_encoder.")
        },
        Hints(part="state_dict.momentum_encoder"),
    ),
    "mmpretrain": ({"meta": {}, "state_dict": mmpretrain_names(timm_state())}, Hints()),
}


FLAT = [name for name, (held, _) in WILD.items() if all(torch.is_tensor(v) for v in held.values())]


@pytest.mark.parametrize(
    ("name", "file"),
    [*((name, "last.pth.tar") for name in WILD), *((name, "model.safetensors") for name in FLAT)],
)
def test_features_equal_those_of_the_program_whatever_is_around_them(
    tmp_path: Path, name: str, file: str
) -> None:
    content, hints = WILD[name]
    if file.endswith("tar"):
        torch.save(content, tmp_path / file)
    else:
        save_file(content, tmp_path / file)
    ours = features(own(tmp_path / file, tmp_path / "own", hints=hints))
    assert relative(ours, reference_features(timm_state(), images())) < 1e-5
    found = import_weights(tmp_path / file, hints=hints)
    assert (found.layout == "mmpretrain") == (name == "mmpretrain")


def test_what_was_around_the_network_is_recorded(tmp_path: Path) -> None:
    torch.save(lightning("net._orig_mod."), tmp_path / "last.ckpt")
    found = import_weights(tmp_path / "last.ckpt")
    assert (found.source.container, found.source.prefix) == ("state_dict", "net.")
    assert "loss.scale" in found.left_out
    assert "optimizer_states" in found.source.left_out
    assert any("_orig_mod" in note for note in found.notes)
    assert found.network.mask_ratio == 0.6
    assert "mask_ratio 0.6, by hyper_parameters" in found.notes


def test_several_networks_are_never_chosen_among_by_guess(tmp_path: Path) -> None:
    path = tmp_path / "both.pth"
    torch.save({"model": timm_state(), "model_ema": timm_state(seed=1)}, path)
    with pytest.raises(ConfigError, match="holds 2 networks: model, model_ema; say which with"):
        import_weights(path)
    first, second = (
        tensors_digest(import_weights(path, hints=Hints(part=part)).network)
        for part in ("model", "model_ema")
    )
    assert first != second
    with pytest.raises(ConfigError, match="--part ema: .* only: model, model_ema"):
        import_weights(path, hints=Hints(part="ema"))
    outer = timm_state() | prefixed("target.", timm_state(seed=1))
    torch.save(outer, path)
    with pytest.raises(ConfigError, match="2 networks: ., target"):
        import_weights(path)
    assert tensors_digest(import_weights(path, hints=Hints(part=".")).network) == first
    assert tensors_digest(import_weights(path, hints=Hints(part="target")).network) == second


def test_keys_that_are_one_without_wrappers_are_refused(tmp_path: Path) -> None:
    torch.save(timm_state() | prefixed("module."), tmp_path / "twice.pth")
    with pytest.raises(ConfigError, match="without the names of wrappers: .* and module"):
        import_weights(tmp_path / "twice.pth")


def test_mappings_that_contain_themselves_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": timm_state()}
    content |= {f"loop{i}": content for i in range(50)}
    torch.save(content, tmp_path / "loop.pth")
    assert import_weights(tmp_path / "loop.pth").layout == "official"


def arguments(**values: Any) -> argparse.Namespace:
    defaults: dict[str, Any] = {"model": "mae_vit", "input_size": 16, "mask_ratio": 0.75}
    return argparse.Namespace(**defaults | values)


@pytest.mark.parametrize("is_normalised", [True, False])
def test_the_settings_of_an_official_file_are_read_and_exported(
    tmp_path: Path, is_normalised: bool
) -> None:
    content = {"model": official_full_state(), "args": arguments(norm_pix_loss=is_normalised)}
    torch.save(content, tmp_path / "checkpoint-799.pth")
    found = import_weights(tmp_path / "checkpoint-799.pth")
    assert (found.network.norm_pix_loss, found.network.mask_ratio) == (is_normalised, 0.75)
    save_own(found.network, tmp_path, {})
    network = load_own(tmp_path / ENCODER_FILE, with_decoder=True)
    [out] = write_layout(network, "official", tmp_path / "out.pth")
    args = torch.load(out, weights_only=True)["args"]
    assert (args.norm_pix_loss, args.mask_ratio, args.input_size) == (is_normalised, 0.75, 16)
    assert import_weights(out).network.norm_pix_loss is is_normalised
    for place in (out, tmp_path / "full.pth", tmp_path / "full"):
        layout = "official" if place.suffix else "hf"
        with largest_file(4096), pytest.raises(OSError) as refusal:
            write_layout(network, layout, place)
        assert refusal.value.errno == errno.EFBIG
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "full.pth").exists()
    write_layout(network, "hf", tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["norm_pix_loss"] is is_normalised
    said = import_weights(out, hints=Hints(norm_pix_loss=not is_normalised))
    assert said.network.norm_pix_loss is not is_normalised
    assert any("by --norm-pix-loss (args says" in note for note in said.notes)
    assert tensors_digest(said.network) != tensors_digest(network)


def test_settings_that_contradict_the_tensors_or_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": official_full_state(), "args": arguments(input_size=224)}, path)
    with pytest.raises(ConfigError, match="image_size = 224, but the tensors say 16"):
        import_weights(path)
    assert import_weights(path, hints=Hints(image_size=16)).network.image_size == 16
    odd = arguments(norm_pix_loss="yes", mask_ratio=[0.6, 0.9])
    torch.save({"model": official_full_state(), "args": odd}, path)
    found = import_weights(path)
    assert (found.network.norm_pix_loss, found.network.mask_ratio) == (None, None)
    assert "args: norm_pix_loss = 'yes' is not true or false: taken as unknown" in found.notes
    settings = {"args": arguments(norm_pix_loss=True), "hyper_parameters": {"norm_pix_loss": False}}
    torch.save({"model": official_full_state(), **settings}, path)
    with pytest.raises(
        ConfigError, match="two readings of norm_pix_loss: args says true and hyper"
    ):
        import_weights(path)
    assert import_weights(path, hints=Hints(norm_pix_loss=True)).network.norm_pix_loss
    tuned = timm_state(final_norm="fc_norm", classes=3)
    torch.save({"model": tuned, "args": arguments(global_pool=False)}, path)
    with pytest.raises(ConfigError, match="global_pool = False, but the file has fc_norm"):
        import_weights(path)


def test_settings_are_read_wherever_a_program_keeps_them(tmp_path: Path) -> None:
    path, full = tmp_path / "x.ckpt", official_full_state()
    model = {"norm_pix_loss": True, "decoder_num_heads": 8, "image_size": 224}
    for key in ("hyper_parameters", "config", "cfg"):
        torch.save({"model": full, key: {"model": model, "image_size": (16, 16)}}, path)
        found = import_weights(path)
        assert found.network.norm_pix_loss is True
        assert found.network.decoder is not None and found.network.decoder.num_heads == 8
        assert f"norm_pix_loss true, by {key}.model" in found.notes
    torch.save({"model": full, "args": arguments(num_heads=4)}, path)
    with pytest.raises(ConfigError, match="say num_heads = 4, and published ViTs of width 128 hav"):
        import_weights(path)
    assert import_weights(path, hints=Hints(num_heads=4)).network.encoder.num_heads == 4
    torch.save({"model": full, "args": arguments(num_heads=2)}, path)
    assert "num_heads 2, by args" in import_weights(path).notes


def without(state: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key not in names}


def test_positions_that_an_official_file_leaves_out_are_the_sin_cos_table(tmp_path: Path) -> None:
    path, full = tmp_path / "x.pth", official_full_state()
    expected = reference_features(full, images())
    both = ("pos_embed", "decoder_pos_embed")
    for content in (
        {"model": without(full, "pos_embed")},
        {"model": without(full, *both), "args": arguments()},
    ):
        torch.save(content, path)
        found = import_weights(path)
        assert relative(features(own(path, tmp_path / "own")), expected) < 1e-5
        assert any("the sin-cos table of 4x4 patches" in note for note in found.notes)
        assert found.mapping["encoder.positions"] == ()
    torch.save({"model": without(timm_state(), "pos_embed")}, path)
    assumed = import_weights(path)
    assert assumed.network.image_size == 224
    assert any("image size 224 as in the official code (assumed)" in n for n in assumed.notes)
    assert import_weights(path, hints=Hints(image_size=32)).network.image_size == 32
    with pytest.raises(ConfigError, match="30 pixels are no multiple of the patch, 4"):
        import_weights(path, hints=Hints(image_size=30))
    torch.save(without(timm_state(), "pos_embed"), path)
    with pytest.raises(ConfigError, match="missing pos_embed; if it is the fixed sin-cos"):
        import_weights(path)
    assert import_weights(path, "official", Hints(image_size=16)).network.grid_size == 4


def test_positions_that_are_no_sin_cos_table_are_kept_and_said(tmp_path: Path) -> None:
    odd = official_full_state()
    odd["decoder_pos_embed"] = odd["decoder_pos_embed"] + 0.5
    odd["pos_embed"] = torch.zeros_like(odd["pos_embed"])
    torch.save({"model": odd}, tmp_path / "x.pth")
    found = import_weights(tmp_path / "x.pth")
    assert torch.equal(found.network.state["decoder.positions"], odd["decoder_pos_embed"][0])
    assert any(note.startswith("decoder's positions are learned") for note in found.notes)
    assert any(note.startswith("positions are all zero") for note in found.notes)


def test_an_mmpretrain_mae_brings_its_decoder(tmp_path: Path) -> None:
    full = official_full_state()
    torch.save({"meta": {}, "state_dict": mmpretrain_names(full)}, tmp_path / "mm.pth")
    torch.save({"model": full}, tmp_path / "official.pth")
    found = import_weights(tmp_path / "mm.pth")
    official = import_weights(tmp_path / "official.pth")
    assert tensors_digest(found.network) == tensors_digest(official.network)
    assert found.network.norm_pix_loss is None
    with pytest.raises(ConfigError, match="mmpretrain is read, not written"):
        write_layout(found.network, "mmpretrain", tmp_path / "out.pth")
    # mmpretrain's sin-cos table has rows and columns the other way round.
    bare = mmpretrain_names({k: v for k, v in full.items() if "pos_embed" not in k})
    torch.save({"meta": {}, "state_dict": bare}, tmp_path / "mm.pth")
    with pytest.raises(
        ConfigError, match=r"missing neck.decoder_pos_embed and .*pos_embed; accept"
    ):
        import_weights(tmp_path / "mm.pth")


def shards(folder: Path, state: Mapping[str, Tensor], ending: str = ".safetensors") -> Path:
    """Two shards and their index; returns the index."""
    folder.mkdir()
    name = "model" if ending == ".safetensors" else "pytorch_model"
    names = [f"{name}-0000{i}-of-00002{ending}" for i in (1, 2)]
    places = {key: names[i % 2] for i, key in enumerate(sorted(state))}
    for shard in names:
        part = {key: state[key] for key, place in places.items() if place == shard}
        if ending == ".safetensors":
            save_file(part, folder / shard)
        else:
            torch.save(part, folder / shard)
    index = folder / f"{name}{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_shards_are_one_network(tmp_path: Path, ending: str) -> None:
    index = shards(tmp_path / "hf", timm_state(), ending)
    save_file(timm_state(), tmp_path / "whole.safetensors")
    expected = tensors_digest(import_weights(tmp_path / "whole.safetensors").network)
    for path in (tmp_path / "hf", index):
        found = import_weights(path)
        assert tensors_digest(found.network) == expected
        assert len(found.source.digests) == 3
    [first, _] = sorted((tmp_path / "hf").glob(f"*-of-00002{ending}"))
    with pytest.raises(ConfigError, match="is one of the 2 shards of .*: name the folder"):
        import_weights(first)


def test_of_several_files_of_weights_the_one_that_transformers_reads_is_named(
    tmp_path: Path,
) -> None:
    shards(tmp_path / "hf", timm_state(seed=1))
    save_file(timm_state(), tmp_path / "hf" / "model.safetensors")
    torch.save(timm_state(seed=2), tmp_path / "hf" / "pytorch_model.bin")
    found = import_weights(tmp_path / "hf")
    assert torch.equal(found.network.state["encoder.cls_token"], timm_state()["cls_token"])
    [note] = [note for note in found.notes if note.startswith("read model.safetensors")]
    assert "not model.safetensors.index.json, pytorch_model.bin beside it" in note


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    index = shards(tmp_path / "hf", timm_state())
    first, second = (tmp_path / "hf" / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    whole, second_bytes = first.read_bytes(), second.read_bytes()
    save_file(timm_state(), second)
    with pytest.raises(CheckpointError, match="in more than one shard: "):
        import_weights(index)
    save_file({"stray": torch.zeros(1)}, second)
    with pytest.raises(CheckpointError, match="not of one checkpoint"):
        import_weights(index)
    second.write_bytes(second_bytes)
    for damaged, said in (
        (whole[: len(whole) // 2], "not a readable safetensors file"),
        (b"", r"is empty \(0 bytes\)"),
    ):
        first.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=said):
            import_weights(index)
    first.unlink()
    with pytest.raises(CheckpointError, match="shard 'model-00001-of-00002.safetensors' is miss"):
        import_weights(index)
    for name in ("../vit.safetensors", "/etc/passwd", "..", "", "a\0b"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="is not in the folder|is missing"):
            import_weights(index)
    index.write_text('{"weight_map": ["a"]}')
    with pytest.raises(CheckpointError, match="no weight_map"):
        import_weights(index)
    index.write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        import_weights(index)
