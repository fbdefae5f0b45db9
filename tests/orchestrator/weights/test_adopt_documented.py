"""Every command in the table of files that `adopt` takes works on such a file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from support.foreign_weights import mmpretrain_names, official_full_state, timm_state
from support.hugging_face_mae import randomised, small_vit
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from orchestrator.cli.main import main

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"
ROW = re.compile(r"^\| ([^|`]*(?:`[^`]*`[^|`]*)*) \| `mae-study adopt (\S+) ([^`]*)` \|$", re.M)


def named(prefix: str) -> dict[str, Any]:
    return {prefix + key: value for key, value in timm_state().items()}


def whole_mae(path: Path) -> None:
    sizes = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2}
    config = ViTMAEConfig(**small_vit(), **sizes, decoder_intermediate_size=128)
    randomised(ViTMAEForPreTraining(config)).save_pretrained(path)


def index_of_shards(path: Path) -> None:
    save_file(timm_state(), path.with_name("model-00001-of-00001.safetensors"))
    places = dict.fromkeys(timm_state(), "model-00001-of-00001.safetensors")
    path.write_text(json.dumps({"weight_map": places}))


def pickled(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


FILES: dict[str, Callable[[Path], None]] = {
    "`.pth` of the official code, or of timm": pickled({"model": official_full_state()}),
    "folder of `save_pretrained`, one file or shards": whole_mae,
    "index of shards, or safetensors alone": index_of_shards,
    "Lightning checkpoint": pickled({"state_dict": named("model."), "epoch": 3}),
    "DeepSpeed (ZeRO 0 to 2)": pickled({"module": named("module."), "ds_version": "0.19.8"}),
    "mmpretrain": pickled({"meta": {}, "state_dict": mmpretrain_names(timm_state())}),
    "EMA beside the model": pickled({"model": timm_state(), "model_ema": timm_state(1)}),
    "teacher and student": pickled(
        {"student": named("module.backbone."), "teacher": named("backbone.")}
    ),
    "official file without positions": pickled(
        {"model": {k: v for k, v in timm_state().items() if k != "pos_embed"}}
    ),
    "`norm_pix_loss` that the file does not say": pickled({"model": official_full_state()}),
}


def test_every_documented_command_adopts_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ROW.findall(PAGE.read_text())
    assert [kind for kind, _, _ in rows] == list(FILES)
    for number, (kind, file, options) in enumerate(rows):
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        FILES[kind](folder / file)
        done = CliRunner().invoke(main, ["adopt", file, *shlex.split(options), "--store", "store"])
        assert done.exit_code == 0, (kind, done.output)
        assert "adopted mae-b: " in done.stdout
