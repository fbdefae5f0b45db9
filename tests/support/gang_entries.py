"""Entry points of seconds that misbehave on purpose, without torch."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

from cluster.ranks.actor import RankControl

STEP_S = 0.02


def slow_to_warm(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    time.sleep(3.0)
    return {}


def where(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    return {"pid": os.getpid()}


def silent(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Never tell what it is at."""
    time.sleep(payload["seconds"])
    return {}


def wait_for_stop(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Wait for the request, and `linger_s` more; tell the grace that was left."""
    deadline = time.monotonic() + 60
    while not control.stop_requested() and time.monotonic() < deadline:
        time.sleep(0.02)
    first = control.grace_left_s()
    time.sleep(payload.get("linger_s", 0.0))
    return {"stopped": control.stop_requested(), "grace_s": [first, control.grace_left_s()]}


def train(payload: dict[str, Any], control: RankControl) -> dict[str, Any]:
    """Beat like a training, step by step with the peers; go wrong on `bad_ranks` at step `at`.

    `sleeps` maps a section to seconds that it takes once, `load_s` a rank to its seconds per load.
    """
    folder = Path(payload["folder"])
    sleeps = dict(payload.get("sleeps", {}))
    for section in ("start", "restore"):
        control.beat(section, 0)
        time.sleep(sleeps.pop(section, 0.0))
    for step in range(payload["steps"]):
        is_fault = step == payload.get("at") and control.rank in payload["bad_ranks"]
        if is_fault:
            (folder / f"fault-{control.rank}").write_text(str(time.time()))
        control.beat("load", step)
        time.sleep(payload.get("load_s", {}).get(str(control.rank), 0.0))
        if is_fault and payload["kind"] == "loader":
            threading.Event().wait(60)
        control.beat("step", step)
        if is_fault:
            _go_wrong(payload["kind"])
        time.sleep(STEP_S + (sleeps.pop("step", 0.0) if step == 0 else 0.0))
        _meet(folder, control, step)
        if "save" in sleeps and step == payload["steps"] // 2:
            control.beat("save", step + 1)
            time.sleep(sleeps.pop("save"))
        if control.stop_requested():
            break
    (folder / f"met-{control.rank}").write_text("1000000000")  # the peers need not wait
    control.beat("finish", payload["steps"])
    return {"steps": step + 1}


def _go_wrong(kind: str) -> None:
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "interpreter":
        hold_the_interpreter()
    elif kind == "deadlock":
        threading.Event().wait(60)


def hold_the_interpreter() -> None:
    """Backtracking without end, in C, under the interpreter's lock."""
    re.match(r"(a+)+b", "a" * 64)


def _meet(folder: Path, control: RankControl, step: int) -> None:
    """Wait for the peers, as a collective does."""
    (folder / f"met-{control.rank}").write_text(str(step))
    deadline = time.monotonic() + 60
    for rank in range(control.world):
        while _step_of(folder / f"met-{rank}") < step:
            assert time.monotonic() < deadline, "the peers do not come"
            time.sleep(0.005)


def _step_of(path: Path) -> int:
    text = path.read_text() if path.exists() else ""
    return int(text) if text else -1
