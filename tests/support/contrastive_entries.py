"""Entry point that trains a contrastive stage on ranks, as the tests ask for it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from cluster.ranks.actor import RankControl


def train_contrastive(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Train on the digits; stop after `stop_at` steps if given; return losses and digests.

    `adamw` takes the place of SGD; `forget` makes a resume forget the momentum encoder.
    """
    from support.contrastive_cases import ADAMW, SGD, small_recipe
    from support.digit_cases import DIGITS

    from mae_core.config import Duration, Execution
    from mae_core.data.sources import open_data
    from mae_core.pretrain.contrastive import run_contrastive
    from mae_core.runtime.context import RunContext
    from mae_core.train import deepspeed_engine
    from mae_core.train.loop import Stopped

    recipe = small_recipe(
        data=DIGITS,
        duration=Duration.steps(payload.get("steps", 6)),
        precision=payload.get("precision", "fp32"),
        optimizer=ADAMW if payload.get("adamw") else SGD,
    )
    folder = Path(payload["folder"])
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    losses: list[tuple[int, float]] = []
    watched: list[tuple[int, dict[str, float]]] = []
    done: list[int] = []

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if "loss" in metrics:
            losses.append((step, metrics["loss"]))
        else:
            watched.append((step, dict(metrics)))

    context = RunContext(
        output_dir=folder / "outputs",
        checkpoint_dir=folder / "checkpoints",
        science_hash="test",
        rank=control.rank,
        world=control.world,
        log_metrics=log,
        fault_point=lambda name: done.append(1) if name == "step" else None,
        should_stop=lambda: len(done) >= payload.get("stop_at", 10**9),
    )
    execution = Execution(
        world_size=control.world, loader_threads=0, record_state=True, **payload["execution"]
    )
    deepspeed_engine.join_gang()
    try:
        with _forgetting() if payload.get("forget") else contextlib.nullcontext():
            metrics = run_contrastive(recipe, execution, context, open_data(recipe.data)).to_json()
    except Stopped:
        return {"losses": losses, "stopped": True}
    finally:
        deepspeed_engine.leave_gang()
    found = {"losses": losses, "watched": watched, "metrics": metrics}
    if control.rank == 0:
        weights = (folder / "outputs" / "encoder.safetensors").read_bytes()
        found["digest"] = hashlib.sha256(weights).hexdigest()
        found["state"] = (folder / "outputs" / "state.json").read_text()
    return found


@contextlib.contextmanager
def _forgetting() -> Iterator[None]:
    """Let the momentum copies start again at the encoder's weights after a resume."""
    from mae_core.train.deepspeed_engine import Engine

    original = Engine.load

    def load(self: Engine, *arguments: Any) -> None:
        original(self, *arguments)
        self.module.follow(0.0, dict(self.weights()))

    # The fixed batch's loss would notice.
    with (
        mock.patch.object(Engine, "load", load),
        mock.patch.dict("mae_core.train.saver.PROBE_TOLERANCE", {"fp32": 1e9}),
    ):
        yield
