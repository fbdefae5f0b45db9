"""One Ray for the tests of this folder that train in gangs; trainings that several compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.gangs import embedded_ray, train, warm_slots

from cluster.connect import Capacity
from cluster.slot_pool import SlotPool

Whole = Callable[..., dict[str, Any]]


@pytest.fixture(scope="package")
def capacity() -> Iterator[Capacity]:
    yield from embedded_ray()


@pytest.fixture(scope="package")
def pool(capacity: Capacity) -> Iterator[SlotPool]:
    yield from warm_slots(capacity)


@pytest.fixture(scope="package")
def whole(pool: SlotPool, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What an undisturbed training gives, by ranks and settings; each is done once."""
    done: dict[str, dict[str, Any]] = {}

    def find(world: int, **settings: Any) -> dict[str, Any]:
        key = repr((world, sorted(settings.items())))
        if key not in done:
            done[key] = train(pool, tmp_path_factory.mktemp("whole"), world, **settings)
        return done[key]

    return find
