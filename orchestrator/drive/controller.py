"""Poll, record, decide, act: the loop that drives a study to its end.

Decisions are made by `policy.decide`; this loop only gathers the state, records what
happened, and does what was decided. Whatever kills it, the same command goes on from the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from cluster.errors import HeadLost
from cluster.gang import Gang
from cluster.slot_pool import SlotPool
from cluster.verdict import Cause, Verdict, judge
from mae_core.errors import ConfigError
from orchestrator.drive.attempt_end import end_of
from orchestrator.drive.observer import Observer
from orchestrator.drive.policy import (
    Block,
    Decision,
    Fail,
    Resize,
    SlotsView,
    Start,
    TaskState,
    changes,
    decide,
    short_since,
    to_record,
)
from orchestrator.drive.remedies import PastAttempt
from orchestrator.drive.task import Task, completion, drop_checkpoints, make_payload
from orchestrator.plan.plan import Plan, PlannedStage, Status, SweepPlan
from orchestrator.rank.entry import ENTRY
from orchestrator.rank.faults import Fault, FaultPlan
from orchestrator.rank.payload import StageResult
from orchestrator.store.attempts import NOT_STARTED, AttemptEnd, AttemptStart, DecisionRecord
from orchestrator.store.data_facts import Datasets
from orchestrator.store.lease import Lease, is_alive
from orchestrator.store.provenance import code_version
from orchestrator.store.records import Records
from orchestrator.sweep.optuna_driver import SweepDriver
from orchestrator.sweep.trials import Trials
from studies.errors import StudyError

POLL_S = 0.2
ELSEWHERE_POLL_S = 5.0
STOPPED_FOR = {"preempted": Cause.PREEMPTED, "cancelled": Cause.CANCELLED}


def _never() -> bool:
    return False


def _no_faults(attempt: int) -> tuple[Fault, ...]:
    """Nothing goes wrong on purpose."""
    return ()


class Controller:
    """Runs the work of a plan on a pool of slots.

    Args:
        replan: builds the plan again once a sweep has its winner.
        history: attempts of this command that an earlier controller saw end, by stage.
        faults: what a rehearsal lets go wrong.
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
        history: Mapping[str, list[PastAttempt]] | None = None,
        faults: FaultPlan | None = None,
    ) -> None:
        lease.check()
        self.plan, self._records, self._datasets = plan, records, datasets
        self._pool, self._lease, self._observers = pool, lease, observers
        self._replan, self._history = replan, dict(history or {})
        self._faults = faults or _no_faults
        self.tasks: dict[str, Task] = {}
        self._sweep: SweepDriver | None = None
        self._searched: SweepPlan | None = None
        self.sweep_problem: str | None = None
        """Why the sweep ended without a winner; the run has failed then."""
        self._trial_keys: dict[int, tuple[str, ...]] = {}
        self._short_since: dict[int, float] = {}
        self._node_failures: list[str] = []
        self._open_sweep()
        self._add([s for s in plan.stages if s.cell.role != "sweep"])

    def run(self, is_interrupted: Callable[[], bool] = _never) -> bool:
        """Drive every stage to its end; False if it was interrupted, which leaves gangs at work.

        Raises:
            HeadLost: Ray is gone; call `abandon`, and go on with another controller.
            StudyBusy: another driver has taken over; nothing more may be written.
        """
        while not is_interrupted():
            self._lease.assert_held()
            self._advance_sweep()
            if self._is_over():
                return True
            self._act()
            self._pool.wait([gang for _, gang in self._running()], POLL_S)
            self._record()
            for observer in self._observers:
                observer.tick(self.tasks, self._ahead_s)
        return False

    def stop(self, reason: str = "cancelled", grace_s: float | None = None) -> None:
        """Ask running gangs to stop at a checkpoint and wait for them.

        Args:
            reason: "cancelled", or "preempted" if the machine is needed for other work.
            grace_s: seconds to wait; None = what each stage's execution allows.
        """
        self._lease.check()
        longest = 0.0
        for task, gang in self._running():
            grace = task.execution.grace_s if grace_s is None else grace_s
            longest = max(longest, grace)
            gang.request_stop(reason, grace)
            task.is_stopping = True
            why = f"{reason}; {grace:g} s of grace"
            self._note(task, DecisionRecord(decision="stop", reason=why))
        deadline = time.monotonic() + longest
        try:
            while self._running() and time.monotonic() < deadline:
                self._pool.wait([gang for _, gang in self._running()], POLL_S)
                self._record()
        except HeadLost:
            message = "Ray ended before the stage did: the last checkpoint is kept"
        else:
            message = f"not stopped within {longest:g} s: the last checkpoint is kept"
        self._lease.check()
        for task, gang in self._running():
            self._end(task, gang, Verdict(STOPPED_FOR[reason], message, stop_reason=reason))

    def abandon(self) -> dict[str, list[PastAttempt]]:
        """Write off gangs whose Ray is gone; return the history for the next controller."""
        self._lease.check()
        message = "Ray's head is gone, and the gang with it: the last checkpoint is kept"
        for task, gang in self._running():
            self._end(task, gang, Verdict(Cause.HEAD_LOST, message))
        return self._history | {key: t.attempts for key, t in self.tasks.items() if t.attempts}

    def _running(self) -> list[tuple[Task, Gang]]:
        return [(t, t.gang) for t in self.tasks.values() if t.gang is not None]

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
            task.attempts = list(self._history.get(key, ()))
            if planned.status is Status.DONE:
                task.state = TaskState.DONE
            elif planned.status is Status.STALE:
                self._records.supersede(key)
            self._records.write_identity(key, planned.identity.science)
            self.tasks[key] = task

    def _open_sweep(self) -> None:
        """Search the first size that has no winner; the next one learns from it."""
        self._sweep, self._trial_keys = None, {}
        self._searched = next((s for s in self.plan.sweeps if s.winner is None), None)
        if self._searched is not None:
            self._sweep = SweepDriver(
                self._searched.trials, self._records, self._searched.transferred
            )
            for number in self._sweep.running:
                self._add_trial(number)

    def _advance_sweep(self) -> None:
        """Report finished trials, ask for new ones, and apply the winner to the grid."""
        if self._sweep is None or self._searched is None:
            return
        trials = self._searched.trials
        for number in self._sweep.running:
            self._tell(self._sweep, trials, number)
        per_trial = max(s.execution.world_size for s in trials.sweep.base.stages)
        for number in self._sweep.ask(max(1, self._pool.num_slots // per_trial)):
            self._add_trial(number)
        if self._sweep.is_finished:
            self.sweep_problem = self._sweep.problem
            self._sweep = None
            if self.sweep_problem is None:
                trials.decide(trials.values(self._records))
                # Estimates stay comparable: whoever shows the time left corrects them itself.
                self.plan = replace(self._replan(), rates=self.plan.rates)
                self._add([s for s in self.plan.stages if s.cell.role != "sweep"])
                self._open_sweep()

    def _tell(self, sweep: SweepDriver, trials: Trials, number: int) -> None:
        """Report how a trial ended, once every protocol has ended or one of them cannot."""
        tasks = [self.tasks[key] for key in self._trial_keys[number]]
        if all(task.state is TaskState.DONE for task in tasks):
            cell = trials.cell(number, trials.settings(number) or {})
            sweep.tell(number, trials.values_of(cell, self._records))
        elif any(t.state.is_finished and t.state is not TaskState.DONE for t in tasks):
            sweep.tell(number, None)

    def _ahead_s(self) -> float:
        """Estimated rank-seconds of work that is no task yet."""
        return self.plan.ahead_s(self.tasks.keys(), len(self._trial_keys))

    def _add_trial(self, number: int) -> None:
        assert self._sweep is not None and self._searched is not None
        trials = self._searched.trials
        try:
            cell = trials.cell(number, trials.settings(number) or {})
            planned = self.plan.planner.plan_cell(cell)
        except (ConfigError, StudyError):  # settings that are impossible only together
            self._sweep.tell(number, None)
            return
        self._trial_keys[number] = trials.objective_hashes(cell)
        self._add(planned)

    def _act(self) -> None:
        """Do what the policy says."""
        now = time.time()
        views = [t.view() for t in self.tasks.values()]
        for decision in decide(views, self._slots(now), now):
            self._do(self.tasks[decision.key], decision)

    def _do(self, task: Task, decision: Decision) -> None:
        if isinstance(decision, Start):
            if not self._is_elsewhere(task):
                self._start(task, decision)
            return
        self._note(task, to_record(decision, task.planned.stage.execution))
        if isinstance(decision, Fail):
            task.state, task.reason = TaskState.FAILED, decision.reason
        elif isinstance(decision, Block):
            task.state, task.reason = TaskState.BLOCKED, f"{decision.parent} failed"
        elif isinstance(decision, Resize) and task.gang is not None:
            task.gang.request_stop("resize")
            task.is_stopping = True

    def _slots(self, now: float) -> SlotsView:
        """Slots as the policy sees them, and since when some are missing."""
        idle = tuple(slot.node for slot in self._pool.idle)
        largest = max((t.num_ranks for t in self.tasks.values()), default=0)
        self._short_since = short_since(
            self._short_since, self._pool.num_ready, self._pool.num_slots, largest, now
        )
        return SlotsView(
            idle=idle,
            busy=tuple(slot.node for _, gang in self._running() for slot in gang.slots),
            short_since=self._short_since,
            failures=tuple(self._node_failures),
        )

    def _note(self, task: Task, decision: DecisionRecord) -> None:
        """Record a decision and report it."""
        self._records.decide(task.key, replace(decision, epoch=self._lease.epoch))
        for observer in self._observers:
            observer.decided(task, decision)

    def _is_elsewhere(self, task: Task) -> bool:
        """True if another study's driver has finished this stage, or is at it."""
        if self._records.done(task.key) is not None:
            task.state = TaskState.DONE
            return True
        for attempt in self._records.attempts(task.key)[-1:]:
            driver = attempt.start.driver
            if attempt.end is None and driver and driver != self._lease.holder:
                if is_alive(self._records.store, driver):
                    task.deferred_until = time.time() + ELSEWHERE_POLL_S
                    return True
        return False

    def _start(self, task: Task, decision: Start) -> None:
        self._lease.check()
        base = task.planned.stage.execution
        self._note(task, to_record(decision, base))
        task.decision = decision
        start = AttemptStart(
            address=task.planned.address,
            driver=self._lease.holder,
            epoch=self._lease.epoch,
            world_size=decision.execution.world_size,
            remedies=changes(decision, base),
            code=code_version(),
        )
        task.attempt = self._records.begin_attempt(task.key, start)
        payload = make_payload(
            task,
            self._records,
            self._datasets,
            faults=self._faults(task.attempt),
        )
        task.gang = self._pool.launch(
            ENTRY,
            payload.to_json(),
            decision.execution.world_size,
            avoid_nodes=decision.avoid_nodes,
        )
        if task.gang is None:  # a rank died while it was idle; it is being replaced
            self._records.end_attempt(task.key, task.attempt, AttemptEnd(cause=NOT_STARTED))
            return
        task.began, task.started_at = time.monotonic(), time.time()
        task.state, task.is_stopping = TaskState.RUNNING, False
        for observer in self._observers:
            observer.stage_started(task, self._records.attempt_dir(task.key, task.attempt))

    def _record(self) -> None:
        """Write down how finished gangs ended."""
        for task, gang in self._running():
            if not gang.is_finished:
                continue
            verdict = judge(list(gang.outcomes.values()))
            self._lease.check()
            if verdict.cause is Cause.CANCELLED and gang.stop_reason is None:
                # Its ranks saw it declared over: another study's driver has the stage now.
                verdict = replace(verdict, cause=Cause.PREEMPTED)
            self._end(task, gang, verdict)
            self._pool.release(gang)

    def _end(self, task: Task, gang: Gang, verdict: Verdict) -> None:
        """A success if the work was finished, whatever ended its ranks after that."""
        result = StageResult.left_in(self._records.attempt_dir(task.key, task.attempt))
        if verdict.cause is Cause.SUCCESS and result is None:
            result = StageResult(**gang.outcomes[0].value or {})
        if result is not None:
            self._complete(task, gang, result)
        else:
            self._retry_or_not(task, gang, verdict)

    def _complete(self, task: Task, gang: Gang, result: StageResult) -> None:
        """Create the completion record; if another driver was first, its result is the one."""
        seconds = time.monotonic() - task.began
        record = completion(task, result, seconds, self._records)
        is_ours = self._records.complete(record)
        directory = self._records.attempt_dir(task.key, task.attempt)
        message = "" if is_ours else "another driver had completed this stage before"
        end = end_of(Verdict(Cause.SUCCESS, message), gang, directory, seconds)
        end = replace(end, seconds=result.seconds, is_result=is_ours)
        self._records.end_attempt(task.key, task.attempt, end)
        task.gang, task.state = None, TaskState.DONE
        if not is_ours:
            return
        drop_checkpoints(self._records, task.key, task.execution)
        for observer in self._observers:
            observer.stage_done(task, record)

    def _retry_or_not(self, task: Task, gang: Gang, verdict: Verdict) -> None:
        """Write down an end without success; the policy decides what follows."""
        directory = self._records.attempt_dir(task.key, task.attempt)
        end = end_of(verdict, gang, directory, time.monotonic() - task.began)
        self._records.end_attempt(task.key, task.attempt, end)
        if verdict.rank is not None and verdict.blames_node:
            self._node_failures.append(gang.slots[verdict.rank].node)
        task.attempts.append(
            PastAttempt(
                cause=verdict.cause,
                ended_at=time.time(),
                resumed_step=end.resumed_step,
                saved_step=end.saved_step,
            )
        )
        task.gang, task.state, task.reason = None, TaskState.WAITING, verdict.message
        for observer in self._observers:
            observer.attempt_failed(task, verdict)
