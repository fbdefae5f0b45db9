"""A test lands in the right lane by itself, and one that does not is told so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import encoder_parent, mae_study
from support.lanes import starts_process


def through_a_helper() -> None:
    mae_study("list")


def in_a_comprehension() -> None:
    assert [subprocess.run(["true"], check=True) for _ in range(2)]


def of_nothing() -> None:
    encoder_parent(Path("encoder.safetensors"))


class Holder:
    def method(self) -> None:
        through_a_helper()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (through_a_helper, True),
        (in_a_comprehension, True),
        (Holder, True),
        (mae_study, True),
        (of_nothing, False),
        (Path, False),
    ],
)
def test_what_a_test_calls_is_followed(found: object, expected: bool) -> None:
    assert starts_process(found, {}) is expected


@pytest.fixture
def command() -> Callable[..., object]:
    return mae_study


def test_fixtures_are_followed(
    request: pytest.FixtureRequest, command: Callable[..., object]
) -> None:
    assert command is mae_study
    assert "process" in request.node.keywords


def test_a_test_that_starts_nothing_is_not_marked(request: pytest.FixtureRequest) -> None:
    assert "process" not in request.node.keywords


def test_an_unmarked_test_that_starts_a_process_fails() -> None:
    with pytest.raises(pytest.fail.Exception, match="mark it with pytest.mark.process"):
        os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
