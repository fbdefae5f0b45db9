"""A store with one of everything that it can hold, none of it computed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from support import checkpoint_cases
from support.finished_study import fill, finished_pretraining
from support.foreign_weights import official_full_state

from mae_core.config import ENCODER_FILE
from mae_core.data.facts import facts_for_digits
from orchestrator.report.predictions import Registered
from orchestrator.store.attempts import AttemptEnd, DecisionRecord
from orchestrator.store.data_facts import keep
from orchestrator.store.driver import LocalStore
from orchestrator.store.lease import hold
from orchestrator.store.records import Records, stage_key
from orchestrator.sweep.trials import Winner
from orchestrator.tracking.registered_models import Registration
from orchestrator.weights.adopt import adopt, finish_adopted
from studies.spec.canonical_json import digest

SEEDS = 2
ADOPTED = {"kind": "adopted", "version": 1}
TIME = "2026-01-01T00:00:00+00:00"


def whole_store(folder: Path) -> Records:
    """The study `two` of `folder/two.py` and the quickstart in `folder/store`, and the rest."""
    fill(folder, SEEDS, 0.1)
    store = LocalStore(folder / "store")
    records = Records(store, lambda text: None)
    first = min(records.known_stages())
    records.supersede(first)
    fill(folder, SEEDS, 0.1)  # its second result
    records.decide(first, DecisionRecord(decision="start", reason="first attempt"))
    records.end_attempt(first, 1, AttemptEnd(cause="success"))
    cell, _ = finished_pretraining(store.root)
    trained = _left_encoder(records)
    checkpoint_cases.make(records.checkpoints(trained))
    torch.save({"model": official_full_state()}, folder / "mae.pth")
    sha256 = adopt(folder / "mae.pth", "mae_t", records).sha256
    finish_adopted(records, digest(ADOPTED), ADOPTED, sha256)
    model = Registration(
        name="m", reference=f"quickstart/{cell}", features="cls", science_hash=trained
    )
    store.append_numbered("models/m", asdict(model) | {"at": TIME})
    forecast = Registered(
        cell="a/s0",
        stage="knn",
        protocol="p",
        science_hash=first,
        top1=1.0,
        low=0.0,
        high=2.0,
        level=0.9,
        law=None,
        statements=(),
        registered_at=TIME,
    )
    store.append_numbered("studies/two/predictions", asdict(forecast))
    store.create_json("sweeps/s/trials/000000.json", {"number": 0, "settings": {"knn.k": 5}})
    winner = Winner(
        trial=0, settings={"knn.k": 5}, score=1.0, objective="x", num_trials=1, decided_at=TIME
    )
    store.create_json("sweeps/s/winner-0001.json", winner.to_json())
    keep(store, "datasets/facts-f.json", facts_for_digits())
    records.store_id()
    with hold(store, "two"):
        return records


def kept_keys(records: Records) -> list[str]:
    """Every record of the store, and every file that one of them names."""
    root = records.store.path("")
    found = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return sorted(
        key
        for key in found
        if key.endswith((".json", ".safetensors", ".parquet", ".pt")) and "/." not in key
    )


def encoder_key(records: Records) -> str:
    """Where the encoder of the quickstart's pretraining lies."""
    trained = _left_encoder(records)
    return f"{stage_key(trained)}/attempts/000001/outputs/{ENCODER_FILE}"


def _left_encoder(records: Records) -> str:
    return next(
        key
        for key in records.known_stages()
        if (done := records.done(key)) and ENCODER_FILE in done.outputs and done.kind == "pretrain"
    )
