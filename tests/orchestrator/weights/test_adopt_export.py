"""`mae-study adopt` and `export`, as people call them, and an adopted encoder as a stage."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from support.finished_study import finished_pretraining
from support.foreign_weights import (
    features,
    images,
    official_full_state,
    reference_features,
    relative,
    timm_state,
)
from transformers import ViTMAEForPreTraining

from mae_core.config import DECODER_FILE, ENCODER_FILE, AdoptedRecipe, DataConfig, FinetuneRecipe
from mae_core.evaluate.classifier import build_classifier
from mae_core.model.masking import mask_noise
from orchestrator.cli.main import main
from orchestrator.errors import StoreError
from orchestrator.store.adopted import check_shape, find_adopted
from orchestrator.store.driver import LocalStore
from orchestrator.store.records import Records
from orchestrator.weights.adopt import finish_adopted
from studies.errors import StudyError

SCIENCE = {"kind": "adopted", "version": 1}


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def call_json(*arguments: object) -> dict[str, Any]:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def full(tmp_path: Path) -> Path:
    path = tmp_path / "mae_full.pth"
    torch.save({"model": official_full_state()}, path)
    return path


def test_adopt_says_what_it_did_and_export_gives_the_bytes_back(
    tmp_path: Path, store: Path, full: Path
) -> None:
    found = call_json("adopt", full, "--name", "mae_t", "--store", store)
    assert found["layout"] == "official"
    assert found["source"] == str(full)
    assert len(found["source_sha256"]["mae_full.pth"]) == 64
    assert found["mapping"]["encoder.blocks.0.attn.qkv.weight"] == ["blocks.0.attn.qkv.weight"]
    assert found["decoder"]["width"] == 64
    assert found["sha256"] in found["recipe"]
    assert any("sin-cos" in note for note in found["notes"])
    out = tmp_path / "back.pth"
    done = call_json(
        "export", "mae_t", "--layout", "official", "--with-decoder", "--out", out, "--store", store
    )
    assert done["sha256"] == found["sha256"]
    back, state = torch.load(out, weights_only=True)["model"], official_full_state()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k].view(torch.int32), state[k].view(torch.int32)) for k in state)


def test_the_same_weights_in_another_layout_are_the_same_encoder(
    tmp_path: Path, store: Path
) -> None:
    save_file(timm_state(), tmp_path / "vit.safetensors")
    first = call_json("adopt", tmp_path / "vit.safetensors", "--name", "one", "--store", store)
    arguments = ("export", "one", "--layout", "hf", "--out", tmp_path / "hf", "--store", store)
    assert call(*arguments).exit_code == 0
    second = call_json("adopt", tmp_path / "hf", "--name", "two", "--store", store)
    assert first["sha256"] == second["sha256"]
    assert call_json("adopt", tmp_path / "hf", "--name", "two", "--store", store) == second
    save_file(timm_state(seed=1), tmp_path / "vit.safetensors")
    other = call("adopt", tmp_path / "vit.safetensors", "--name", "one", "--store", store)
    assert other.exit_code == 2
    assert "stands for the encoder" in other.stderr
    shown = call("adopt", tmp_path / "vit.safetensors", "--name", "three", "--store", store)
    assert "positions are learned" in shown.output
    assert "2 heads of 64, as in every ViT but H (assumed)" in shown.output


def test_norm_pix_loss_is_the_files_or_the_callers_and_leaves_as_it_came(
    tmp_path: Path, store: Path
) -> None:
    path, common = tmp_path / "checkpoint-799.pth", ("--store", store)
    args = argparse.Namespace(norm_pix_loss=True, mask_ratio=0.75)
    torch.save({"model": official_full_state(), "optimizer": {}, "args": args}, path)
    said = call_json("adopt", path, "--name", "said", *common)
    assert (said["norm_pix_loss"], said["mask_ratio"]) == (True, 0.75)
    other = call_json("adopt", path, "--name", "other", "--no-norm-pix-loss", *common)
    assert other["norm_pix_loss"] is False
    assert other["sha256"] != said["sha256"]
    torch.save({"model": official_full_state()}, path)
    unknown = call_json("adopt", path, "--name", "unknown", *common)
    assert unknown["norm_pix_loss"] is None
    shown = call("adopt", path, "--name", "unknown", *common)
    assert "pretrained norm_pix_loss unknown, mask_ratio unknown" in shown.stdout
    for name, value in (("said", True), ("other", False), ("unknown", None)):
        arguments = ("export", name, "--layout", "hf", "--with-decoder", *common)
        done = call(*arguments, "--out", tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config.get("norm_pix_loss") is value
        is_said = "norm_pix_loss is unknown and not in config.json, where transformers takes false"
        assert (is_said in done.stderr) == (value is None)
        again = call_json("adopt", tmp_path / name, "--name", f"{name}-again", *common)
        assert again["norm_pix_loss"] is value
        assert again["sha256"] == {"said": said, "other": other, "unknown": unknown}[name]["sha256"]


def test_each_name_keeps_what_was_said_of_the_same_encoder(tmp_path: Path, store: Path) -> None:
    path, common = tmp_path / "encoder.pth", ("--store", store)
    torch.save({"model": timm_state()}, path)
    first = call_json("adopt", path, "--name", "first", *common)
    second = call_json("adopt", path, "--name", "second", "--norm-pix-loss", *common)
    assert first["sha256"] == second["sha256"]
    assert (first["norm_pix_loss"], second["norm_pix_loss"]) == (None, True)
    again = call_json("adopt", path, "--name", "first", *common)
    assert again["norm_pix_loss"] is None


def test_one_of_several_networks_is_adopted_by_name(tmp_path: Path, store: Path) -> None:
    path, common = tmp_path / "last.pth.tar", ("--store", store)
    torch.save({"state_dict": timm_state(), "state_dict_ema": timm_state(seed=1)}, path)
    refused = call("adopt", path, "--name", "x", *common)
    assert refused.exit_code == 2
    assert "holds 2 networks: state_dict, state_dict_ema; say which with --part" in refused.stderr
    found = call_json("adopt", path, "--name", "x", "--part", "state_dict_ema", *common)
    assert found["container"] == "state_dict_ema"
    assert found["left_out_of_the_pickle"] == ["state_dict"]


def test_the_names_of_classes_go_to_transformers_and_back(tmp_path: Path, store: Path) -> None:
    path, common = tmp_path / "vit.safetensors", ("--store", store)
    save_file(timm_state(classes=3), path)
    (tmp_path / "names.txt").write_text("cat\ndog\nowl\n")
    named = call_json("adopt", path, "--name", "n", "--classes", tmp_path / "names.txt", *common)
    bare = call_json("adopt", path, "--name", "b", *common)
    assert named["sha256"] != bare["sha256"]
    classifier = find_adopted(Records(LocalStore(store)), "n").folder / "finetuned.safetensors"
    arguments = ("export", classifier, "--layout", "hf", "--out", tmp_path / "hf", *common)
    done = call_json(*arguments)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "owl"}
    assert done["sha256"] == named["sha256"]
    assert done["notes"] == []
    arguments = ("export", classifier, "--layout", "timm", "--out", tmp_path / "t.pth", *common)
    assert call_json(*arguments)["notes"] == ["no timm file names classes: the names stay behind"]
    assert call_json("adopt", tmp_path / "hf", "--name", "m", *common)["sha256"] == named["sha256"]


def test_an_adopted_encoder_is_a_finished_stage(store: Path, full: Path) -> None:
    found = call_json("adopt", full, "--name", "mae_t", "--store", store)
    records = Records(LocalStore(store))
    record = finish_adopted(records, "ab" * 10, SCIENCE, found["sha256"])
    assert records.done("ab" * 10) == record
    assert set(record.outputs) == {ENCODER_FILE, DECODER_FILE}
    assert record.provenance["adopted"]["source"] == str(full)
    ours = features(records.outputs("ab" * 10, record.attempt))
    assert relative(ours, reference_features(official_full_state(), images())) < 1e-5
    assert finish_adopted(records, "ab" * 10, SCIENCE, found["sha256"]) == record
    assert len(records.attempts("ab" * 10)) == 1
    assert find_adopted(records, found["sha256"][:10]).sha256 == found["sha256"]


def test_unknown_or_damaged_adopted_encoders_are_refused(store: Path, full: Path) -> None:
    found = call_json("adopt", full, "--name", "mae_t", "--store", store)
    records = Records(LocalStore(store))
    with pytest.raises(StudyError, match="did you mean 'mae_t'"):
        find_adopted(records, "mae_x")
    with pytest.raises(StudyError, match="unknown adopted encoder"):
        finish_adopted(records, "cd" * 10, SCIENCE, "f" * 64)
    held = find_adopted(records, "mae_t")
    data = DataConfig(path="digits", image_size=held.record["image_size"])
    recipe = AdoptedRecipe(data=data, name="mae_t", encoder=replace(held.encoder, depth=5))
    with pytest.raises(StudyError, match="the study says .*depth=5"):
        finish_adopted(records, "cd" * 10, SCIENCE, found["sha256"], recipe)
    larger = replace(data, image_size=2 * data.image_size)
    with pytest.raises(StudyError, match="takes images of image_size"):
        check_shape(held, replace(recipe, encoder=held.encoder, data=larger))
    known = replace(held, record=held.record | {"pixel_mean": [0.5, 0.5, 0.5]})
    with pytest.raises(StudyError, match="trained on pixels of pixel_mean .*0.5, 0.5, 0.5"):
        check_shape(known, replace(recipe, encoder=held.encoder))
    same = replace(held, record=held.record | {"pixel_mean": [0.485, 0.456, 0.406]})
    check_shape(same, replace(recipe, encoder=held.encoder))
    with (find_adopted(records, "mae_t").folder / ENCODER_FILE).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(StoreError, match="adopt .* again"):
        finish_adopted(records, "cd" * 10, SCIENCE, found["sha256"])
    assert records.done("cd" * 10) is None


def test_a_pretraining_of_a_study_loads_in_transformers_with_the_same_reconstruction(
    tmp_path: Path, store: Path
) -> None:
    cell, model = finished_pretraining(store)
    arguments = ("--layout", "hf", "--with-decoder", "--out", tmp_path / "hf", "--store", store)
    done = call_json("export", f"quickstart/{cell}", *arguments)
    assert done["has_decoder"]
    theirs = ViTMAEForPreTraining.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.decoder_num_attention_heads == 2
    assert theirs.config.mask_ratio == 0.5
    pictures = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = mask_noise(0, 0, torch.arange(4).numpy(), 16)
    with torch.no_grad():
        expected = model.reconstruct(pictures, noise).prediction_NLP
        logits = theirs(pixel_values=pictures, noise=noise).logits
    assert relative(logits, expected) < 1e-5


def test_export_refuses_what_is_not_there(tmp_path: Path, store: Path) -> None:
    cell, _ = finished_pretraining(store)
    out = tmp_path / "out.pth"
    common = ("--layout", "official", "--out", out, "--store", store)
    for reference, said in (
        ("quickstar/N1", "did you mean 'quickstart'"),
        ("quickstart/N9/e0/s0", "unknown cell 'N9/e0/s0'"),
        (f"quickstart/{cell}#kn", "did you mean 'knn'"),
        (f"quickstart/{cell}#knn", "is not finished, or left no weights"),
        (tmp_path / "absent.safetensors", "no such file"),
    ):
        refused = call("export", reference, *common)
        assert refused.exit_code == 2
        assert said in refused.stderr
    assert call("export", f"quickstart/{cell}", *common).exit_code == 0
    again = call("export", f"quickstart/{cell}", *common)
    assert again.exit_code == 2
    assert "exists: remove it" in again.stderr


def test_an_epsilon_that_a_layout_cannot_say_is_refused_where_it_matters(
    tmp_path: Path, store: Path
) -> None:
    save_file(timm_state(), tmp_path / "vit.safetensors")
    call_json("adopt", tmp_path / "vit.safetensors", "--name", "one", "--store", store)
    exported = ("--layout", "hf", "--out", tmp_path / "hf", "--store", store)
    assert call("export", "one", *exported).exit_code == 0
    config = json.loads((tmp_path / "hf/config.json").read_text())
    for name, eps, code in (("tiny", 1e-12, 0), ("large", 1e-2, 2)):
        (tmp_path / "hf/config.json").write_text(json.dumps(config | {"layer_norm_eps": eps}))
        call_json("adopt", tmp_path / "hf", "--name", name, "--store", store)
        out = tmp_path / f"{name}.pth"
        done = call("export", name, "--layout", "timm", "--out", out, "--store", store)
        assert done.exit_code == code
        assert code == 0 or "LN epsilon is 0.01" in done.stderr


def test_names_and_classes_are_checked(tmp_path: Path, store: Path) -> None:
    save_file(timm_state(classes=2), tmp_path / "vit.safetensors")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "three.txt").write_text("cat\ndog\nowl\n")
    common = ("adopt", tmp_path / "vit.safetensors", "--store", store)
    for arguments, said in (
        (("--name", "../up"), "use segments of letters"),
        (("--name", "a/b"), "must not contain /"),
        (("--name", "x", "--classes", tmp_path / "three.txt"), "3 class names for a head of 2"),
        (("--name", "x", "--classes", tmp_path / "none.txt"), "cannot be read"),
        (("--name", "x", "--size", "Bee"), "unknown encoder size"),
    ):
        refused = call(*common, *arguments)
        assert refused.exit_code == 2, refused.output
        assert said in refused.stderr
    found = call_json(*common, "--name", "x", "--classes", tmp_path / "classes.txt")
    assert "finetuned.safetensors" in found["files"]


def test_an_adoption_that_died_before_its_record_is_finished_by_the_next(
    store: Path, full: Path
) -> None:
    found = call_json("adopt", full, "--name", "mae_t", "--store", store)
    folder = find_adopted(Records(LocalStore(store)), "mae_t").folder
    (folder.parent / "record.json").unlink()
    (store / "adopted/names/mae_t.json").unlink()
    again = call_json("adopt", full, "--name", "mae_t", "--store", store)
    assert again["files"] == found["files"]
    assert sorted(p.name for p in (store / "adopted").iterdir()) == [found["sha256"][:2], "names"]


def test_fine_tuning_starts_from_the_learned_positions_of_an_adopted_encoder(
    tmp_path: Path, store: Path
) -> None:
    save_file(timm_state(), tmp_path / "vit.safetensors")
    call_json("adopt", tmp_path / "vit.safetensors", "--name", "one", "--store", store)
    path = find_adopted(Records(LocalStore(store)), "one").folder / ENCODER_FILE
    recipe = FinetuneRecipe(data=DataConfig(path="unused", image_size=16), features="cls")
    encoder = build_classifier(recipe, path, num_classes=3).encoder.eval()
    assert torch.equal(encoder.positions, timm_state()["pos_embed"][0])
    with torch.no_grad():
        ours = encoder.forward_features(images())
    assert relative(ours, reference_features(timm_state(), images())) < 1e-5
