"""Ranks of a real study are killed at random points: the result is the undisturbed one, by hash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mae_core.runtime.context import FAULT_POINTS
from orchestrator.cli.main import main
from orchestrator.drill import INTERVAL, REACH, DrawnFaults, DrillOptions, run_drill


@pytest.mark.parametrize(
    ("zero", "precision", "seed"), [(1, "fp32", 1), (2, "fp32", 2), (3, "fp32", 3), (2, "bf16", 4)]
)
def test_three_kills_lose_nothing(tmp_path: Path, zero: int, precision: str, seed: int) -> None:
    options = DrillOptions(
        store=tmp_path,
        kills=3,
        seed=seed,
        zero_stage=zero,
        precision=precision,  # type: ignore[arg-type]
        snapshot="blocking",
    )
    found = run_drill(options)
    assert found.differences == []
    assert len(found.kills) == 3
    assert (found.metrics_lost, found.metrics_doubled, found.metrics_changed) == (0, 0, 0)
    assert max(found.lost_steps) <= INTERVAL + 1
    assert found.num_metrics > 100
    assert sum(found.goodput.values()) == pytest.approx(100, abs=0.1)
    assert found.is_passed


@pytest.mark.process
def test_the_certificate_is_printed_and_its_directory_removed(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["drill", "--store", str(tmp_path), "--kills", "1", "--zero", "1", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["passed"] is True
    assert list(tmp_path.iterdir()) == []


def test_faults_are_drawn_from_the_seed_alone(tmp_path: Path) -> None:
    drawn = DrawnFaults(DrillOptions(store=tmp_path, kills=200, seed=5))
    first = [drawn(attempt) for attempt in range(1, 202)]
    assert first == [drawn(attempt) for attempt in range(1, 202)]
    assert [len(f) for f in first] == [1] * 200 + [0]
    points = {f[0].point for f in first[:-1]}
    assert points == set(REACH) == set(FAULT_POINTS) - {"finish"}
    assert {f[0].rank for f in first[:-1]} == {0, 1}
