"""Why a rank process should stop, and how long it has: asked by its driver, or by a signal.

A signal (SIGTERM of a scheduler, SIGUSR1 and SIGUSR2 of Slurm, SIGHUP of a terminal that closes)
says that the process will be ended whatever it does, so it holds for every run of this process and
for the rest of its life.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

GRACE_VARIABLE = "MAE_STUDY_GRACE_S"
"""Seconds between a signal and the end of the process."""
DEFAULT_GRACE_S = 30.0
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
PREEMPTED = "preempted"


def heard_signals() -> tuple[signal.Signals, ...]:
    """Those of `SIGNALS` that this process should hear: `nohup` says that SIGHUP means nothing."""
    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(number for number in SIGNALS if not (number == signal.SIGHUP and is_ignored))


@contextlib.contextmanager
def hearing(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle these signals inside the block; for the main thread."""
    previous = {number: signal.signal(number, handler) for number in heard_signals()}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextlib.contextmanager
def deaf_children() -> Iterator[None]:
    """Start processes inside that do not hear what a terminal or Slurm sends to all of a job.

    Such a signal ends a daemon of Ray's at once, and the gang with it, before a checkpoint is
    committed. SIGTERM they hear: it is how they are ended in order.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set(SIGNALS) - {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def grace_s() -> float:
    """Seconds between a signal and the end: `MAE_STUDY_GRACE_S`, else 30."""
    try:
        return float(os.environ[GRACE_VARIABLE])
    except (KeyError, ValueError):
        return DEFAULT_GRACE_S


class StopRequests:
    """Requests to stop, by run, and the notice that the whole process is going.

    Read by the stage's thread while the main thread takes signals: every write is one assignment.
    """

    def __init__(self) -> None:
        self._requests: dict[str, tuple[str, float]] = {}
        self._signalled_until: float | None = None

    def listen(self) -> None:
        """Take the signals, in the place of Ray's handler that ends the process on the spot.

        Raises:
            ValueError: not called from the main thread.
        """
        for number in heard_signals():
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # see `deaf_children`

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signalled_until is None:  # a second signal does not shorten the grace
            self._signalled_until = time.monotonic() + grace_s()

    @property
    def is_process_going(self) -> bool:
        """True once a signal said that this process will be ended."""
        return self._signalled_until is not None

    def request(self, run_id: str, reason: str, grace: float | None) -> None:
        """Ask a run to stop, also one that has not begun.

        The first request stands, but a preemption, which ends the process, outranks the others.
        """
        deadline = math.inf if grace is None else time.monotonic() + grace
        if run_id not in self._requests or reason == PREEMPTED:
            self._requests[run_id] = (reason, deadline)

    def reason(self, run_id: str) -> str | None:
        """Why the run should stop: "preempted", "cancelled", "resize", or None."""
        if self._signalled_until is not None:
            return PREEMPTED
        request = self._requests.get(run_id)
        return request[0] if request else None

    def grace_left_s(self, run_id: str) -> float:
        """Seconds until the process is ended whatever it does; infinite without a notice."""
        until = self._signalled_until
        deadline = self._requests.get(run_id, ("", math.inf))[1]
        if until is not None:
            deadline = min(deadline, until)
        return max(0.0, deadline - time.monotonic())

    def forget(self, run_id: str) -> None:
        """Drop the requests of a run that is over."""
        self._requests.pop(run_id, None)
