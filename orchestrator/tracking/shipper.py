"""The driver's handle on the process that ships runs to MLflow."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from ctypes import c_uint64
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.queues import Queue

from cluster.ranks.stop_request import deaf_children
from orchestrator.tracking.mlflow_database import Destination
from orchestrator.tracking.run_values import RunUpdate
from orchestrator.tracking.ship_loop import PATIENCE_S, RESEND, End, ship
from orchestrator.tracking.uri import check_uri

STALL_S = 60.0
"""A process that was asked to end and makes no progress for this long is killed."""
RESTARTS = 5
"""A process that died is replaced this often."""


class Shipper:
    """A process that follows journals and ships them; training and controller never wait for it.

    A separate process, at low priority: MLflow's client costs seconds of import and tens of
    milliseconds of Python per call, which neither the controller nor a rank should pay. If it
    dies, another one starts again from the journals.

    Args:
        restarts: how often one that died is replaced.

    Raises:
        TrackingError: the URI or its server cannot be used, and waiting will not help.
    """

    def __init__(self, to: Destination, restarts: int = RESTARTS) -> None:
        self.absent = check_uri(to.uri)
        """Why the server does not answer now; None if it does."""
        self._to = to
        self._context = multiprocessing.get_context("spawn")
        self._progress: c_uint64 = self._context.RawValue(c_uint64, 0)
        self._updates: dict[str, RunUpdate] = {}
        """The last word on every run, for a process that starts again."""
        self._restarts, self._max_restarts = 0, restarts
        self._begin()

    @property
    def pid(self) -> int:
        """Process id of the process that works now."""
        return self._process.pid or 0

    def _begin(self) -> None:
        with deaf_children():  # multiprocessing has one of its own, too
            self._start_process()
        self._began = time.monotonic()
        for update in self._updates.values():
            self._work.put(update)

    def _start_process(self) -> None:
        self._work: Queue[RunUpdate | End] = self._context.Queue()
        # At exit nobody waits until a process that is gone has read its queue; `close` waits for
        # the answer, which comes after everything was read.
        self._work.cancel_join_thread()
        self._answer, answer = self._context.Pipe(duplex=False)
        arguments = (self._to, self._work, answer, self._progress, os.getpid())
        self._process = self._context.Process(
            target=ship, args=arguments, name="shipper", daemon=True
        )
        with _without_main_module():
            self._process.start()
        answer.close()  # the child has the only end now: its death is seen

    def tend(self) -> None:
        """Put another process in the place of one that died; call it now and then."""
        pause_s = 2.0**self._restarts
        if self._process.is_alive() or time.monotonic() - self._began < pause_s:
            return
        self._replace()

    def _replace(self) -> bool:
        """Restart after a death; False if that was done too often."""
        if self._restarts >= self._max_restarts:
            return False
        self._restarts += 1
        self._process.join()
        self._work.close()
        self._answer.close()
        self._begin()
        return True

    def send(self, update: RunUpdate) -> None:
        """Have something shipped; it replaces what was said of that run before, but for its info.

        Of that only the parent may change: a run stays what it was made as.
        """
        identity = update.info.identity
        if (older := self._updates.get(identity)) is not None:
            info = replace(older.info, parent=update.info.parent)
            update = replace(update, info=info)
        self._updates[identity] = update
        if self._process.is_alive():
            self._work.put(update)

    def close(self, stall_s: float = STALL_S, patience_s: float = PATIENCE_S) -> str | None:
        """Ship what is left; return what is missing, None if everything arrived.

        However much it is, it may take its time. An unreachable server is waited for `patience_s`
        (15 s at most if it has never answered); without any progress for `stall_s` the process is
        killed.
        """
        problem = self._wait(stall_s, patience_s)
        self._process.join(5)
        self.abandon()
        return problem

    def abandon(self) -> None:
        """End the process, whatever is left to ship."""
        if self._process.is_alive():
            self._process.kill()
            self._process.join(5)
        self._work.close()
        self._answer.close()

    def _wait(self, stall_s: float, patience_s: float) -> str | None:
        self._work.put(End(patience_s))
        seen, since = self._progress.value, time.monotonic()
        while time.monotonic() - since < stall_s:
            if wait([self._answer, self._process.sentinel], timeout=min(1.0, stall_s)):
                try:
                    problem: str | None = self._answer.recv()
                    return problem
                except (EOFError, OSError):
                    self._process.join(5)
                    code = self._process.exitcode
                if not self._replace():
                    others = f"; so did {self._restarts} before it" if self._restarts else ""
                    return f"the shipping process died (exit code {code}){others}{RESEND}"
                self._work.put(End(patience_s))
                since = time.monotonic()
            if self._progress.value != seen:
                seen, since = self._progress.value, time.monotonic()
        self._process.kill()
        return f"shipping made no progress for {stall_s:g} s{RESEND}"


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep a spawned process from running the caller's script again."""
    main = sys.modules["__main__"]
    names: tuple[str, ...] = ("__file__", "__spec__")
    saved = {name: vars(main)[name] for name in names if name in vars(main)}
    try:
        main.__file__, main.__spec__ = None, None
        yield
    finally:
        del main.__file__, main.__spec__  # `python -c` has no file, and Ray takes None for one
        vars(main).update(saved)
