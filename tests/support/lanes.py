"""Lanes: a test that starts processes of its own is marked `process`, by what it calls.

`make fast` runs the others, less those that are marked `slow` by hand. The mark follows from the
code of the test, of its fixtures and of the helpers that it calls. What that reading misses is
caught when it happens: a test without the mark that starts a process fails, and says how to mark
it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent.parent
STARTERS = frozenset({"fork", "subprocess", "multiprocessing", "ray", "join_gang", "Popen"})
"""Names that start a process, or make one of a gang."""
LIBRARY_STARTERS = frozenset(
    {
        "cluster.connect.connect",
        "orchestrator.drill.run_drill",
        "orchestrator.run.run_study",
        "orchestrator.tracking.shipper.Shipper",
        "orchestrator.tracking.study_tracking.Tracking",
        "torch.multiprocessing.spawn.spawn",
    }
)
SLOW_S = 2.0
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 4 << 30

_running: list[pytest.Item] = []
_slow: list[tuple[float, str]] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "process: starts processes of its own (Ray, a gang, a server, the command)"
    )
    config.addinivalue_line("markers", "slow: needs no process, but seconds; not in `make fast`")
    sys.addaudithook(_watch)
    _use_memory()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known: dict[CodeType, bool] = {}
    for item in items:
        if isinstance(item, pytest.Function) and any(
            starts_process(f, known) for f in _functions(item)
        ):
            item.add_marker(pytest.mark.process)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _running[:] = [item]
    yield
    _running.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.duration > SLOW_S and not {"process", "slow"} & set(report.keywords):
        _slow.append((report.duration, f"{report.when} of {report.nodeid}"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _slow:
        terminalreporter.section(f"fast tests that took more than {SLOW_S:g} s")
        for seconds, name in sorted(_slow, reverse=True):
            terminalreporter.write_line(f"{seconds:6.1f} s  {name}")


def _use_memory() -> None:
    """Let temporary directories lie in memory, if there is room: a store waits for its syncs."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Fail a test that starts a process though it is not marked."""
    if event == "subprocess.Popen":
        words = [arguments[0], *(arguments[1] or ())]
        is_ours = any("python" in os.path.basename(os.fsdecode(word)) for word in words[:2])
    else:
        is_ours = event in ("os.fork", "os.forkpty", "os.posix_spawn")
    if is_ours and _running and "process" not in _running[0].keywords:
        pytest.fail(f"{_running[0].nodeid} starts a process: mark it with pytest.mark.process")


def _functions(item: pytest.Function) -> list[Any]:
    fixtures = item._fixtureinfo.name2fixturedefs
    return [item.function, *(definition.func for d in fixtures.values() for definition in d)]


def starts_process(found: Any, known: dict[CodeType, bool]) -> bool:
    """Tell whether a function or class of the tests names a starter, or calls what does."""
    if isinstance(found, type):
        return any(starts_process(member, known) for member in vars(found).values())
    function = getattr(found, "__wrapped__", getattr(found, "__func__", found))
    if not isinstance(function, FunctionType) or not _is_of_tests(function.__code__):
        return False
    code = function.__code__
    if code not in known:
        known[code] = False  # a function that calls itself
        known[code] = any(
            name in STARTERS or _is_starter(value) or starts_process(value, known)
            for name in _names(code)
            for value in [function.__globals__.get(name)]
        )
    return known[code]


def _is_starter(value: Any) -> bool:
    if isinstance(value, ModuleType):
        return value.__name__.partition(".")[0] in STARTERS
    qualified = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    return qualified in LIBRARY_STARTERS


def _is_of_tests(code: CodeType) -> bool:
    return Path(code.co_filename).is_relative_to(TESTS)


def _names(code: CodeType) -> set[str]:
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*(_names(c) for c in inner))
