"""One rank: a warm process that runs one opaque entry point after another."""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from cluster.ranks.environment import visible_devices
from cluster.ranks.heartbeat import Heartbeat, HeartbeatRecorder
from cluster.ranks.inspect_process import STACKS_LIMIT, register_stacks
from cluster.ranks.meeting_point import MeetingPoint
from cluster.ranks.outcome import JsonObject, RankError, RankOutcome, describe
from cluster.ranks.stop_request import StopRequests

Entry = Callable[[JsonObject, "RankControl"], JsonObject]


@dataclass(frozen=True)
class RankControl:
    """What an entry point may ask of the process it runs in."""

    rank: int
    world: int
    stop_requested: Callable[[], bool]
    grace_left_s: Callable[[], float] = lambda: math.inf
    """Seconds until the process is ended whatever it does; infinite without a notice."""
    beat: Callable[[str, int], None] = lambda section, step: None
    """`beat(section, step)`: a section of the stage begins, `step` steps being done."""


def load_entry(name: str) -> Entry:
    """Import `package.module:function`."""
    module, _, function = name.partition(":")
    entry: Entry = getattr(importlib.import_module(module), function)
    return entry


@dataclass(frozen=True)
class RankAnswer:
    """What a rank process is at."""

    run_id: str
    """Run that it works on, "" if none."""
    is_going: bool
    """A signal said that it will be ended."""
    heartbeat: Heartbeat


@dataclass(frozen=True)
class ProcessInfo:
    """A rank process as it says itself."""

    pid: int
    devices: tuple[str, ...]
    stacks_fd: int
    """File of the process into which it writes its stacks; see `inspect_process`."""
    node: str = ""
    node_ip: str = ""


class RankProcess:
    """Body of the Ray actor; plain Python, so that it can be tested without Ray."""

    def __init__(self) -> None:
        self._stop_requests = StopRequests()
        self._stop_requests.listen()
        self._stacks = register_stacks()
        self._run_id = ""
        self._recorder = HeartbeatRecorder()
        self._meeting: MeetingPoint | None = None

    def info(self) -> ProcessInfo:
        """Say which process this is and which devices it has."""
        return ProcessInfo(os.getpid(), tuple(visible_devices()), self._stacks.fileno())

    def warm(self, entry: str) -> float:
        """Run an entry that imports what stages will need; return the seconds it took."""
        began = time.monotonic()
        load_entry(entry)({}, RankControl(0, 1, lambda: False))
        return time.monotonic() - began

    def open_meeting(self, address: str | None) -> tuple[str, int | None]:
        """Open a meeting point for the next run, of which this is rank 0: URL and listener.

        Args:
            address: of this node, where the gang has ranks on others too.
        """
        self._close_meeting()
        self._meeting = MeetingPoint(address)
        return self._meeting.url, self._meeting.listener

    def stop(self, run_id: str, reason: str = "cancelled", grace_s: float | None = None) -> None:
        """Ask a run to stop at the next step, also one that has not begun yet."""
        self._stop_requests.request(run_id, reason, grace_s)

    def heartbeat(self) -> RankAnswer:
        """What this process is at."""
        recorder, run_id = self._recorder, self._run_id
        return RankAnswer(run_id, self._stop_requests.is_process_going, recorder.read())

    def stacks(self) -> str:
        """Python stacks of all threads."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        parts = []
        for number, frame in sys._current_frames().items():
            lines = "".join(traceback.format_stack(frame))
            parts.append(f"Thread {names.get(number, number)}:\n{lines}")
        return "\n".join(parts)[:STACKS_LIMIT]

    def run(self, run_id: str, entry: str, payload: str, environment: dict[str, str]) -> str:
        """Run `entry` on the JSON `payload`; the outcome as JSON. An error is part of it."""
        os.environ.update(environment)
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        self._recorder, self._run_id = HeartbeatRecorder(), run_id
        control = RankControl(
            rank,
            world,
            stop_requested=lambda: self._stop_requests.reason(run_id) is not None,
            grace_left_s=lambda: self._stop_requests.grace_left_s(run_id),
            beat=self._recorder.beat,
        )
        value, error = _call(entry, payload, control)
        self._close_meeting()
        reason, is_going = self._stop_requests.reason(run_id), self._stop_requests.is_process_going
        self._run_id = ""
        self._stop_requests.forget(run_id)
        gc.collect()
        return RankOutcome(
            rank=rank,
            value=value,
            error=error,
            stop_reason=reason,
            is_going=is_going,
            rss_bytes=resident_bytes(),
        ).to_json()

    def _close_meeting(self) -> None:
        if self._meeting is not None:
            self._meeting.close()
            self._meeting = None


def _call(
    entry: str, payload: str, control: RankControl
) -> tuple[JsonObject | None, RankError | None]:
    """What an entry returns, or its error: whatever a stage raises is evidence for the verdict.

    `SystemExit` too: this process is not the stage's to end. Signals raise nothing here.
    """
    try:
        value = load_entry(entry)(json.loads(payload), control)
        json.dumps(value)  # what cannot cross is the entry's own error
        return value, None
    except BaseException as error:
        return None, describe(error)


def resident_bytes() -> int:
    """Resident memory of this process."""
    import psutil

    return int(psutil.Process().memory_info().rss)
