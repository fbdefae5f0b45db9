"""`mlflow rebuild` and `register`, by the command, and models loaded by a fresh process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.command import mae_study
from support.mlflow_servers import client, runs_of

from mae_core.config import CLASSIFIER_FILE, ENCODER_FILE

CELL = "tiny/N1/e4/s0"
IDS = {"mlflow.parentRunId", "upstream_run_id", "mlflow.log-model.history", "synced_at"}


@pytest.fixture(scope="module")
def store(finished: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a finished store, at another place, with two models registered from there."""
    folder = tmp_path_factory.mktemp("copy") / "store"
    shutil.copytree(finished[1], folder)
    # The copy's database still names the artifacts of the original.
    done = mae_study("mlflow", "rebuild", "--store", str(folder))
    assert done.returncode == 0, done.stderr
    assert "rebuilding tiny" in done.stderr and "rebuilt 1 studies and 0 models" in done.stdout
    return folder


@pytest.fixture(scope="module")
def registered(store: Path) -> list[dict[str, Any]]:
    """An encoder by its class token and by its mean, and a classifier."""
    found = []
    for arguments in (
        (CELL,),
        (CELL, "--features", "mean", "--name", "averaged"),
        (f"{CELL}#finetune_100", "--name", "scans"),
    ):
        done = mae_study("mlflow", "register", *arguments, "--store", str(store), "--json")
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    return found


def uri_of(store: Path) -> str:
    return f"sqlite:///{store}/tracking/mlflow.db"


def dump(store: Path) -> dict[str, Any]:
    """All that people see of a study in MLflow, by identity in place of id and address.

    Of a copy: MLflow keeps files open, and would go on reading one that was moved aside.
    """
    uri = f"sqlite:///{shutil.copy(store / 'tracking/mlflow.db', tempfile.mkdtemp(dir=store))}"
    mlflow = client(uri)
    runs = runs_of(uri, "tiny")
    names = {run.info.run_id: run.data.tags["identity"] for run in runs}
    dumped: dict[str, Any] = {}
    for run in runs:
        tags = {k: v for k, v in run.data.tags.items() if k not in IDS}
        histories = {
            key: sorted(
                (m.step, m.timestamp, m.value)
                for m in mlflow.get_metric_history(run.info.run_id, key)
            )
            for key in run.data.metrics
        }
        if run.data.tags["level"] == "study":
            # A run of the study adds the sums that changed; the earlier ones are kept nowhere else.
            histories = {
                key: [(points[-1][0], 0, points[-1][2])] for key, points in histories.items()
            }
        inputs = [
            (
                d.dataset.name,
                d.dataset.digest,
                d.dataset.source,
                d.dataset.profile,
                sorted((t.key, t.value) for t in d.tags),
            )
            for d in run.inputs.dataset_inputs
        ]
        dumped[names[run.info.run_id]] = {
            "status": run.info.status,
            "start": run.info.start_time,
            "end": run.info.end_time,
            "tags": tags,
            "params": run.data.params,
            "metrics": histories,
            "inputs": inputs,
            "parent": names.get(run.data.tags.get("mlflow.parentRunId", "")),
            "upstream": names.get(run.data.tags.get("upstream_run_id", "")),
            "artifacts": files_of(run.info.artifact_uri),
        }
    dumped["experiment"] = mlflow.get_experiment_by_name("mae-study/tiny").tags
    dumped["models"] = sorted(
        (v.name, int(v.version), names[v.run_id], sorted(v.tags.items()))
        for v in mlflow.search_model_versions()
    )
    return dumped


def files_of(uri: str) -> dict[str, str]:
    """Artifacts of a run by relative path; the content of tables too."""
    root = Path(uri.removeprefix("file://"))
    return {
        str(path.relative_to(root)): path.read_text() if path.suffix == ".json" else ""
        for path in root.rglob("*")
        if path.is_file() and "model-" not in str(path)
    }


def test_a_rebuilt_database_equals_what_the_runs_wrote(
    finished: tuple[Path, Path], store: Path
) -> None:
    """The original was written while the study ran, the copy's all at once from its records."""
    written, rebuilt = dump(finished[1]), dump(store)
    assert len(written) > 20
    assert any(value.get("inputs") for value in written.values() if isinstance(value, dict))
    assert {"results.json", "laws.json", "report/index.html"} <= set(written["study"]["artifacts"])
    assert_equal(rebuilt, written)


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for identity, value in wanted.items():
        if not isinstance(value, dict):
            assert found[identity] == value, identity
            continue
        for key in value:
            assert found[identity][key] == value[key], (identity, key)


def test_models_are_registered_again(store: Path, registered: list[dict[str, Any]]) -> None:
    before = dump(store)
    assert [name for name, *_ in before["models"]] == ["averaged", "scans", "tiny-N1-e4-s0"]
    done = mae_study("mlflow", "rebuild", "--store", str(store), "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["studies"] == ["tiny"] and said["models"] == 3
    assert (Path(said["archived_to"]) / "mlflow.db").exists()
    assert_equal(dump(store), before)


def test_a_model_stays_what_it_was_when_its_cell_changes(
    finished: tuple[Path, Path], store: Path, registered: list[dict[str, Any]]
) -> None:
    """The classifier of other settings is another version; a rebuild has both, in order."""
    change = ("--set", "finetune_100.duration=3ep", "--accept-changes", "--store", str(store))
    assert mae_study("run", str(finished[0]), *change).returncode == 0
    again = mae_study(
        "mlflow",
        "register",
        f"{CELL}#finetune_100",
        "--name",
        "scans",
        "--store",
        str(store),
        "--json",
    )
    assert json.loads(again.stdout)["version"] == 2, again.stderr
    before = dump(store)["models"]
    assert [v for name, v, *_ in before if name == "scans"] == [1, 2]
    done = mae_study("mlflow", "rebuild", "--store", str(store))
    assert done.returncode == 0, done.stderr
    assert dump(store)["models"] == before


def test_the_same_model_is_one_version(store: Path, registered: list[dict[str, Any]]) -> None:
    again = mae_study("mlflow", "register", CELL, "--store", str(store), "--json")
    assert json.loads(again.stdout) == registered[0]
    assert len(list((store / "models/tiny-N1-e4-s0").iterdir())) == 1


LOAD = """
import json, sys
import numpy as np, torch, mlflow
mlflow.set_tracking_uri(sys.argv[1])
pixels = np.load(sys.argv[2])
for uri in sys.argv[3:]:
    with torch.inference_mode():
        direct = mlflow.pytorch.load_model(uri)(torch.from_numpy(pixels)).numpy()
    loaded = mlflow.pyfunc.load_model(uri)
    wrapped = loaded.predict(pixels)
    names = [s.to_dict()["tensor-spec"]["shape"] for s in loaded.metadata.signature.inputs.inputs]
    print(json.dumps([direct.tolist(), np.asarray(wrapped).tolist(), names,
                      sorted(n for n in sys.modules if n.startswith(("mae_core", "orchestr")))]))
"""


def test_models_load_without_our_code(
    store: Path, registered: list[dict[str, Any]], tmp_path: Path
) -> None:
    """By MLflow alone, in another process; the outputs are those of the stored weights."""
    import torch

    from mae_core.config import DataConfig
    from mae_core.evaluate.serving import load_served

    pixels = np.random.default_rng(1).random((5, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "pixels.npy", pixels)
    command = [sys.executable, "-c", LOAD, uri_of(store), str(tmp_path / "pixels.npy")]
    done = subprocess.run(
        [*command, *(r["uri"] for r in registered)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for record, line in zip(registered, done.stdout.splitlines(), strict=True):
        direct, wrapped, shapes, ours = json.loads(line)
        assert ours == []
        assert shapes == [[-1, 1, 8, 8]]
        data, path = weights_of(store, record)
        model, _ = load_served(path, DataConfig(path="builtin:digits", **data), features_of(record))
        with torch.inference_mode():
            expected = model(torch.from_numpy(pixels)).numpy()
        np.testing.assert_allclose(direct, expected, atol=1e-5)
        np.testing.assert_allclose(wrapped, expected, atol=1e-5)
    classes = client(uri_of(store)).get_model_version("scans", "1").tags["classes"]
    assert classes.split(", ") == [str(digit) for digit in range(10)]


def features_of(record: dict[str, Any]) -> Any:
    return "mean" if record["features"] == "mean" else "cls"


def weights_of(store: Path, record: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """How the data are normalised, and the file of weights, of a registered model."""
    version = client(uri_of(store)).get_model_version(record["name"], str(record["version"]))
    science_hash = version.tags["science_hash"]
    stage = store / "stages" / science_hash[:2] / science_hash
    name = CLASSIFIER_FILE if record["features"] == "scores" else ENCODER_FILE
    identity = json.loads((stage / "identity.json").read_text())
    keys = ("pixel_mean", "pixel_std", "image_size", "num_channels")
    data = {k: v for k, v in identity["recipe"]["data"].items() if k in keys}
    data = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return data, next(stage.glob(f"attempts/*/outputs/{name}"))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("register", "tiny/N1/e5/s0"), 2, "did you mean 'N1/e4/s0'"),
        (("register", "tinny/N1/e4/s0"), 2, "unknown study"),
        (("register", f"{CELL}#fine"), 2, "unknown stage 'fine'"),
        (("register", f"{CELL}#knn"), 2, "stage knn has not left weights"),
        (("register", CELL, "--name", "a/b"), 2, "use one without / and :"),
        (("register", CELL, "--name", " "), 2, "use one without"),
        (("register", CELL, "--features", "max"), 2, "'max' is not one of"),
        (("register", CELL, "--tracking-uri", "http://127.0.0.1:9"), 7, "cannot be reached"),
        (("--port", "5001", "rebuild"), 2, "--port is only for the UI"),
        (("rebuidl",), 2, "did you mean 'rebuild'"),
    ],
)
def test_what_cannot_be_registered_is_said(
    store: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    place = () if arguments[-1].startswith("rebui") else ("--store", str(store))
    done = mae_study("mlflow", *arguments, *place)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_store_without_runs_has_no_models(tmp_path: Path) -> None:
    done = mae_study("mlflow", "register", CELL, "--store", str(tmp_path))
    assert done.returncode == 8 and "no MLflow runs" in done.stderr
    done = mae_study("mlflow", "rebuild", "--store", str(tmp_path))
    assert done.returncode == 8 and "no study was run" in done.stderr


def test_a_running_study_is_not_rebuilt(store: Path) -> None:
    from orchestrator.store.driver import LocalStore
    from orchestrator.store.lease import hold

    before = sorted(p.name for p in (store / "tracking").iterdir())
    with hold(LocalStore(store), "tiny"):
        done = mae_study("mlflow", "rebuild", "--store", str(store))
    assert done.returncode == 5 and str(os.getpid()) in done.stderr
    assert sorted(p.name for p in (store / "tracking").iterdir()) == before
