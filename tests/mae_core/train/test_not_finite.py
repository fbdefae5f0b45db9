"""NaN and spikes: the attempt ends, what is poisoned is never committed, going back mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.gangs import attempt, train
from support.precision_cases import RECIPE, batches, start

from cluster.slot_pool import SlotPool
from mae_core.config import Precision
from mae_core.errors import NumericsError
from mae_core.model.mae import MAE
from mae_core.train.optim import pretrain_groups

EVERY_3 = {"checkpoint_every_steps": 3, "snapshot": "blocking", "record_state": True}


def committed(folder: Path) -> list[str]:
    return sorted(p.parent.name[:14] for p in folder.glob("checkpoints/*/manifest.json"))


@pytest.mark.parametrize(
    "change",
    [
        {"ranks": [1], "log_every": 50},
        {"ranks": [0, 1], "log_every": 50},
        {"ranks": [1], "log_every": 1},
        # The loss is still finite: only the weights after the update are not.
        {"ranks": [0, 1], "weights": True, "log_every": 50},
        {"ranks": [0, 1], "factor": 100.0, "log_every": 1, "spike_factor": 3.0},
    ],
    ids=["one rank", "all ranks", "logged", "weights", "spike"],
)
def test_a_poisoned_state_is_never_committed(
    pool: SlotPool, tmp_path: Path, change: dict[str, Any]
) -> None:
    change = dict(change)
    execution = EVERY_3 | {"spike_factor": change.pop("spike_factor", None)}
    log_every = change["log_every"]
    whole = train(pool, tmp_path / "whole", 2, execution=execution, log_every=log_every)
    folder = tmp_path / "broken"
    assert attempt(pool, folder, 2, execution=execution, nan_at=9, **change) is None
    assert committed(folder) == ["step-000000003", "step-000000006"]
    resumed = train(pool, folder, 2, execution=execution, rollback=1, log_every=log_every)
    assert resumed["metrics"]["resumed_from"] == 3
    assert (resumed["digest"], resumed["state"]) == (whole["digest"], whole["state"])


@pytest.mark.parametrize(
    ("precision", "zero", "clip"),
    [("bf16", 0, None), ("bf16", 1, None), ("fp32", 2, 1.0), ("bf16-mixed", 3, None)],
)
def test_a_gradient_that_is_not_finite_is_no_step_left_out_in_silence(
    gang: None, precision: Precision, zero: int, clip: float | None
) -> None:
    """DeepSpeed would leave such updates out, while the loss stays finite for ever."""
    model = MAE(RECIPE)
    groups = pretrain_groups(model, 0.05)
    engine = start(model, groups, precision, zero, clip_grad_norm=clip)
    engine.step([batches()[0]], 1e-3)
    model.decoder.register_full_backward_pre_hook(lambda _, grads: (grads[0] * float("nan"),))
    with pytest.raises(NumericsError, match="gradients of step 2 are not finite"):
        engine.step([batches()[1]], 1e-3)
    engine.close()
