"""One cause per attempt, from the earliest and most specific evidence of its ranks.

Evidence counts in this order: a notice of preemption, a node that is gone, the earliest error
that names its own cause, the earliest other exception, lost connections. What the survivors of a
dead peer say is collateral, and a request to stop explains those ends that a stop can cause.
"""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLLATERAL = "EndedWithItsGang"
"""Type of the error of a rank that was ended because a peer had failed."""


class Cause(enum.Enum):
    """Why an attempt ended."""

    SUCCESS = "success"
    PREEMPTED = "preempted"
    """Told by its surroundings to go: a signal, a node that is drained."""
    CANCELLED = "cancelled"
    """Told by its user to stop."""
    RESIZED = "resized"
    """Told by the controller to stop, to go on with another world size."""
    NODE_LOST = "node lost"
    HOST_OUT_OF_MEMORY = "host out of memory"
    DEVICE_OUT_OF_MEMORY = "device out of memory"
    NUMERICS = "numerics"
    """A loss or gradient that is not finite, or a spike."""
    HANG = "hang"
    """No progress within the limit of its section."""
    BAD_DATA = "bad data"
    BAD_INPUT = "bad input"
    """A configuration that no retry mends."""
    DISK = "disk"
    """A place to write that is full, read-only or broken."""
    CHECKPOINT = "checkpoint"
    """A checkpoint, or a parent's output, that cannot be used."""
    RANK_DIED = "rank died"
    """Its process is gone: killed or crashed."""
    RENDEZVOUS = "rendezvous"
    """The gang could not meet, or its ranks lost each other and nobody says why."""
    ERROR = "error"
    """Any other exception: user code."""
    HEAD_LOST = "head lost"
    """Ray's head went, and the gang with it; never judged from outcomes."""
    DRIVER_LOST = "driver lost"
    """The driver went, and the gang with it; never judged from outcomes."""


@dataclass(frozen=True)
class Verdict:
    """The cause and the evidence for it."""

    cause: Cause
    message: str = ""
    rank: int | None = None
    traceback: str = ""
    stop_reason: str | None = None
    """Why the gang had been asked to stop, whatever ended it."""


_BY_TYPE = {
    "NodeLost": Cause.NODE_LOST,
    "HostOutOfMemory": Cause.HOST_OUT_OF_MEMORY,
    "Hang": Cause.HANG,
    "RankDied": Cause.RANK_DIED,
    "ConfigError": Cause.BAD_INPUT,
    "DataError": Cause.BAD_DATA,
    "CheckpointError": Cause.CHECKPOINT,
    "NumericsError": Cause.NUMERICS,
    "OutOfMemoryError": Cause.DEVICE_OUT_OF_MEMORY,  # torch's; Ray's is HostOutOfMemory here
    "MemoryError": Cause.HOST_OUT_OF_MEMORY,
}
_BY_ERRNO = {
    errno.ENOSPC: Cause.DISK,
    errno.EDQUOT: Cause.DISK,
    errno.EIO: Cause.DISK,
    errno.EROFS: Cause.DISK,
    errno.ENOMEM: Cause.HOST_OUT_OF_MEMORY,
    errno.EADDRINUSE: Cause.RENDEZVOUS,
}
_BY_TEXT = (
    ("cuda out of memory", Cause.DEVICE_OUT_OF_MEMORY),
    ("hip out of memory", Cause.DEVICE_OUT_OF_MEMORY),
    ("cuda error: out of memory", Cause.DEVICE_OUT_OF_MEMORY),
    ("cublas_status_alloc_failed", Cause.DEVICE_OUT_OF_MEMORY),
    ("cudnn_status_alloc_failed", Cause.DEVICE_OUT_OF_MEMORY),
    ("defaultcpuallocator: can't allocate memory", Cause.HOST_OUT_OF_MEMORY),
    ("defaultcpuallocator: not enough memory", Cause.HOST_OUT_OF_MEMORY),
    ("cannot allocate memory", Cause.HOST_OUT_OF_MEMORY),
    ("no space left", Cause.DISK),
    ("disk quota exceeded", Cause.DISK),
    ("read-only file system", Cause.DISK),
    ("input/output error", Cause.DISK),
    # torch's zip writer, under DeepSpeed's shards: what a full disk looks like from C++.
    ("pytorchstreamwriter failed", Cause.DISK),
    ("inline_container.cc", Cause.DISK),
    ("eaddrinuse", Cause.RENDEZVOUS),
    ("address already in use", Cause.RENDEZVOUS),
)
_ERRNO = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)", re.IGNORECASE)
_WRAPS_OTHERS = frozenset({Cause.CHECKPOINT, Cause.BAD_DATA})
"""Errors of ours that may wrap what the disk said, which is the more specific."""
_EXPLAINED_BY_STOP = {
    Cause.PREEMPTED: frozenset({Cause.RANK_DIED, Cause.NODE_LOST, Cause.HANG, Cause.RENDEZVOUS}),
    Cause.CANCELLED: frozenset({Cause.RANK_DIED, Cause.HANG, Cause.RENDEZVOUS}),
    # Nobody kills a gang that is to be resized: a death is one of its own.
    Cause.RESIZED: frozenset[Cause](),
}
_STOPPED = {
    "preempted": Cause.PREEMPTED,
    "cancelled": Cause.CANCELLED,
    "resize": Cause.RESIZED,
}
"""By reason of the request to stop; the first that any rank was given counts."""
_LOST_CONNECTION = (
    "connection reset",
    "connection closed",
    "connection refused",
    "connection was likely closed",
    "broken pipe",
    "socket closed",
    "gloo/transport",
    "[c10d]",
    "remote process exited",
    "ncclremoteerror",
    "nccl communicator was aborted",
)


def judge(outcomes: Sequence[dict[str, Any]]) -> Verdict:
    """Judge the gang, not the rank."""
    failed = [o for o in outcomes if "error" in o]
    if not failed:
        return Verdict(Cause.SUCCESS)
    reason = _stop_reason(outcomes)
    stopped = _STOPPED.get(reason or "cancelled", Cause.CANCELLED)
    worst = min(failed, key=lambda o: (_weight(o["error"]), o["error"].get("at", 0.0)))
    error = worst["error"]
    cause = stopped if _is_stop(error) else cause_of(error)
    if reason is not None and (cause in _EXPLAINED_BY_STOP[stopped] or _says_nothing(error)):
        cause = stopped
    return Verdict(
        cause, f"{error['type']}: {error['message']}", worst["rank"], error["traceback"], reason
    )


def cause_of(error: dict[str, Any]) -> Cause:
    """Cause that one rank's error names."""
    named = next((_BY_TYPE[name] for name in error["types"] if name in _BY_TYPE), None)
    if named is None or named in _WRAPS_OTHERS:
        told = _told(error["message"])
        if told is not None and (named is None or told is Cause.DISK):
            return told
    if named is not None:
        return named
    if COLLATERAL in error["types"]:
        return Cause.RANK_DIED
    return Cause.RENDEZVOUS if _lost_connection(error["message"]) else Cause.ERROR


def _told(message: str) -> Cause | None:
    """Cause that a message names unmistakably: an error number, or a well-known text."""
    for match in _ERRNO.finditer(message):
        if (cause := _BY_ERRNO.get(int(match[1] or match[2]))) is not None:
            return cause
    text = message.lower()
    return next((cause for pattern, cause in _BY_TEXT if pattern in text), None)


def _weight(error: dict[str, Any]) -> int:
    """Rank of a piece of evidence; of equal ones the earliest counts."""
    if _is_stop(error):
        return 3
    if _is_collateral(error):
        return 5 if _says_nothing(error) else 4
    cause = cause_of(error)
    if cause is Cause.NODE_LOST:
        return 0
    return 2 if cause is Cause.ERROR else 1


def _is_stop(error: dict[str, Any]) -> bool:
    return "Stopped" in error["types"]


def _is_collateral(error: dict[str, Any]) -> bool:
    """True for what a rank says because a peer is gone."""
    if _says_nothing(error):
        return True
    is_named = any(name in _BY_TYPE for name in error["types"])
    return not is_named and not _told(error["message"]) and _lost_connection(error["message"])


def _says_nothing(error: dict[str, Any]) -> bool:
    return COLLATERAL in error["types"]


def _lost_connection(message: str) -> bool:
    text = message.lower()
    return any(pattern in text for pattern in _LOST_CONNECTION)


def _stop_reason(outcomes: Sequence[dict[str, Any]]) -> str | None:
    """Why the gang was asked to stop: a notice that reached one rank is one for all."""
    given = {o.get("stop_reason") for o in outcomes}
    return next((reason for reason in _STOPPED if reason in given), None)
