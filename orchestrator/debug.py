"""One stage in this process, without Ray, on the code that a gang runs."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.rank_actor import RankControl
from cluster.rank_env import free_port, stage_environment
from mae_core.config import ENCODER_FILE
from orchestrator.datasets import Datasets
from orchestrator.errors import UserError
from orchestrator.plan import Plan, PlannedStage
from orchestrator.rank_main import run_stage
from orchestrator.records import Records
from orchestrator.show_status import find_stage
from orchestrator.store import output_dir
from orchestrator.tasks import encoder_of
from studies.codec import to_plain


def run_one(
    plan: Plan,
    records: Records,
    *,
    cell: str,
    stage: str,
    out: Path | None,
    encoder: Path | None = None,
) -> dict[str, Any] | None:
    """Run a stage as rank 0 of 1, or as one rank under torchrun; None on ranks above 0.

    An evaluation reads `encoder`, else what `run` left of its parent, else what `debug` left.
    """
    planned = find_stage(plan, cell, stage)
    recipe, execution = planned.stage.recipe, planned.stage.execution
    source = _encoder(planned, records, encoder)
    world = _join_environment()
    rank = int(os.environ["RANK"])
    default = records.store.path(f"debug/{planned.identity.science_hash}")
    directory = output_dir(out, default)
    output_dir(directory / "outputs" if out else None, default / "outputs")
    payload = {
        "recipe": to_plain(recipe),
        "execution": to_plain(execution) | {"world_size": world},
        "facts": Datasets(records.store).ensure(recipe.data.path).to_json(),
        "science_hash": planned.identity.science_hash,
        "directory": str(directory),
        "checkpoints": str(directory / "checkpoints"),
        "encoder": source,
    }
    never = threading.Event()
    values = run_stage(payload, RankControl(rank, world, never.is_set))
    return None if rank else values | {"directory": str(directory)}


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what libraries print, C++ included, to stderr: stdout is for the JSON alone."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def leave_gang() -> None:
    """End a process of torchrun here and now, its output written.

    Threads of gloo that outlive the interpreter's end can abort a process that had succeeded.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _encoder(planned: PlannedStage, records: Records, given: Path | None) -> str | None:
    """Path of the encoder that a stage reads, None for one that reads none."""
    parents = tuple(planned.identity.science["parents"])
    if given is not None:
        if not parents:
            raise UserError(f"{planned.address} reads no encoder: leave --encoder away")
        if not given.is_file():
            raise UserError(f"--encoder {given}: no such file; name an encoder.safetensors")
        return str(given)
    found = encoder_of(parents, records)
    if found is not None or not parents:
        return found
    left = records.store.path(f"debug/{parents[0]}/outputs/{ENCODER_FILE}")
    if left.is_file():
        return str(left)
    parent = planned.stage.parents[0]
    raise UserError(
        f"{planned.address} reads the encoder of {parent!r}, which is not done: run the study, or "
        f"`mae-study debug {planned.cell.address} {parent}` without --out, or name one "
        f"with --encoder (neither a finished attempt nor {left} is there)"
    )


def _join_environment() -> int:
    """World size; sets up a gang of one unless torchrun has set up one."""
    if "WORLD_SIZE" not in os.environ:
        os.environ |= stage_environment(
            rank=0, world=1, local_rank=0, local_world=1, address="127.0.0.1", port=free_port()
        )
    return int(os.environ["WORLD_SIZE"])
