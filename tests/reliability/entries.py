"""Entry points that the reliability run starts on ranks."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from cluster.ranks.actor import RankControl


def train_large(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Pretrain a ViT-B on enlarged digits, saving every few steps; return times and events."""
    from mae_core.config import Duration, Execution
    from mae_core.data.sources import open_data
    from mae_core.model.sizes import encoder
    from mae_core.pretrain.masked import run_pretrain
    from mae_core.runtime.context import RunContext
    from mae_core.train import deepspeed_engine
    from studies.catalog import quickstart

    base = quickstart.pretrain("N1", 1, 0).recipe
    recipe = dataclasses.replace(
        base,
        encoder=encoder(payload["size"], patch_size=16),
        data=dataclasses.replace(base.data, image_size=payload["image_size"]),
        duration=Duration.steps(payload["steps"]),
        global_batch=payload["global_batch"],
    )
    execution = Execution(**payload["execution"])
    folder = Path(payload["folder"])
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    steps: list[float] = []
    events: list[tuple[float, str, dict[str, Any]]] = []
    context = RunContext(
        output_dir=folder / "outputs",
        checkpoint_dir=folder / "checkpoints",
        science_hash="large",
        rank=control.rank,
        world=control.world,
        beat=lambda section, step: steps.append(time.time()) if section == "step" else None,
        event=lambda name, fields: events.append((time.time(), name, dict(fields))),
    )
    deepspeed_engine.join_gang()
    try:
        run_pretrain(recipe, execution, context, open_data(recipe.data))
    finally:
        deepspeed_engine.leave_gang()
    return {"steps": steps, "events": events}


def train_until_told(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Pretrain on the digits until somebody gives notice; a save takes `save_s` at least."""
    from mae_core.config import Duration, Execution
    from mae_core.data.sources import open_data
    from mae_core.pretrain.masked import run_pretrain
    from mae_core.runtime.context import RunContext
    from mae_core.train import deepspeed_engine
    from studies.catalog import quickstart

    recipe = dataclasses.replace(
        quickstart.pretrain("N1", 1, 0).recipe, duration=Duration.steps(10_000_000), global_batch=96
    )
    execution = Execution(
        world_size=control.world, zero_stage=2, loader_threads=0, checkpoint_every_steps=15
    )
    folder = Path(payload["folder"])
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    fsyncs: list[float] = []

    def pause(point: str) -> None:
        if point == "fsync" and control.rank == 0:
            fsyncs.append(time.time())
            (folder / "saving").write_text(str(len(fsyncs)))
            time.sleep(payload["save_s"] / 3)  # rank 0 writes three files

    context = RunContext(
        output_dir=folder / "outputs",
        checkpoint_dir=folder / "checkpoints",
        science_hash="told",
        rank=control.rank,
        world=control.world,
        should_stop=control.stop_requested,
        grace_left_s=control.grace_left_s,
        beat=control.beat,
        fault_point=pause,
    )
    deepspeed_engine.join_gang()
    try:
        return run_pretrain(recipe, execution, context, open_data(recipe.data)).to_json()
    finally:
        deepspeed_engine.leave_gang()
