"""What a report needs besides the rows, and the files that it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studies.analysis.curves.differences import Difference
    from studies.analysis.goodput.interval_advice import StudyGoodput
    from studies.analysis.laws.by_protocol import ProtocolLaw
    from studies.analysis.sweeps.optima import Search
    from studies.analysis.sweeps.settings import ChosenSetting


@dataclass(frozen=True, kw_only=True)
class ReportMeta:
    """What the page says besides the rows."""

    study: str
    question: str
    command: str
    created_at: str
    """ISO 8601, UTC."""
    notes: tuple[str, ...] = ()
    """What the data can and cannot show."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    sweep_winner: ChosenSetting | None = None
    objective: str | None = None
    """Stage that the sweep ranked by."""
    searches: Sequence[Search] = ()
    """The sweep's trials and decisions, one search per size."""
    missing: Sequence[tuple[str, str, str]] = ()
    """(cell, stage, why) of what the study expects and the rows lack."""
    expected_seeds: int | None = None
    """Seeds per grid cell; by default as many as the rows of the grid name."""
    axes: Sequence[str] = ()
    """To draw accuracy against (`studies.spec.axes`); none: duration, parameters and compute."""
    measures: Sequence[str] = ("top1",)
    """What to draw over the axes."""
    published: Sequence[str] = ()
    """Sets of `studies.reference` to draw next to the measured."""
    goodput: StudyGoodput | None = None
    """Where the time of all attempts went; None or empty = nothing is said of it."""
    laws: Sequence[ProtocolLaw] = ()
    """A law of each protocol, or why there is none."""
    predictions: Sequence[Sequence[str]] = ()
    """Header and lines of registered predictions and what was measured since."""
    findings: Sequence[tuple[str, str, str]] = ()
    """(level, code, message) of the study's checks."""
    odd: Mapping[str, str] = field(default_factory=dict)
    """Cell -> why it is no point of the others' curve: its points are drawn hollow."""
    differences: Sequence[Difference] = ()
    """Between several studies that are reported together."""
    advice: Sequence[str] = ()
    """What to run next, in sentences."""
    reference: str = ""
    """What names this very study to the command: the path of the resolved one; else its name."""
    store_option: str = ""
    """` --store PATH`, for commands that can be pasted into a shell."""


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """Where the report was written."""

    html: Path
    csv: Path
    parquet: Path
    json: Path
    summary: Path
    figures: tuple[Path, ...]
    """PNG; each with a PDF of the same name."""
