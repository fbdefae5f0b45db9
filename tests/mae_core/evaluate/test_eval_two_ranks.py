"""Every evaluation beside the paper's two probes: two ranks say what one says.

One chain of stages is run in a process of its own and in a gang of two: features, k-NN and a grid
of probes on them, an attentive probe, partial fine-tunes, the best of these, the reconstruction,
and an evaluation of one's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from support.digit_cases import DIGITS
from torch.multiprocessing.spawn import spawn

from mae_core.checkpoint.encoder_file import save_encoder
from mae_core.checkpoint.tensor_file import write_tensors
from mae_core.config import (
    DECODER_FILE,
    ENCODER_FILE,
    FEATURES_FILE,
    NO_AUGMENTATION,
    AttentiveProbeRecipe,
    BestOfRecipe,
    CustomEvalRecipe,
    DecoderConfig,
    Duration,
    EncoderConfig,
    Execution,
    FeatureProbeRecipe,
    FeaturesRecipe,
    KnnRecipe,
    LrScheduleConfig,
    PartialFinetuneRecipe,
    PretrainRecipe,
    ReconstructionRecipe,
)
from mae_core.data.sources import open_data
from mae_core.model.mae import MAE
from mae_core.runtime import collectives
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent
from mae_core.runtime.plugins import resolve
from mae_core.train.deepspeed_engine import join_gang
from studies.spec.codec import to_plain

PRETRAIN = PretrainRecipe(
    data=DIGITS,
    encoder=EncoderConfig(width=16, depth=2, num_heads=2, patch_size=2),
    decoder=DecoderConfig(width=16, depth=1, num_heads=2),
)
COMMON: dict[str, Any] = {"data": DIGITS, "features": "mean"}
TRAINING: dict[str, Any] = {
    "duration": Duration.steps(4),
    "global_batch": 64,
    "lr_schedule": LrScheduleConfig(warmup=Duration.steps(1)),
}
TUNING = TRAINING | {"augmentation": NO_AUGMENTATION}
PARTIAL = PartialFinetuneRecipe(
    **COMMON, **TUNING, num_blocks=0.5, num_labels=101, eval_split="dev", drop_path=0.0
)
CHAIN: dict[str, tuple[Any, tuple[str, ...]]] = {
    # name: (recipe, parents)
    "features": (FeaturesRecipe(**COMMON, layers=(1, 2)), ("pretrain",)),
    "knn": (KnnRecipe(**COMMON, layer=2), ("features",)),
    "probes": (FeatureProbeRecipe(**COMMON, **TRAINING, layers=(1, 2)), ("features",)),
    "attentive": (AttentiveProbeRecipe(data=DIGITS, **TUNING, num_heads=2), ("pretrain",)),
    "half": (PARTIAL, ("pretrain",)),
    "half_more": (replace(PARTIAL, duration=Duration.steps(8)), ("pretrain",)),
    "best": (BestOfRecipe(**COMMON, num_labels=101), ("half", "half_more")),
    "loss": (ReconstructionRecipe(data=DIGITS, gallery_ratios=(0.5,)), ("pretrain",)),
    "own": (CustomEvalRecipe(**COMMON, entry="two_rank_evals:centroids"), ("pretrain",)),
}
OWN = """
import numpy as np

def centroids(task):
    train = task.features(task.train)
    means = np.stack([train.vectors[train.labels == c].mean(axis=0) for c in range(10)])
    mine = task.share(task.features(task.evaluation))
    return task.predictions(mine, -np.linalg.norm(mine.vectors[:, None] - means, axis=2))
"""


def pretrained(folder: Path) -> Parent:
    """A pretraining that left its first weights."""
    state = MAE(PRETRAIN).state_dict()
    encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    decoder = {k: v for k, v in state.items() if not k.startswith("encoder.")}
    paths = {name: folder / name for name in (ENCODER_FILE, DECODER_FILE)}
    save_encoder(paths[ENCODER_FILE], encoder, PRETRAIN.encoder, 8, 1, extra={})
    write_tensors(paths[DECODER_FILE], decoder, {})
    return Parent(name="pretrain", kind="pretrain", files=paths, recipe=to_plain(PRETRAIN))


def run_chain(pretrain: Parent, output: Path, rank: int, world: int) -> dict[str, Any]:
    """Metrics of every stage, each reading what its parents left."""
    done, found = {"pretrain": pretrain}, {}
    data = open_data(DIGITS)
    for name, (recipe, parents) in CHAIN.items():
        directory = output / name
        directory.mkdir(parents=True, exist_ok=True)
        ctx = RunContext(
            output_dir=directory, rank=rank, world=world, parents=tuple(done[p] for p in parents)
        )
        execution = Execution(world_size=world, zero_stage=1, loader_threads=0, micro_batch=None)
        found[name] = resolve(recipe.ENTRY)(recipe, execution, ctx, data).to_json()
        collectives.barrier()
        done[name] = Parent(
            name=name,
            kind=recipe.KIND,
            files={path.name: path for path in directory.iterdir() if path.is_file()},
            metrics=found[name],
            recipe=to_plain(recipe),
        )
    return found


def gang_member(rank: int, world: int, port: int, folder: Path, pretrain: Parent) -> None:
    """Run the chain on one rank of a gang and keep what it says."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    sys.path.append(str(folder))
    torch.set_num_threads(1)
    join_gang()
    found = run_chain(pretrain, folder / f"world{world}", rank, world)
    (folder / f"world{world}_rank{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # a late thread of gloo can abort an interpreter that is being finalised


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder, and what the lone process and both ranks of the gang say."""
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "two_rank_evals.py").write_text(OWN)
    pretrain = pretrained(folder)
    for world in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        arguments = (world, port, folder, pretrain)
        spawn(gang_member, arguments, nprocs=world)  # type: ignore[no-untyped-call]
    names = ("world1_rank0", "world2_rank0", "world2_rank1")
    return folder, [json.loads((folder / f"{name}.json").read_text()) for name in names]


@pytest.mark.parametrize("name", [name for name in CHAIN if name != "features"])
def test_two_ranks_say_what_one_says(
    name: str, outcomes: tuple[Path, list[dict[str, Any]]]
) -> None:
    _, (alone, first, second) = outcomes
    for key in ("top1", "top5", "loss", "num_images"):
        assert first[name].get(key) == second[name].get(key)
        if key in alone[name]:
            assert first[name][key] == pytest.approx(alone[name][key], rel=1e-3), key
    assert first[name]["num_images"] == (144 if name.startswith("half") else 360)


def test_choices_are_the_same(outcomes: tuple[Path, list[dict[str, Any]]]) -> None:
    _, (alone, first, _) = outcomes
    assert first["best"]["details"]["chosen"] == alone["best"]["details"]["chosen"]
    ours, theirs = alone["probes"]["details"], first["probes"]["details"]
    assert len(ours["grid"]) == 56
    for key in ("layer", "base_lr", "weight_decay"):
        assert ours[key] == theirs[key]


def test_features_have_the_same_bytes(outcomes: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = outcomes
    paths = [folder / f"world{world}" / "features" / FEATURES_FILE for world in (1, 2)]
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["knn", "probes", "attentive", "half", "best", "own"])
def test_each_image_is_predicted_once(
    name: str, outcomes: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, _ = outcomes
    one, two = (
        pq.read_table(folder / f"world{world}" / name / "predictions.parquet") for world in (1, 2)
    )
    assert one["sample_index"].equals(two["sample_index"])
    assert len(set(one["sample_index"].to_pylist())) == one.num_rows
