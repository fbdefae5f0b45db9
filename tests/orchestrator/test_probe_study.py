"""A study of every evaluation beside the paper's two probes, run stage by stage without Ray."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.errors import UserError
from orchestrator.plan.plan import Plan, Status, make_plan
from orchestrator.rank.in_process import run_one
from orchestrator.report.study_report import write_report
from orchestrator.store.attempts import AttemptStart
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.records import DoneRecord, Records, digest_outputs
from studies.load import load_study

MAX_ROWS = 8
"""Images that a gallery shows, one below the other, under a line of titles."""
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
STUDY = '''
"""A study of seconds."""
from dataclasses import replace

from mae_core.config import *
from studies.catalog import quickstart as base
from studies.spec import Cell, Stage, Study

DATA = base.data(0)
WARMUP = LrScheduleConfig(warmup=Duration.steps(1))
HALF = PartialFinetuneRecipe(
    data=DATA, num_blocks=0.5, num_labels=50, augmentation=NO_AUGMENTATION, global_batch=25,
    duration=Duration.steps(2), lr_schedule=WARMUP, eval_split="dev", drop_path=0.0)


def study():
    pretrain = base.pretrain("N1", 0, 0)
    stages = [pretrain]

    def add(name, recipe, *parents):
        stages.append(
            Stage(name=name, recipe=recipe, parents=parents, execution=pretrain.execution))

    add("features", FeaturesRecipe(data=DATA, features="mean", layers=(1, 2)), "pretrain")
    add("knn", KnnRecipe(data=DATA, layer=2), "features")
    add("probes", FeatureProbeRecipe(data=DATA, features="mean", layers=(1, 2), lr_schedule=WARMUP,
                                     global_batch=128, duration=Duration.epochs(4)), "features")
    add("attentive", AttentiveProbeRecipe(data=DATA, num_heads=2, augmentation=NO_AUGMENTATION,
                                          duration=Duration.steps(2), lr_schedule=WARMUP,
                                          global_batch=64), "pretrain")
    add("half_2", HALF, "pretrain")
    add("half_4", replace(HALF, duration=Duration.steps(4)), "pretrain")
    add("best", BestOfRecipe(data=DATA, num_labels=50), "half_2", "half_4")
    add("loss", ReconstructionRecipe(data=DATA, gallery_ratios=(0.5, 0.75)), "pretrain")
    add("own", CustomEvalRecipe(data=DATA, features="mean", entry="my_evals:centroids",
                                options=(("sharpness", 2.0),)), "pretrain")
    return Study(name="probes", question="do they run?",
                 cells=(Cell(address="c", stages=tuple(stages)),))
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The study, and beside it the evaluation that `docs/extending.md` shows."""
    example = re.search(r"```python\n# my_evals.py\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "my_evals.py").write_text(example.group(1))
    (tmp_path / "probes.py").write_text(STUDY)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    sys.modules.pop("my_evals", None)


def planned(folder: Path) -> tuple[Plan, Records]:
    store = LocalStore(folder / "store")
    records = Records(store)
    return make_plan(load_study(str(folder / "probes.py")), records, Datasets(store)), records


def finish_all(folder: Path) -> dict[str, Any]:
    """Run every stage as a run would, keep it as done, and return its metrics by name."""
    plan, records = planned(folder)
    found = {}
    for stage in plan.stages:
        key = stage.identity.science_hash
        number = records.begin_attempt(key, AttemptStart())
        directory = records.attempt_dir(key, number)
        done = run_one(plan, records, cell="c", stage=stage.stage.name, out=directory)
        assert done is not None
        parents = {p: records.done(p) for p in stage.identity.parents}
        record = DoneRecord(
            science_hash=key,
            kind=stage.stage.kind,
            attempt=number,
            metrics=done["metrics"],
            outputs=digest_outputs(records.outputs(key, number)),
            parents={p: r.outputs for p, r in parents.items() if r is not None},
            seconds=1.0,
            world_size=1,
        )
        assert records.complete(record)
        found[stage.stage.name] = done["metrics"]
    return found


@pytest.mark.slow
def test_from_plan_to_report(folder: Path) -> None:
    metrics = finish_all(folder)
    search = metrics["best"]["details"]["search"]
    assert [entry["settings"]["duration"] for entry in search] == ["2st", "4st"]
    plan, records = planned(folder)
    assert {s.status for s in plan.stages} == {Status.DONE}
    page = write_report(plan, records, folder / "report")
    rows = {r["stage"]: r for r in pq.read_table(page.parent / "results.parquet").to_pylist()}
    assert rows["loss"]["loss"] == pytest.approx(metrics["loss"]["loss"])
    assert rows["loss"]["top1"] is None and rows["loss"]["eval_split"] == "test"
    evaluations = {"knn", "probes", "attentive", "half_2", "half_4", "best", "own"}
    assert {name for name, row in rows.items() if row["top1"] is not None} == evaluations
    text = page.read_text()
    for name in evaluations:
        assert rows[name]["protocol"] in text
    assert "linear probe on cached features, best of layers 1, 2" in text
    with Image.open(page.parent / "figures" / "gallery.png") as picture:
        # Seven columns: three of the pretraining's own, and mask and image at two ratios.
        assert picture.width / picture.height > 6 / (MAX_ROWS + 1)
    for name, row in rows.items():
        assert row["stage_flops"] > 0 or name in ("pretrain", "knn"), name


def test_debugging_a_choice_needs_its_candidates(folder: Path) -> None:
    plan, records = planned(folder)
    with pytest.raises(UserError, match="reads what 'half_2' leaves"):
        run_one(plan, records, cell="c", stage="best", out=None)
    for name in ("pretrain", "half_2", "half_4"):
        run_one(plan, records, cell="c", stage=name, out=None)
    best = run_one(plan, records, cell="c", stage="best", out=None)
    assert best is not None
    search = best["metrics"]["details"]["search"]
    chosen = max(search, key=lambda entry: (entry["dev_top1"], -entry["dev_loss"]))
    assert best["metrics"]["details"]["chosen"] == chosen["stage"]
