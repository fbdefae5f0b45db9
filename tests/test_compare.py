"""Two sides compared: paired by what is left of the address, by seed, and by image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from mae_core.evaluate.predictions import Predictions, write_predictions
from orchestrator.cli import main
from orchestrator.compare import split_side
from orchestrator.datasets import Datasets
from orchestrator.plan import make_plan
from orchestrator.records import DoneRecord, Records, digest_outputs
from orchestrator.store import LocalStore
from studies.load import load_study

STUDY = """
from studies.catalog import quickstart as base
from studies.spec import Cell, Stage, Study
from dataclasses import replace


def cell(family, k, seed):
    knn = base.evaluations(seed, features="pixels")[0]
    knn = replace(knn, recipe=replace(knn.recipe, k=k, data=base.data(0)))
    return Cell(address=f"{family}/s{seed}", stages=(knn,))


def study():
    cells = [cell(f, k, s) for f, k in (("a", 5), ("b", 9)) for s in SEEDS]
    return Study(name="two", question="which?", cells=tuple(cells))
"""


def fill(tmp_path: Path, seeds: int, better: float) -> tuple[str, str]:
    """A study and its store with results of 200 images; b is right on `better` more of them."""
    path, store = tmp_path / "two.py", LocalStore(tmp_path / "store")
    path.write_text(STUDY.replace("SEEDS", f"range({seeds})"))
    records = Records(store)
    plan = make_plan(load_study(str(path)), records, Datasets(store))
    for planned in plan.stages:
        family, seed = planned.cell.address[0], int(planned.cell.address[-1])
        rng = np.random.default_rng(seed)
        share = 0.6 + (better if family == "b" else 0.0)
        right = rng.random(200) < share  # the same images are hard for both
        key = planned.identity.science_hash
        records.write_identity(key, planned.identity.science)
        number = records.begin_attempt(key, {})
        outputs = records.outputs(key, number)
        outputs.mkdir(parents=True, exist_ok=True)
        zeros = np.zeros(200, dtype=np.int64)
        write_predictions(
            outputs / "predictions.parquet",
            Predictions(sample_index=np.arange(200), label=zeros, prediction=1 - right.astype(int),
                        label_rank=1 - right.astype(int), nll=np.ones(200)),
        )  # fmt: skip
        records.complete(
            DoneRecord(
                science_hash=key,
                kind="knn",
                attempt=number,
                outputs=digest_outputs(outputs),
                metrics={"top1": 100 * float(right.mean()), "num_images": 200},
                parents={},
                seconds=1.0,
                world_size=1,
                provenance={},
            )  # fmt: skip
        )
    return str(path), str(tmp_path / "store")


def compare(study: str, store: str, first: str = ":a", second: str = ":b") -> Result:
    arguments = ["compare", study + first, study + second, "--store", store, "--json"]
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(("better", "verdict"), [(0.2, "second higher"), (0.0, "no difference")])
def test_several_seeds_are_paired(tmp_path: Path, better: float, verdict: str) -> None:
    done = compare(*fill(tmp_path, 5, better))
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)["differences"]
    assert found["what"] == "#knn"
    assert found["seeds"] == 5
    assert found["by"] == "seeds"
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["verdict"].startswith(verdict)


def test_one_seed_is_compared_image_by_image(tmp_path: Path) -> None:
    (found,) = json.loads(compare(*fill(tmp_path, 1, 0.2)).stdout)["differences"]
    assert found["by"] == "images"
    assert found["low"] > 0
    assert "The second is better on these images" in found["statement"]


def test_a_side_against_itself_and_nothing_in_common(tmp_path: Path) -> None:
    study, store = fill(tmp_path, 2, 0.1)
    (found,) = json.loads(compare(study, store, ":a", ":a").stdout)["differences"]
    assert found["verdict"] == "the same results"
    none = compare(study, store, ":a", ":missing")
    assert none.exit_code == 2
    assert "no finished evaluation in common" in none.output


def test_sides_are_read() -> None:
    assert split_side("small/x:mae/s") == ("small/x", "mae/s")
    assert split_side("small/x") == ("small/x", "")
