"""A training's side of its checkpoints: what goes in, what must come out again, what it cost.

Three levels of exactness, by what is equal between the gang that saved and the one that goes on:
*bit-exact* (same ranks, micro-batch, ZeRO stage, threads, versions, device), *order-exact* (same
samples and masks at every step; sums are done in another order), none (nothing to go on from).
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mae_core.checkpoint.commit import Checkpoints, Found
from mae_core.checkpoint.manifest import GangLayout, Manifest
from mae_core.checkpoint.universal import convert
from mae_core.config import STATE_FILE, BatchSplit, Execution, Precision
from mae_core.data.loader import I64
from mae_core.errors import CheckpointError, NumericsError
from mae_core.runtime import collectives
from mae_core.runtime.arrow_storage import open_storage
from mae_core.runtime.context import RunContext
from mae_core.train.deepspeed_engine import SHARDS, Engine, safe_types, software_versions
from mae_core.train.state import FILE, Inputs, TrainState, unpack

LEVEL_NONE, BIT_EXACT, ORDER_EXACT = "none", "bit-exact", "order-exact"
PROBE_TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "bf16-mixed": 2e-2, "bf16": 2e-2}
"""Relative, of the fixed batch's loss after a resume that is not bit-exact."""
Position = Callable[[int], dict[str, int]]


@dataclass(frozen=True)
class Resumed:
    """Where training goes on."""

    step: int
    level: str
    state: TrainState


@contextlib.contextmanager
def find_checkpoint(
    ctx: RunContext, execution: Execution, precision: Precision, batch: BatchSplit
) -> Iterator[Saver]:
    """Yield the saver of this training, which has found what there is to resume (collective)."""
    saver = Saver(ctx, execution, precision, batch)
    try:
        yield saver
    finally:
        saver.close()


class Saver:
    """Finds, restores and saves checkpoints of one training. Its methods are collective."""

    def __init__(
        self, ctx: RunContext, execution: Execution, precision: Precision, batch: BatchSplit
    ) -> None:
        self._ctx, self._precision = ctx, precision
        self._layout = _layout(execution, precision, batch)
        self._checkpoints: Checkpoints | None = None
        self._stall_s = 0.0
        self._found: Found | None = None
        self._began = time.monotonic()
        self.expected_s = 0.0
        """Seconds that a save took last time, from its begin to its commit."""
        where = _where(ctx, execution)
        if where is None:
            return
        self._storage = open_storage(where, ctx.fault_point)
        self._checkpoints = Checkpoints(
            self._storage,
            science_hash=ctx.science_hash,
            attempt=ctx.attempt,
            is_over=ctx.is_over,
            keep=execution.keep_checkpoints,
            types=safe_types(),
        )
        self._found = self._checkpoints.find(rollback=ctx.rollback)
        if self._found is not None:
            _check_stage(self._found, execution.zero_stage)

    @property
    def needs_conversion(self) -> bool:
        """True if the checkpoint is of another world size, whose shards DeepSpeed cannot read.

        Without ZeRO every rank saves the same, which any number of ranks reads.
        """
        saved = self._found and self._found.manifest.layout
        return bool(saved and saved.zero_stage > 0 and saved.world_size != collectives.world())

    @property
    def is_writing(self) -> bool:
        """True while this rank's part of a checkpoint is being written."""
        return self._checkpoints is not None and self._checkpoints.is_writing

    def restore(self, engine: Engine, probe: Inputs, position: Position) -> Resumed:
        """Load what was found and check that it is what was saved.

        Raises:
            CheckpointError: step, data position, weights or loss of the fixed batch differ.
        """
        found, checkpoints = self._found, self._checkpoints
        if found is None or checkpoints is None:
            self._ctx.event("restored", {"step": 0, "seconds": 0.0, "level": LEVEL_NONE})
            return Resumed(0, LEVEL_NONE, TrainState())
        manifest = found.manifest
        level = BIT_EXACT if manifest.layout == self._layout else ORDER_EXACT

        def read(path: Path) -> bytes | None:
            name = f"{SHARDS}/{path.name}"
            return checkpoints.verified(found, name) if name in manifest.files else None

        with self._readable(found, read) as directory:
            engine.load(directory, read)
        state = unpack(
            lambda name: checkpoints.verified(found, name),
            rank=collectives.rank(),
            world=collectives.world(),
            saved_world=manifest.layout.world_size,
        )
        self._assert_same(manifest, state, engine, probe, position, level)
        seconds = time.monotonic() - self._began
        self._ctx.event(
            "restored",
            {"step": manifest.step, "seconds": seconds, "level": level, "from": found.name},
        )
        return Resumed(manifest.step, level, state)

    def save(
        self,
        engine: Engine,
        state: TrainState,
        *,
        probe: Inputs,
        position: dict[str, int],
        next_ids: I64,
        wait: bool,
    ) -> str | None:
        """Copy the state aside and write it; return why it was not, None if all is well.

        Raises:
            NumericsError: the weights no longer give a finite loss. Nothing is committed then.
        """
        if self._checkpoints is None:
            return "there is no place for checkpoints"
        began = time.monotonic()
        self._ctx.fault_point("save")
        self.settle(wait=True)
        loss = engine.probe(probe)
        # A loss says how the weights were before their update; this one says how they are now.
        if any(collectives.any_rank(not math.isfinite(loss))):
            raise NumericsError(
                f"the weights after step {state.data_step} give no finite loss: they are not saved"
            )
        facts = Manifest(
            step=state.data_step,
            science_hash=self._ctx.science_hash,
            attempt=self._ctx.attempt,
            layout=self._layout,
            position=position,
            parameter_digest=engine.parameter_digest(),
            probe_loss=loss,
        )
        files = engine.shards() | {FILE.format(rank=collectives.rank()): state.pack(next_ids)}
        problem = self._checkpoints.begin(facts, self._checkpoints.copy(files))
        self._stall_s = time.monotonic() - began
        self._ctx.fault_point("copied")
        if problem:
            self._say_skipped(facts.step, problem)
            return problem
        return self.settle(wait=True) if wait else None

    def settle(self, *, wait: bool = False) -> str | None:
        """Commit what has been written; return why that failed, None if all is well.

        Without `wait` the caller knows that no rank is writing any more.
        """
        if self._checkpoints is None or not self._checkpoints.is_pending:
            return None
        began = time.monotonic()
        saved = self._checkpoints.commit()
        self._stall_s += time.monotonic() - began
        self.expected_s = max(saved.write_s, self._stall_s)
        self._ctx.fault_point("committed")
        if saved.problem:
            self._say_skipped(saved.step, saved.problem)
            return saved.problem
        fields = {"bytes": saved.num_bytes, "write_s": saved.write_s, "stall_s": self._stall_s}
        self._ctx.event("saved", {"step": saved.step, **fields})
        return None

    def record_state(self) -> None:
        """Leave the digests of the last checkpoint with the outputs: equal files, equal state."""
        assert self._checkpoints is not None
        found = self._checkpoints.find()
        if found is None or collectives.rank() != 0:
            return
        manifest = found.manifest
        content = {
            "step": manifest.step,
            "position": manifest.position,
            "parameter_digest": manifest.parameter_digest,
            "probe_loss": manifest.probe_loss,
            "files": {name: asdict(entry) for name, entry in manifest.files.items()},
        }
        text = json.dumps(content, sort_keys=True, indent=1)
        (self._ctx.output_dir / STATE_FILE).write_text(text)

    def close(self) -> None:
        """End the writing thread."""
        if self._checkpoints is not None:
            self._checkpoints.close()

    def _say_skipped(self, step: int, problem: str) -> None:
        self._ctx.event("save_skipped", {"step": step, "reason": problem})

    @contextlib.contextmanager
    def _readable(self, found: Found, read: Callable[[Path], bytes | None]) -> Iterator[Path]:
        """Yield a local directory with the shards in the form that this gang loads."""
        local = self._storage.local(found.name)
        if not self.needs_conversion and local is not None:
            yield local
            return
        # Scratch is shared where checkpoints are; else every rank makes its own.
        makes = collectives.rank() == 0 or local is None
        base = local.parent if local else Path(tempfile.gettempdir())
        unique = collectives.broadcast_object(f"{self._ctx.science_hash[:16]}-{uuid.uuid4().hex}")
        scratch = base / f"resuming-{unique}-{collectives.rank() if local is None else 0}"
        problem = None
        try:
            if makes:
                problem = self._prepare(found, read, local, scratch)
            problems = [p for p in collectives.all_gather_object(problem) if p is not None]
            if problems:
                what = f"conversion to {collectives.world()} ranks failed"
                why = f"{type(problems[0]).__name__}: {problems[0]}"
                raise CheckpointError(f"checkpoint {found.name}: {what} ({why})") from problems[0]
            yield scratch
            collectives.barrier()
        finally:
            if makes:
                shutil.rmtree(scratch, ignore_errors=True)

    def _prepare(
        self, found: Found, read: Callable[[Path], bytes | None], local: Path | None, scratch: Path
    ) -> Exception | None:
        """Fetch and convert; return what went wrong, for the other ranks to hear."""
        shutil.rmtree(scratch, ignore_errors=True)
        source = local / SHARDS if local else scratch / "fetched" / SHARDS
        try:
            if local is None:
                self._fetch(found, source)
            if self.needs_conversion:
                convert(source, scratch / SHARDS, read, safe_types())
            else:
                source.rename(scratch / SHARDS)
        except Exception as error:  # DeepSpeed's converter raises whatever it meets
            is_plain = type(error).__module__ == "builtins"  # others may not pickle
            return error if is_plain else RuntimeError(f"{type(error).__name__}: {error}")
        return None

    def _fetch(self, found: Found, target: Path) -> None:
        assert self._checkpoints is not None
        target.mkdir(parents=True)
        for name in found.manifest.files:
            if name.startswith(f"{SHARDS}/"):
                content = self._checkpoints.verified(found, name)
                (target / Path(name).name).write_bytes(content)

    def _assert_same(
        self,
        manifest: Manifest,
        state: TrainState,
        engine: Engine,
        probe: Inputs,
        position: Position,
        level: str,
    ) -> None:
        """Raise on every rank unless the loaded state is the saved one."""
        differences = []
        if (state.data_step, state.lr_step) != (manifest.step, manifest.step):
            differences.append(f"step {state.data_step}/{state.lr_step}, not {manifest.step}")
        if position(manifest.step) != manifest.position:
            differences.append(f"data {position(manifest.step)}, not {manifest.position}")
        digest = engine.parameter_digest()
        if digest != manifest.parameter_digest:
            differences.append(f"weights {digest[:12]}, not {manifest.parameter_digest[:12]}")
        loss = engine.probe(probe)
        tolerance = 0.0 if level == BIT_EXACT else PROBE_TOLERANCE[self._precision]
        if not abs(loss - manifest.probe_loss) <= tolerance * abs(manifest.probe_loss):
            differences.append(f"loss of the fixed batch {loss!r}, not {manifest.probe_loss!r}")
        found = [d for part in collectives.all_gather_object(differences) for d in part]
        if found:
            raise CheckpointError(
                f"resuming from step {manifest.step} did not restore what was saved: {found[0]}; "
                "nothing was trained on it"
            )


def _where(ctx: RunContext, execution: Execution) -> str | Path | None:
    if ctx.checkpoint_dir is None or execution.checkpoint_uri is None:
        return ctx.checkpoint_dir
    return f"{execution.checkpoint_uri.rstrip('/')}/{ctx.science_hash}"


def _layout(execution: Execution, precision: Precision, batch: BatchSplit) -> GangLayout:
    device = collectives.device()
    cuda = device.type == "cuda"
    return GangLayout(
        world_size=collectives.world(),
        zero_stage=execution.zero_stage,
        micro_batch=batch.micro,
        accumulation=batch.accumulation,
        precision=precision,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        versions=software_versions(),
    )


def _check_stage(found: Found, zero_stage: int) -> None:
    saved = found.manifest.layout.zero_stage
    if saved != zero_stage:
        raise CheckpointError(
            f"checkpoint {found.name} was written with ZeRO stage {saved}, not {zero_stage}: "
            f"run with execution.zero_stage={saved}"
        )
