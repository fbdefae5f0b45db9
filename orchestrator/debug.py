"""One stage in this process, without Ray, on the code that a gang runs."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from cluster.rank_actor import RankControl
from cluster.rank_env import free_port, stage_environment
from orchestrator.datasets import Datasets
from orchestrator.errors import UserError
from orchestrator.plan import Plan
from orchestrator.rank_main import run_stage
from orchestrator.records import Records
from orchestrator.show_status import find_stage
from orchestrator.tasks import encoder_of
from studies.codec import to_plain


def run_one(
    plan: Plan, records: Records, *, cell: str, stage: str, out: Path | None
) -> dict[str, Any] | None:
    """Run a stage as rank 0 of 1, or as one rank under torchrun; None on ranks above 0."""
    planned = find_stage(plan, cell, stage)
    recipe, execution = planned.stage.recipe, planned.stage.execution
    world = _join_environment()
    rank = int(os.environ["RANK"])
    directory = out or records.store.path(f"debug/{planned.identity.science_hash}")
    (directory / "outputs").mkdir(parents=True, exist_ok=True)
    parents = tuple(planned.identity.science["parents"])
    encoder = encoder_of(parents, records)
    if parents and encoder is None:
        raise UserError(
            f"{planned.address} reads the encoder of {planned.stage.parents[0]!r}, which is not "
            f"done: run that first (`mae-study run`, or debug it with --set and --out)"
        )
    payload = {
        "recipe": to_plain(recipe),
        "execution": to_plain(execution) | {"world_size": world},
        "facts": Datasets(records.store).ensure(recipe.data.path).to_json(),
        "science_hash": planned.identity.science_hash,
        "directory": str(directory),
        "checkpoints": str(directory / "checkpoints"),
        "encoder": encoder,
    }
    never = threading.Event()
    values = run_stage(payload, RankControl(rank, world, never.is_set))
    return None if rank else values | {"directory": str(directory)}


def _join_environment() -> int:
    """World size; sets up a gang of one unless torchrun has set up one."""
    if "WORLD_SIZE" not in os.environ:
        os.environ |= stage_environment(
            rank=0, world=1, local_rank=0, local_world=1, address="127.0.0.1", port=free_port()
        )
    return int(os.environ["WORLD_SIZE"])
