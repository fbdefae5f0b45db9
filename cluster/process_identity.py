"""Who a process is, beyond its number: "no such process here" says nothing of another container.

A process number means something only inside one PID namespace of one boot of one machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

SAME_START_S = 1.0
"""Start times closer than this are one process: clocks are corrected now and then."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = "/proc/self/ns/pid"


@dataclass(frozen=True, kw_only=True)
class ProcessIdentity:
    """A process, recognisable by others that can see it."""

    boot_id: str
    """Of the machine's present boot; empty where the system has none, or in an old record."""
    pid_namespace: str
    """Inode of the PID namespace, as `/proc/self/ns/pid` names it; empty as above."""
    uid: int
    pid: int
    started: float
    """Unix seconds."""

    @classmethod
    def of_this_process(cls) -> ProcessIdentity:
        """The process that asks."""
        process = psutil.Process()
        boot_id, pid_namespace = _here()
        return cls(
            boot_id=boot_id,
            pid_namespace=pid_namespace,
            uid=os.getuid(),
            pid=process.pid,
            started=process.create_time(),
        )

    @property
    def is_visible(self) -> bool:
        """Whether this process would see the other one, if it ran: same boot, same namespace."""
        return bool(self.boot_id) and (self.boot_id, self.pid_namespace) == _here()

    @property
    def is_running(self) -> bool | None:
        """Whether it runs; None where nobody can say from here."""
        if not self.is_visible:
            return None
        try:
            process = psutil.Process(self.pid)
            # A process number is reused; its start time is not.
            same = bool(abs(process.create_time() - self.started) < SAME_START_S)
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None


def _here() -> tuple[str, str]:
    try:
        return _BOOT_ID.read_text().strip(), os.readlink(_PID_NAMESPACE)
    except OSError:
        return "", ""
