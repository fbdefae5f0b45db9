"""Entry points that the cluster tests run on ranks."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from support import changes

from cluster.ranks.actor import RankControl


def echo(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    return {
        "said": payload.get("say"),
        "rank": control.rank,
        "world": control.world,
        "pid": os.getpid(),
    }


def meet(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Join the gang; say who is in it, and where this process listens meanwhile."""
    from mae_core.runtime import collectives
    from mae_core.train.deepspeed_engine import join_gang, leave_gang

    join_gang()
    try:
        connections = psutil.Process().net_connections("inet")
        return {
            "ranks": collectives.all_gather_object(control.rank),
            "listening": [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN],
            "store": os.environ["GANG_STORE"],
            "interface": os.environ["GLOO_SOCKET_IFNAME"],
        }
    finally:
        leave_gang()


def hold_meeting(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Join the gang and stay in it; tell where it met in the file `told`."""
    from mae_core.runtime import collectives
    from mae_core.train.deepspeed_engine import join_gang, leave_gang

    join_gang()
    collectives.barrier()
    if control.rank == 0:
        told = Path(payload["told"])
        told.with_suffix(".new").write_text(os.environ["GANG_STORE"])
        told.with_suffix(".new").rename(told)
    while not control.stop_requested():
        time.sleep(0.02)
    leave_gang()
    return {"interface": os.environ["GLOO_SOCKET_IFNAME"]}


def fail_on_rank_1(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    if control.rank == 1:
        raise ValueError("boom")
    time.sleep(payload["sleep_s"])
    return {}


def leave(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    sys.exit(3)


def wait_for_stop(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while not control.stop_requested() and time.monotonic() < deadline:
        time.sleep(0.02)
    return {"stopped": control.stop_requested()}


def train_digits(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Pretrain on the digits; stop after `stop_at` steps if given; return digests and metrics.

    `noise` adds noise from torch's generator, a different one on each rank; `grouped` divides the
    parameters into many groups; `leave_out` names a part of the state not to restore.
    """
    import torch

    from mae_core.config import Execution
    from mae_core.data.sources import open_data
    from mae_core.pretrain.masked import run_pretrain
    from mae_core.runtime.context import RunContext
    from mae_core.train import deepspeed_engine
    from mae_core.train.loop import Stopped

    recipe = _digit_recipe(payload)
    execution = Execution(**{"loader_threads": 0} | payload["execution"])
    losses: list[tuple[int, float]] = []
    events: list[tuple[str, dict[str, Any]]] = []
    done: list[int] = []
    samples: list[list[int]] = []
    watched: list[tuple[int, dict[str, float]]] = []

    def log(step: int, metrics: Mapping[str, float]) -> None:
        if "loss" in metrics:
            losses.append((step, metrics["loss"]))
        else:
            watched.append((step, dict(metrics)))

    folder = Path(payload["folder"])
    (folder / "outputs").mkdir(parents=True, exist_ok=True)
    context = RunContext(
        output_dir=folder / "outputs",
        checkpoint_dir=folder / "checkpoints",
        science_hash=payload.get("science_hash", "test"),
        rank=control.rank,
        world=control.world,
        log_metrics=log,
        fault_point=lambda name: done.append(1) if name == "step" else None,
        should_stop=lambda: len(done) >= payload.get("stop_at", 10**9),
        event=lambda name, fields: events.append((name, dict(fields))),
        attempt=payload.get("attempt", 0),
        rollback=payload.get("rollback", 0),
    )
    torch.manual_seed(control.rank)
    deepspeed_engine.join_gang()
    masks: list[tuple[str, str]] = []
    weights: list[str] = []
    found: dict[str, Any] = {
        "losses": losses,
        "samples": samples,
        "events": events,
        "masks": masks,
        "weights": weights,
        "watched": watched,
    }
    try:
        with changes.applied(payload, control.rank, samples, masks, weights):
            metrics = run_pretrain(recipe, execution, context, open_data(recipe.data)).to_json()
    except Stopped:
        return found | {"stopped": True}
    finally:
        deepspeed_engine.leave_gang()
    if control.rank == 0:
        found |= _written(folder / "outputs")
    return found | {"metrics": metrics}


def _digit_recipe(payload: dict[str, Any]) -> Any:
    from mae_core.config import Duration, OptimizerConfig
    from studies.catalog import quickstart

    recipe = dataclasses.replace(
        quickstart.pretrain("N1", 1, 0).recipe,
        duration=Duration.steps(payload["steps"]),
        global_batch=96,
        precision=payload.get("precision", "fp32"),
    )
    if "sgd" in payload:  # SGD without decay, its gradients clipped to this norm
        sgd = OptimizerConfig(name="sgd", weight_decay=0.0, clip_grad_norm=payload["sgd"])
        recipe = dataclasses.replace(recipe, optimizer=sgd)
    return recipe


def _written(outputs: Path) -> dict[str, Any]:
    """Digest of the weights that a training left, and its state if it recorded one."""
    files = [outputs / f"{part}.safetensors" for part in ("encoder", "decoder")]
    content = b"".join(file.read_bytes() for file in files)
    state = outputs / "state.json"
    return {
        "digest": hashlib.sha256(content).hexdigest(),
        "state": state.read_text() if state.exists() else None,
    }
