"""Who is informed of a run: the tracker, and the display."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.verdict import Verdict
    from orchestrator.drive.task import Task
    from orchestrator.store.attempts import DecisionRecord
    from orchestrator.store.records import DoneRecord


class Observer:
    """Is informed of everything and does nothing; subclasses override what they need.

    Calls come from the controller's thread: none may block or raise.
    """

    def decided(self, task: Task, decision: DecisionRecord) -> None:
        """A decision was made."""

    def stage_started(self, task: Task, directory: Path) -> None:
        """An attempt began; its journal will be in `directory`."""

    def stage_done(self, task: Task, record: DoneRecord) -> None:
        """A stage was completed."""

    def attempt_failed(self, task: Task, verdict: Verdict) -> None:
        """An attempt ended without success."""

    def tick(self, tasks: dict[str, Task], ahead_s: Callable[[], float]) -> None:
        """Once per poll.

        Args:
            ahead_s: estimated rank-seconds of work that is no task yet: trials that the sweep has
                not asked for, and cells that wait for its winner.
        """


class View(Observer):
    """What a person sees of a run; this one shows nothing. Use as a context manager."""

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        """Take down what was shown."""

    def say(self, text: str) -> None:
        """Show a line of rich markup."""

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar; yields `advance(done, total)`."""
        yield lambda done, total: None
