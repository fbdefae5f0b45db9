"""What a study's run says: how far it is, what its checks found, its laws and predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import StoreError
from orchestrator.plan.plan import Plan, plan_findings
from orchestrator.report.predictions import Scored, scored
from orchestrator.store.generations import milliseconds
from orchestrator.store.records import Records
from orchestrator.tracking.cell_values import numeric, safe
from orchestrator.tracking.run_values import (
    STUDY,
    Point,
    RunInfo,
    RunStatus,
    RunUpdate,
    Table,
    TableValue,
)
from studies.result_row import ResultRow, columns_of
from studies.spec.checks import Finding

SUMMARY = "summary.json"
"""What the report says, as data."""
ADDRESSES = ("output_dir",)
"""Columns of results that another copy of the store has otherwise."""
PARAMETER = ("value", "low", "high")
LAW_COLUMNS = ("protocol", "law", "formula", "parameter", *PARAMETER, "identifiable", "statements")
PREDICTED = ("cell", "stage", "protocol", "law", "top1", "low", "high", "level", "registered_at")


def study_update(
    plan: Plan, records: Records, rows: Sequence[ResultRow], report: Path | None
) -> RunUpdate:
    """Everything of a study: results, findings, registered predictions, the report and its laws."""
    findings, predictions, laws = plan_findings(plan), scored(plan, records), _reported_laws(report)
    ended = max((milliseconds(row.finished_at or "") for row in rows), default=0)
    at = max(ended, *(milliseconds(p.record.registered_at) for p in predictions), 0)
    first = {(r.cell, r.stage): r for r in reversed(rows)}
    levels, verdicts = [f.level for f in findings], [p.verdict for p in predictions]
    metrics = {
        "num_cells": len({s.cell.address for s in plan.stages}),
        "num_stages": len(plan.stages),
        "num_stages_done": sum(s.record is not None for s in plan.stages),
        "rank_hours": sum(r.rank_seconds for r in first.values()) / 3600,
        "num_laws": sum(law.get("law") is not None for law in laws),
        "num_warnings": levels.count("warning"),
        "num_notes": levels.count("note"),
    }
    if predictions:
        verdict_names = ("open", "hit", "miss")
        metrics |= {f"num_predictions_{name}": verdicts.count(name) for name in verdict_names}
    tables = _results_table(rows), _checks_table(findings), _laws_table(laws), _scores(predictions)
    return RunUpdate(
        info=RunInfo(name=plan.study.name, level="study", identity=STUDY),
        status=RunStatus.FINISHED,
        results=tuple(Point(k, float(v), at) for k, v in (metrics | _law_metrics(laws)).items()),
        tables=tuple(table for table in tables if table.rows),
        report=report,
        ended_ms=ended,
    )


def _results_table(rows: Sequence[ResultRow]) -> Table:
    columns = [name for name in columns_of(rows) if name not in ADDRESSES]
    values = [[_finite(row.to_dict().get(name)) for name in columns] for row in rows]
    return Table(name="results", columns=columns, rows=values)


def _checks_table(findings: Sequence[Finding]) -> Table:
    rows = [[f.level, f.code, f.message, ", ".join(f.cells)] for f in findings]
    return Table(name="checks", columns=("level", "code", "message", "cells"), rows=rows)


def _laws_table(laws: Sequence[Mapping[str, Any]]) -> Table:
    """One row per parameter of a law, or one for a protocol whose laws were all refused."""
    rows: list[list[TableValue]] = []
    for law in laws:
        said = " ".join(str(s["text"]) for s in law.get("statements", ()))
        for name, found in (law.get("parameters") or {None: {}}).items():
            values = [_finite(found.get(key)) for key in PARAMETER]
            start = [law["protocol"], law.get("law"), law.get("formula"), name]
            rows.append([*start, *values, found.get("identifiable"), said])
    return Table(name="laws", columns=LAW_COLUMNS, rows=rows)


def _law_metrics(laws: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Parameters of laws: `law.linear probe.alpha`, with `.low` and `.high`.

    One that the results do not determine is in the table and is no metric: a number alone would
    be believed.
    """
    metrics: dict[str, float] = {}
    for law in laws:
        for name, found in (law.get("parameters") or {}).items():
            if found.get("identifiable"):
                prefix = safe(f"law.{law['protocol']}.{name}").replace("/", "_")
                names = (prefix, f"{prefix}.low", f"{prefix}.high")
                values = (_finite(found.get(key)) for key in PARAMETER)
                metrics |= numeric(dict(zip(names, values, strict=True)))
    return metrics


def _reported_laws(report: Path | None) -> list[Mapping[str, Any]]:
    """Laws as the report has them; none without a report, or if it has none.

    Each has `protocol`, `law` (None if refused), `formula`, `parameters` (`value`, `low`, `high`,
    `identifiable` by name) and `statements` (`text` each).
    """
    if report is None or not (report / SUMMARY).is_file():
        return []
    try:
        found = json.loads((report / SUMMARY).read_text(encoding="utf-8")).get("laws") or []
    except (OSError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{report / SUMMARY} cannot be read ({error}): write it again with `mae-study report`"
        ) from error
    return list(found)


def _scores(predictions: Sequence[Scored]) -> Table:
    rows = [
        [
            *(_finite(getattr(p.record, name)) for name in PREDICTED),
            p.measured,
            p.verdict,
            _finite(p.z),
        ]
        for p in predictions
    ]
    return Table(name="predictions", columns=(*PREDICTED, "measured", "verdict", "z"), rows=rows)


def _finite(value: TableValue) -> TableValue:
    return None if isinstance(value, float) and not math.isfinite(value) else value
