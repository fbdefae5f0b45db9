"""Who is told what happens in a run: the display and the tracker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.verdict import Verdict
    from orchestrator.drive.task import Task
    from orchestrator.store.records import DoneRecord


class Observer:
    """Hears of everything and does nothing; overrides say what they do with it.

    Calls come from the controller's thread: none may block or raise.
    """

    def decided(self, task: Task, decision: Mapping[str, Any]) -> None:
        """A decision was made, with `decision` and `reason` as in the store."""

    def stage_started(self, task: Task, directory: Path) -> None:
        """An attempt began; its journal will be in `directory`."""

    def stage_done(self, task: Task, record: DoneRecord) -> None:
        """A stage was completed."""

    def attempt_failed(self, task: Task, verdict: Verdict) -> None:
        """An attempt ended without success."""

    def tick(self, tasks: dict[str, Task]) -> None:
        """Once per poll."""
