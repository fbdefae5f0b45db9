"""How a rank ended, as a value with one JSON codec: this is what crosses from rank to driver.

An exception is described by its types (qualified, up to the root), by the error numbers that it
carries and by what its class says of itself, link by link along what it was raised from. Nothing
has to be read from its text.

A class of exceptions says which cause an attempt has that ends with it by an attribute
`attempt_cause`: "bad input", "bad data", "checkpoint", "numerics", or "stopped" for the answer to
a request to stop. Derived classes inherit it.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

JsonObject = dict[str, Any]
"""Plain values that `cluster` carries between a driver and an entry point without looking."""

TRACEBACK_LIMIT = 8000
CHAIN_LIMIT = 10


class Loss(enum.Enum):
    """How a process ended that could not say so itself; the driver has seen it."""

    RANK_DIED = "RankDied"
    NODE_LOST = "NodeLost"
    HOST_OUT_OF_MEMORY = "HostOutOfMemory"
    HANG = "Hang"
    ENDED_WITH_GANG = "EndedWithItsGang"
    """Ended because a peer had failed."""


@dataclass(frozen=True, kw_only=True)
class Raised:
    """One exception of a chain."""

    types: tuple[str, ...]
    """`module.qualname` of its class and of the bases of that, without `BaseException`."""
    message: str = ""
    errno: int | None = None
    """Of an `OSError`."""
    claim: str | None = None
    """`attempt_cause` of its class."""


@dataclass(frozen=True, kw_only=True)
class RankError:
    """Why a rank has no result: what it raised, or how its process was lost."""

    name: str
    """Bare class name, for people."""
    message: str = ""
    traceback: str = ""
    at: float
    """Unix seconds."""
    chain: tuple[Raised, ...] = ()
    """The exception and what it was raised from; empty for a lost process."""
    loss: Loss | None = None


@dataclass(frozen=True, kw_only=True)
class RankOutcome:
    """What one rank of a gang came to."""

    rank: int
    value: JsonObject | None = None
    """What its entry point returned; None if it failed."""
    error: RankError | None = None
    stop_reason: str | None = None
    """Why it was asked to stop, None if it was not."""
    is_going: bool = False
    """Its process was notified that it will be ended."""
    rss_bytes: int = 0
    """Resident memory afterwards, 0 if unknown."""

    def to_json(self) -> str:
        """As JSON text."""
        plain = dataclasses.asdict(self)
        if self.error is not None and self.error.loss is not None:
            plain["error"]["loss"] = self.error.loss.value
        return json.dumps(plain)

    @classmethod
    def from_json(cls, text: str) -> RankOutcome:
        """Read what `to_json` wrote."""
        plain = json.loads(text)
        error = plain["error"]
        return cls(**plain | {"error": None if error is None else _error_from(error)})


def _error_from(plain: JsonObject) -> RankError:
    chain = tuple(Raised(**link | {"types": tuple(link["types"])}) for link in plain["chain"])
    loss = None if plain["loss"] is None else Loss(plain["loss"])
    return RankError(**plain | {"chain": chain, "loss": loss})


def describe(error: BaseException) -> RankError:
    """An exception as a value."""
    return RankError(
        name=type(error).__name__,
        message=str(error),
        traceback="".join(traceback.format_exception(error))[-TRACEBACK_LIMIT:],
        at=time.time(),
        chain=tuple(_link(link) for link in _chain(error)),
    )


def lost(rank: int, loss: Loss, message: str, trace: str = "") -> RankOutcome:
    """Outcome of a rank whose process is gone."""
    error = RankError(name=loss.value, message=message, traceback=trace, at=time.time(), loss=loss)
    return RankOutcome(rank=rank, error=error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception, then what it was raised from, as a traceback would show it."""
    link: BaseException | None = error
    for _ in range(CHAIN_LIMIT):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _link(error: BaseException) -> Raised:
    names = (c for c in type(error).__mro__ if c not in (object, BaseException))
    claim = getattr(type(error), "attempt_cause", None)
    return Raised(
        types=tuple(f"{c.__module__}.{c.__qualname__}" for c in names),
        message=str(error),
        errno=error.errno if isinstance(error, OSError) else None,
        claim=claim if isinstance(claim, str) else None,
    )
