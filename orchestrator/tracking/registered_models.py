"""Encoders and classifiers as MLflow models, kept in the store so that a rebuild has them too.

models/<name>/000001.json …   one registration each
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cluster.ranks.outcome import JsonObject
from mae_core.config import CLASSIFIER_FILE, ENCODER_FILE
from orchestrator.errors import UserError
from orchestrator.plan.history import kept_plan, kept_states
from orchestrator.plan.plan import PlannedStage
from orchestrator.store.generations import generations
from orchestrator.store.kept_files import output
from orchestrator.store.known_keys import build_known
from orchestrator.store.records import Records, now_iso
from orchestrator.tracking.mlflow_database import default_uri
from orchestrator.tracking.mlflow_models import register_version
from orchestrator.weights.export import split_address
from studies.errors import unknown

Features = Literal["cls", "mean", "scores"]
MAX_TAG = 4000
"""Characters of the classes' names in a tag."""


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A model of MLflow, by what it is made from."""

    name: str
    reference: str
    features: Features
    """Class token or mean of the patch tokens of an encoder, or scores of a classifier."""
    science_hash: str
    """Of the stage that left the weights."""

    def uri(self, version: int) -> str:
        """What `mlflow.pytorch.load_model` takes."""
        return f"models:/{self.name}/{version}"


def register(
    records: Records, reference: str, *, name: str = "", features: Features = "cls", uri: str = ""
) -> tuple[Registration, int]:
    """Register the encoder of STUDY/CELL, or the classifier of STUDY/CELL#STAGE; number it.

    Raises:
        UserError: no weights there, or a name that MLflow does not take.
        TrackingError: the run is not tracked at `uri`, or its server refuses.
    """
    planned, path = find_weights(records, reference)
    name = name or re.sub(r"[/:#]+", "-", reference)
    if re.search(r"^\.|[/:]", name) or not name.strip():
        raise UserError(f"model name {name!r}: use one without / and :, and no dot at its start")
    model = Registration(
        name=name,
        reference=reference,
        features="scores" if path.name == CLASSIFIER_FILE else features,
        science_hash=planned.identity.science_hash,
    )
    default = default_uri(records.store)
    version = _make_version(records, uri or default, model, planned, path)
    # What a server has is not rebuilt from here.
    if uri in ("", default) and model not in registrations(records):
        records.store.append_numbered(f"models/{name}", asdict(model) | {"at": now_iso()})
    return model, version


def register_again(records: Records, model: Registration) -> None:
    """Register in the store's own database what was registered before, whatever its cell became."""
    planned, path = find_weights(records, model.reference, model.science_hash)
    _make_version(records, default_uri(records.store), model, planned, path)


def registrations(records: Records) -> list[Registration]:
    """All that were ever registered in the store's own database, oldest first."""
    folders = [f"models/{name}" for name in records.store.list("models")]
    found = [one for at in folders for one in records.sides(at, _dated, "this model is lost")]
    return [model for _, model in sorted(found, key=lambda pair: pair[0])]


def _dated(plain: JsonObject, where: str) -> tuple[str, Registration]:
    return str(plain.get("at", "")), build_known(Registration, plain, where)


def _make_version(
    records: Records, uri: str, model: Registration, planned: PlannedStage, path: Path
) -> int:
    from mae_core.evaluate.serving import load_served

    recipe = planned.stage.recipe
    pooling: Literal["cls", "mean"] = "mean" if model.features == "mean" else "cls"
    network, class_names = load_served(path, recipe.data, pooling)
    tags = asdict(model) | {"protocol": recipe.protocol}
    del tags["name"]
    if class_names:
        tags["classes"] = ", ".join(class_names)[:MAX_TAG]
    return register_version(
        uri,
        study=split_address(model.reference, records)[0],
        identity=generations(records, model.science_hash)[-1].identity,
        name=model.name,
        tags=tags,
        model=network,
        data=recipe.data,
    )


def find_weights(
    records: Records, reference: str, science_hash: str = ""
) -> tuple[PlannedStage, Path]:
    """In the last state of a study; with a hash, of that very stage in the last state with it.

    Raises:
        UserError: no weights there (yet).
        DamagedRecord: they are not what the stage left.
    """
    study, cell, stage = split_address(reference, records)
    found: list[PlannedStage] = []
    states = list(kept_states(records, study).values())
    for state in reversed(states if science_hash else states[-1:]):
        plan, _ = kept_plan(records, state)
        cells = {s.cell.address for s in plan.stages}
        found = [s for s in plan.stages if s.cell.address == cell]
        if not science_hash or any(s.identity.science_hash == science_hash for s in found):
            break
    if not found:
        raise unknown("cell", cell, cells, where=f"study {study}")
    names = [s.stage.name for s in found]
    if stage and stage not in names:
        raise unknown("stage", stage, names, where=f"cell {study}/{cell}")
    wanted = (CLASSIFIER_FILE, ENCODER_FILE) if stage else (ENCODER_FILE,)
    for planned in found:
        record = planned.record
        if record is not None and stage in ("", planned.stage.name):
            for file in wanted:
                if file in record.outputs:
                    return planned, output(records, record, file)
    what = f"stage {stage}" if stage else "no stage"
    raise UserError(
        f"{study}/{cell}: {what} has not left weights (yet); see `mae-study status {study}`"
    )
