"""Which nodes are alive, which are about to go, and whether Ray's head is still there.

A question to a head that is gone blocks for a minute, and then Ray ends the program, even if it
has connected to another one meanwhile. So an embedded Ray, whose one node is the head, is not
asked: its processes are looked at. A cluster is asked by a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from cluster.errors import HeadLost

POLL_S = 2.0
SILENCE_LIMIT_S = 40.0
"""Without an answer for so long the head counts as lost; Ray ends the driver after 60 s."""
HEAD_PROCESSES = ("gcs_server", "raylet")


@dataclass(frozen=True)
class Nodes:
    """The last answer of Ray's head; nodes by their id."""

    alive: frozenset[str] = frozenset()
    draining: dict[str, float] = field(default_factory=dict)
    """Unix seconds at which a node will be gone; infinite where no time was given."""


def head_processes() -> dict[str, psutil.Process]:
    """The daemons of an embedded Ray by name: children of this process."""
    found = {_name(process): process for process in psutil.Process().children()}
    return {name: found[name] for name in HEAD_PROCESSES if name in found}


class NodeWatch:
    """Watches the processes of an embedded Ray's head, else asks the head every two seconds.

    Args:
        head: processes by name without which Ray is gone; empty where the head is not ours.
    """

    def __init__(self, head: Mapping[str, psutil.Process]) -> None:
        self._head = head
        self._nodes = Nodes()
        self._answered_at = time.monotonic()
        self._closed = threading.Event()
        if not head:
            threading.Thread(target=self._poll, name="node-watch", daemon=True).start()

    @property
    def nodes(self) -> Nodes:
        """The last answer; empty for an embedded Ray."""
        return self._nodes

    def check_head(self) -> None:
        """Raise `HeadLost` if the head is gone, or has not answered for 40 s."""
        gone = [name for name, process in self._head.items() if not _runs(process)]
        if gone:
            raise HeadLost(
                f"Ray's head is gone ({', '.join(gone)} ended); run the same command again: it "
                "continues from the last checkpoints"
            )
        if not self._head and time.monotonic() - self._answered_at > SILENCE_LIMIT_S:
            raise HeadLost(
                f"Ray's head has not answered for {SILENCE_LIMIT_S:.0f} s; check that its node "
                "runs and is reachable, then run the same command again"
            )

    def close(self) -> None:
        """Ask no more; returns at once."""
        self._closed.set()

    def _poll(self) -> None:
        while not self._closed.is_set():
            try:
                self._nodes = _ask()
                self._answered_at = time.monotonic()
            except Exception:  # a head that restarts: the silence counts
                pass
            self._closed.wait(POLL_S)


def _ask() -> Nodes:
    import ray
    from ray._private.state import state

    alive = frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])
    # Ray has no public call for this; its own training library reads it the same way.
    deadlines_ms = state.get_draining_nodes() or {}
    return Nodes(alive, {n: ms / 1000 if ms else float("inf") for n, ms in deadlines_ms.items()})


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.Error:
        return ""
