"""Faults that a rehearsal plans: which rank does what to itself at which fault point.

A plan is data in an attempt's payload, so that a failure found once is found again. Without one,
fault points cost a function call.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mae_core.runtime.context import FAULT_POINTS

FAULT_LOG = "faults.jsonl"
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "notice": signal.SIGTERM}


@dataclass(frozen=True)
class Fault:
    """One rank sends itself a signal as it comes by a fault point for the `hit`-th time."""

    rank: int
    point: str
    """One of `mae_core.runtime.context.FAULT_POINTS`."""
    hit: int = 1
    action: str = "kill"
    """`kill`, `stop` (as if frozen) or `notice` (as a preemption announces itself)."""

    def __post_init__(self) -> None:
        if self.point not in FAULT_POINTS or self.action not in SIGNALS or self.hit < 1:
            raise ValueError(f"{self}: no such fault")


@dataclass(frozen=True)
class FaultNote:
    """What a rank notes of a fault before it does it."""

    fault: Fault
    at: float
    """Unix seconds."""
    steps: int
    """Steps that the rank had done in this attempt."""


def read_faults(directory: Path) -> list[FaultNote]:
    """Faults that ranks of an attempt noted, oldest first."""
    log = directory / FAULT_LOG
    lines = log.read_text().splitlines() if log.exists() else []
    notes = [json.loads(line) for line in lines]
    return [FaultNote(Fault(**note["fault"]), note["at"], note["steps"]) for note in notes]


FaultPlan = Callable[[int], Sequence[Fault]]
"""Faults of an attempt by its number, from 1."""


def fault_hook(plan: Sequence[Fault], rank: int, directory: Path) -> Callable[[str], None]:
    """Return what this rank calls at its fault points; it notes a fault in `directory` first."""
    mine = [fault for fault in plan if fault.rank == rank]
    hits: Counter[str] = Counter()

    def pass_by(point: str) -> None:
        hits[point] += 1
        for fault in mine:
            if (fault.point, fault.hit) == (point, hits[point]):
                note = FaultNote(fault, time.time(), hits["step"])
                with (directory / FAULT_LOG).open("a") as log:
                    log.write(json.dumps(asdict(note)) + "\n")
                os.kill(os.getpid(), SIGNALS[fault.action])

    return pass_by if mine else _nothing


def _nothing(point: str) -> None:
    """No fault is planned."""
