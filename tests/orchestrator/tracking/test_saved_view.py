"""What the saved view of MLflow's UI chooses to show."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from orchestrator.tracking.saved_view import Cell, accuracy_names, cells_view, varying, view_link

SIZES = {"S": 22e6, "B": 86e6}


def cells(num_seeds: int = 2) -> list[Cell]:
    return [
        (
            {"size": size, "encoder_params": params, "epochs": epochs, "duration": f"{epochs}ep",
             "mask_ratio": 0.75, "seed": seed, "target": target},
            {"knn_top1": 45 + epochs / 10 + seed, "linear_probe_top1": 60.0 + seed,
             "probe_top1": 60.0 + seed, "rank_hours": 1.0},
        )
        for size, params in SIZES.items()
        for epochs, target in ((100, "pixels"), (200, "pixels"), (400, "tokens"))
        for seed in range(num_seeds)
    ]  # fmt: skip


def state(content: str) -> dict[str, Any]:
    """What MLflow's page unpacks."""
    packed = json.loads(content)["state"].removeprefix("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def test_of_what_varies_together_one_number_is_shown() -> None:
    assert varying(cells()) == ["encoder_params", "epochs", "target"]


def test_an_accuracy_under_two_names_is_shown_once() -> None:
    assert accuracy_names(cells()) == ["knn_top1", "linear_probe_top1"]


def test_a_view_has_columns_scatters_and_parallel_coordinates() -> None:
    shown = state(cells_view(cells(), ["epochs"], 7))
    assert shown["searchFilter"] == "tags.level = 'cell' and tags.role = 'grid'"
    assert shown["selectedColumns"][0] == "params.`encoder_params`"
    assert shown["selectedColumns"][-1] == "metrics.`linear_probe_top1`"
    parallel, *scatters = shown["compareRunCharts"]
    assert parallel["selectedParams"] == ["encoder_params", "epochs", "target"]
    assert [(c["xaxis"]["key"], c["yaxis"]["key"]) for c in scatters] == [
        ("epochs", "knn_top1"), ("epochs", "linear_probe_top1")]  # fmt: skip
    sections = {s["uuid"] for s in shown["compareRunSections"]}
    assert {c["metricSectionId"] for c in shown["compareRunCharts"]} == sections


def test_an_axis_of_words_is_not_drawn_to_scale() -> None:
    shown = state(cells_view(cells(), ["target"], 7))
    assert {c["xaxis"]["key"] for c in shown["compareRunCharts"][1:]} == {"epochs"}


def test_a_single_cell_has_a_view_too() -> None:
    assert state(cells_view(cells()[:1], [], 7))["selectedColumns"] == [
        "metrics.`knn_top1`", "metrics.`linear_probe_top1`"]  # fmt: skip


def test_a_link_opens_the_view() -> None:
    assert view_link("3").startswith("#/experiments/3/runs?viewStateShareKey=mae-study-cells&")
