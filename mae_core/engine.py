"""The one file that knows DeepSpeed: start it, train one step, save and load its shards.

Several lines work around internals of DeepSpeed 0.19.8, each said where it stands and guarded so
that another version only loses the short cut.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mae_core import dist
from mae_core.config import BatchSplit, OptimizerConfig, Precision
from mae_core.optim import build_optimizer, set_lr

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
ParamGroup = dict[str, Any]
_LINEAR = nn.functional.linear


def boot() -> Any:
    """Import DeepSpeed once, without its slow extras, and return the module.

    A rank never compiles extensions (a killed build leaves a lock that hangs the next run) and
    never imports mlflow, which DeepSpeed's autotuner would pull in (2 s and 120 MB).
    """
    if "deepspeed" in sys.modules:
        return sys.modules["deepspeed"]
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed.*")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    with _hidden("mlflow"), _uncompiled():
        import deepspeed
        import deepspeed.ops

        with contextlib.suppress(ImportError):
            # Decorated with torch.compile at import, which would load inductor (2-4 s).
            import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    if hasattr(deepspeed.ops, "__compatible_ops__") and not torch.cuda.is_available():
        # Else init_distributed builds a shared-memory extension (64 s the first time).
        deepspeed.ops.__compatible_ops__ = {}
    deepspeed.utils.logger.setLevel("WARNING")
    return deepspeed


@contextlib.contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make `import module` fail inside the block, if it is not loaded yet."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Make torch.compile the identity inside the block."""
    compile_ = torch.compile
    torch.compile = lambda model=None, **_: model if model is not None else (lambda m: m)  # type: ignore
    try:
        yield
    finally:
        torch.compile = compile_


def join_gang() -> None:
    """Open the process group that the RANK, WORLD_SIZE and MASTER_* variables describe."""
    deepspeed = boot()
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.device())
    deepspeed.init_distributed(
        dist_backend=dist.backend(),
        auto_mpi_discovery=False,
        timeout=COLLECTIVE_TIMEOUT,
        verbose=False,
    )
    dist.open_control_group()


def leave_gang() -> None:
    """Close the process group so that this process can join another one.

    DeepSpeed's own call, not torch's: its cached groups must go too.
    """
    if dist.is_initialised():
        dist.forget_control_group()
        boot().comm.destroy_process_group()


class Engine:
    """One model under DeepSpeed's engine.

    Args:
        module: `forward(*inputs)` returns a scalar loss.
        groups: `{"params", "weight_decay", "lr_scale", "name"}` each.
        peak_lr: learning rate the optimizer is built with; each step sets its own.
    """

    def __init__(
        self,
        module: nn.Module,
        groups: list[ParamGroup],
        *,
        optimizer: OptimizerConfig,
        peak_lr: float,
        batch: BatchSplit,
        precision: Precision,
        zero_stage: int,
    ) -> None:
        deepspeed = boot()
        if zero_stage == 3:
            _reset_zero3_counters()
        self.device = dist.device()
        module.to(self.device)
        config: dict[str, Any] = {
            "train_batch_size": batch.global_batch,
            "train_micro_batch_size_per_gpu": batch.micro,
            "gradient_accumulation_steps": batch.accumulation,
            "gradient_clipping": optimizer.clip_grad_norm or 0.0,
            "bf16": {"enabled": precision == "bf16"},
            "zero_optimization": {"stage": zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": sys.maxsize,
        }
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=build_optimizer(optimizer, groups, peak_lr), config=config
        )

    def step(self, micro_inputs: Iterable[tuple[torch.Tensor, ...]], lr: float) -> torch.Tensor:
        """Do one optimizer update; return this rank's mean loss, a detached scalar."""
        set_lr(self._engine.optimizer, lr)
        total: torch.Tensor | None = None
        count = 0
        for inputs in micro_inputs:
            loss = self._engine(*inputs)
            self._engine.backward(loss)
            self._engine.step()
            total = loss.detach() if total is None else total + loss.detach()
            count += 1
        assert total is not None, "a step needs at least one micro-batch"
        return total.float() / count

    def grad_norm(self) -> float | None:
        """Global gradient norm of the last update, where DeepSpeed computed one."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def full_state(self) -> dict[str, torch.Tensor]:
        """Return all weights in fp32 on the CPU, on every rank (collective), by parameter name."""
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self._engine.module.named_parameters():
            full = safe_get_full_fp32_param(parameter)
            full = parameter if full is None else full
            state[name] = full.detach().float().cpu().clone().reshape(_shape(parameter))
        return state

    def save(self, directory: Path) -> None:
        """Write this rank's shards under `directory` (collective)."""
        self._engine.save_checkpoint(str(directory), tag="shards", save_latest=False)

    def load(self, directory: Path) -> None:
        """Read this rank's shards, whose digests the caller has verified (collective).

        The shards are pickles: never call it on files that were not verified.
        """
        loaded, _ = self._engine.load_checkpoint(str(directory), tag="shards")
        if loaded is None:
            raise RuntimeError(f"DeepSpeed found no checkpoint in {directory}")

    def close(self) -> None:
        """Release the engine's memory and hooks."""
        self._engine.destroy()
        # ZeRO-3 replaces it for good, which would change the bits of every later stage here.
        nn.functional.linear = _LINEAR


def rehearse() -> None:
    """Train a toy for a step, alone: a process's first engine costs 1-2 s, later ones 0.1 s."""
    os.environ.setdefault("LOCAL_RANK", "0")
    with tempfile.TemporaryDirectory() as directory:
        boot().init_distributed(
            dist_backend=dist.backend(),
            auto_mpi_discovery=False,
            verbose=False,
            init_method=f"file://{directory}/rendezvous",
            rank=0,
            world_size=1,
        )
        toy = nn.Linear(4, 1)
        groups = [{"params": list(toy.parameters()), "weight_decay": 0.0, "lr_scale": 1.0}]
        engine = Engine(
            _MeanSquare(toy),
            groups,
            optimizer=OptimizerConfig(),
            peak_lr=0.1,
            batch=BatchSplit(1, 1, 1),
            precision="fp32",
            zero_stage=1,
        )
        engine.step([(torch.ones(1, 4, device=engine.device),)], 0.1)
        engine.close()
        leave_gang()


class _MeanSquare(nn.Module):
    """The smallest loss that an engine trains."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.layer(x).square().mean()
        return loss


def _shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter, also where ZeRO-3 has emptied it."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _reset_zero3_counters() -> None:
    """Give a warm process the same module and parameter ids as a new one.

    ZeRO-3 numbers both by process-global counters and refuses a gang whose ranks disagree
    ("disagreement on list contents"), as ranks of different history would.
    """
    with contextlib.suppress(ImportError, AttributeError, TypeError, IndexError):
        from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
        from deepspeed.runtime.zero.partition_parameters import Init

        Init.param_id = 0
        DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
