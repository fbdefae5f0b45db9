"""Look at a process that does not answer, from another process of its node.

The rank has registered `STACKS_SIGNAL` with `faulthandler`, which writes the Python stacks of all
threads from the signal handler itself: that works while something holds the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import tempfile
import time
from typing import IO

STACKS_SIGNAL = signal.SIGRTMIN + 7
STACKS_WAIT_S = 2.0
STACKS_LIMIT = 16_000
"""Bytes of stacks that are kept per rank."""


def register_stacks() -> IO[bytes]:
    """Make this process write its stacks on `STACKS_SIGNAL`; keep the file as long as it lives.

    The file has no name: whoever may read `/proc/PID/fd` of this process reads it there.
    """
    file = tempfile.TemporaryFile()
    faulthandler.register(STACKS_SIGNAL, file, all_threads=True, chain=False)
    return file


def state_of(pid: int) -> str:
    """Linux's letter for the state of a process ("T" = stopped from outside), "" if it is gone."""
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith("State:"):
                    return line.split()[1]
    except OSError:
        pass
    return ""


def inspect_and_end(pid: int, stacks_fd: int) -> tuple[str, str]:
    """State letter and Python stacks of a rank of this node, which is then killed.

    Args:
        stacks_fd: number of the file that `register_stacks` opened in that process.
    """
    state = state_of(pid)
    stacks = ""
    if state not in ("", "T", "t", "Z"):
        with contextlib.suppress(OSError):
            stacks = _dump(pid, stacks_fd)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
    return state, stacks


def _dump(pid: int, stacks_fd: int) -> str:
    """Have the process write its stacks; wait until the file no longer grows."""
    path = f"/proc/{pid}/fd/{stacks_fd}"
    before = os.stat(path).st_size
    os.kill(pid, STACKS_SIGNAL)
    size, deadline = before, time.monotonic() + STACKS_WAIT_S
    while time.monotonic() < deadline:
        time.sleep(0.1)
        grown = os.stat(path).st_size
        if grown == size > before:
            break
        size = grown
    with open(path, "rb") as file:
        file.seek(before)
        return file.read(STACKS_LIMIT).decode(errors="replace")
