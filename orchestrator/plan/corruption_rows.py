"""More rows of a corruptions stage, where the study asks how accuracy falls with its conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from studies.result_row import Place, ResultRow


def by_condition(
    row: ResultRow, axes: Sequence[str], severities: Sequence[int], details: Mapping[str, Any]
) -> list[ResultRow]:
    """Rows by severity (0: clean images) and by corruption, each a mean over the other.

    `details` is the stage's own: error shares by family, one per severity, and clean top-1 (%).
    """
    errors: dict[str, list[float]] = details.get("errors", {})
    found: dict[tuple[str, Place], float] = {}
    if "severity" in axes and errors:
        found["severity", 0.0] = details["clean_top1"]
        for i, severity in enumerate(severities):
            found["severity", float(severity)] = 100 * (1 - fmean(e[i] for e in errors.values()))
    if "corruption" in axes:
        for family, shares in errors.items():
            found["corruption", family] = 100 * (1 - fmean(shares))
    return [
        replace(row, top1=top1, top5=None, loss=None, mce=None, places={**row.places, axis: place})
        for (axis, place), top1 in found.items()
    ]
