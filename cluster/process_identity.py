"""Who a process is, beyond its number: "no such process here" says nothing of another container.

A process number means something only inside one PID namespace of one boot of one machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

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
    """Seconds after boot where the system says so: no correction of a clock changes them."""

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """A process that is visible from here.

        Raises:
            psutil.NoSuchProcess: it does not run.
        """
        boot_id, pid_namespace = _here()
        return cls(
            boot_id=boot_id,
            pid_namespace=pid_namespace,
            uid=psutil.Process(pid).uids().real,
            pid=pid,
            started=_started(pid),
        )

    @classmethod
    def of_this_process(cls) -> ProcessIdentity:
        """The process that asks."""
        return cls.of(os.getpid())

    @property
    def is_of_this_boot(self) -> bool:
        """Whether it runs, or ran, under the kernel that this process runs under."""
        return bool(self.boot_id) and self.boot_id == _here()[0]

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
            # A process number is reused; its start time is not.
            same = _started(self.pid) == self.started
            return same and psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            # Where /proc shows a user only what is his (`hidepid`), others are there all the same.
            return None if psutil.pid_exists(self.pid) else False
        except psutil.Error:
            return None


def _here() -> tuple[str, str]:
    try:
        return _BOOT_ID.read_text().strip(), os.readlink(_PID_NAMESPACE)
    except OSError:
        return "", ""


def _started(pid: int) -> float:
    """When a process started; not `create_time`, which moves with the clock of the machine."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return float(psutil.Process(pid).create_time())
