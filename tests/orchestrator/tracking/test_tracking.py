"""What arrives in MLflow through the real process that ships it, and what if it cannot."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.verdict import Cause, Verdict
from orchestrator.cli.main import main
from orchestrator.drive.task import Task
from orchestrator.errors import TrackingError
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.store.attempts import AttemptEnd, AttemptStart, DecisionRecord
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import JOURNAL_FILE, JournalWriter, StageReader
from orchestrator.store.records import DoneRecord, Records
from orchestrator.tracking.cell_values import final_results
from orchestrator.tracking.mlflow_database import (
    Destination,
    database_exists,
    default_uri,
    opened_client,
)
from orchestrator.tracking.run_values import STUDY, Point, RunInfo, RunStatus, RunUpdate
from orchestrator.tracking.shipper import Shipper
from orchestrator.tracking.study_tracking import Tracking, decision_text, sync_key
from orchestrator.tracking.uri import check_uri, sqlite_path, without_credentials
from studies.catalog import quickstart
from studies.spec.study import Study

CELL = RunInfo(name="a", level="cell", identity="cell:a")
STAGE = RunInfo(
    name="a#pretrain",
    level="stage",
    identity="stage:1",
    parent=CELL,
    tags={"kind": "pretrain"},
    params={"mask_ratio": 0.75, "size": "N1"},
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One SQLite file for the module, made by two studies that start at once.

    Making one takes seconds; each test has a study of its own.
    """
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/new/runs.db"
    targets = [Destination(uri=uri, study=study, question="?", origin="x") for study in "ab"]
    shippers = [Shipper(target) for target in targets]
    for shipper in shippers:
        finish_study(shipper)
    assert [shipper.close() for shipper in shippers] == [None, None]
    return uri


@pytest.fixture
def target(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Destination:
    return Destination(
        uri=database,
        study=request.node.name,
        question="?",
        origin="x",
        artifacts=tmp_path / "artifacts",
    )


def shipped(target: Destination, *actions: Callable[[Shipper], None]) -> str | None:
    shipper = Shipper(target)
    for action in actions:
        action(shipper)
    return shipper.close()


def done(
    folder: Path, metrics: dict[str, float], attempt: int = 1, identity: str = "stage:1"
) -> Callable[[Shipper], None]:
    update = RunUpdate(
        info=replace(STAGE, identity=identity),
        status=RunStatus.FINISHED,
        attempts=(folder,),
        results=tuple(Point(key, value, 1000) for key, value in metrics.items()),
        attempt=attempt,
        tags={"state": "done"},
    )
    return lambda shipper: shipper.send(update)


def finish_study(shipper: Shipper) -> None:
    info = RunInfo(name="s", level="study", identity=STUDY)
    shipper.send(RunUpdate(info=info, status=RunStatus.FINISHED))


def journal(folder: Path, losses: dict[int, float]) -> Path:
    writer = JournalWriter(folder / JOURNAL_FILE)
    for step, loss in losses.items():
        writer.write(step, {"loss": loss})
    writer.close()
    return folder


def runs(uri: str, study: str) -> dict[str, Any]:
    """Runs of a study by identity."""
    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name(f"mae-study/{study}")
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    return {run.data.tags["identity"]: run for run in found}


def mlflow_client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def curve(uri: str, run: Any, key: str) -> list[tuple[int, float]]:
    history = mlflow_client(uri).get_metric_history(run.info.run_id, key)
    return sorted((m.step, m.value) for m in history)


def test_a_stage_arrives_once_however_often_it_is_shipped(
    target: Destination, tmp_path: Path
) -> None:
    folder = journal(tmp_path / "1", {10: 0.5, 20: 0.4})
    results = {"final.loss": 0.4, "top5": 99.0, "loss": 0.4}
    assert shipped(target, done(folder, results)) is None
    assert shipped_attempts(target) == {"stage:1": "1"}
    journal(folder, {30: 0.1})
    skipped = done(folder, {"final.loss": 9.0})  # the attempt has arrived
    again = done(folder, results, attempt=2)  # this one reads everything once more
    assert shipped(target, skipped, again, finish_study) is None
    found = runs(target.uri, target.study)
    assert set(found) == {"study", "cell:a", "stage:1"}
    run, cell, study = found["stage:1"], found["cell:a"], found["study"]
    # Nothing twice, and no result of a curve's name at step 0.
    assert curve(target.uri, run, "loss") == [(10, 0.5), (20, 0.4), (30, 0.1)]
    assert curve(target.uri, run, "final.loss") == [(0, 0.4)]
    assert run.data.metrics == {"loss": 0.1, "final.loss": 0.4, "top5": 99.0, "mask_ratio": 0.75}
    assert run.data.params == {"mask_ratio": "0.75", "size": "N1"}
    expected = {
        "level": "stage",
        "kind": "pretrain",
        "state": "done",
        "mlflow.runName": "a#pretrain",
        "mlflow.parentRunId": cell.info.run_id,
    }
    assert expected.items() <= run.data.tags.items()
    assert "mlflow.parentRunId" not in cell.data.tags | study.data.tags
    assert (cell.data.tags["level"], study.data.tags["level"]) == ("cell", "study")
    assert {run.info.status, study.info.status} == {"FINISHED"}


def test_a_block_that_fails_gets_the_same_entries_again(tmp_path: Path) -> None:
    reader = StageReader()
    reader.follow([journal(tmp_path / "1", {1: 0.5}), journal(tmp_path / "2", {1: 9.0, 2: 0.4})])
    with pytest.raises(OSError), reader.reading() as entries:
        assert len(entries) == 2
        raise OSError
    with reader.reading() as entries:
        assert [(e.step, e.metrics) for e in entries] == [(1, {"loss": 0.5}), (2, {"loss": 0.4})]
    with reader.reading() as entries:
        assert entries == []
    assert reader.keys == {"loss"}


def test_only_what_is_still_missing_is_reported(target: Destination, tmp_path: Path) -> None:
    """Two journals cannot be read for a while; one of them can in the end."""
    for_a_while, for_good = tmp_path / "1" / JOURNAL_FILE, tmp_path / "2" / JOURNAL_FILE
    for_a_while.mkdir(parents=True)
    for_good.mkdir(parents=True)
    shipper = Shipper(target)
    done(for_a_while.parent, {})(shipper)
    done(for_good.parent, {}, identity="stage:2")(shipper)
    results = (Point("knn_top1", 1.0, 1000),)
    shipper.send(RunUpdate(info=CELL, status=RunStatus.FINISHED, results=results))
    deadline = time.monotonic() + 20
    while not arrived(target, "cell:a", "knn_top1") and time.monotonic() < deadline:
        time.sleep(0.2)
    for_a_while.rmdir()
    journal(for_a_while.parent, {1: 0.5})
    problem = shipper.close()
    assert problem is not None
    assert problem.startswith("stage:2 is incomplete: NotAFile")
    assert "more" not in problem
    assert curve(target.uri, runs(target.uri, target.study)["stage:1"], "loss") == [(1, 0.5)]
    assert shipped_attempts(target) == {"stage:1": "1"}


def shipped_attempts(target: Destination) -> dict[str, str]:
    """Attempts that are marked as arrived and will not be sent again, by identity."""
    tags = [run.data.tags for run in runs(target.uri, target.study).values()]
    marked = {t["identity"]: t["shipped_attempt"] for t in tags if "shipped_attempt" in t}
    return {identity: mark.partition("@")[0] for identity, mark in marked.items()}


def arrived(target: Destination, identity: str, key: str) -> bool:
    try:
        return key in runs(target.uri, target.study)[identity].data.metrics
    except (AttributeError, KeyError):  # no experiment, no run yet
        return False


KILLED = """
import os, signal, time
from orchestrator.tracking.mlflow_database import Destination
from orchestrator.tracking.run_values import RunInfo, RunStatus, RunUpdate
from orchestrator.tracking.shipper import Shipper
target = Destination(uri="sqlite:///runs.db", study="s", question="?", origin="x")
shipper = Shipper(target, restarts=0)
for n in range(300):
    info = RunInfo(name="n", level="stage", identity=str(n))
    tags = {"text": "x" * 10_000}
    shipper.send(RunUpdate(info=info, status=RunStatus.RUNNING, tags=tags))
os.kill(shipper.pid, signal.SIGKILL)
time.sleep(1)
began = time.monotonic()
if CLOSE:
    print(shipper.close(), flush=True)
    assert time.monotonic() - began < 20
"""


@pytest.mark.parametrize("close", [True, False])
def test_a_child_that_died_holds_nobody_up(close: bool, tmp_path: Path) -> None:
    program = KILLED.replace("CLOSE", str(close))
    command = [sys.executable, "-c", program]
    root = str(Path(__file__).resolve().parents[3])
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert ended.returncode == 0, ended.stderr
    assert ("died (exit code -9)" in ended.stdout) is close


class Bench:
    """A store in which a study's stages have been done by hand."""

    def __init__(self, root: Path, uri: str | None) -> None:
        self.store, self.uri = LocalStore(root), uri
        self.records, self.datasets = Records(self.store), Datasets(self.store)
        self.datasets.ensure("digits")
        cell = replace(quickstart.cell("N1", 0, 0), uses_winner=False)
        self.study = Study(name=f"tracked-{root.name}", question="?", cells=(cell,))

    def plan(self) -> Plan:
        return make_plan(self.study, self.records, self.datasets)

    def finish(self, metrics: dict[str, Any], leave_out: str = "") -> Plan:
        """Two attempts of every missing stage, the second from a checkpoint of the first."""
        for planned in self.plan().work:
            if planned.stage.name == leave_out:
                continue
            key = planned.identity.science_hash
            for losses in ({1: 0.9, 2: 0.8}, {2: 7.0, 3: 0.7}):
                number = self.records.begin_attempt(key, AttemptStart())
                journal(self.records.attempt_dir(key, number), losses)
            parents: dict[str, dict[str, str]] = {p: {} for p in planned.identity.parents}
            self.records.complete(
                DoneRecord(
                    science_hash=key,
                    kind=planned.stage.kind,
                    attempt=2,
                    metrics=metrics,
                    outputs={},
                    parents=parents,
                    seconds=1.0,
                    world_size=1,
                )
            )
        return self.plan()

    def sync(self, plan: Plan) -> str | None:
        with Tracking(self.store, plan, self.uri) as tracking:
            tracking.sync(plan, None)
        return tracking.problem


def test_a_study_is_filled_in_again_after_its_database_was_deleted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "a#1 &;'\"ü 100% $x" / "store"  # a path that is no address as it stands
    bench = Bench(root, None)
    uri = default_uri(bench.store)
    assert sqlite_path(uri) == root / "tracking/mlflow.db"
    plan = bench.finish({"top1": 50.0, "top5": 90.0, "loss": 0.6, "num_images": 100})
    before = sync_key(uri, plan)
    assert bench.sync(plan) is None
    synced = sync_key(uri, plan)
    assert synced != before and synced == sync_key(uri, plan)
    check_synced(uri, plan)
    assert database_exists(bench.store)
    for file in (root / "tracking").glob("mlflow.db*"):
        file.unlink()
    assert sync_key(uri, plan) == before
    assert bench.sync(plan) is None
    assert sync_key(uri, plan) not in (before, synced)
    check_synced(uri, plan)
    assert [p.name for p in tmp_path.iterdir()] == [root.parent.name]
    assert capfd.readouterr() == ("", "")


def test_deleted_experiments_and_backups_are_reconciled(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "store", None)
    uri, database = default_uri(bench.store), tmp_path / "store/tracking/mlflow.db"
    results = {"top1": 50.0, "top5": 90.0, "loss": 0.6, "num_images": 100}
    partly = bench.finish(results, leave_out="linear_100")
    assert bench.sync(partly) is None
    (older := tmp_path / "older.db").write_bytes(database.read_bytes())
    shutil.copytree(tmp_path / "store/stages", tmp_path / "stages")
    plan = bench.finish(results)
    assert bench.sync(plan) is None and bench.store.read(sync_key(uri, plan)) is not None
    check_synced(uri, plan)

    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name(f"mae-study/{bench.study.name}")
    client.delete_experiment(experiment.experiment_id)
    assert bench.store.read(sync_key(uri, plan)) is None
    began = time.monotonic()
    problem = bench.sync(plan) or ""
    assert time.monotonic() - began < 20
    assert f"mlflow experiments restore -x {experiment.experiment_id}" in problem
    assert f"mae-study mlflow rebuild --store {tmp_path}/store" in problem
    assert problem.count("run the same command") == 1
    client.restore_experiment(experiment.experiment_id)
    before = runs(uri, plan.study.name)
    assert bench.sync(plan) is None
    after = runs(uri, plan.study.name)
    assert {k: r.info.run_id for k, r in after.items()} == {
        k: r.info.run_id for k, r in before.items()
    }
    check_synced(uri, plan)
    check_single(uri, after)

    newer = database.read_bytes()
    database.write_bytes(older.read_bytes())  # the database is put back: it lacks what came since
    assert bench.store.read(sync_key(uri, plan)) is None
    assert bench.sync(plan) is None
    check_synced(uri, plan)

    database.write_bytes(newer)  # the store is put back, and goes on in another way
    shutil.rmtree(tmp_path / "store/stages")
    shutil.copytree(tmp_path / "stages", tmp_path / "store/stages")
    plan = bench.finish(results | {"top1": 60.0, "loss": 0.5})
    key = next(s for s in plan.stages if s.stage.name == "linear_100").identity.science_hash
    assert bench.sync(plan) is None
    found = runs(uri, plan.study.name)
    check_single(uri, found)
    assert found[f"stage:{key}"].info.run_id != after[f"stage:{key}"].info.run_id
    assert found[f"stage:{key}"].data.metrics["final.top1"] == 60.0
    same = found.keys() - {f"stage:{key}"}
    assert all(found[k].info.run_id == after[k].info.run_id for k in same)


def check_single(uri: str, found: dict[str, Any]) -> None:
    """No result and no point of a curve of a stage is there twice."""
    for run in found.values():
        for key in run.data.metrics if run.data.tags["level"] == "stage" else ():
            steps = [step for step, _ in curve(uri, run, key)]
            assert len(steps) == len(set(steps)), (run.data.tags["identity"], key)


def check_synced(uri: str, plan: Plan) -> None:
    found = runs(uri, plan.study.name)
    assert len(found) == 2 + len(plan.stages)
    for planned in plan.stages:
        run = found[f"stage:{planned.identity.science_hash}"]
        assert curve(uri, run, "loss") == [(1, 0.9), (2, 0.8), (3, 0.7)]
        expected = {"final.loss": 0.6, "final.top1": 50.0, "top1": 50.0, "top5": 90.0, "loss": 0.7}
        assert expected.items() <= run.data.metrics.items()
        assert run.info.status == "FINISHED" and run.data.tags["attempts"] == "2"
    cell = next(r for r in found.values() if r.data.tags["level"] == "cell")
    assert cell.data.metrics["knn_top1"] == 50.0 and cell.data.tags["state"] == "done"
    assert cell.info.status == "FINISHED"
    parents = {r.data.tags.get("mlflow.parentRunId") for r in found.values()}
    assert parents == {None, cell.info.run_id}


def test_runs_of_the_former_layout_are_nested_anew(database: str, tmp_path: Path) -> None:
    """Before, cells and stages were both children of the study's run."""
    bench = Bench(tmp_path, database)
    plan = bench.finish({"top1": 50.0})
    assert bench.sync(plan) is None
    client, before = mlflow_client(database), runs(database, plan.study.name)
    study = before["study"].info.run_id
    for identity in before.keys() - {"study"}:
        client.set_tag(before[identity].info.run_id, "mlflow.parentRunId", study)
    assert bench.sync(plan) is None
    after = runs(database, plan.study.name)
    assert after.keys() == before.keys()
    for identity, run in after.items():
        assert run.info.run_id == before[identity].info.run_id
        old, new = before[identity].data, run.data
        times = {"synced_at": new.tags.get("synced_at")} if identity == "study" else {}
        assert new.tags == old.tags | times
        # A result that is there is not sent once more.
        same = client.get_metric_history(run.info.run_id, "num_stages_done" if times else "top1")
        assert len(same) == (1 if "top1" in new.metrics or times else 0)


def test_a_note_about_the_former_view_is_replaced(database: str, tmp_path: Path) -> None:
    """A note of the user's stays; every run of a cell can be found by its size."""
    bench = Bench(tmp_path, database)
    plan, client = bench.finish({"top1": 50.0}), mlflow_client(database)
    assert bench.sync(plan) is None
    named = f"mae-study/{plan.study.name}"
    for note, is_kept in (("Views, 'cells of the grid' (or filter", False), ("my own", True)):
        experiment = client.get_experiment_by_name(named)
        client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", note)
        assert bench.sync(plan) is None
        now = client.get_experiment_by_name(named).tags["mlflow.note.content"]
        assert (now == note) is is_kept
    found = client.search_runs([experiment.experiment_id], "tags.size = 'N1'")
    assert len(found) == 1 + len(plan.stages)


def test_a_cell_has_its_results_while_the_study_runs(database: str, tmp_path: Path) -> None:
    """Its run is at the top, and a chart of cells need not wait for the last of them."""
    bench = Bench(tmp_path, database)
    start = bench.plan()
    first, last = start.stages[0], start.stages[-1]
    finished = bench.finish({"top1": 50.0}, leave_out=last.stage.name)
    assert len(finished.work) == 1 < len(finished.stages)
    with Tracking(bench.store, start, database) as tracking:
        task = Task(first, ())
        record = bench.records.done(task.key)
        assert record is not None
        tracking.stage_done(task, record)
    cell = next(
        r for r in runs(database, bench.study.name).values() if r.data.tags["level"] == "cell"
    )
    assert cell.data.tags["state"] == "partial" and cell.info.status == "FINISHED"
    assert cell.data.metrics["knn_top1"] == 50.0 and "rank_hours" not in cell.data.metrics
    bench.finish({"top1": 60.0})
    assert bench.sync(bench.plan()) is None
    cell = mlflow_client(database).get_run(cell.info.run_id)
    assert cell.data.tags["state"] == "done" and "rank_hours" in cell.data.metrics
    # What was there before the last stage was done is there once.
    assert curve(database, cell, "knn_top1") == [(0, 50.0)]


def test_a_cell_of_which_every_attempt_failed_has_failed(database: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, database)
    key = bench.plan().stages[0].identity.science_hash
    number = bench.records.begin_attempt(key, AttemptStart())
    bench.records.end_attempt(key, number, AttemptEnd(cause="user code", message="no"))
    assert bench.sync(bench.plan()) is None
    found = {r.data.tags["level"]: r for r in runs(database, bench.study.name).values()}
    assert [found[level].info.status for level in ("cell", "stage")] == ["FAILED", "FAILED"]
    assert found["cell"].data.tags["state"] == "failed"
    assert found["stage"].data.tags["last_message"] == "no"


def test_a_retried_stage_has_the_curve_of_its_attempts(database: str, tmp_path: Path) -> None:
    """A new driver ships what an attempt left that the old one had no time to ship, too."""
    bench = Bench(tmp_path, database)
    task = Task(bench.plan().stages[0], ())
    with Tracking(bench.store, bench.plan(), database) as tracking:
        for losses in ({1: 0.9, 2: 0.8}, {2: 7.0, 3: 0.7}, {3: 7.0, 4: 0.6}):
            task.attempt = bench.records.begin_attempt(task.key, AttemptStart())
            folder = journal(bench.records.attempt_dir(task.key, task.attempt), losses)
            if task.attempt == 1:
                continue  # its driver was killed
            tracking.stage_started(task, folder)
            if task.attempt == 2:
                end = AttemptEnd(cause=Cause.RANK_DIED.value, message="gone")
                bench.records.end_attempt(task.key, task.attempt, end)
                tracking.attempt_failed(task, Verdict(Cause.RANK_DIED, "gone"))
    assert tracking.problem is None
    run = runs(database, bench.study.name)[f"stage:{task.key}"]
    assert curve(database, run, "loss") == [(1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6)]
    assert run.info.status == "RUNNING"
    expected = {"attempts": "3", "state": "running", "last_message": "gone"}
    assert expected.items() <= run.data.tags.items()


def test_a_stage_done_again_has_a_curve_of_its_own(database: str, tmp_path: Path) -> None:
    """A result that was archived keeps its run; what replaces it has the same keys and steps."""
    bench = Bench(tmp_path, database)
    assert bench.sync(bench.finish({"loss": 0.6})) is None
    planned = bench.plan().stages[0]
    key = planned.identity.science_hash
    bench.records.supersede(key)
    task = Task(planned, ())
    task.attempt = bench.records.begin_attempt(key, AttemptStart())
    folder = journal(bench.records.attempt_dir(key, task.attempt), {1: 0.5, 2: 0.4})
    with Tracking(bench.store, bench.plan(), database) as tracking:
        tracking.stage_started(task, folder)
        for decision in (
            DecisionRecord(decision="retry", reason="rank died"),
            DecisionRecord(decision="give up", reason="no progress"),
        ):
            bench.records.decide(key, decision)
            tracking.decided(task, decision)
    assert tracking.problem is None
    found = runs(database, bench.study.name)
    assert curve(database, found[f"stage:{key}"], "loss") == [(1, 0.9), (2, 0.8), (3, 0.7)]
    again = found[f"stage:{key}:after-2"]
    assert curve(database, again, "loss") == [(1, 0.5), (2, 0.4)]
    expected = {"state": "running", "decision": "give up: no progress", "decisions": "2"}
    assert expected.items() <= again.data.tags.items()


def test_a_server_that_is_away_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bench = Bench(tmp_path, None)
    uri = "http://127.0.0.1:9"
    began = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        Tracking(bench.store, bench.plan(), uri) as tracking,
    ):
        raise KeyboardInterrupt
    # Who interrupts the command does not wait for a server that is away.
    assert time.monotonic() - began < 15
    assert tracking.problem is not None and uri in tracking.problem
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert uri in said and "cannot be reached" in said and "same command" in said


def test_results_do_not_take_the_names_of_curves() -> None:
    metrics = {"top1": 1, "loss": 2.0, "name": "x", "exact": True}
    assert final_results(metrics) == {"final.top1": 1.0, "final.loss": 2.0, "top1": 1.0}


def test_two_studies_may_make_a_database_at_once(database: str) -> None:
    assert all(runs(database, study)["study"].info.status == "FINISHED" for study in "ab")


@pytest.mark.parametrize(
    "uri", ["sqlite:////x.db", "postgresql+psycopg2://u:p@h/db", "mysql+pymysql://h/db"]
)
def test_databases_are_accepted(uri: str) -> None:
    check_uri(uri)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("ftp://host", "use http://host:port"),
        ("mlruns", "use http://host:port"),
        ("http://", "names no host"),
        ("http://127.0.0.1:port", "malformed"),
        ("http://[::1", "malformed"),
        ("http://203.0.113.5:5000", "no credentials"),
        ("https://mlflow.example.org", "no credentials"),
        ("sqlite:////proc/none/x.db", "cannot be used"),
        ("sqlite:////tmp/p%41q/x.db", "a percent code such as %20"),
    ],
)
def test_what_no_waiting_mends_is_refused(
    uri: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TrackingError, match="nothing was run") as refused:
        check_uri(uri)
    assert uri in str(refused.value) or uri.endswith(".db") and reason in str(refused.value)
    assert reason in str(refused.value)


@pytest.mark.parametrize("name", ["q?x", "p%41q", "new\nline", "tab\t", os.fsdecode(b"\xff")])
def test_a_store_that_has_no_address_is_refused_before_anything_is_written(
    name: str, tmp_path: Path
) -> None:
    arguments = ["run", "quickstart", "--store", str(tmp_path / name)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 8 and "cannot hold MLflow's database" in result.stderr
    assert "nothing was run" in result.stderr and not list(tmp_path.iterdir())


def test_a_password_is_never_shown() -> None:
    assert without_credentials("http://me:secret@host:1/x?y=z") == "http://host:1/x?y=z"
    assert without_credentials("mysql://host/db?user=me&password=secret") == "mysql://host/db"
    assert without_credentials("sqlite:////a/b.db") == "sqlite:////a/b.db"
    with pytest.raises(TrackingError) as refused:
        check_uri("mssql://me:secret@host/db")
    assert "secret" not in str(refused.value)


def test_decisions_fit_into_a_tag() -> None:
    text = decision_text(DecisionRecord(decision="retry", reason="x" * 900))
    assert text.startswith("retry: xxx") and len(text) == 500


def test_a_lock_that_an_older_version_opened_to_all_is_closed(tmp_path: Path) -> None:
    lock = tmp_path / "mlflow.db.lock"
    lock.touch(mode=0o644)
    with opened_client(f"sqlite:///{tmp_path}/mlflow.db"):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
