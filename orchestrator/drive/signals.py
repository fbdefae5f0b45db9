"""A notice of preemption: the signals by which Slurm, Kubernetes and spot machines say goodbye."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import FrameType

from cluster.ranks.stop_request import hearing
from orchestrator.errors import Preempted


class Notice:
    """Reacts to the first signal; later ones change nothing, so that none interrupts a checkpoint.

    While stages run, a signal is only noted (`is_given`) and the controller stops them in order.
    Before and after that there is nothing to save: `Preempted` is raised on the spot.
    """

    def __init__(self) -> None:
        self.is_given = False
        self._is_deferred = False

    def listen(self) -> AbstractContextManager[None]:
        """Handle the signals inside the block; for the main thread."""
        return hearing(self._hear)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a signal inside the block; whoever is inside looks at `is_given`."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.is_given:
            return
        self.is_given = True
        if not self._is_deferred:
            raise Preempted
