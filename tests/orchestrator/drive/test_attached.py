"""A cluster that runs already: attach, lose the driver, attach again; nothing stays there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command import mae_study
from support.mlflow_servers import free_port
from support.ray_heads import Head, ray_head

from cluster.connect import connect
from cluster.errors import ClusterUnreachable

STUDY = """
from dataclasses import replace
from mae_core.config import Duration, Execution
from studies.catalog import quickstart
from studies.spec import Cell, Study


def study():
    stage = quickstart.pretrain("N1", 10, 0)
    recipe = replace(stage.recipe, duration=Duration.steps(300), global_batch=32)
    execution = Execution(world_size=2, zero_stage=2, loader_threads=0, checkpoint_every_steps=20)
    stage = replace(stage, recipe=recipe, execution=execution)
    knn = quickstart.evaluations(0, features="mean")[0]
    return Study(name="attached", question="?", cells=(Cell(address="one", stages=(stage, knn)),))
"""


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory, clean_machine: None) -> Iterator[Head]:
    # Ray's sockets lie below its directory, and a socket's path has 107 characters at most.
    folder = tmp_path_factory.mktemp("r", numbered=True)
    with ray_head(folder, num_cpus=2) as started:
        yield started


def test_a_killed_driver_leaves_nothing_and_the_next_goes_on(tmp_path: Path, head: Head) -> None:
    (tmp_path / "attached.py").write_text(STUDY)
    arguments = [
        "run",
        str(tmp_path / "attached.py"),
        "--store",
        str(tmp_path / "store"),
        "--no-report",
        "--address",
        head.address,
    ]
    environment = os.environ | head.environment
    first = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli.main", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("store/stages/*/*/checkpoints/step-*/manifest.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    assert head.state()["groups"] == ["CREATED"]
    first.kill()
    first.wait()

    again = mae_study(*arguments, env=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    causes = [
        json.loads(path.read_text())["cause"]
        for path in sorted(tmp_path.glob("store/stages/*/*/ends/*.json"))
    ]
    assert sorted(causes) == ["driver lost", "success", "success"]
    assert head.state_after(30, 2) == {"groups": [], "free_cpus": 2}


def test_an_address_that_nothing_answers_at_is_said_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(ClusterUnreachable, match="nothing answers at"):
        with connect(f"127.0.0.1:{free_port()}"):
            pass
    assert time.monotonic() - began < 15
