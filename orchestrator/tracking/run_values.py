"""What is said of MLflow's runs: values that the driver hands to the process that ships them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from mae_core.config import DataConfig
from mae_core.data.facts import DataFacts

STUDY = "study"
"""Identity of the study's own run."""
Value = str | int | float
"""Of a param: MLflow keeps it as text, and a number as a metric too, to plot it."""
TableValue = Value | None


class Point(NamedTuple):
    """One value of a metric."""

    key: str
    value: float
    timestamp_ms: int
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that MLflow's page of a run shows."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[TableValue]]


@dataclass(frozen=True)
class DataUse:
    """A data set as the input of a run."""

    config: DataConfig
    facts: DataFacts
    is_evaluation: bool
    cut: dict[str, Value]
    """What this run saw of it: images by split, and the seeds of the cut."""


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What identifies a run and stays as it is."""

    name: str
    level: Literal["study", "cell", "stage"]
    identity: str
    """Unique within the experiment: the run is found again by it."""
    parent: RunInfo | None = None
    """The run that it is nested in."""
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, Value] = field(default_factory=dict)
    """Where it stands; numbers become metrics too."""
    settings: dict[str, Value] = field(default_factory=dict)
    """Further params, never plotted."""
    data: DataUse | None = None
    upstream: str | None = None
    """Identity of the run whose output this one reads."""
    started_ms: int = 0
    """When it began, Unix milliseconds; 0: now."""


class RunStatus(enum.Enum):
    """Of a run, in MLflow's words."""

    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"


@dataclass(frozen=True, kw_only=True)
class RunUpdate:
    """All that is to be said of one run; a newer one replaces it."""

    info: RunInfo
    status: RunStatus | None = None
    """None: only the tags are news."""
    attempts: tuple[Path, ...] = ()
    """Directories of the attempts whose journals make its curves, oldest first."""
    attempt: int = 0
    """The attempt that the results are of."""
    results: tuple[Point, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    report: Path | None = None
    ended_ms: int = 0
    """When the run ended, Unix milliseconds; 0: now."""
