"""What a rank runs: it joins `mae_core` with the journal and the attempt's directories.

The same function serves a warm Ray actor, `mae-study debug`, and plain `torchrun`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import importlib
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.ranks.actor import RankControl
from cluster.ranks.outcome import JsonObject
from mae_core.config import DataConfig
from mae_core.data.facts import DataFacts
from orchestrator.rank.faults import fault_hook
from orchestrator.rank.payload import StagePayload, StageResult
from orchestrator.store.journal import JOURNAL_FILE, JournalWriter
from orchestrator.store.records import digest_outputs

if TYPE_CHECKING:
    from mae_core.data.sources import ImageData
    from mae_core.runtime.context import RunContext
    from mae_core.runtime.metrics import Metrics

ENTRY = "orchestrator.rank.entry:run_stage"
WARM_ENTRY = "orchestrator.rank.entry:warm"
LOG_FILE = "rank{rank}.log"
LOOK_EVERY_S = 5.0
"""Between two looks whether the attempt was declared over."""


def warm(payload: JsonObject, control: RankControl) -> JsonObject:
    """Import what stages need, and make DeepSpeed's slow first engine with a toy."""
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401  (2 s, which a spare must not pay in a recovery)

    import mae_core.evaluate.finetune
    import mae_core.evaluate.knn
    import mae_core.evaluate.probes.linear_probe
    import mae_core.pretrain.masked  # noqa: F401
    from mae_core.train.deepspeed_engine import rehearse

    rehearse()
    # What is loaded now stays: collecting after each stage need not look at it again.
    gc.collect()
    gc.freeze()
    return {}


def run_stage(payload: JsonObject, control: RankControl) -> JsonObject:
    """Entry point of every gang: a `StagePayload` in, a `StageResult` out, both as JSON."""
    if isinstance(umask := payload.get("umask"), int):  # a node's Ray has one of its own
        os.umask(umask)
    directory = payload.get("directory") if payload.get("capture") else None
    with _accounted(Path(directory) if isinstance(directory, str) else None, control.rank):
        return _run(StagePayload.from_json(payload), control).to_json()


def run(payload: StagePayload, control: RankControl) -> StageResult:
    """Run one stage on this rank and return what rank 0 knows of it."""
    with _accounted(payload.directory if payload.capture else None, control.rank):
        return _run(payload, control)


@contextlib.contextmanager
def _accounted(directory: Path | None, rank: int) -> Iterator[None]:
    """Log what is said inside, and how it fails, below `directory`; leave the gang if it fails."""
    log = None if directory is None else directory / LOG_FILE.format(rank=rank)
    with _captured(log) if log else contextlib.nullcontext():
        try:
            yield
        except BaseException:
            if log:
                with contextlib.suppress(OSError):  # a full disk is no second failure
                    traceback.print_exc()  # into the log; elsewhere whoever called says it
            _close_group()
            raise


def _run(payload: StagePayload, control: RankControl) -> StageResult:
    from mae_core.runtime import collectives, plugins
    from mae_core.runtime.rng_state import seed_generators
    from mae_core.train import deepspeed_engine

    began = time.monotonic()
    recipe = payload.recipe
    control.beat("start", 0)
    with _journal(payload.directory, control.rank) as journal:
        context = _context(payload, control, journal)
        context.event("began", {})
        context.fault_point("start")
        seed_generators(0)  # a warm process must not differ from a new one
        plugins.allow(payload.extensions.roots, payload.extensions.digests)
        if control.world > 1 or recipe.TRAINS:
            deepspeed_engine.join_gang()
        data = _open_data(recipe.data, payload.facts)
        ready = time.monotonic()
        if not recipe.TRAINS:
            control.beat("evaluate", 0)
        module, _, name = recipe.ENTRY.partition(":")
        compute: Callable[..., Metrics] = getattr(importlib.import_module(module), name)
        metrics = compute(recipe, payload.execution, context, data)
        collectives.barrier()
    seconds = {"starting": ready - began, "working": time.monotonic() - ready}
    result = StageResult(metrics=metrics.to_json(), seconds=seconds)
    if control.rank == 0:
        result = dataclasses.replace(
            result,
            provenance=provenance() | {"execution": dataclasses.asdict(payload.execution)},
            outputs=digest_outputs(context.output_dir),
        )
        # Every rank is done, whatever becomes of their processes, their driver and Ray.
        result.leave(payload.directory)
    deepspeed_engine.leave_gang()
    return result


@contextlib.contextmanager
def _journal(directory: Path, rank: int) -> Iterator[JournalWriter | None]:
    """The attempt's journal, which is rank 0's to keep."""
    journal = JournalWriter(directory / JOURNAL_FILE) if rank == 0 else None
    try:
        yield journal
    finally:
        if journal:
            journal.close()


class _Fence:
    """Whether the store has declared this attempt over, as a driver does that takes over.

    This gang's own driver may be frozen, or cut off, and cannot stop it.
    """

    def __init__(self, payload: StagePayload) -> None:
        self._over_if_any = payload.over_if_any
        self._looked_at, self._is_over = -math.inf, False

    def is_over(self) -> bool:
        """Look now; before anything is committed."""
        self._looked_at = time.monotonic()
        self._is_over = self._is_over or any(path.exists() for path in self._over_if_any)
        return self._is_over

    def was_over(self) -> bool:
        """Look now and then; cheap enough for every step."""
        if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
            return self.is_over()
        return self._is_over


def _context(
    payload: StagePayload, control: RankControl, journal: JournalWriter | None
) -> RunContext:
    from mae_core.runtime.context import RunContext

    fence = _Fence(payload)
    return RunContext(
        output_dir=payload.directory / "outputs",
        checkpoint_dir=payload.checkpoints,
        science_hash=payload.science_hash,
        rank=control.rank,
        world=control.world,
        log_metrics=journal.write if journal else _drop,
        should_stop=lambda: control.stop_requested() or fence.was_over(),
        is_over=fence.is_over,
        grace_left_s=control.grace_left_s,
        beat=control.beat,
        event=journal.event if journal else _drop,
        fault_point=fault_hook(payload.faults, control.rank, payload.directory),
        attempt=payload.attempt,
        rollback=payload.rollback,
        parents=payload.parents,
    )


@functools.lru_cache(maxsize=4)
def _open_data(config: DataConfig, facts: DataFacts) -> ImageData:
    """Data stays open in a warm rank: the next stage often reads the same."""
    from mae_core.data.sources import open_data

    return open_data(config, facts)


def _drop(what: object, more: object) -> None:
    """Ranks above 0 keep no journal."""


def _close_group() -> None:
    """Leave a broken process group, so that the peers notice and this process can be reused."""
    with contextlib.suppress(Exception):
        from mae_core.train import deepspeed_engine

        deepspeed_engine.leave_gang()


@contextlib.contextmanager
def _captured(log: Path) -> Iterator[None]:
    """Send this process's stdout and stderr, C++ included, to `log` inside the block."""
    log.parent.mkdir(parents=True, exist_ok=True)
    saved = [os.dup(1), os.dup(2)]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    _flush()
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        _flush()
        for descriptor, number in zip(saved, (1, 2), strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(target)


def _flush() -> None:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()


@functools.cache
def provenance() -> JsonObject:
    """Versions and device that computed a result; the order-exactness of a run depends on them."""
    import importlib.metadata as metadata

    import torch

    packages = ("torch", "deepspeed", "numpy", "pyarrow", "pillow", "mae-study")
    versions = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else _cpu_name()
    return {
        "versions": versions | {"python": platform.python_version()},
        "device": device,
        "threads": torch.get_num_threads(),
        "host": platform.node(),
    }


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "CPU"
