"""How a rank ended, as a value with one JSON codec: this is what crosses from rank to driver.

An exception is described by its types (qualified, up to the root), by the error numbers that it
carries and by what its class says of itself, link by link along what it was raised from, with the
members of exception groups. Its text goes along for people, and for `cluster.verdict`, which reads
it where a library says the cause nowhere else. Describing an exception never raises.

A class of exceptions says which cause an attempt has that ends with it by an attribute
`attempt_cause`: "bad input", "bad data", "checkpoint", "numerics", or "stopped" for the answer to
a request to stop. Derived classes inherit it.
"""

from __future__ import annotations

import dataclasses
import enum
import errno
import json
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

JsonObject = dict[str, Any]
"""Plain values that `cluster` carries between a driver and an entry point without looking."""

TRACEBACK_LIMIT = 8000
MESSAGE_LIMIT = 4096
"""Characters of a message; of a longer one its start and its end are kept."""
CHAIN_LIMIT = 10
GROUP_LIMIT = 10
"""Members of an exception group that are described."""

_OTHER_NUMBERS = frozenset({"ssl.SSLError", "socket.gaierror", "socket.herror"})
"""Kinds of `OSError` whose `errno` is of a library's numbers, not of the system's."""


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
    """`module.qualname` of its class and of the bases of that, up to `Exception`."""
    message: str = ""
    errno: int | None = None
    """Of an `OSError`, if it is a number of the system."""
    claim: str | None = None
    """`attempt_cause` of its class."""
    members: tuple[tuple[Raised, ...], ...] = ()
    """Of an exception group: the chain of each member; nested groups are laid flat."""


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
    loss = None if plain["loss"] is None else Loss(plain["loss"])
    return RankError(**plain | {"chain": _chain_from(plain["chain"]), "loss": loss})


def _chain_from(plain: list[JsonObject]) -> tuple[Raised, ...]:
    return tuple(
        Raised(
            **link
            | {
                "types": tuple(link["types"]),
                "members": tuple(_chain_from(member) for member in link["members"]),
            }
        )
        for link in plain
    )


def describe(error: BaseException) -> RankError:
    """An exception as a value, whatever its class does when it is looked at."""
    try:
        chain = tuple(_link(link, _members(link)) for link in _chain(error))
    except BaseException:
        chain = (Raised(types=("builtins.Exception",)),)
    return RankError(
        name=_text(lambda: type(error).__name__),
        message=_text(lambda: str(error)),
        traceback=_text(lambda: _trace(error), TRACEBACK_LIMIT),
        at=time.time(),
        chain=chain,
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


def _members(error: BaseException) -> tuple[tuple[Raised, ...], ...]:
    """Chains of the members of an exception group; a group that one was raised from is a link."""
    waiting, found = [error], list[tuple[Raised, ...]]()
    while waiting and len(found) < GROUP_LIMIT:
        first = waiting.pop(0)
        if isinstance(first, BaseExceptionGroup):
            waiting[:0] = first.exceptions
        elif first is not error:
            found.append(tuple(_link(link) for link in _chain(first)))
    return tuple(found)


def _link(error: BaseException, members: tuple[tuple[Raised, ...], ...] = ()) -> Raised:
    own = type(error)
    bases = [c for c in own.__mro__[1:] if c not in (object, BaseException)]
    types = tuple(_clean(f"{c.__module__}.{c.__qualname__}") for c in (own, *bases))
    claim = getattr(own, "attempt_cause", None)
    return Raised(
        types=types,
        message=_text(lambda: str(error)),
        errno=None if _OTHER_NUMBERS & set(types) else _errno(error),
        claim=_clean(claim) if isinstance(claim, str) else None,
        members=members,
    )


def _errno(error: BaseException) -> int | None:
    """Number of an `OSError`; users give its first argument other meanings."""
    try:
        number: object = error.errno if isinstance(error, OSError) else None
        return number if isinstance(number, int) and number in errno.errorcode else None
    except Exception:
        return None


def _text(say: Callable[[], str], limit: int = MESSAGE_LIMIT) -> str:
    """What an exception says, or that it cannot."""
    try:
        text = say()
        if len(text) > limit:
            text = f"{text[: limit // 2]} [...] {text[-limit // 2 :]}"
        return _clean(text)
    except BaseException as trouble:  # also of a `__str__` that leaves the process
        return f"(cannot be shown: {type(trouble).__name__})"


def _clean(text: str) -> str:
    """Text that any file takes: half characters of undecodable names are written out."""
    return text.encode(errors="backslashreplace").decode()


def _trace(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))[-TRACEBACK_LIMIT:]
