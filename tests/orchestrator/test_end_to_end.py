"""The whole product through its command: real Ray, DeepSpeed gangs, Optuna, MLflow, real scans."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.command import mae_study, tiny_study
from support.mlflow_servers import Server, compare, runs_of

pytestmark = pytest.mark.usefixtures("clean_machine")


def completions(store: Path) -> list[dict[str, Any]]:
    return [json.loads(p.read_text()) for p in store.glob("stages/*/*/done.json")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_stage_is_done_once_and_chained(finished: tuple[Path, Path]) -> None:
    _, store = finished
    records = completions(store)
    kinds = [r["kind"] for r in records]
    # 3 trials of 2 stages, 3 baselines, 2 cells of 5 stages; equal trials share their stages.
    assert kinds.count("finetune") == 2 and kinds.count("knn") == 3
    by_hash = {r["science_hash"]: r for r in records}
    for record in records:
        for parent, outputs in record["parents"].items():
            assert by_hash[parent]["outputs"] == outputs
        if record["kind"] != "pretrain":
            assert "predictions.parquet" in record["outputs"]


def test_the_winner_flowed_into_the_grid(finished: tuple[Path, Path]) -> None:
    study, store = finished
    plan = json.loads(mae_study("plan", str(study), "--store", str(store), "--json").stdout)
    assert plan["sweep"]["trials_done"] == 3
    winner = plan["sweep"]["winner"]["settings"]
    grid = [s for s in plan["stages"] if s["cell"] == "N1/e4/s0" and s["kind"] == "pretrain"]
    identity = json.loads(
        next(store.glob(f"stages/*/{grid[0]['science_hash']}/identity.json")).read_text()
    )
    for key, value in winner.items():
        found: Any = identity["recipe"]
        for part in key.split(".")[1:]:
            found = found.get(part, "default") if isinstance(found, dict) else found
        assert found in (value, "default")


def test_a_second_run_starts_nothing_and_is_quick(finished: tuple[Path, Path]) -> None:
    study, store = finished
    before = sorted(p.name for p in store.glob("stages/*/*/attempts/*"))
    began = time.monotonic()
    again = mae_study("run", str(study), "--store", str(store), "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["started"] == 0
    assert sorted(p.name for p in store.glob("stages/*/*/attempts/*")) == before
    assert time.monotonic() - began < 30


def test_mlflow_has_the_runs_that_people_compare(finished: tuple[Path, Path]) -> None:
    _, store = finished
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/tracking/mlflow.db")
    experiment = client.get_experiment_by_name("mae-study/tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    levels = [r.data.tags["level"] for r in runs]
    assert levels.count("study") == 1
    cell = next(
        r for r in runs if r.data.tags.get("cell") == "N1/e4/s0" and r.data.tags["level"] == "cell"
    )
    assert {"knn_top1", "linear_probe_top1", "finetune_100_top1", "finetune_top1"} <= set(
        cell.data.metrics
    )
    for axis in ("encoder_params", "pretrain_flops", "mask_ratio", "seed", "steps"):
        assert axis in cell.data.metrics and axis in cell.data.params
    stage = next(
        r for r in runs if r.data.tags.get("stage") == "knn" and r.data.tags["cell"] == "N1/e4/s0"
    )
    upstream = client.get_run(stage.data.tags["upstream_run_id"])
    assert upstream.data.tags["kind"] == "pretrain"
    history = client.get_metric_history(upstream.info.run_id, "loss")
    assert len({(m.step, m.timestamp) for m in history}) == len(history) > 1
    assert {r.info.status for r in runs} == {"FINISHED"}
    study_run = next(r for r in runs if r.data.tags["level"] == "study")
    names = [a.path for a in client.list_artifacts(study_run.info.run_id, "report")]
    assert "report/index.html" in names


def test_the_report_is_one_page_with_tables(finished: tuple[Path, Path]) -> None:
    study, store = finished
    reported = mae_study("report", str(study), "--store", str(store), "--json")
    page = Path(json.loads(reported.stdout)["report"])
    assert "does it run?" in page.read_text()
    rows = pq.read_table(page.parent / "results.parquet").to_pylist()
    assert {r["role"] for r in rows} == {"grid", "untrained", "baseline", "sweep"}


def test_status_and_logs_speak(finished: tuple[Path, Path]) -> None:
    study, store = finished
    shown = mae_study("status", str(study), "--store", str(store))
    assert "5/5" in shown.stdout
    logs = mae_study("logs", str(study), "N1/e4/s0", "pretrain", "--store", str(store))
    assert "success" in logs.stdout and "loss" in logs.stdout


def test_changed_settings_are_drift_until_accepted(finished: tuple[Path, Path]) -> None:
    study, store = finished
    change = ("--set", "linear_100.duration=6ep")
    refused = mae_study("run", str(study), "--store", str(store), *change)
    assert refused.returncode == 3, refused.stderr
    assert "duration" in refused.stderr and "--accept-changes" in refused.stderr
    count = len(completions(store))
    accepted = mae_study("run", str(study), "--store", str(store), *change, "--accept-changes")
    assert accepted.returncode == 0, accepted.stderr
    assert len(completions(store)) == count + 3  # one per cell; the old ones stay


def test_a_stage_runs_alone_and_equals_the_gang(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    study, store = finished
    out = tmp_path / "debug"
    alone = mae_study(
        "debug", str(study), "N1/e4/s0", "knn", "--store", str(store), "--out", str(out), "--json"
    )
    assert alone.returncode == 0, alone.stderr
    mine = pq.read_table(out / "outputs" / "predictions.parquet")
    plan = json.loads(mae_study("plan", str(study), "--store", str(store), "--json").stdout)
    stage = next(s for s in plan["stages"] if s["cell"] == "N1/e4/s0" and s["stage"] == "knn")
    theirs = next(store.glob(f"stages/*/{stage['science_hash']}/attempts/*/outputs/pred*.parquet"))
    assert mine.equals(pq.read_table(theirs))


def test_a_stage_runs_under_torchrun(finished: tuple[Path, Path], tmp_path: Path) -> None:
    study, store = finished
    out = tmp_path / "torchrun"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(free_port()),
        "-m",
        "orchestrator.cli.main",
        "debug",
        str(study),
        "N1/e4/s0",
        "pretrain",
        "--store",
        str(store),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (out / "outputs" / "encoder.safetensors").exists()
    assert done.stdout.count("outputs in") == 1


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """A real server on loopback."""
    port = free_port()
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--backend-store-uri": f"sqlite:///{tmp_path}/server.db",
        "--default-artifact-root": f"file://{tmp_path}/artifacts",
        "--workers": "1",
    }
    flat = [text for pair in options.items() for text in pair]
    command = [sys.executable, "-m", "mlflow", "server", *flat]
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                time.sleep(0.25)
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def test_a_study_tracks_into_a_server(finished: tuple[Path, Path], mlflow_server: str) -> None:
    """Everything that is done is shipped to another MLflow by running the same study again."""
    study, store = finished
    change = ("--set", "linear_100.duration=6ep", "--accept-changes")
    arguments = ("run", str(study), "--store", str(store), "--tracking-uri", mlflow_server, *change)
    done = mae_study(*arguments)
    assert done.returncode == 0, done.stderr
    from mlflow.tracking import MlflowClient

    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("mae-study/tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert sum(r.data.tags["level"] == "stage" for r in runs) >= 16


SMALL_STUDY = """
from dataclasses import replace
from studies.catalog import quickstart as base
from studies.spec import Study

def study():
    cell = replace(base.cell("N1", 2, 0), uses_winner=False)
    return Study(name="small", question="?", cells=(replace(cell, stages=cell.stages[:2]),))
"""


def test_a_study_runs_without_its_server_and_ships_later(tmp_path: Path) -> None:
    study, store, server = tmp_path / "small.py", tmp_path / "store", Server(tmp_path)
    study.write_text(SMALL_STUDY)
    command = ("run", str(study), "--store", str(store), "--tracking-uri", server.uri)
    done = mae_study(*command)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count(f"MLflow at {server.uri} cannot be reached") == 1
    said = " ".join((done.stdout + done.stderr).split())
    assert "MLflow is incomplete" in said and "run the same command to send it" in said
    assert len(completions(store)) == 2
    try:
        server.start()
        again = mae_study(*command, "--json")
        assert again.returncode == 0, again.stderr
        assert json.loads(again.stdout)["started"] == 0
        assert json.loads(again.stdout)["tracking_problem"] is None
        runs = runs_of(server.uri, "small")
        assert {r.info.status for r in runs} == {"FINISHED"}
        run = next(r for r in runs if r.data.tags.get("stage") == "pretrain")
        found = compare(server.uri, run, store.glob(f"stages/*/{hash_of(run)}/attempts/000001"))
        assert found["journal"] == found["mlflow"] > 10
        assert found["missing"] == found["doubled"] == found["different"] == 0
    finally:
        server.kill()


def hash_of(run: Any) -> str:
    return str(run.data.tags["science_hash"])


def test_a_killed_driver_is_continued_by_the_same_command(tmp_path: Path) -> None:
    """SIGKILL in the middle of a 2-rank pretraining: it goes on from its checkpoint.

    Though every attempt, end, decision and state of the study is damaged by then.
    """
    study, store = tiny_study(tmp_path, epochs=80, checkpoint_s=0.5), tmp_path / "store"
    command = [
        sys.executable,
        "-m",
        "orchestrator.cli.main",
        "run",
        str(study),
        "--store",
        str(store),
    ]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 150
    while not list(store.glob("stages/*/*/checkpoints/step-*/manifest.json")):
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    busy = mae_study("run", str(study), "--store", str(store))
    assert busy.returncode == 5 and str(driver.pid) in busy.stderr
    driver.kill()
    driver.wait()
    done_before = {r["science_hash"]: r["finished_at"] for r in completions(store)}
    kinds = ("stages/*/*/attempts", "stages/*/*/ends", "stages/*/*/decisions", "studies/*/resolved")
    side = [path for kind in kinds for path in store.glob(f"{kind}/*.json")]
    for path in side:
        path.write_bytes(path.read_bytes()[:-20])
    again = mae_study("run", str(study), "--store", str(store))
    assert again.returncode == 0, again.stderr + again.stdout
    assert all(f"damaged/{path.relative_to(store)}" in again.stderr for path in side)
    assert mae_study("verify", "--store", str(store)).returncode == 0
    after = {r["science_hash"]: r for r in completions(store)}
    for science_hash, finished_at in done_before.items():
        assert after[science_hash]["finished_at"] == finished_at
    resumed = [r for r in after.values() if r["metrics"].get("resumed_from", 0) > 0]
    assert len(resumed) == 1 and resumed[0]["attempt"] == 2
    assert not list(store.glob("stages/*/*/checkpoints"))
