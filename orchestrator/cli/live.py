"""What is shown while a study runs: a live table on a terminal, plain lines otherwise."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cluster.verdict import Cause, Verdict
from orchestrator.drive.observer import View
from orchestrator.drive.policy import TaskState
from orchestrator.drive.task import Task
from orchestrator.plan.time_left import FinishedStage, OpenStage, Pace, time_left
from orchestrator.store.attempts import DecisionRecord, Remedies
from orchestrator.store.journal import JOURNAL_FILE, Entry, JournalReader
from orchestrator.store.records import DoneRecord

REFRESH_S = 1.0
PLAIN_SUMMARY_S = 30.0
ON_PURPOSE = frozenset({Cause.PREEMPTED, Cause.CANCELLED, Cause.RESIZED})
"""Ends that are no failure."""


class Display(View):
    """A live table on a terminal, plain lines elsewhere; nothing at all if `quiet`."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._is_live = console.is_terminal and not quiet
        self._journals: dict[str, JournalReader] = {}
        self._latest: dict[str, dict[str, float]] = {}
        self._pace: dict[str, Pace] = {}
        self._finished: list[FinishedStage] = []
        self._slots = 1
        """Ranks that were seen at work at once."""
        self._began = self._shown = time.monotonic()
        self._live: Live | None = None
        self._num_done = 0

    def __enter__(self) -> Display:
        if self._is_live:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line, above the live table if there is one."""
        if not self._quiet:
            self._console.print(text, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar on a terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        bar = Progress(
            *columns, TimeRemainingColumn(), console=self._console, disable=not self._is_live
        )
        with bar:
            task = bar.add_task(text, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def stage_started(self, task: Task, directory: Path) -> None:
        """Follow its journal."""
        self._journals[task.key] = JournalReader(directory / JOURNAL_FILE)
        if not self._is_live:
            again = f" (attempt {task.attempt})" if task.attempt > 1 else ""
            self.say(f"start {task.planned.cell.address} {task.planned.stage.name}{again}")

    def stage_done(self, task: Task, record: DoneRecord) -> None:
        """Say what came out."""
        self._forget(task)
        kind = task.planned.stage.kind
        self._finished.append(
            FinishedStage(kind=kind, estimate_s=task.estimate_s, seconds=record.seconds)
        )
        self._num_done += 1
        self.say(
            f"[green]done[/]  {task.planned.cell.address} {task.planned.stage.name}"
            f"  {outcome_text(record.metrics)}  [dim]{record.seconds:.1f} s[/]"
        )

    def attempt_failed(self, task: Task, verdict: Verdict) -> None:
        """Say why, and where to look."""
        self._forget(task)
        colour = "yellow" if verdict.cause in ON_PURPOSE else "red"
        self.say(
            f"[{colour}]{verdict.cause.value}[/]  {task.planned.cell.address} "
            f"{task.planned.stage.name}: {escape(verdict.message)}"
        )

    def decided(self, task: Task, decision: DecisionRecord) -> None:
        """Print a decision, except a first start, or a failure that is printed anyway."""
        is_plain = decision.decision == "start" and decision.remedies == Remedies()
        if is_plain or decision.decision in ("block", "stop"):
            return
        self.say(
            f"{decision.decision}  {task.planned.cell.address} {task.planned.stage.name}: "
            f"{escape(decision.reason)}"
        )

    def tick(self, tasks: dict[str, Task], ahead_s: Callable[[], float]) -> None:
        """Refresh once a second."""
        busy = sum(t.execution.world_size for t in tasks.values() if t.state is TaskState.RUNNING)
        self._slots = max(self._slots, busy)
        if time.monotonic() - self._shown < (REFRESH_S if self._is_live else PLAIN_SUMMARY_S):
            return
        self._shown = time.monotonic()
        for key, reader in self._journals.items():
            for entry in reader.read_new():
                self._latest[key] = self._latest.get(key, {}) | entry.metrics
                self._pace[key] = paced(self._pace.get(key), entry)
        if self._live is not None:
            self._live.update(self._table(tasks, ahead_s()), refresh=True)
        elif not self._quiet:
            self.say(self._summary(tasks, ahead_s()))

    def _forget(self, task: Task) -> None:
        self._journals.pop(task.key, None)
        self._latest.pop(task.key, None)
        self._pace.pop(task.key, None)

    def _table(self, tasks: dict[str, Task], ahead_s: float) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("cell", "stage", "step", "loss", "images/s", "left"):
            table.add_column(name, justify="left" if name in ("cell", "stage") else "right")
        for task in tasks.values():
            if task.state is TaskState.RUNNING:
                table.add_row(*self._row(task))
        done = sum(t.state.is_finished for t in tasks.values())
        bar = ProgressBar(total=max(len(tasks), 1), completed=done, width=40)
        return Group(table, bar, Text(self._summary(tasks, ahead_s)))

    def _row(self, task: Task) -> tuple[str, ...]:
        metrics, pace = self._latest.get(task.key, {}), self._pace.get(task.key)
        step = pace.last_step if pace else 0
        total = task.planned.cost.steps
        loss = f"{metrics['loss']:.4f}" if "loss" in metrics else ""
        rate = f"{metrics['images_per_s']:,.0f}" if "images_per_s" in metrics else ""
        left = self._open(task).left(time.time(), 1.0)
        slow = ", ".join(map(str, task.gang.stragglers())) if task.gang else ""
        return (
            task.planned.cell.address,
            task.planned.stage.name + (f" (slow: rank {slow})" if slow else ""),
            f"{step}/{total}" if total else "",
            loss,
            rate,
            duration_text(left),
        )

    def _open(self, task: Task) -> OpenStage:
        """A task as the estimate of what is left sees it."""
        is_running = task.state is TaskState.RUNNING
        return OpenStage(
            key=task.key,
            kind=task.planned.stage.kind,
            parents=task.parents,
            ranks=task.execution.world_size,
            estimate_s=task.estimate_s,
            steps=task.planned.cost.steps,
            ran_s=time.monotonic() - task.began if is_running else None,
            pace=self._pace.get(task.key),
        )

    def _summary(self, tasks: dict[str, Task], ahead_s: float) -> str:
        counts = Counter(t.state for t in tasks.values())
        elapsed = time.monotonic() - self._began
        remaining = time_left(
            [self._open(t) for t in tasks.values() if not t.state.is_finished],
            self._finished,
            slots=self._slots,
            ahead_s=ahead_s,
            now=time.time(),
        )
        word = "at least" if ahead_s else "about"
        left = f", {word} {duration_text(remaining)} left" if remaining else ""
        failed = counts[TaskState.FAILED] + counts[TaskState.BLOCKED]
        problems = f", {failed} failed" if failed else ""
        return (
            f"{counts[TaskState.DONE]} of {len(tasks)} stages done, "
            f"{counts[TaskState.RUNNING]} running{problems}; {duration_text(elapsed)} elapsed{left}"
        )


def paced(pace: Pace | None, entry: Entry) -> Pace:
    """The pace of an attempt with one more line of its journal."""
    at = entry.timestamp_ms / 1000
    if pace is None or entry.step < pace.last_step:  # it went back to a checkpoint
        return Pace(first_step=entry.step, first_s=at, last_step=entry.step, last_s=at)
    return replace(pace, last_step=entry.step, last_s=at)


def outcome_text(metrics: dict[str, Any]) -> str:
    """The one number that matters of a stage."""
    if metrics.get("top1") is not None:
        return f"top-1 {metrics['top1']:.1f} %"
    if metrics.get("loss") is not None:
        return f"loss {metrics['loss']:.4f}"
    return "untrained" if metrics.get("steps") == 0 else ""


def duration_text(seconds: float) -> str:
    """`42 s`, `12 min`, `3.4 h`, `5.2 d`."""
    for limit, unit, size in ((90, "s", 1), (5400, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.1f} d"
