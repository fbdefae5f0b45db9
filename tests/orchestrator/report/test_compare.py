"""Two sides compared: paired by what is left of the address, by seed, and by image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support.finished_study import STUDY, fill, finish
from support.store_damage import rewrite

from orchestrator.cli.main import main
from orchestrator.report.compare_sides import split_side
from orchestrator.store.driver import LocalStore
from studies.load import load_study


def compare(study: str, store: str, first: str = ":a", second: str = ":b") -> Result:
    arguments = ["compare", study + first, study + second, "--store", store, "--json"]
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(("better", "verdict"), [(0.2, "second higher"), (0.0, "no difference")])
def test_several_seeds_are_paired(tmp_path: Path, better: float, verdict: str) -> None:
    done = compare(*fill(tmp_path, 5, better))
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["comparisons"][0]["differences"]
    assert found["what"] == "#knn"
    assert found["seeds"] == 5
    assert found["by"] == "seeds"
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["verdict"].startswith(verdict)


def test_one_seed_is_compared_image_by_image(tmp_path: Path) -> None:
    (found,) = json.loads(compare(*fill(tmp_path, 1, 0.2)).stdout)["comparisons"][0]["differences"]
    assert found["by"] == "images"
    assert found["low"] > 0
    assert "The second is better on these images" in found["statement"]


SIZES = """
from dataclasses import replace
from studies.catalog import quickstart as base
from studies.spec import Cell, Study


def cell(family, size, k):
    knn = base.evaluations(0, features="pixels")[0]
    return Cell(address=f"{family}/{size}", stages=(replace(knn, recipe=replace(knn.recipe, k=k)),))


def study():
    kinds = (("a", "s16", 3), ("a", "s32", 5), ("b", "s16", 7), ("b", "s32", 9))
    return Study(name="two", question="which?", cells=tuple(cell(*kind) for kind in kinds))
"""


def test_sizes_that_look_like_seeds_are_sizes(tmp_path: Path) -> None:
    """The networks S/16 and S/32 at one seed are two comparisons, each over images."""
    path = tmp_path / "two.py"
    path.write_text(SIZES)
    top1 = {"a/s16": 0.5, "a/s32": 0.7, "b/s16": 0.6, "b/s32": 0.72}
    finish(path, LocalStore(tmp_path / "store"), lambda at: np.arange(200) < 200 * top1[at])
    done = compare(str(path), str(tmp_path / "store"))
    found = json.loads(done.stdout)["comparisons"][0]["differences"]
    assert [(d["what"], d["seeds"], d["by"]) for d in found] == [
        ("s16#knn", 1, "images"),
        ("s32#knn", 1, "images"),
    ]
    assert [d["difference"] for d in found] == pytest.approx([10.0, 2.0])
    assert all(0 < d["low"] <= d["difference"] <= d["high"] < 20 for d in found[:1])


SHARED = """
from dataclasses import replace
from studies.catalog import quickstart as base
from studies.spec import Cell, Study


def cell(family, k, lr):
    knn = base.evaluations(0, features="pixels")[0]
    knn = replace(knn, recipe=replace(knn.recipe, k=k))
    other = replace(knn, name="other", recipe=replace(knn.recipe, k=k + lr))
    return Cell(address=f"{family}/lr{lr}", stages=(knn, other))


def study():
    cells = [cell(f, k, lr) for f, k in (("a", 3), ("b", 9)) for lr in (1, 2)]
    return Study(name="two", question="which?", cells=tuple(cells))
"""


def test_a_result_that_cells_share_is_one_pair(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(SHARED)
    store = LocalStore(tmp_path / "store")
    finish(tmp_path / "two.py", store, lambda at: np.arange(200) < 100 + 20 * (at > "b"))
    done = compare(str(tmp_path / "two.py"), str(tmp_path / "store"))
    found = {d["what"]: d for d in json.loads(done.stdout)["comparisons"][0]["differences"]}
    assert {(what, d["seeds"], d["by"]) for what, d in found.items()} == {
        ("#knn", 1, "images"),
        ("lr1#other", 1, "images"),
        ("lr2#other", 1, "images"),
    }
    assert found["#knn"]["low"] < found["#knn"]["difference"] < found["#knn"]["high"]


def test_seeds_are_seeds_whatever_the_cells_are_called(tmp_path: Path) -> None:
    text = STUDY.replace("SEEDS", "range(3)").replace("{family}/s{seed}", "{family}/{'xyz'[seed]}")
    (tmp_path / "two.py").write_text(text)
    store = LocalStore(tmp_path / "store")
    finish(tmp_path / "two.py", store, lambda at: np.arange(200) < 100 + 20 * (at < "b"))
    done = compare(str(tmp_path / "two.py"), str(tmp_path / "store"))
    (found,) = json.loads(done.stdout)["comparisons"][0]["differences"]
    assert (found["what"], found["seeds"], found["difference"]) == ("#knn", 3, -10.0)


def test_a_side_against_itself_and_nothing_in_common(tmp_path: Path) -> None:
    study, store = fill(tmp_path, 2, 0.1)
    (found,) = json.loads(compare(study, store, ":a", ":a").stdout)["comparisons"][0]["differences"]
    assert found["verdict"] == "the same results"
    none = compare(study, store, ":a", ":missing")
    assert none.exit_code == 2
    assert "no finished evaluation in common" in none.output


def test_sides_are_read() -> None:
    assert split_side("small/x:mae/s") == ("small/x", None, "mae/s")
    assert split_side("small/x") == ("small/x", None, "")
    assert split_side("small/x@2:mae") == ("small/x", 2, "mae")
    assert split_side("user@host/x.py") == ("user@host/x.py", None, "")
    assert split_side("small/x@²:mae//") == ("small/x@²", None, "mae")


def test_a_result_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    study, store = fill(tmp_path, 2, 0.1)
    done = next((tmp_path / "store" / "stages").glob("*/*/done.json"))
    key = str(done.relative_to(store))
    rewrite(LocalStore(Path(store)), key, metrics={"top1": float("nan")})
    (found,) = json.loads(compare(study, store).stdout)["comparisons"][0]["differences"]
    assert found["seeds"] == 1 and found["difference"] is not None


def test_damaged_predictions_are_named(tmp_path: Path) -> None:
    study, store = fill(tmp_path, 1, 0.1)
    for path in (tmp_path / "store").rglob("predictions.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    done = compare(study, store)
    assert done.exit_code == 8 and "predictions.parquet is damaged" in done.output


def test_a_study_is_read_as_a_store_keeps_it(tmp_path: Path) -> None:
    fill(tmp_path, 2, 0.1)
    kept = tmp_path / "store" / "studies" / "two" / "resolved" / "000001.json"
    assert load_study(str(kept)) == load_study(str(tmp_path / "two.py"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["compare", *arguments])


def test_two_states_of_a_study_are_compared(tmp_path: Path) -> None:
    """Only what changed differs; the older state is asked for by its number."""
    _, store = fill(tmp_path, 4, 0.0)
    study, _ = fill(tmp_path, 4, 0.0, k=7)
    done = run("two@1", "two@2", "--store", store, "--json")
    assert done.exit_code == 0, done.output
    (comparison,) = json.loads(done.stdout)["comparisons"]
    found = {d["what"]: d for d in comparison["differences"]}
    assert found["a#knn"]["sides"] == "@2 − @1"
    assert found["a#knn"]["low"] > 0 and found["a#knn"]["difference"] > 10
    assert found["b#knn"]["verdict"] == "the same results"
    now = json.loads(run("two@1", study, "--store", store, "--json").stdout)
    differences = now["comparisons"][0]["differences"]
    assert {d["difference"] for d in differences} == {d["difference"] for d in found.values()}


def test_several_sides_have_a_page(tmp_path: Path) -> None:
    study, store = fill(tmp_path, 3, 0.2)
    out = tmp_path / "page"
    sides = (f"{study}:a", f"{study}:b", f"{study}:a")
    done = run(*sides, "--store", store, "--out", str(out))
    assert done.exit_code == 0, done.output
    assert "1 of 1 intervals" not in done.output and str(out / "index.html") in done.output
    text = (out / "index.html").read_text()
    assert ">Differences</h2>" in text and "b − a (1)" in text
    assert (out / "figures/differences.png").stat().st_size > 5000
    summary = json.loads((out / "summary.json").read_text())
    assert [d["verdict"] for d in summary["differences"]] == ["second higher", "the same results"]


@pytest.mark.parametrize(
    ("sides", "said"),
    [
        (("two@3", "two@1"), "has 1 state(s) of two: use two@1"),
        (("two@0", "two@1"), "has 1 state(s) of two"),
        (("twoo@1", "two@1"), "study twoo was never run"),
        (("two@1",), "name at least two sides"),
    ],
)
def test_sides_that_are_not_there(tmp_path: Path, sides: tuple[str, ...], said: str) -> None:
    _, store = fill(tmp_path, 1, 0.1)
    done = run(*sides, "--store", store)
    assert done.exit_code in (2, 8) and said in done.output
