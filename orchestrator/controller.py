"""Poll, record, decide, act: the loop that drives a study to its end.

Decisions are made by `policies.decide`; this loop only gathers what is, writes down what
happened, and does what was decided. Whatever kills it, the same command goes on from the store.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cluster.gang import SlotPool
from cluster.verdict import Cause, Verdict, judge
from mae_core.errors import ConfigError
from orchestrator.datasets import Datasets
from orchestrator.lease import Lease, is_alive
from orchestrator.plan import Plan, PlannedStage, Status
from orchestrator.policies import Block, Fail, PastAttempt, Start, TaskState, decide
from orchestrator.rank_main import ENTRY
from orchestrator.records import DoneRecord, Records
from orchestrator.sweep import SweepDriver
from orchestrator.tasks import Task, code_version, completion, make_payload
from studies.errors import StudyError

POLL_S = 0.2
ELSEWHERE_POLL_S = 5.0


class Observer(Protocol):
    """Who is told what happens: the display and the tracker."""

    def stage_started(self, task: Task, directory: Path) -> None:
        """An attempt began; its journal will be in `directory`."""

    def stage_done(self, task: Task, record: DoneRecord) -> None:
        """A stage was completed."""

    def attempt_failed(self, task: Task, verdict: Verdict) -> None:
        """An attempt ended without success."""

    def tick(self, tasks: dict[str, Task]) -> None:
        """Once per poll."""


class Controller:
    """Runs the work of a plan on a pool of slots.

    Args:
        replan: builds the plan anew once the sweep has its winner.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        records: Records,
        datasets: Datasets,
        pool: SlotPool,
        lease: Lease,
        observers: tuple[Observer, ...],
        replan: Callable[[], Plan],
    ) -> None:
        self.plan, self._records, self._datasets = plan, records, datasets
        self._pool, self._lease, self._observers = pool, lease, observers
        self._replan = replan
        self.tasks: dict[str, Task] = {}
        self._sweep: SweepDriver | None = None
        self.sweep_problem: str | None = None
        """Why the sweep ended without a winner; the run has failed then."""
        self._trial_cells: dict[int, str] = {}
        self._stopping = False
        if plan.sweep is not None and plan.sweep.winner is None:
            self._sweep = SweepDriver(plan.sweep.trials, records)
            for number in self._sweep.running:
                self._add_trial(number)
        self._add([s for s in plan.stages if s.cell.role != "sweep"])

    def run(self) -> None:
        """Drive every stage to its end."""
        while True:
            self._advance_sweep()
            if self._is_over():
                return
            self._act()
            running = [t.gang for t in self.tasks.values() if t.gang is not None]
            if running:
                self._pool.wait(running, POLL_S)
            else:
                time.sleep(POLL_S)
            self._record()
            for observer in self._observers:
                observer.tick(self.tasks)

    def stop(self, grace_s: float = 30.0) -> None:
        """Ask running gangs to stop at a checkpoint and wait for them up to `grace_s`."""
        self._stopping = True
        deadline = time.monotonic() + grace_s
        running = [t.gang for t in self.tasks.values() if t.gang is not None]
        for gang in running:
            gang.request_stop()
        while running and time.monotonic() < deadline:
            self._pool.wait(running, POLL_S)
            self._record()
            running = [t.gang for t in self.tasks.values() if t.gang is not None]

    def failed(self) -> list[Task]:
        """Tasks that were given up."""
        return [t for t in self.tasks.values() if t.state is TaskState.FAILED]

    def _is_over(self) -> bool:
        return self._sweep is None and all(t.state.is_finished for t in self.tasks.values())

    def _add(self, stages: list[PlannedStage]) -> None:
        """Make tasks of planned stages; what is done counts as done, what waits is left out."""
        hashes = {(s.cell.address, s.stage.name): s.identity.science_hash for s in stages}
        for planned in stages:
            key = planned.identity.science_hash
            if planned.cell.uses_winner or key in self.tasks:
                continue
            parents = tuple(hashes[planned.cell.address, p] for p in planned.stage.parents)
            task = Task(planned, parents, estimate_s=self.plan.seconds(planned))
            if planned.status is Status.DONE:
                task.state = TaskState.DONE
            elif planned.status is Status.STALE:
                self._records.supersede(key)
            self._records.write_identity(key, planned.identity.science)
            self.tasks[key] = task

    def _advance_sweep(self) -> None:
        """Tell finished trials, ask for new ones, and let the winner flow into the grid."""
        if self._sweep is None or self.plan.sweep is None:
            return
        trials = self.plan.sweep.trials
        for number in self._sweep.running:
            task = self.tasks[self._trial_cells[number]]
            if task.state is TaskState.DONE:
                self._sweep.tell(number, trials.score(self._records.done(task.key)))
            elif task.state.is_finished:
                self._sweep.tell(number, None)
        per_trial = max(s.execution.world_size for s in trials.sweep.base.stages)
        for number in self._sweep.ask(max(1, self._pool.num_slots // per_trial)):
            self._add_trial(number)
        if self._sweep.is_finished:
            self.sweep_problem = self._sweep.problem
            self._sweep = None
            if self.sweep_problem is None:
                trials.decide(trials.scores(self._records))
                self.plan = self._replan()
                self._add([s for s in self.plan.stages if s.cell.role != "sweep"])

    def _add_trial(self, number: int) -> None:
        assert self._sweep is not None and self.plan.sweep is not None
        trials = self.plan.sweep.trials
        try:
            cell = trials.cell(number, trials.settings(number) or {})
            planned = self.plan.planner.plan_cell(cell)
        except (ConfigError, StudyError):  # settings that are impossible only together
            self._sweep.tell(number, None)
            return
        self._trial_cells[number] = trials.objective_hash(cell)
        self._add(planned)

    def _act(self) -> None:
        """Do what the policy says."""
        if self._stopping:
            return
        views = [t.view() for t in self.tasks.values()]
        for decision in decide(views, len(self._pool.idle), time.time()):
            task = self.tasks[decision.key]
            if isinstance(decision, Start):
                self._start(task)
            elif isinstance(decision, Fail):
                task.state, task.reason = TaskState.FAILED, decision.reason
            elif isinstance(decision, Block):
                task.state, task.reason = TaskState.BLOCKED, f"{decision.parent} failed"

    def _is_elsewhere(self, task: Task) -> bool:
        """True if another study's driver has finished this stage, or is at it."""
        if self._records.done(task.key) is not None:
            task.state = TaskState.DONE
            return True
        for attempt in self._records.attempts(task.key)[-1:]:
            driver = attempt.get("driver")
            if attempt["end"] is None and driver and driver != self._lease.holder:
                if is_alive(self._records.store, driver):
                    task.deferred_until = time.time() + ELSEWHERE_POLL_S
                    return True
        return False

    def _start(self, task: Task) -> None:
        self._lease.check()
        if self._is_elsewhere(task):
            return
        start = {
            "address": task.planned.address,
            "driver": self._lease.holder,
            "world_size": task.num_ranks,
            "code": code_version(),
        }
        task.attempt = self._records.begin_attempt(task.key, start)
        payload = make_payload(task, task.attempt, self._records, self._datasets)
        task.gang = self._pool.launch(ENTRY, payload, task.num_ranks)
        if task.gang is None:  # a rank died while it was idle; it is being replaced
            self._records.end_attempt(task.key, task.attempt, {"cause": "not started"})
            return
        task.began, task.state = time.monotonic(), TaskState.RUNNING
        for observer in self._observers:
            observer.stage_started(task, self._records.attempt_dir(task.key, task.attempt))

    def _record(self) -> None:
        """Write down how finished gangs ended."""
        for task in self.tasks.values():
            gang = task.gang
            if gang is None or not gang.is_finished:
                continue
            task.gang = None
            verdict = judge(list(gang.outcomes.values()))
            self._lease.check()
            if verdict.cause is Cause.SUCCESS:
                self._complete(task, gang.outcomes[0]["value"])
            else:
                self._retry_or_not(task, verdict)
            self._pool.release(gang)

    def _complete(self, task: Task, values: dict[str, object]) -> None:
        seconds = time.monotonic() - task.began
        record = completion(task, values, seconds, self._records)
        self._records.complete(record)
        end = {"cause": Cause.SUCCESS.value, "seconds": values.get("seconds")}
        self._records.end_attempt(task.key, task.attempt, end)
        shutil.rmtree(self._records.checkpoints(task.key), ignore_errors=True)
        task.state = TaskState.DONE
        for observer in self._observers:
            observer.stage_done(task, record)

    def _retry_or_not(self, task: Task, verdict: Verdict) -> None:
        end = {
            "cause": verdict.cause.value,
            "message": verdict.message,
            "rank": verdict.rank,
            "wall_s": round(time.monotonic() - task.began, 3),
            "traceback": verdict.traceback,
        }
        self._records.end_attempt(task.key, task.attempt, end)
        task.attempts.append(PastAttempt(verdict.cause, time.time()))
        task.state, task.reason = TaskState.WAITING, verdict.message
        for observer in self._observers:
            observer.attempt_failed(task, verdict)
