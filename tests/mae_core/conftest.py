"""One Ray for the tests of this folder that train in gangs; trainings that several compare with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from support.gangs import embedded_ray, train, warm_slots

from cluster.connect import Capacity
from cluster.slot_pool import SlotPool

Whole = Callable[..., dict[str, Any]]


_shared = contextlib.ExitStack()
"""The Ray and its slots. They end with the last test of this folder: those of other folders check
that nothing of ours runs any more, and a folder that is no package has no scope of its own."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None]:
    try:
        return (yield)
    finally:
        if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
            _shared.close()


@pytest.fixture(scope="session")
def capacity() -> Capacity:
    return _shared.enter_context(contextlib.contextmanager(embedded_ray)())


@pytest.fixture(scope="session")
def pool(capacity: Capacity) -> SlotPool:
    return _shared.enter_context(contextlib.contextmanager(warm_slots)(capacity))


@pytest.fixture(scope="session")
def whole(pool: SlotPool, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """What an undisturbed training gives, by ranks and settings; each is done once."""
    done: dict[str, dict[str, Any]] = {}

    def find(world: int, **settings: Any) -> dict[str, Any]:
        key = repr((world, sorted(settings.items())))
        if key not in done:
            done[key] = train(pool, tmp_path_factory.mktemp("whole"), world, **settings)
        return done[key]

    return find
