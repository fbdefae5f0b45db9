"""Laws, registered predictions and advice from finished results, through the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.store_damage import rewrite

from orchestrator.cli.main import main
from orchestrator.plan.plan import Plan, PlannedStage, make_plan
from orchestrator.store.attempts import AttemptStart
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.records import DoneRecord, Records
from studies.load import load_study

STUDY = """
from dataclasses import replace

from mae_core.model import sizes
from mae_core.config import Duration, KnnRecipe, LrScheduleConfig
from studies.catalog import quickstart as base
from studies.spec import Cell, Stage, Study


def cell(size, epochs, seed):
    pretrain = base.pretrain("N1", epochs, 0)
    recipe = replace(pretrain.recipe, encoder=replace(sizes.encoder(size), patch_size=2), seed=seed)
    return Cell(address=f"{size}/e{epochs}/s{seed}", stages=(
        replace(pretrain, recipe=recipe),
        Stage(name="knn", recipe=KnnRecipe(data=recipe.data), parents=("pretrain",))))


def study():
    return Study(name="grid", question="how does it scale?", axes=("size", "duration"), cells=tuple(
        cell(size, epochs, seed) for size in ("N1", "N2", "N3", "N4", "Ti")
        for epochs in (50, 100, 200, 400) for seed in (0, 1)))
"""
TARGET = "Ti/e400/s0"


def truth(planned: PlannedStage, plan: Plan) -> float:
    """Top-1 of a cell by a law, with a little noise that depends on its address."""
    from orchestrator.plan.cell_facts import cell_facts

    at = cell_facts(planned.cell, plan.planner)
    wobble = math.sin(sum(map(ord, planned.cell.address))) * 0.1
    error = 8 + 60 * (at.encoder_params or 1) ** -0.2 + 300 * (at.images_seen or 1) ** -0.3
    return float(100 - error + wobble)


def finish(plan: Plan, records: Records, addresses: set[str]) -> None:
    """Complete stages with results that the law above gives."""
    done: dict[str, dict[str, str]] = {}
    for planned in plan.stages:
        if planned.cell.address not in addresses:
            continue
        key = planned.identity.science_hash
        records.write_identity(key, planned.identity.science)
        number = records.begin_attempt(key, AttemptStart())
        metrics: dict[str, Any] = {"loss": 0.5}
        if planned.stage.kind == "knn":
            metrics |= {"top1": truth(planned, plan), "top5": None, "num_images": 360}
        parents = {h: done[h] for h in planned.identity.parents}
        done[key] = {}
        records.complete(
            DoneRecord(
                science_hash=key,
                kind=planned.stage.kind,
                attempt=number,
                metrics=metrics,
                outputs={},
                parents=parents,
                seconds=36.0,
                world_size=1,
                provenance={},
            )
        )


@pytest.fixture
def grid(tmp_path: Path) -> tuple[str, str]:
    """Study file and store with every size but the largest finished."""
    study, store = tmp_path / "grid.py", tmp_path / "store"
    study.write_text(STUDY)
    records = Records(LocalStore(store))
    plan = make_plan(load_study(str(study)), records, Datasets(LocalStore(store)))
    finish(plan, records, {c.address for c in plan.study.cells if not c.address.startswith("Ti")})
    return str(study), str(store)


def call(*arguments: str) -> Any:
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.slow
def test_a_prediction_is_registered_before_and_scored_after(grid: tuple[str, str]) -> None:
    study, store = grid
    found = call("laws", study, "--store", store)["laws"][0]
    assert found["law"] is not None
    assert found["protocol"] == "k-NN (k=20), mean of patch tokens"
    said = call("predict", study, TARGET, "--store", store)
    assert said["registered"] == [1]
    prediction = said["predictions"][0]
    [kept] = Path(store).glob("studies/*/predictions/000001.json")
    rewrite(LocalStore(Path(store)), str(kept.relative_to(store)), mood="of a newer version")
    assert prediction["low"] < prediction["top1"] < prediction["high"]

    records = Records(LocalStore(Path(store)))
    plan = make_plan(load_study(study), records, Datasets(LocalStore(Path(store))))
    finish(plan, records, {TARGET})
    target = next(s for s in plan.stages if s.cell.address == TARGET and s.stage.name == "knn")
    measured = truth(target, plan)
    page = Path(call("report", study, "--store", store)["report"])
    summary = json.loads((page.parent / "summary.json").read_text())
    line = dict(zip(*summary["predictions"], strict=True))
    assert line["measured"] == f"{measured:.2f}"
    inside = prediction["low"] <= measured <= prediction["high"]
    assert line["verdict"] == ("hit" if inside else "miss")
    assert "Predictions against measurements" in page.read_text()
    again = CliRunner().invoke(main, ["predict", study, TARGET, "--store", store])
    assert again.exit_code == 2
    assert "a prediction must be registered before the cell runs" in again.output


@pytest.mark.slow
def test_advice_names_runs_within_the_budget(grid: tuple[str, str]) -> None:
    study, store = grid
    found = call("advise", study, "--target", TARGET, "--budget", "0.2", "--store", store)
    assert found["steps"]
    assert sum(s["gpu_hours"] for s in found["steps"]) <= 0.2
    assert TARGET not in {s["cell"] for s in found["steps"]}
    assert found["steps"][-1]["width_after"] < found["width_now"]
    assert "interval" in found["decision"]
    none = CliRunner().invoke(
        main, ["advise", study, "--target", TARGET, "--budget", "0", "--store", store]
    )
    assert none.exit_code == 2
    assert "buys nothing" in none.output


@pytest.mark.slow
def test_a_result_that_cells_share_is_advised_once(grid: tuple[str, str]) -> None:
    """Cells that differ in another stage alone: to run one is to know of the other."""
    study, store = grid
    twins = """
    cells = [cell(size, epochs, seed) for size in ("N1", "N2", "N3", "N4", "Ti")
             for epochs in (50, 100, 200, 400) for seed in (0, 1)]
    more = [replace(c, address=c.address + "/k5", stages=(*c.stages, replace(c.stages[1], name="k5",
            recipe=replace(c.stages[1].recipe, k=5)))) for c in cells]
    return Study(name="grid", question="?", axes=("size", "duration"), cells=(*cells, *more))
"""
    path = Path(study)
    path.write_text(path.read_text().split("    return Study(")[0] + twins)
    options = ("--budget", "1000", "--stage", "knn", "--store", store)
    cells = [s["cell"] for s in call("advise", study, "--target", TARGET, *options)["steps"]]
    assert cells and not [cell for cell in cells if cell.endswith("/k5")]


def test_an_empty_store_concludes_nothing(tmp_path: Path) -> None:
    study, store = tmp_path / "grid.py", str(tmp_path / "none")
    study.write_text(STUDY)
    assert call("laws", str(study), "--store", store)["laws"] == []
    said = call("predict", str(study), TARGET, "--store", store)
    assert said["registered"] == []
    assert "no result of protocol" in said["predictions"][0]["statements"][0]
    done = CliRunner().invoke(
        main, ["advise", str(study), "--target", TARGET, "--budget", "1", "--store", store]
    )
    assert done.exit_code == 2
    assert "run the smallest two cells first" in done.output
