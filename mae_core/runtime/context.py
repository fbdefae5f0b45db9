"""What a running stage is given by its surroundings: callables and places, nothing more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mae_core.errors import ConfigError
from mae_core.runtime.inputs import Parent, find_input
from mae_core.runtime.json_values import Json

SECTIONS = ("start", "restore", "load", "step", "save", "finish", "evaluate")
"""What a rank can be at; a limit of time is learned for each."""

FAULT_POINTS = (
    "start",
    "restore",
    "load",
    "step",
    "log",
    "save",
    "copied",
    "write",
    "fsync",
    "rename",
    "delete",
    "committed",
    "finish",
)
"""Where a fault can be rehearsed, in the order in which a training first comes by."""


def _ignore_metrics(step: int, metrics: Mapping[str, float]) -> None:
    """Drop metrics: the sink of a run without an observer."""


def _never() -> bool:
    return False


def _no_fault(name: str) -> None:
    """Do nothing at a fault point."""


def _no_beat(section: str, step: int) -> None:
    """Report to no one: a run without an observer."""


def _no_event(name: str, fields: Mapping[str, Json]) -> None:
    """Drop an event."""


def _for_ever() -> float:
    return math.inf


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The seam between `mae_core` and whoever runs it (rank entry point, debugger, test)."""

    output_dir: Path
    """Where the stage leaves its files; the same directory on every rank, rank 0 writes."""
    checkpoint_dir: Path | None = None
    """Where checkpoints are committed and found; None = no checkpoints."""
    science_hash: str = ""
    """Identity that a checkpoint must carry to be resumed from."""
    rank: int = 0
    world: int = 1
    log_metrics: Callable[[int, Mapping[str, float]], None] = field(default=_ignore_metrics)
    """`log_metrics(step, {"loss": 0.7})`; called on every rank, cheap, never blocks."""
    should_stop: Callable[[], bool] = field(default=_never)
    """True once this rank was asked to stop; the ranks agree on the step."""
    fault_point: Callable[[str], None] = field(default=_no_fault)
    """Called by name where a fault may be rehearsed; a no-op outside rehearsals."""
    beat: Callable[[str, int], None] = field(default=_no_beat)
    """`beat(section, step)` as a section of `SECTIONS` begins, `step` updates being done."""
    event: Callable[[str, Mapping[str, Json]], None] = field(default=_no_event)
    """`event("saved", {...})`: something worth keeping in the journal that is no metric."""
    grace_left_s: Callable[[], float] = field(default=_for_ever)
    """Seconds until this process is ended whatever it does; infinite without a notice."""
    attempt: int = 0
    """Its number; part of the names of checkpoints."""
    is_over: Callable[[], bool] = field(default=_never)
    """True once the attempt was declared over, though this gang lives: commit nothing more."""
    rollback: int = 0
    """Newest checkpoints to pass over: the remedy after numerics went wrong."""
    parents: tuple[Parent, ...] = ()
    """Finished stages that this one reads."""

    def input(self, file: str) -> Path | None:
        """Path of the parents' output of that name, verified; None if no parent has it."""
        return find_input(self.parents, file)

    def required(self, file: str, message: str) -> Path:
        """Path of an input, verified; `ConfigError(message)` if no parent has it."""
        path = self.input(file)
        if path is None:
            raise ConfigError(message)
        return path
