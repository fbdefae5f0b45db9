"""What a study's run says: how far it is, what its checks found, its laws and predictions.

Laws and predictions come as plain dicts, as the report writes them and the store keeps them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import StoreError
from orchestrator.plan.plan import Plan
from orchestrator.report.predictions import Scored, scored
from orchestrator.store.generations import milliseconds
from orchestrator.store.records import Records
from orchestrator.tracking.cell_values import numeric, safe
from orchestrator.tracking.mlflow_runs import Table
from studies.result_row import ResultRow, columns_of
from studies.spec.checks import check_study

SUMMARY = "summary.json"
"""What the report says, as data, beside its page."""
ADDRESSES = ("output_dir",)
"""Columns of results that another copy of the store has otherwise."""
PARAMETER = ("value", "low", "high")
LAW_COLUMNS = ("protocol", "law", "formula", "parameter", *PARAMETER, "identifiable", "statements")
PREDICTION_COLUMNS = (
    *("cell", "stage", "protocol", "law", "top1", "low", "high", "level", "registered_at"),
    *("measured", "verdict", "z"),
)


@dataclass(frozen=True, kw_only=True)
class StudyValues:
    """Of one study, now."""

    at_ms: int = 0
    """Unix milliseconds of the newest thing that they rest on."""
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    """By name, without ending."""


def study_values(
    plan: Plan, records: Records, rows: Sequence[ResultRow], report: Path | None
) -> StudyValues:
    """Everything of a study: results, findings, registered predictions, and the report's laws."""
    findings = [f.to_json() for f in check_study(plan.study, plan.duplicates)]
    predictions = [_prediction(one) for one in scored(plan, records)]
    times = [r.finished_at or "" for r in rows] + [p["registered_at"] for p in predictions]
    parts = (
        progress_values(plan, rows),
        finding_values(findings),
        law_values(reported_laws(report)),
        prediction_values(predictions),
    )
    return StudyValues(
        at_ms=max(map(milliseconds, times), default=0),
        metrics={k: v for part in parts for k, v in part.metrics.items()},
        tags={k: v for part in parts for k, v in part.tags.items()},
        tables={k: v for part in parts for k, v in part.tables.items()},
    )


def progress_values(plan: Plan, rows: Sequence[ResultRow]) -> StudyValues:
    """How far it is and what it cost, and the results table."""
    columns = [name for name in columns_of(rows) if name not in ADDRESSES]
    first = {(r.cell, r.stage): r for r in reversed(rows)}
    metrics = {
        "num_cells": float(len({s.cell.address for s in plan.stages})),
        "num_stages": float(len(plan.stages)),
        "num_stages_done": float(sum(s.record is not None for s in plan.stages)),
        "rank_hours": sum(r.rank_seconds for r in first.values()) / 3600,
    }
    table = [[_finite(row.to_dict().get(name)) for name in columns] for row in rows]
    return StudyValues(metrics=metrics, tables={"results": (columns, table)} if table else {})


def finding_values(findings: Sequence[Mapping[str, Any]]) -> StudyValues:
    """What the checks of a study object to: `code`, `level`, `message`, `cells` each."""
    levels = [str(f["level"]) for f in findings]
    table = [
        [f["level"], f["code"], f["message"], ", ".join(map(str, f.get("cells", ())))]
        for f in findings
    ]
    return StudyValues(
        metrics={f"num_{kind}s": float(levels.count(kind)) for kind in ("warning", "note")},
        tables={"checks": (("level", "code", "message", "cells"), table)} if table else {},
    )


def law_values(laws: Sequence[Mapping[str, Any]]) -> StudyValues:
    """Laws as a table and as metrics: `law.linear probe.alpha`, with `.low` and `.high`.

    Each has `protocol`, `law` (None if refused), `formula`, `parameters` (`value`, `low`, `high`,
    `identifiable` by name) and `statements` (`text` each). A parameter that the results do not
    determine is in the table and is no metric: a number alone would be believed.
    """
    metrics: dict[str, float] = {}
    table: list[list[Any]] = []
    for law in laws:
        said = " ".join(str(s["text"]) for s in law.get("statements", ()))
        start = [law["protocol"], law.get("law"), law.get("formula")]
        parameters = law.get("parameters") or {}
        for name, values in parameters.items():
            found = [_finite(values.get(key)) for key in PARAMETER]
            table.append([*start, name, *found, values.get("identifiable"), said])
            if values.get("identifiable"):
                prefix = safe(f"law.{law['protocol']}.{name}").replace("/", "_")
                named = dict(zip((prefix, f"{prefix}.low", f"{prefix}.high"), found, strict=True))
                metrics |= numeric(named)
        if not parameters:
            table.append([*start, None, None, None, None, None, said])
    metrics["num_laws"] = float(sum(law.get("law") is not None for law in laws))
    return StudyValues(metrics=metrics, tables={"laws": (LAW_COLUMNS, table)} if table else {})


def prediction_values(predictions: Sequence[Mapping[str, Any]]) -> StudyValues:
    """Registered predictions as a table, and how many were hit: `PREDICTION_COLUMNS` each."""
    verdicts = [p.get("verdict") for p in predictions]
    table = [[_finite(p.get(name)) for name in PREDICTION_COLUMNS] for p in predictions]
    counts = {
        f"num_predictions_{name}": float(verdicts.count(name)) for name in ("open", "hit", "miss")
    }
    if not table:
        return StudyValues()
    return StudyValues(metrics=counts, tables={"predictions": (PREDICTION_COLUMNS, table)})


def reported_laws(report: Path | None) -> list[dict[str, Any]]:
    """Laws as the report has them; none without a report, or if it has none."""
    if report is None or not (report / SUMMARY).is_file():
        return []
    try:
        found = json.loads((report / SUMMARY).read_text(encoding="utf-8")).get("laws") or []
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{report / SUMMARY} cannot be read ({error}): write it anew with `mae-study report`"
        ) from error
    return list(found)


def _prediction(one: Scored) -> dict[str, Any]:
    return asdict(one.record) | {"measured": one.measured, "verdict": one.verdict, "z": one.z}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
