"""Entry points that the reliability run starts on ranks."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from cluster.rank_actor import RankControl


def train_large(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Pretrain a ViT-B on enlarged digits, saving every few steps; return times and events."""
    from mae_core import engine
    from mae_core.config import Duration, Execution
    from mae_core.context import RunContext
    from mae_core.data.sources import open_data
    from mae_core.pretrain import run_pretrain
    from mae_core.sizes import encoder
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
    engine.join_gang()
    try:
        run_pretrain(recipe, execution, context, open_data(recipe.data))
    finally:
        engine.leave_gang()
    return {"steps": steps, "events": events}
