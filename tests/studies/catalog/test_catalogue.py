"""Every study that ships: planned at full scale without data, documented, and priced as it says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from orchestrator.plan.plan import Plan, make_plan
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.records import Records
from studies.catalog import CATALOG, PAPER, SMALL
from studies.load import load_study
from studies.reference import published_set
from studies.spec.axes import axis, place
from studies.spec.identity import identify
from studies.spec.study import Study

ROOT = Path(__file__).resolve().parents[3]
NAMES = [f"paper/{name}" for name in PAPER] + [f"small/{name}" for name in SMALL]
IMAGES = "no/such/folder"


def plan(study: Study, store: Path) -> Plan:
    local = LocalStore(store)
    return make_plan(study, Records(local), Datasets(local))


@pytest.mark.parametrize("name", NAMES)
def test_a_study_opens_with_question_command_cost_and_published_numbers(name: str) -> None:
    text = importlib.import_module(CATALOG[name]).__doc__ or ""
    study = load_study(name)
    heads = re.findall(r"^(\w+): ", text, flags=re.MULTILINE)
    assert heads[:4] == ["Question", "Command", "Cost", "Published"]
    assert f"mae-study run {name}" in text
    assert " ".join(study.question.lower().split()) in " ".join(text.lower().split())
    assert study.name == name


@pytest.mark.parametrize("name", NAMES)
def test_a_study_plans_without_data_and_costs_what_it_says(name: str, tmp_path: Path) -> None:
    made = plan(load_study(name), tmp_path)
    assert made.work and all(s.cost.is_known for s in made.stages)
    text = importlib.import_module(CATALOG[name]).__doc__ or ""
    said = re.search(r"([\d.]+) GPU-days", text)
    if name.startswith("paper/"):
        assert said and float(said[1]) == pytest.approx(made.rank_seconds / 86400, rel=0.2)


@pytest.mark.parametrize("name", [f"small/{name}" for name in SMALL])
def test_a_small_study_is_built_for_the_data_it_is_given(name: str, tmp_path: Path) -> None:
    study = load_study(name, IMAGES)
    assert study.name == f"{name}-images"
    images = {s.recipe.data.path for s in study.all_stages()} - {"other-images"}
    assert images == {IMAGES}
    made = plan(study, tmp_path)
    # A quarter of an hour on two cores: measured runs take about a third of what is assumed.
    assert made.rank_seconds / 2 < 25 * 60
    seeds = {s.recipe.seed for s in study.all_stages()}
    assert len(seeds) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_every_axis_separates_cells_and_published_sets_stand_on_one(name: str) -> None:
    study = load_study(name)
    assert study.axes
    for wanted in study.axes:
        if wanted in ("severity", "corruption"):  # conditions within a stage
            continue
        found = {place(wanted, cell, stage) for cell in study.cells for stage in cell.stages} - {
            None
        }
        assert len(found) >= 2, wanted
    for name in study.published:
        on = [r for r in published_set(name) for a in study.axes if {*a.split("+")} <= r.at.keys()]
        assert on, name


@pytest.mark.parametrize("name", NAMES)
def test_no_two_cells_of_a_study_are_the_same_measurement(name: str) -> None:
    """Two cells may share a pretraining; all of their stages they may not."""
    study = load_study(name)
    paths = {s.recipe.data.path: s.recipe.data.path for s in study.all_stages()}
    cells = [frozenset(i.science_hash for i in identify(c, paths).values()) for c in study.cells]
    assert len(set(cells)) == len(cells)


def test_every_table_of_the_paper_that_we_can_measure_belongs_to_a_study() -> None:
    named = {name for n in NAMES for name in load_study(n).published}
    tables = {
        "Fig 5",
        "Fig 7",
        "Fig 9",
        "Table 1a",
        "Table 1b",
        "Table 1c",
        "Table 1d",
        "Table 1e",
        "Table 1f",
        "Table 2",
        "Table 3 / Fig 8",
        "Table 6",
        "Table 12",
        "Table 13",
    }
    assert {f"MAE paper, {t}" for t in tables} <= named


def test_small_sisters_ask_the_same_question() -> None:
    for name in set(PAPER) & set(SMALL):
        big, small = load_study(f"paper/{name}"), load_study(f"small/{name}")
        assert {axis(a).name for a in small.axes} & {axis(a).name for a in big.axes} or name in (
            "transfer",  # one other set instead of five
            "robustness",  # corruptions alone: no other sets are at hand
        )


def test_the_document_lists_the_catalogue() -> None:
    text = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    missing = [name for name in CATALOG if f"`{name}`" not in text]
    assert not missing, f"docs/catalogue.md lacks {missing}"
