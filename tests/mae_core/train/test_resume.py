"""Resuming a training: bit for bit in a gang of the same size, sample for sample in another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.gangs import PARTS, attempt, train

from cluster.slot_pool import SlotPool

Whole = Callable[..., dict[str, Any]]
EVERY_STAGE = [
    (0, "fp32"),
    (1, "fp32"),
    (2, "fp32"),
    (3, "fp32"),
    (0, "bf16"),
    (1, "bf16"),
    (2, "bf16"),
    (3, "bf16"),
    (0, "bf16-mixed"),
    (1, "bf16-mixed"),
    (2, "bf16-mixed"),
    (3, "bf16-mixed"),
]


@pytest.mark.parametrize(("zero", "precision"), EVERY_STAGE)
def test_a_stopped_training_resumes_bit_exactly(
    pool: SlotPool, whole: Whole, tmp_path: Path, zero: int, precision: str
) -> None:
    """Weights, optimizer, generators, next samples and logged losses, with random input noise."""
    settings = {"zero": zero, "precision": precision, "noise": True}
    settings["execution"] = {"record_state": True, "micro_batch": 24}  # accumulation of 2
    expected = whole(2, **settings)
    stopped = train(pool, tmp_path / "parts", 2, **settings, stop_at=5)
    assert stopped.get("stopped")
    resumed = train(pool, tmp_path / "parts", 2, **settings)
    assert resumed["metrics"]["resumed_from"] == 5
    assert resumed["metrics"]["level"] == "bit-exact"
    assert resumed["weights"][0] == stopped["weights"][-1]
    assert resumed["digest"] == expected["digest"]
    assert resumed["state"] == expected["state"]
    assert stopped["losses"] + resumed["losses"] == expected["losses"]


@pytest.mark.parametrize("stop_at", [11, 15, 16])
def test_a_resume_around_the_end_of_an_epoch(
    pool: SlotPool, whole: Whole, tmp_path: Path, stop_at: int
) -> None:
    """15 steps are an epoch of the digits' training split at this batch."""
    settings = {"steps": 18, "noise": True, "execution": {"record_state": True}}
    train(pool, tmp_path / "parts", 2, **settings, stop_at=stop_at)
    resumed = train(pool, tmp_path / "parts", 2, **settings)
    assert resumed["metrics"]["resumed_from"] == stop_at
    assert resumed["state"] == whole(2, **settings)["state"]


def test_a_run_whose_end_was_lost_resumes_at_its_last_step(pool: SlotPool, tmp_path: Path) -> None:
    settings = {"noise": True, "execution": {"record_state": True}}
    whole = train(pool, tmp_path, 2, **settings)
    again = train(pool, tmp_path, 2, **settings)
    assert again["metrics"]["resumed_from"] == 12
    assert (again["state"], again["digest"]) == (whole["state"], whole["digest"])
    assert again["metrics"]["loss"] == whole["metrics"]["loss"]


@pytest.mark.parametrize("zero", [1, 3])
def test_no_part_of_the_state_can_be_left_out(
    pool: SlotPool, whole: Whole, tmp_path: Path, zero: int
) -> None:
    """What is not restored is noticed at once, or shows in the final state or the losses."""
    settings = {"zero": zero, "noise": True, "steps": 10, "log_every": 4}
    settings["execution"] = {"record_state": True}
    expected = whole(2, **settings)
    stopped = train(pool, tmp_path / "stopped", 2, **settings, stop_at=5)
    for part in (*PARTS, "nothing"):
        folder = shutil.copytree(tmp_path / "stopped", tmp_path / part)
        resumed = attempt(pool, folder, 2, **settings, leave_out=part)
        was_exact = resumed is not None and (
            (resumed["state"], stopped["losses"] + resumed["losses"])
            == (expected["state"], expected["losses"])
        )
        assert was_exact is (part == "nothing"), part


@pytest.mark.parametrize(
    ("zero", "precision", "worlds"),
    [
        (0, "fp32", (2, 1, 2)),
        (1, "fp32", (2, 1, 2)),
        (2, "fp32", (2, 1, 2)),
        (3, "fp32", (2, 1, 2)),
        (1, "bf16", (2, 1)),
        (3, "bf16", (1, 2)),
        (0, "bf16", (2, 1)),
        (2, "bf16-mixed", (2, 1)),
        (3, "bf16-mixed", (1, 2)),
    ],
)
def test_another_world_size_goes_on_with_the_same_samples(
    pool: SlotPool, whole: Whole, tmp_path: Path, zero: int, precision: str, worlds: tuple[int, ...]
) -> None:
    settings = {"zero": zero, "precision": precision, "grouped": True}
    undisturbed = whole(worlds[0], **settings)
    losses = []
    samples = []
    saved = ""
    for number, world in enumerate(worlds):
        last = number == len(worlds) - 1
        stop = {} if last else {"stop_at": 4}
        part = train(pool, tmp_path / "parts", world, **settings, **stop)
        if number:  # the masters of bf16 too, which its losses hardly show
            assert part["weights"][0] == saved, number
        saved = part["weights"][-1]
        losses += part["losses"]
        samples += part["samples"]
        if number:
            assert last is False or part["metrics"]["level"] == "order-exact"
    assert samples == undisturbed["samples"]
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert [s for s, _ in losses] == [s for s, _ in undisturbed["losses"]]
    for (_, found), (_, expected) in zip(losses, undisturbed["losses"], strict=True):
        assert found == pytest.approx(expected, rel=tolerance)


@pytest.fixture(scope="module")
def stopped_twice(pool: SlotPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that has left checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("stopped")
    train(pool, folder, 2, stop_at=4)
    train(pool, folder, 2, stop_at=4)  # counts its own steps: stops at 8
    return folder


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "manifest"])
def test_a_damaged_checkpoint_is_not_used(
    pool: SlotPool, whole: Whole, stopped_twice: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(stopped_twice, tmp_path / "run")
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [c.name for c in checkpoints] == ["step-000000004-000000", "step-000000008-000000"]
    shard = max((checkpoints[1] / "shards").iterdir(), key=lambda p: p.stat().st_size)
    content = shard.read_bytes()
    if damage == "flip":
        shard.write_bytes(content[:999] + bytes([content[999] ^ 1]) + content[1000:])
    elif damage == "truncate":
        shard.write_bytes(content[:-7])
    elif damage == "missing":
        shard.unlink()
    else:
        (checkpoints[1] / "manifest.json").write_text('{"step": 8')
    resumed = train(pool, tmp_path / "run", 2)
    assert resumed["metrics"]["resumed_from"] == 4
    assert resumed["digest"] == whole(2)["digest"]


def test_a_checkpoint_of_another_identity_is_not_resumed(pool: SlotPool, tmp_path: Path) -> None:
    train(pool, tmp_path, 1, stop_at=5)
    other = train(pool, tmp_path, 1, science_hash="other")
    assert other["metrics"]["resumed_from"] == 0
