"""Encoders and classifiers as MLflow models, remembered so that they can be made again.

models/<name>/000001.json …   one registration each: reference, features, science hash, model name
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mae_core.config import CLASSIFIER_FILE, ENCODER_FILE
from orchestrator.errors import UserError
from orchestrator.plan.history import kept_plan, kept_states
from orchestrator.plan.plan import Plan, PlannedStage
from orchestrator.store.generations import generations
from orchestrator.store.records import Records, now_iso
from orchestrator.tracking.mlflow_registry import register_version
from orchestrator.tracking.mlflow_runs import default_uri
from orchestrator.weights.export import split_address
from studies.errors import unknown

Pooling = Literal["cls", "mean"]
MAX_TAG = 4000
"""Characters of the classes' names in a tag."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A version of a model."""

    name: str
    version: int
    reference: str
    features: str
    """`cls`, `mean`, or `scores` of a classifier."""

    @property
    def uri(self) -> str:
        """What `mlflow.pytorch.load_model` takes."""
        return f"models:/{self.name}/{self.version}"


def register(
    records: Records,
    reference: str,
    *,
    name: str = "",
    features: Pooling = "cls",
    uri: str = "",
    science_hash: str = "",
) -> Registered:
    """Register the encoder of STUDY/CELL, or the classifier of STUDY/CELL#STAGE.

    With `science_hash` the weights of that very stage, whatever the address stands for by now.

    Raises:
        UserError: no weights there, or a name that MLflow does not take.
        TrackingError: the run is not tracked at `uri`, or its server refuses.
    """
    study, cell, stage = split_address(reference, records)
    planned, path = _find_weights(records, study, cell, stage, science_hash)
    name = name or re.sub(r"[/:#]+", "-", reference)
    if re.search(r"^\.|[/:]", name) or not name.strip():
        raise UserError(f"model name {name!r}: use one without / and :, and no dot at its start")
    kind = "scores" if path.name == CLASSIFIER_FILE else features
    content = {"name": name, "reference": reference, "features": kind}
    stands_for = {"science_hash": planned.identity.science_hash}
    target = uri or default_uri(records.store)
    version = _make_version(records, target, study, planned, path, content)
    is_own = target == default_uri(records.store)  # what a server has is not ours to make again
    known = [one | {"at": ""} for one in registrations(records)]
    if is_own and content | stands_for | {"at": ""} not in known:
        kept = content | stands_for | {"at": now_iso()}
        records.store.append_numbered(f"models/{name}", kept)
    return Registered(**content, version=version)


def _make_version(
    records: Records,
    uri: str,
    study: str,
    planned: PlannedStage,
    path: Path,
    content: dict[str, str],
) -> int:
    from mae_core.evaluate.serving import load_served

    recipe = planned.stage.recipe
    pooling: Pooling = "mean" if content["features"] == "mean" else "cls"
    model, class_names = load_served(path, recipe.data, pooling)
    science_hash = planned.identity.science_hash
    tags = {
        "reference": content["reference"],
        "features": content["features"],
        "science_hash": science_hash,
        "protocol": recipe.protocol,
    }
    if class_names:
        tags["classes"] = ", ".join(class_names)[:MAX_TAG]
    identity = generations(records, science_hash)[-1].identity
    return register_version(uri, study, identity, content["name"], tags, model, recipe.data)


def registrations(records: Records) -> list[dict[str, Any]]:
    """All that were ever registered, oldest first."""
    keys = [
        f"models/{name}/{number}"
        for name in records.store.list("models")
        for number in records.store.list(f"models/{name}")
    ]
    found = (records.store.read_json(key) for key in keys)
    return sorted((r for r in found if r is not None), key=lambda record: str(record["at"]))


def _find_weights(
    records: Records, study: str, cell: str, stage: str, science_hash: str
) -> tuple[PlannedStage, Path]:
    """In the last state of a study; with a hash, in the last state that has that stage."""
    states = kept_states(records, study)
    for state in reversed(states if science_hash else ()):
        plan, _ = kept_plan(records, study, state)
        stages = [s for s in plan.stages if s.cell.address == cell]
        if any(s.identity.science_hash == science_hash for s in stages):
            return _weights(records, plan, cell, stage)
    return _weights(records, kept_plan(records, study, states[-1])[0], cell, stage)


def _weights(records: Records, plan: Plan, cell: str, stage: str) -> tuple[PlannedStage, Path]:
    study = plan.study.name
    stages = [s for s in plan.stages if s.cell.address == cell]
    if not stages:
        raise unknown("cell", cell, {s.cell.address for s in plan.stages}, where=f"study {study}")
    names = [s.stage.name for s in stages]
    if stage and stage not in names:
        raise unknown("stage", stage, names, where=f"cell {study}/{cell}")
    wanted = (CLASSIFIER_FILE, ENCODER_FILE) if stage else (ENCODER_FILE,)
    for planned in stages:
        record = planned.record
        if record is None or (stage and planned.stage.name != stage):
            continue
        for file in wanted:
            if file in record.outputs:
                return planned, records.outputs(record.science_hash, record.attempt) / file
    what = f"stage {stage}" if stage else "no stage"
    raise UserError(
        f"{study}/{cell}: {what} has not left weights (yet); see `mae-study status {study}`"
    )
