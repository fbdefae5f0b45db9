"""What a rank runs: it joins `mae_core` with the journal and the attempt's directories.

The same function serves a warm Ray actor, `mae-study debug`, and plain `torchrun`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.ranks.actor import RankControl
from orchestrator.rank.faults import fault_hook
from orchestrator.store.journal import JOURNAL_FILE, JournalWriter

if TYPE_CHECKING:
    from mae_core.data.sources import ImageData
    from mae_core.runtime.context import RunContext
    from mae_core.runtime.inputs import Parent
    from mae_core.runtime.metrics import Metrics

ENTRY = "orchestrator.rank.entry:run_stage"
WARM_ENTRY = "orchestrator.rank.entry:warm"
LOG_FILE = "rank{rank}.log"


def warm(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
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


def run_stage(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Run one stage on this rank and return what rank 0 knows of it.

    Payload: `recipe` (tagged by kind), `execution`, `facts`, `science_hash`, `directory` of the
    attempt, `checkpoints`, `parents` (name, kind, files, digests, metrics, recipe),
    `extensions` (`roots` to import the user's code from, `digests` of its sources), `capture`
    (redirect the process's output into the attempt's log), `lease_epoch`, `rollback`, and in a
    rehearsal `faults`.
    """
    directory = Path(payload["directory"])
    log = directory / LOG_FILE.format(rank=control.rank)
    scope = _captured(log) if payload.get("capture") else contextlib.nullcontext()
    with scope:
        try:
            return _run(payload, control, directory)
        except Exception:
            if payload.get("capture"):
                import traceback

                with contextlib.suppress(OSError):  # a full disk is no second failure
                    traceback.print_exc()  # into the log; elsewhere whoever called says it
            _close_group()
            raise


def _run(payload: dict[str, Any], control: RankControl, directory: Path) -> dict[str, Any]:
    from mae_core.runtime import collectives, plugins
    from mae_core.runtime.rng_state import seed_generators
    from mae_core.train import deepspeed_engine
    from studies.spec.codec import recipe_from_plain

    began = time.monotonic()
    control.beat("start", 0)
    with _journal(directory, control.rank) as journal:
        context = _context(payload, control, directory, journal)
        context.event("began", {})
        context.fault_point("start")
        seed_generators(0)  # a warm process must not differ from a new one
        recipe = recipe_from_plain(payload["recipe"])
        plugins.allow(**payload.get("extensions", {"roots": (), "digests": {}}))
        if control.world > 1 or recipe.TRAINS:
            deepspeed_engine.join_gang()
        data = _open_data(recipe.data, payload["facts"])
        ready = time.monotonic()
        if not recipe.TRAINS:
            control.beat("evaluate", 0)
        metrics = _dispatch(recipe, payload, context, data)
        collectives.barrier()
    deepspeed_engine.leave_gang()
    return {
        "metrics": metrics.to_json(),
        "seconds": {"starting": ready - began, "working": time.monotonic() - ready},
        "provenance": provenance() if control.rank == 0 else {},
    }


@contextlib.contextmanager
def _journal(directory: Path, rank: int) -> Iterator[JournalWriter | None]:
    """The attempt's journal, which is rank 0's to keep."""
    journal = JournalWriter(directory / JOURNAL_FILE) if rank == 0 else None
    try:
        yield journal
    finally:
        if journal:
            journal.close()


def _context(
    payload: dict[str, Any],
    control: RankControl,
    directory: Path,
    journal: JournalWriter | None,
) -> RunContext:
    from mae_core.runtime.context import RunContext

    return RunContext(
        output_dir=directory / "outputs",
        checkpoint_dir=Path(payload["checkpoints"]),
        science_hash=payload["science_hash"],
        rank=control.rank,
        world=control.world,
        log_metrics=journal.write if journal else _drop,
        should_stop=control.stop_requested,
        grace_left_s=control.grace_left_s,
        beat=control.beat,
        event=journal.event if journal else _drop_event,
        fault_point=fault_hook(payload.get("faults", ()), control.rank, directory),
        lease_epoch=payload.get("lease_epoch", 0),
        rollback=payload.get("rollback", 0),
        parents=_parents(payload),
    )


def _dispatch(
    recipe: Any, payload: dict[str, Any], context: RunContext, data: ImageData
) -> Metrics:
    from mae_core.config import Execution
    from studies.spec.codec import from_plain

    execution = from_plain(Execution, payload["execution"], "execution")
    module, _, name = recipe.ENTRY.partition(":")
    run: Callable[..., Metrics] = getattr(importlib.import_module(module), name)
    return run(recipe, execution, context, data)


def _parents(payload: dict[str, Any]) -> tuple[Parent, ...]:
    from mae_core.runtime.inputs import Parent

    return tuple(Parent.from_json(plain) for plain in payload.get("parents", ()))


def _open_data(config: Any, facts: dict[str, Any]) -> ImageData:
    return _cached_data(config, _frozen(facts))


@functools.lru_cache(maxsize=4)
def _cached_data(config: Any, facts: str) -> ImageData:
    """Data stays open in a warm rank: the next stage often reads the same."""
    import json

    from mae_core.data.facts import DataFacts
    from mae_core.data.sources import open_data

    return open_data(config, DataFacts.from_json(json.loads(facts)))


def _frozen(facts: dict[str, Any]) -> str:
    import json

    return json.dumps(facts, sort_keys=True)


def _drop(step: int, metrics: Any) -> None:
    """Ranks above 0 keep no journal."""


def _drop_event(name: str, fields: Any) -> None:
    """Events are rank 0's to keep."""


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
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
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
def provenance() -> dict[str, Any]:
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
