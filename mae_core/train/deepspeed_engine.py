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
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn

from mae_core.checkpoint.shards import read_shard
from mae_core.checkpoint.universal import ShardReader, restricted
from mae_core.checkpoint.weights_checksum import combine, partial_sums
from mae_core.config import BatchSplit, OptimizerConfig, Precision
from mae_core.errors import CheckpointError, NumericsError
from mae_core.runtime import collectives, rendezvous
from mae_core.train.optim import ParamGroup, build_optimizer, set_lr

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
SHARDS = "shards"
"""Folder of DeepSpeed's files within a checkpoint."""
MODULE_SHARD = "mp_rank_00_model_states.pt"
"""Of rank 0 below ZeRO-3: the module as it is, on every rank alike."""
GroupSettings = dict[str, object]
"""Of a parameter group, as torch keeps it."""
_LINEAR = nn.functional.linear


def boot() -> ModuleType:
    """Import DeepSpeed once, without its slow extras, and return the module.

    A rank never compiles extensions (a killed build leaves a lock that hangs the next run) and
    never imports mlflow, which DeepSpeed's autotuner would pull in (2 s and 120 MB).
    """
    if loaded := sys.modules.get("deepspeed"):
        return loaded
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
    return sys.modules["deepspeed"]


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
    """Open the process group that the variables of `mae_core.runtime.rendezvous` describe.

    Raises:
        ConfigError: GLOO_SOCKET_IFNAME names no interface of this machine.
        RendezvousError: the ranks do not find, or do not reach, each other.
    """
    deepspeed, init_method = boot(), rendezvous.init_method()
    if torch.cuda.is_available():
        torch.cuda.set_device(collectives.device())
    try:
        deepspeed.init_distributed(
            dist_backend=collectives.backend(),
            auto_mpi_discovery=False,
            timeout=COLLECTIVE_TIMEOUT,
            verbose=False,
            init_method=init_method,
        )
        collectives.open_control_group()
    except RuntimeError as error:  # torch's DistError, and what gloo's C++ raises
        raise rendezvous.not_met(error) from error


def leave_gang() -> None:
    """Close the process group so that this process can join another one.

    DeepSpeed's own call, not torch's: its cached groups must go too.
    """
    if collectives.is_initialised():
        collectives.forget_control_group()
        boot().comm.destroy_process_group()


class Engine:
    """One model under DeepSpeed's engine.

    What `Precision` means is made here. In "bf16" DeepSpeed rounds the parameters and trains fp32
    masters of them; "bf16-mixed" is fp32 to DeepSpeed, and the module's forward autocasts.

    Args:
        module: `forward(*inputs)` returns a scalar loss.
        groups: parameters with their weight decay and share of the learning rate.
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
        universal: bool = False,
    ) -> None:
        deepspeed = boot()
        self._zero_stage, self._universal = zero_stage, universal
        self._has_masters = precision == "bf16"
        if zero_stage == 3:
            _reset_zero3_counters()
        self.device = collectives.device()
        module.to(self.device)
        given = {name: p.detach() for name, p in module.named_parameters()}
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        self._frozen = {n: p.float().cpu() for n, p in given.items() if n not in trained}
        if precision == "bf16-mixed":
            # Within the module: DeepSpeed ends any autocast that surrounds its own forward.
            autocast = torch.autocast(self.device.type, torch.bfloat16)
            module.forward = autocast(module.forward)
        config: dict[str, object] = {
            "train_batch_size": batch.global_batch,
            "train_micro_batch_size_per_gpu": batch.micro,
            "gradient_accumulation_steps": batch.accumulation,
            "gradient_clipping": optimizer.clip_grad_norm or 0.0,
            "bf16": {"enabled": precision == "bf16"},
            "zero_optimization": {"stage": zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": sys.maxsize,
            "checkpoint": {"load_universal": universal},
        }
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=build_optimizer(optimizer, groups, peak_lr), config=config
        )
        if self._has_masters:
            self._set_masters({name: given[name] for name in trained})
        self._io = _shard_io()
        self._engine.checkpoint_engine = self._io
        self._engine._copy_recovery_script = lambda _: None

    @property
    def module(self) -> nn.Module:
        """The network as it is in training; under ZeRO-3 its weights are gathered as it runs."""
        module: nn.Module = self._engine.module
        return module

    def step(self, micro_inputs: Iterable[tuple[torch.Tensor, ...]], lr: float) -> torch.Tensor:
        """Do one optimizer update; return this rank's mean loss, a detached scalar.

        Raises:
            NumericsError: DeepSpeed has left the update out, since a gradient is not finite.
                It does so in silence, and the loss may stay finite, at the weights as they were.
        """
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
        if self._engine.skipped_steps:
            raise NumericsError(
                f"the gradients of step {self._engine.global_steps} are not finite; "
                "lower the learning rate, clip gradients or use fp32"
            )
        return total.float() / count

    def grad_norm(self) -> float | None:
        """Global gradient norm of the last update, where DeepSpeed computed one."""
        norm = self._engine.get_global_grad_norm()
        return None if norm is None else float(norm)

    def full_state(self) -> dict[str, torch.Tensor]:
        """Return all weights in fp32 on the CPU, on every rank (collective), by parameter name."""
        return {name: weight.float().cpu().clone() for name, weight in self.weights()}

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the weights that are trained, and the frozen ones, by name (collective).

        Never what bf16 rounded for the forward pass: masters, and frozen ones as they were given.
        In "bf16" under ZeRO-1 to 3, and always under ZeRO-3, each costs an exchange between ranks.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        parameters = dict(self._engine.module.named_parameters())
        own = self._unfused_masters() if self._zero_stage == 0 and self._has_masters else parameters
        is_divided = self._zero_stage == 3 or (self._has_masters and self._zero_stage > 0)
        for name, parameter in parameters.items():
            if name in self._frozen:
                yield name, self._frozen[name]
            elif is_divided:
                yield name, safe_get_full_fp32_param(parameter).reshape(_shape(parameter))
            else:
                yield name, own[name].detach()

    def _set_masters(self, given: Mapping[str, torch.Tensor]) -> None:
        """Start the masters at the weights as they were given.

        DeepSpeed copies its masters from what it has rounded to bf16 (0.19.8): without this, every
        initialisation and every encoder that is fine-tuned would start rounded.
        """
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if self._zero_stage == 0:
            for name, master in self._unfused_masters().items():
                master.data.copy_(given[name])
            # It made its state by a step without gradients, which counts and decays the weights.
            self._engine.optimizer.optimizer.state.clear()
            return
        for name, parameter in self._engine.module.named_parameters():
            if name not in given:
                continue
            if self._zero_stage == 3:
                safe_set_local_fp32_param(parameter, _own_part(parameter, given[name]))
            else:
                safe_set_full_fp32_param(parameter, given[name])

    def _unfused_masters(self) -> dict[str, torch.Tensor]:
        """Masters of bf16 without ZeRO, by name; DeepSpeed's functions for masters know none."""
        wrapper = self._engine.optimizer
        names = {id(p): name for name, p in self._engine.module.named_parameters()}
        pairs = zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
        return {
            names[id(p)]: master
            for rounded, masters in pairs
            for p, master in zip(rounded, masters, strict=True)
        }

    def shards(self) -> dict[str, object]:
        """Return what this rank saves (collective): file name → tree, still the live tensors."""
        self._io.captured = {}
        self._engine.save_checkpoint(".", tag=SHARDS, save_latest=False)
        captured, self._io.captured = self._io.captured, {}
        return captured

    def load(self, directory: Path, read: ShardReader) -> None:
        """Load a checkpoint of this world size, or a universal one (collective).

        Args:
            directory: holds the folder `shards`.
            read: verified content of a shard.
        """
        self._io.read = read
        settings = self._optimizer_settings()
        with restricted(read, safe_types()):
            loaded, _ = self._engine.load_checkpoint(str(directory), tag=SHARDS)
        if loaded is None:
            raise CheckpointError(f"DeepSpeed found no checkpoint in {directory}")
        if self._universal and self._zero_stage == 3:
            self._repair_zero3(settings)
        elif self._universal:
            self._load_untrained(read)

    def _load_untrained(self, read: ShardReader) -> None:
        """Load buffers and frozen parameters, which the universal loader leaves as they are."""
        content = read(Path(MODULE_SHARD))
        if content is None:
            raise CheckpointError(f"{MODULE_SHARD} is not part of the checkpoint")
        saved = read_shard(content, MODULE_SHARD, safe_types())["module"]
        module = self._engine.module
        left = dict(module.named_buffers())
        left |= {n: p.data for n, p in module.named_parameters() if not p.requires_grad}
        for name in left.keys() & saved.keys():
            left[name].copy_(saved[name])

    def _optimizer_settings(self) -> list[list[GroupSettings]]:
        return [
            [{k: v for k, v in g.items() if k != "params"} for g in groups]
            for groups in self._group_lists()
        ]

    def _group_lists(self) -> list[list[GroupSettings]]:
        optimizer = self._engine.optimizer
        inner = getattr(optimizer, "optimizer", optimizer)
        return [optimizer.param_groups, inner.param_groups]

    def _repair_zero3(self, settings: list[list[GroupSettings]]) -> None:
        """Undo what the universal loader of ZeRO-3 does wrong (DeepSpeed 0.19.8).

        It copies the first group's settings to all groups, and gives all sub-groups one and the
        same `step` tensor, which each of them then advances.
        """
        for groups, kept in zip(self._group_lists(), settings, strict=True):
            for group, values in zip(groups, kept, strict=True):
                group.update(values)
        inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        for state in inner.state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    def parameter_digest(self) -> str:
        """Checksum of all weights, whatever their division over ranks (collective)."""
        parameters = list(self._engine.module.parameters())
        if self._zero_stage == 3:
            slices = [_own_slice(i, p) for i, p in enumerate(parameters)]
        else:  # every rank has all of them: each sums a share
            own = range(collectives.rank(), len(parameters), collectives.world())
            slices = [(i, parameters[i].detach(), 0) for i in own]
        return combine(collectives.all_gather_object(partial_sums(slices)))

    def probe(self, inputs: tuple[torch.Tensor, ...]) -> float:
        """Loss of a batch without learning from it (collective under ZeRO-3)."""
        self._engine.eval()
        try:
            with torch.no_grad():
                return float(self._engine(*inputs))
        finally:
            self._engine.train()

    def close(self) -> None:
        """Release the engine's memory and hooks."""
        self._engine.module.__dict__.pop("forward", None)
        self._engine.destroy()
        # ZeRO-3 replaces it for good, which would change the bits of every later stage here.
        nn.functional.linear = _LINEAR


def rehearse() -> None:
    """Train a toy for a step, alone: a process's first engine costs 1-2 s, later ones 0.1 s."""
    os.environ.setdefault("LOCAL_RANK", "0")
    with tempfile.TemporaryDirectory() as directory:
        boot().init_distributed(
            dist_backend=collectives.backend(),
            auto_mpi_discovery=False,
            verbose=False,
            init_method=f"file://{directory}/rendezvous",
            rank=0,
            world_size=1,
        )
        toy = nn.Linear(4, 1)
        groups = [ParamGroup(list(toy.parameters()), weight_decay=0.0)]
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


class _ShardIo(Protocol):
    """What stands between DeepSpeed and files."""

    captured: dict[str, object]
    read: ShardReader


def _shard_io() -> _ShardIo:
    """DeepSpeed's seam for checkpoint files: saving collects, loading reads what was verified."""
    from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

    class ShardIo(CheckpointEngine):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.captured: dict[str, object] = {}
            self.read: ShardReader = lambda path: None

        def create(self, info: object) -> None:
            """Nothing to prepare."""

        def makedirs(self, path: str, exist_ok: bool = False) -> None:
            """Nothing is written where DeepSpeed says."""

        def save(self, state_dict: object, path: str) -> None:
            self.captured[f"{SHARDS}/{Path(path).name}"] = state_dict

        def load(self, path: str, map_location: object = None) -> object:
            content = self.read(Path(path))
            if content is None:
                raise CheckpointError(f"{path} is not part of the checkpoint that was verified")
            return read_shard(content, Path(path).name, safe_types())

        def commit(self, info: object) -> bool:
            return True

    return ShardIo()


def software_versions() -> dict[str, str]:
    """Versions that the bits of a training depend on."""
    return {"torch": str(torch.__version__), "deepspeed": str(boot().__version__)}


def safe_types() -> list[type]:
    """The types, beyond torch's own, that a DeepSpeed shard holds."""
    boot()
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def _own_slice(number: int, parameter: Any) -> tuple[int, torch.Tensor, int]:
    """This rank's slice of a parameter under ZeRO-3, without the padding."""
    shard = parameter.ds_tensor
    begin = collectives.rank() * shard.numel()
    length = max(0, min(shard.numel(), parameter.ds_numel - begin))
    return number, shard.detach().reshape(-1)[:length], begin


def _own_part(parameter: Any, value: torch.Tensor) -> torch.Tensor:
    """This rank's slice of a whole value under ZeRO-3, with zeros for the padding."""
    length = parameter.ds_tensor.numel()
    padded = value.new_zeros(length * collectives.world())
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, length * collectives.rank(), length)


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
