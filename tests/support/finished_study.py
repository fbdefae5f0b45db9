"""Studies that are finished without anything being computed: results of 200 images, weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mae_core.checkpoint.encoder_file import save_encoder
from mae_core.checkpoint.tensor_file import write_tensors
from mae_core.config import DECODER_FILE, ENCODER_FILE
from mae_core.evaluate.scores import Predictions, write_predictions
from mae_core.model.mae import MAE
from orchestrator.plan.plan import accept, make_plan
from orchestrator.store.attempts import AttemptStart
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.records import DoneRecord, Records, digest_outputs
from studies.load import load_study
from studies.spec.study import override_study

STUDY = """
from studies.catalog import quickstart as base
from studies.spec import Cell, Stage, Study
from dataclasses import replace


def cell(family, k, seed):
    knn = base.evaluations(seed, features="pixels")[0]
    knn = replace(knn, recipe=replace(knn.recipe, k=k, data=base.data(0)))
    return Cell(address=f"{family}/s{seed}", stages=(knn,))


def study():
    cells = [cell(f, k, s) for f, k in (("a", 5), ("b", 9)) for s in SEEDS]
    return Study(name="two", question="which?", cells=tuple(cells))
"""


def fill(tmp_path: Path, seeds: int, better: float, k: int = 5) -> tuple[str, str]:
    """A study and its store with results of 200 images; b is right on `better` more of them.

    Another `k` is another state of the study: of its `a`, each k beyond 5 is 0.1 better.
    """
    path, store = tmp_path / "two.py", LocalStore(tmp_path / "store")
    path.write_text(STUDY.replace("SEEDS", f"range({seeds})").replace('"a", 5', f'"a", {k}'))

    def right(address: str) -> np.ndarray:
        family, seed = address[0], int(address[-1])
        share = 0.6 + (better if family == "b" else 0.1 * (k - 5))
        return np.random.default_rng(seed).random(200) < share  # the same images are hard for both

    finish(path, store, right)
    return str(path), str(tmp_path / "store")


def finish(path: Path, store: LocalStore, right_of: Callable[[str], np.ndarray]) -> None:
    """Results of every cell that has none: which of 200 images were right, by address."""
    records = Records(store)
    plan = make_plan(load_study(str(path)), records, Datasets(store))
    accept(records, plan)
    for planned in plan.stages:
        if planned.record is not None:
            continue
        right = right_of(planned.cell.address)
        key = planned.identity.science_hash
        records.write_identity(key, planned.identity.science)
        number = records.begin_attempt(key, AttemptStart())
        outputs = records.outputs(key, number)
        outputs.mkdir(parents=True, exist_ok=True)
        zeros = np.zeros(200, dtype=np.int64)
        write_predictions(
            outputs / "predictions.parquet",
            Predictions(
                sample_index=np.arange(200),
                label=zeros,
                prediction=1 - right.astype(int),
                label_rank=1 - right.astype(int),
                nll=np.ones(200),
            ),
        )
        records.complete(
            DoneRecord(
                science_hash=key,
                kind="knn",
                attempt=number,
                outputs=digest_outputs(outputs),
                metrics={"top1": 100 * float(right.mean()), "num_images": 200},
                parents={},
                seconds=1.0,
                world_size=1,
                provenance={},
            )
        )


def finished_pretraining(store: Path) -> tuple[str, MAE]:
    """A store in which one cell's pretraining of the quickstart is done, with random weights."""
    study = load_study("quickstart")
    cells = tuple(replace(cell, uses_winner=False) for cell in study.cells if cell.pretrain)
    settings = {"pretrain.decoder.num_heads": 2, "pretrain.mask_ratio": 0.5}
    study = override_study(replace(study, sweep=None, cells=cells), settings)
    records = Records(LocalStore(store))
    plan = make_plan(study, records, Datasets(records.store))
    accept(records, plan)
    planned = next(p for p in plan.stages if p.stage.kind == "pretrain")
    recipe: Any = planned.stage.recipe
    model = MAE(recipe)
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
    key = planned.identity.science_hash
    records.write_identity(key, planned.identity.science)
    number = records.begin_attempt(key, AttemptStart())
    outputs = records.outputs(key, number)
    state = model.state_dict()
    encoder = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}
    decoder = {k: v for k, v in state.items() if not k.startswith("encoder.")}
    save_encoder(outputs / ENCODER_FILE, encoder, recipe.encoder, 8, 1, {})
    write_tensors(outputs / DECODER_FILE, decoder, {})
    records.complete(
        DoneRecord(
            science_hash=key,
            kind="pretrain",
            attempt=number,
            metrics={},
            outputs=digest_outputs(outputs),
            parents={},
            seconds=1.0,
            world_size=1,
        )
    )
    return planned.cell.address, model
