"""Gangs on a real embedded Ray, as tests use them: fixtures to import, and a training to run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.connect import Capacity, connect
from cluster.gang import Gang
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape
from cluster.verdict import Cause, Verdict, judge

TESTS = str(Path(__file__).resolve().parents[1])
PARTS = ("rng", "data", "lr", "weights", "exp_avg", "exp_avg_sq", "adam_step", "window")
"""Of the saved state; each can be left out of a resume, see `changes.py`."""


def embedded_ray() -> Iterator[Capacity]:
    """An embedded Ray of two cores whose ranks can import the tests' helpers."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
    with connect(num_cpus=2) as found:
        yield found


def warm_slots(capacity: Capacity) -> Iterator[SlotPool]:
    """Two slots of it."""
    with SlotPool("tests", 2, capacity, shape=slot_shape(capacity)) as pool:
        yield pool


@pytest.fixture(scope="module")
def capacity() -> Iterator[Capacity]:
    yield from embedded_ray()


@pytest.fixture(scope="module")
def pool(capacity: Capacity) -> Iterator[SlotPool]:
    yield from warm_slots(capacity)


def launched(pool: SlotPool, entry: str, payload: dict[str, Any], num_ranks: int) -> Gang:
    """Launch as soon as so many slots are idle: one that died is replaced in the background."""
    deadline = time.monotonic() + 60
    while (gang := pool.launch(entry, payload, num_ranks)) is None:
        assert time.monotonic() < deadline, "no slots"
        pool.wait([], 0.1)
    return gang


def finish(pool: SlotPool, gang: Gang | None, timeout_s: float = 60) -> Verdict:
    assert gang is not None
    deadline = time.monotonic() + timeout_s
    while not gang.is_finished:
        assert time.monotonic() < deadline, "the gang does not end"
        pool.wait([gang], 0.2)
    verdict = judge(list(gang.outcomes.values()))
    pool.release(gang)
    return verdict


def values(gang: Gang | None) -> list[dict[str, Any]]:
    assert gang is not None
    found = []
    for rank in sorted(gang.outcomes):
        value = gang.outcomes[rank].value
        assert value is not None
        found.append(value)
    return found


def attempt(pool: SlotPool, folder: Path, world: int, **payload: Any) -> dict[str, Any] | None:
    """Train on the digits; None if it ended in an error."""
    zero = payload.pop("zero", 1)
    execution = {"world_size": world, "zero_stage": zero} | payload.pop("execution", {})
    gang = launched(
        pool,
        "support.rank_entries:train_digits",
        {"folder": str(folder), "steps": 12, "execution": execution} | payload,
        world,
    )
    verdict = finish(pool, gang, 120)
    if verdict.cause is not Cause.SUCCESS:
        print(verdict.message, verdict.traceback)
        return None
    found = values(gang)
    # What the gang has read at each step, whichever rank it was.
    steps = zip(*(v["samples"] for v in found), strict=True)
    samples = [sorted(sum(parts, [])) for parts in steps]
    return found[0] | {"samples": samples, "masks": {k: m for v in found for k, m in v["masks"]}}


def train(pool: SlotPool, folder: Path, world: int, **payload: Any) -> dict[str, Any]:
    """Train on the digits, without an error."""
    found = attempt(pool, folder, world, **payload)
    assert found is not None
    return found
