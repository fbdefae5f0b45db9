"""What a run of a study came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.plan.plan import Plan


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What a run did."""

    plan: Plan
    num_started: int
    report: Path | None
    tracking_problem: str | None = None
    summary: str = ""
    """The curves as a table of text."""
    tracking_uri: str = ""
