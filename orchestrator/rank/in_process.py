"""One stage in this process, without Ray, on the code that a gang runs."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cluster.ranks.actor import RankControl
from cluster.ranks.environment import stage_environment
from cluster.ranks.meeting_point import use_interface_of
from cluster.ranks.outcome import JsonObject
from mae_core.config import ENCODER_FILE
from mae_core.runtime.inputs import Parent
from orchestrator.errors import UserError
from orchestrator.plan.plan import Plan, PlannedStage, find_stage
from orchestrator.rank.entry import run
from orchestrator.rank.payload import StagePayload, extensions_of, parents_of
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import output_dir
from orchestrator.store.kept_files import check_named
from orchestrator.store.records import Records
from studies.spec.codec import to_plain

_TORCHRUN = "TORCHELASTIC_RUN_ID"
"""torchrun gives it to every process that it starts."""
METRICS_FILE = "metrics.json"
"""What a stage said, for the stages that build on it."""


def run_one(
    plan: Plan,
    records: Records,
    *,
    cell: str,
    stage: str,
    out: Path | None,
    encoder: Path | None = None,
) -> JsonObject | None:
    """Run a stage as rank 0 of 1, or as one rank under torchrun; None on ranks above 0.

    An evaluation reads `encoder`, else what `run` left of its parent, else what `debug` left.
    """
    planned = find_stage(plan, cell, stage)
    recipe, execution = planned.stage.recipe, planned.stage.execution
    parents = _parents(planned, records, encoder)
    world = _join_environment()
    rank = int(os.environ["RANK"])
    default = records.store.path(f"debug/{planned.identity.science_hash}")
    directory = output_dir(out, default)
    output_dir(directory / "outputs" if out else None, default / "outputs")
    payload = StagePayload(
        recipe=recipe,
        execution=replace(execution, world_size=world),
        facts=Datasets(records.store).ensure(recipe.data.path),
        science_hash=planned.identity.science_hash,
        directory=directory,
        checkpoints=directory / "checkpoints",
        parents=parents,
        extensions=extensions_of(recipe),
    )
    result = run(payload, RankControl(rank, world, lambda: False))
    if rank:
        return None
    (directory / METRICS_FILE).write_text(json.dumps(result.metrics))
    return result.to_json() | {"directory": str(directory)}


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


def _parents(planned: PlannedStage, records: Records, encoder: Path | None) -> tuple[Parent, ...]:
    """Parents of a stage: what `run` left of each, else what `debug` left; or a named encoder."""
    stage, cell = planned.stage, planned.cell
    hashes = planned.identity.parents
    if encoder is not None:
        if ENCODER_FILE not in stage.recipe.needs:
            raise UserError(f"{planned.address} reads no encoder: remove --encoder")
        if not encoder.is_file():
            raise UserError(f"--encoder {encoder}: no such file; name an encoder.safetensors")
        kept = check_named(records, encoder)
        return (Parent(name="--encoder", kind="pretrain", files={ENCODER_FILE: kept}),)
    found = {p.name: p for p in parents_of(cell, stage, hashes, records)}
    for parent in found.values():
        for file in parent.digests.keys() & stage.recipe.needs:
            check_named(records, parent.files[file])
    for name, science_hash in zip(stage.parents, hashes, strict=True):
        if name not in found:
            found[name] = _left_by_debug(planned, name, science_hash, records)
    return tuple(found[name] for name in stage.parents)


def _left_by_debug(
    planned: PlannedStage, parent: str, science_hash: str, records: Records
) -> Parent:
    stage = planned.cell.stage(parent)
    left = records.store.path(f"debug/{science_hash}/outputs")
    if not all((left / file).is_file() for file in stage.recipe.YIELDS):
        raise UserError(
            f"{planned.address} reads what {parent!r} leaves, which is not done: run the study, or "
            f"`mae-study debug STUDY {planned.cell.address} {parent}` without --out, or name one "
            f"with --encoder (neither a finished attempt nor {left} is there)"
        )
    metrics = left.with_name(METRICS_FILE)
    return Parent(
        name=parent,
        kind=stage.kind,
        files={file: left / file for file in stage.recipe.YIELDS},
        metrics=_read_metrics(metrics) if metrics.is_file() else {},
        recipe=to_plain(stage.recipe),
    )


def _read_metrics(path: Path) -> JsonObject:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): debug that stage again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no metrics: debug that stage again")
    return found


def _join_environment() -> int:
    """World size; sets up a gang of one unless torchrun has set up one.

    Raises:
        UserError: another launcher's variables say that there are several ranks.
    """
    if _TORCHRUN not in os.environ:
        world = os.environ.get("WORLD_SIZE", "1")
        if world != "1":
            raise UserError(
                f"WORLD_SIZE is {world!r}, and torchrun did not start this process: unset it for "
                "one rank, or start several with torchrun"
            )
        os.environ |= stage_environment(rank=0, world=1, local_rank=0, local_world=1)
        use_interface_of("127.0.0.1")
    return int(os.environ["WORLD_SIZE"])
