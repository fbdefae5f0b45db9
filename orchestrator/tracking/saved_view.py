"""A saved view of MLflow's UI that shows a study's cells: columns, scatters, parallel coordinates.

MLflow keeps saved views in tags of the experiment. Without one its table folds all runs of a study
into a single row, shows no accuracies, and its charts draw whatever comes first in the alphabet.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

VIEW_KEY = "mae-study-cells"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
NAME = "cells of the grid"
FILTER = "tags.level = 'cell' and tags.role = 'grid'"
SECTION = "accuracy"
MAX_CHARTS = 9
MAX_RUNS = 100
"""Runs in one chart; MLflow draws no more in parallel coordinates."""

Cell = tuple[Mapping[str, Any], Mapping[str, float]]
"""Params and metrics of a cell's run."""


def cells_view(cells: Sequence[Cell], axes: Sequence[str], at_ms: int) -> str:
    """Content of `VIEW_TAG`.

    Args:
        axes: params that the study is about, for the x-axes; others are used if these do not vary.
        at_ms: when the newest of the results was written, Unix milliseconds.
    """
    varied = varying(cells)
    accuracies = accuracy_names(cells)
    numbers = [n for n in reversed(varied) if _is_number(cells, n)]
    x_axes = [n for n in axes if _is_number(cells, n) and _has_several(cells, n)] or numbers[:1]
    charts = [_scatter(x, y) for y in accuracies for x in x_axes][: MAX_CHARTS - 1]
    columns = [f"params.`{n}`" for n in varied] + [f"metrics.`{n}`" for n in accuracies]
    state = {
        "searchFilter": FILTER,
        # Any order but MLflow's own unfolds the runs that are nested in the study's run.
        "orderByKey": "tags.`mlflow.runName`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [_parallel(varied, accuracies[:1]), *charts],
        "compareRunSections": [_section()],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    saved = {"name": NAME, "createdAt": at_ms, "updatedAt": at_ms, "state": f"deflate;{packed}"}
    return json.dumps(saved)


def view_link(experiment_id: str, mode: str = "CHART") -> str:
    """Path of the view behind the address of an MLflow server; `mode` is TABLE or CHART (both)."""
    options = {"viewStateShareKey": VIEW_KEY, "compareRunsMode": mode}
    options["workflowType"] = "machine_learning"
    query = "&".join(f"{key}={quote(value)}" for key, value in options.items())
    return f"#/experiments/{experiment_id}/runs?{query}"


def varying(cells: Sequence[Cell]) -> list[str]:
    """Params that differ between cells, in their order; seeds are no axis.

    Of those that differ together (size, parameters of the encoder) one is enough: a number if
    there is one, to be drawn to scale.
    """
    names = dict.fromkeys(name for params, _ in cells for name in params if name != "seed")
    chosen: dict[tuple[int, ...], str] = {}
    for name in sorted(names, key=lambda name: not _is_number(cells, name)):
        values = _values(cells, name)
        if _has_several(cells, name):
            chosen.setdefault(tuple(values.index(value) for value in values), name)
    return [name for name in names if name in chosen.values()]


def accuracy_names(cells: Sequence[Cell]) -> list[str]:
    """Names of top-1 accuracies; where two have the same values everywhere, the first."""
    names = dict.fromkeys(n for _, metrics in cells for n in metrics if n.endswith("_top1"))
    by_values = {tuple(metrics.get(n) for _, metrics in cells): n for n in reversed(names)}
    return [n for n in names if n in by_values.values()]


def _values(cells: Sequence[Cell], name: str) -> list[Any]:
    return [params.get(name) for params, _ in cells]


def _has_several(cells: Sequence[Cell], name: str) -> bool:
    return len(set(map(str, _values(cells, name)))) > 1


def _is_number(cells: Sequence[Cell], name: str) -> bool:
    return all(isinstance(value, int | float | None) for value in _values(cells, name))


def _scatter(x: str, y: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return _chart("SCATTER", f"{y} over {x}") | axes


def _parallel(params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    chosen = {"selectedParams": list(params), "selectedMetrics": list(metrics)}
    return _chart("PARALLEL", "parallel coordinates") | chosen | {"showAllRuns": True}


def _chart(kind: str, title: str) -> dict[str, Any]:
    return {
        "uuid": title.replace(" ", "-"),
        "type": kind,
        "displayName": title,
        "runsCountToCompare": MAX_RUNS,
        "metricSectionId": SECTION,
        "deleted": False,
        "isGenerated": False,
    }


def _section() -> dict[str, Any]:
    return {
        "uuid": SECTION,
        "name": "Accuracy",
        "display": True,
        "isReordered": False,
        "deleted": False,
        "isGenerated": False,
    }
