"""One cause per attempt, from the earliest and most specific evidence of its ranks."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLLATERAL = "EndedWithItsGang"
"""Type of the error of a rank that was ended because a peer had failed."""


class Cause(enum.Enum):
    """Why an attempt ended."""

    SUCCESS = "success"
    STOPPED = "stopped"
    """Asked to stop; a checkpoint was committed."""
    BAD_INPUT = "bad input"
    """Configuration or data that no retry mends."""
    NUMERICS = "numerics"
    OUT_OF_MEMORY = "out of memory"
    RANK_DIED = "rank died"
    """Its process is gone: killed, node lost, crashed."""
    RENDEZVOUS = "rendezvous"
    """The gang could not meet: the port was taken in between."""
    ERROR = "error"
    """Any other exception."""


@dataclass(frozen=True)
class Verdict:
    """The cause and the evidence for it."""

    cause: Cause
    message: str = ""
    rank: int | None = None
    traceback: str = ""


_BY_TYPE = {
    "Stopped": Cause.STOPPED,
    "ConfigError": Cause.BAD_INPUT,
    "DataError": Cause.BAD_INPUT,
    "CheckpointError": Cause.BAD_INPUT,
    "NumericsError": Cause.NUMERICS,
    "HostOutOfMemory": Cause.OUT_OF_MEMORY,
    "OutOfMemoryError": Cause.OUT_OF_MEMORY,
    "MemoryError": Cause.OUT_OF_MEMORY,
    "RankDied": Cause.RANK_DIED,
}
# The order in which evidence counts: a dead peer makes survivors raise connection errors.
_SPECIFIC_FIRST = (
    Cause.OUT_OF_MEMORY,
    Cause.RANK_DIED,
    Cause.NUMERICS,
    Cause.BAD_INPUT,
    Cause.RENDEZVOUS,
    Cause.ERROR,
    Cause.STOPPED,
)
_COLLATERAL_TEXTS = (
    "Connection reset",
    "Connection closed by peer",
    "Broken pipe",
    "gloo/transport",
)


def judge(outcomes: Sequence[dict[str, Any]]) -> Verdict:
    """Judge the gang, not the rank."""
    failed = [o for o in outcomes if "error" in o]
    if not failed:
        return Verdict(Cause.SUCCESS)
    first_hand = [o for o in failed if not _is_collateral(o["error"])] or failed
    worst = min(
        first_hand,
        key=lambda o: (_SPECIFIC_FIRST.index(cause_of(o["error"])), o["error"].get("at", 0.0)),
    )
    error = worst["error"]
    return Verdict(
        cause_of(error), f"{error['type']}: {error['message']}", worst["rank"], error["traceback"]
    )


def cause_of(error: dict[str, Any]) -> Cause:
    """Cause that one rank's error names."""
    for name in error["types"]:
        if name in _BY_TYPE:
            return _BY_TYPE[name]
    if "EADDRINUSE" in error["message"] or "address already in use" in error["message"].lower():
        return Cause.RENDEZVOUS
    return Cause.ERROR


def _is_collateral(error: dict[str, Any]) -> bool:
    return COLLATERAL in error["types"] or any(
        text in error["message"] for text in _COLLATERAL_TEXTS
    )
