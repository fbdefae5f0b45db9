"""Stages that build on other stages, and code of the user's, through the command: real gangs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.command import mae_study

pytestmark = pytest.mark.usefixtures("clean_machine")

STUDY = """
from dataclasses import replace

from mae_core.config.augmentation import MixConfig, RandAugmentConfig
from mae_core.config import *
from studies.catalog import quickstart as base
from studies.spec import Cell, Stage, Study

QUICK = dict(duration=Duration.epochs(2), lr_schedule=LrScheduleConfig(warmup=Duration.epochs(0)))
TWO = Execution(world_size=2, zero_stage=1, loader_threads=0)
ONE = Execution(loader_threads=0)
DATA = base.data(0)


def pretrain(**changes):
    recipe = base.pretrain("N1", 2, 0).recipe
    return replace(recipe, norm_pix_loss=False, **changes)


def stage(name, recipe, *parents, execution=ONE):
    return Stage(name=name, recipe=recipe, parents=parents, execution=execution)


def tune(**changes):
    recipe = base.finetune(0).recipe
    return replace(recipe, num_labels=None, global_batch=128, mix=MixConfig(),
                   rand_augment=RandAugmentConfig(), ema_decay=0.9, **QUICK, **changes)


def study():
    tokenizer = TokenizerRecipe(data=DATA, patch_size=2, vocabulary=16, width=8,
                                augmentation=NO_AUGMENTATION, global_batch=128, **QUICK)
    basis = BasisRecipe(data=DATA, patch_size=2, num_components=2)
    tokens = Cell(address="tokens", stages=(
        stage("tokenizer", tokenizer, execution=TWO),
        stage("pretrain", pretrain(target="tokens", target_dim=16,
                                   mask=MaskConfig(sampling="block")),
              "tokenizer", execution=TWO),
        stage("knn", KnnRecipe(data=DATA), "pretrain"),
    ))
    pca = Cell(address="pca", stages=(
        stage("basis", basis, execution=TWO),
        stage("pretrain", pretrain(target="pca", target_dim=2, loss_on="all",
                                   mask_tokens_in_encoder=True), "basis"),
        stage("finetune", tune(), "pretrain", execution=TWO),
        stage("corrupted", CorruptionRecipe(data=DATA, families=("contrast",), severities=(5,)),
              "finetune", execution=TWO),
        stage("shifted", ShiftRecipe(data=DATA), "finetune"),
    ))
    own = Cell(address="own", stages=(
        stage("pretrain", pretrain(mask=MaskConfig(sampling="own_parts:diagonal"),
                                   augmentation=replace(NO_AUGMENTATION,
                                                        custom="own_parts:invert"))),
        stage("knn", KnnRecipe(data=DATA), "pretrain"),
    ))
    scratch = Cell(address="scratch", role="baseline", stages=(
        stage("scratch", ScratchRecipe(data=DATA, encoder=pretrain().encoder, global_batch=128,
                                       augmentation=NO_AUGMENTATION, drop_path=0.0, **QUICK)),
    ))
    adopted = Cell(address="adopted", stages=(
        stage("pretrain", AdoptedRecipe(data=DATA, encoder=pretrain().encoder, name="foreign")),
        stage("knn", KnnRecipe(data=DATA), "pretrain"),
    ))
    return Study(name="kinds", question="does every kind run?",
                 cells=(tokens, pca, own, scratch, adopted))
"""
OWN = """
import torch

def diagonal(draw):
    place = torch.arange(draw.grid)
    distance = (place[:, None] - place[None, :]).abs().flatten().float()
    return distance.expand(len(draw.index), -1)

def invert(images, seed, epoch, index):
    return 255 - images
"""


def call(*arguments: str) -> str:
    done = mae_study(*arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_every_kind_runs_once_and_ones_own_code_is_identity(tmp_path: Path) -> None:
    (tmp_path / "own_parts.py").write_text(OWN)
    study, store = tmp_path / "kinds.py", tmp_path / "store"
    study.write_text(STUDY)
    first = mae_study("run", str(study), "--store", str(store))
    assert first.returncode == 4, first.stderr + first.stdout
    assert "mae-study adopt FILE --name foreign" in first.stdout + first.stderr
    records = [json.loads(p.read_text()) for p in store.glob("stages/*/*/done.json")]
    kinds = sorted(r["kind"] for r in records)
    assert kinds == sorted(
        ["tokenizer", "pretrain", "knn", "basis", "pretrain", "finetune", "corruptions", "shift"]
        + ["pretrain", "knn", "scratch"]
    )
    by_kind = {r["kind"]: r["metrics"] for r in records}
    assert by_kind["corruptions"]["num_images"] == by_kind["shift"]["num_images"] == 360
    # The same images, the same classes: what another set would be compared with.
    assert by_kind["shift"]["top1"] == by_kind["finetune"]["top1"]

    file = str(tmp_path / "foreign.pth")
    call("export", "kinds/own", "--layout", "official", "--out", file, "--store", str(store))
    call("adopt", file, "--name", "foreign", "--heads", "2", "--store", str(store))
    # As cron runs it: no stdin, and nobody hears what it says.
    run = shlex.join([sys.executable, "-m", "orchestrator.cli.main", "run", str(study)])
    line = f"{run} --store {shlex.quote(str(store))} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], check=False, timeout=200).returncode == 0
    planned = json.loads(call("plan", str(study), "--store", str(store), "--json"))["stages"]
    assert {s["status"] for s in planned} == {"done"}
    assert "11/11" in call("status", str(study), "--store", str(store))
    page = json.loads(call("report", str(study), "--store", str(store), "--json"))["report"]
    table = pq.read_table(Path(page).parent / "results.parquet").to_pylist()
    rows = {(r["cell"], r["stage"]): r for r in table}
    assert rows["adopted", "knn"]["top1"] == rows["own", "knn"]["top1"]

    (tmp_path / "own_parts.py").write_text(OWN + "\n# the code has changed\n")
    changed = json.loads(call("plan", str(study), "--store", str(store), "--json"))["stages"]
    stale = {f"{s['cell']}#{s['stage']}" for s in changed if s["status"] != "done"}
    assert stale == {"own#pretrain", "own#knn"}
