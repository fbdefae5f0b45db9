"""Attempts of a stage as the store keeps them: who began one and how, and how it ended.

Each record is a value with one codec. Keys that a reader does not know are left out, and those
that an older writer did not know have their defaults, so that old stores stay readable.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from cluster.hang import Hang
from cluster.process_identity import ProcessIdentity
from cluster.ranks.outcome import JsonObject
from mae_core.config import Execution
from orchestrator.store.known_keys import IsoTime, ProcessNumber, build_known

NOT_STARTED = "not started"
"""Cause of an attempt whose gang found no slots."""


class _Record:
    """A record that is read with tolerance."""

    @classmethod
    def from_json(cls, plain: JsonObject, where: str = "record") -> Self:
        """Read what `to_json` wrote, by this version or another.

        Raises:
            StoreError: it is damaged; `where` names it.
        """
        return build_known(cls, plain, where)


@dataclass(frozen=True, kw_only=True)
class Driver(ProcessIdentity, _Record):
    """A process that drives a study; of one in an old record only host and number are known."""

    host: str = ""
    pid: ProcessNumber = 0
    boot_id: str = ""
    pid_namespace: str = ""
    uid: int = -1
    started: float = 0.0
    since: IsoTime = ""
    """When it took the study's lease."""
    epoch: int = 0
    """Of its lease; 0 in an old record."""
    heartbeat: str = ""
    """Key of the file that it touches while it lives."""


@dataclass(frozen=True, kw_only=True)
class Remedies(_Record):
    """What an attempt does otherwise than its stage asks for; None = as it asks."""

    world_size: int | None = None
    micro_batch: int | None = None
    loader_threads: int | None = None
    rollback: int | None = None
    """Newest checkpoints to pass over."""
    avoid_nodes: tuple[str, ...] | None = None

    @property
    def recut(self) -> bool:
        """True if the batch is cut otherwise."""
        return self.world_size is not None or self.micro_batch is not None

    def to_json(self) -> JsonObject:
        """What is done, by name."""
        plain = {n: v for n, v in dataclasses.asdict(self).items() if v is not None}
        nodes = self.avoid_nodes
        return plain | ({} if nodes is None else {"avoid_nodes": list(nodes)})

    @classmethod
    def between(cls, wanted: Execution, actual: Execution, **more: object) -> Self:
        """Differences of two executions, and `rollback` and `avoid_nodes` unless they are empty."""
        names = ("world_size", "micro_batch", "loader_threads")
        changed = {n: getattr(actual, n) for n in names if getattr(actual, n) != getattr(wanted, n)}
        return cls.from_json(changed | {name: value for name, value in more.items() if value})


@dataclass(frozen=True, kw_only=True)
class DecisionRecord(_Record):
    """What was decided about a stage, and why."""

    decision: str
    reason: str = ""
    world_size: int | None = None
    remedies: Remedies | None = None
    epoch: int | None = None
    at: IsoTime = ""

    def to_json(self) -> JsonObject:
        """What is known, by name."""
        remedies = {} if self.remedies is None else {"remedies": self.remedies.to_json()}
        plain = {n: v for n, v in dataclasses.asdict(self).items() if v not in (None, "")}
        return plain | remedies

    @classmethod
    def from_json(cls, plain: JsonObject, where: str = "record") -> Self:
        """Read what `to_json` wrote."""
        return super().from_json({"decision": ""} | plain, where)


@dataclass(frozen=True, kw_only=True)
class AttemptStart(_Record):
    """How an attempt began."""

    address: str = ""
    """Of the stage, `cell#stage`."""
    driver: Driver | None = None
    epoch: int | None = None
    """Of the driver's lease."""
    world_size: int | None = None
    remedies: Remedies = Remedies()
    code: Mapping[str, str | bool] = field(default_factory=dict)
    """Commit, and whether the tree differs from it."""
    adopted: str = ""
    """Digest of the encoder that is adopted rather than computed."""
    started_at: IsoTime = ""

    def to_json(self) -> JsonObject:
        """As plain values."""
        return dataclasses.asdict(self) | {"remedies": self.remedies.to_json()}

    @classmethod
    def from_json(cls, plain: JsonObject, where: str = "record") -> Self:
        """Read what `to_json` wrote."""
        return super().from_json({k: v for k, v in plain.items() if v is not None}, where)


@dataclass(frozen=True, kw_only=True)
class AttemptEnd(_Record):
    """How an attempt ended."""

    cause: str
    """Value of a `Cause`, or `NOT_STARTED`."""
    message: str = ""
    rank: int | None = None
    """Who shows the cause."""
    wall_s: float | None = None
    traceback: str = ""
    stop_reason: str | None = None
    """Why its gang had been asked to stop, whatever ended it."""
    hang: Hang | None = None
    last_step: int | None = None
    """Last finished step that the controller knew of."""
    last_step_at: float | None = None
    """When that was, Unix seconds."""
    resumed_step: int = 0
    saved_step: int = 0
    seconds: Mapping[str, float] | None = None
    """Of a success: starting and working, by rank 0."""
    is_result: bool | None = None
    """Of a success: False if another driver had completed the stage before."""
    ended_at: IsoTime = ""

    def to_json(self) -> JsonObject:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: JsonObject, where: str = "record") -> Self:
        """Read what `to_json` wrote."""
        return super().from_json({"cause": ""} | plain, where)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try of a stage."""

    number: int
    """From 1."""
    start: AttemptStart
    end: AttemptEnd | None = None
    """None while it runs, and if its driver was killed."""

    def to_json(self) -> JsonObject:
        """As plain values: the start's by their names, and `end`."""
        end = None if self.end is None else self.end.to_json()
        return {"number": self.number, **self.start.to_json(), "end": end}
