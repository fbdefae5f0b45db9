"""Goodput against its prediction: three failure rates in simulated time, and one of real SIGKILLs.

First a real training of two ranks, of which one is killed at a random step again and again. Then a
training with steps, checkpoints, stalls, restarts and failures at exponential moments runs on a
clock of its own. It leaves the records and journal lines of real attempts; these go through the
accounting that `mae-study status` uses. Every figure of it is reproduced by its seed:

    make reliability SECTIONS=goodput
"""

from __future__ import annotations

import datetime
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from support.interval_share import expected_share

from mae_core.config import Duration, Execution
from orchestrator.rank.faults import Fault
from orchestrator.report.goodput import attempt_log, from_store
from orchestrator.run import RunOptions, run_study
from orchestrator.store.attempts import Attempt, AttemptEnd, AttemptStart
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import Entry
from orchestrator.store.records import Records
from studies.analysis.goodput.accounting import Goodput, account
from studies.analysis.goodput.interval_advice import IntervalAdvice, advise_interval, short_time
from studies.analysis.goodput.interval_law import Costs, best_interval

MTBFS_S = (600.0, 3600.0, 6 * 3600.0)
PRESENT_INTERVAL_S = 600.0
"""The default of `Execution.checkpoint_every_s`."""
MTBFS_OF_WORK = 240
"""Useful work per scenario, in mean times between failures: at least as many failures."""
MIN_FAILURES = 30
MAX_POINTS, MAX_SUM_ERROR = 5.0, 0.1
LOG_EVERY = 50
REAL_FAILURES = 40
"""Expected number of real kills; the number seen varies by its root."""
STEPS_BETWEEN, STEPS_OF_INTERVAL = 160, 40


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a step, a checkpoint and a failure cost; seconds. Each is drawn within 20 %."""

    step_s: float = 2.0
    save_stall_s: float = 2.0
    write_s: float = 6.0
    """After the stall, behind the training's back; then the checkpoint counts."""
    start_s: float = 20.0
    restore_s: float = 10.0
    notice_s: float = 8.0
    """From a failure until its end is recorded."""
    backoff_s: float = 4.0
    """From the end of an attempt until the next is started."""

    @property
    def costs(self) -> Costs:
        return Costs(
            save_s=self.save_stall_s,
            restart_s=self.start_s + self.restore_s,
            dead_s=self.notice_s + self.backoff_s,
            lag_s=self.write_s,
        )


class Died(Exception):
    """The failure strikes."""


@dataclass
class Training:
    """A stage that is run to its end, attempt after attempt."""

    machine: Machine
    mtbf_s: float
    interval_s: float
    num_steps: int
    rng: random.Random
    clock: float = 1_700_000_000.0
    committed: int = 0
    furthest: int = 0
    truth: Counter[str] = field(default_factory=Counter)
    """Seconds per bucket as they were spent; the records must lead to the same."""
    attempts: list[tuple[dict[str, Any], list[dict[str, Any]], list[Entry]]] = field(
        default_factory=list
    )

    def run(self) -> Goodput:
        """Simulate; return what the records say."""
        while not self._attempt():
            self._idle(self.machine.backoff_s, "waiting")
        logs = [attempt_log(record, events, points) for record, events, points in self.attempts]
        return account([log for log in logs if log is not None], now=self.clock)

    def _drawn(self, mean: float) -> float:
        return mean * self.rng.uniform(0.8, 1.2)

    def _attempt(self) -> bool:
        """One attempt; True if it reached the last step."""
        start = AttemptStart(started_at=iso(self.clock))
        self.events: list[dict[str, Any]] = []
        self.points: list[Entry] = []
        self.dies_at = self.clock + self.rng.expovariate(1 / self.mtbf_s)
        self.writing: tuple[float, int, dict[str, Any]] | None = None
        self.last: tuple[int, float] | None = None
        try:
            self._train()
            cause = "success"
        except Died:
            cause = "rank died"
            self._idle(self.machine.notice_s, "failed")
        last, last_at = self.last or (None, None)
        end = AttemptEnd(
            cause=cause, ended_at=iso(self.clock), last_step=last, last_step_at=last_at
        )
        attempt = Attempt(number=len(self.attempts) + 1, start=start, end=end)
        self.attempts.append((attempt, self.events, self.points))
        return cause == "success"

    def _train(self) -> None:
        self._event("began")
        self._pass(self._drawn(self.machine.start_s), "starting")
        restoring = self._drawn(self.machine.restore_s) if self.committed else 0.0
        self._pass(restoring, "restoring")
        step = self.committed
        self._event("restored", step=step, seconds=restoring, level="bit-exact")
        self._event("training", step=step)
        saved_at = self.clock
        while step < self.num_steps:
            is_new = step >= self.furthest
            self._pass(self._drawn(self.machine.step_s), "useful" if is_new else "replayed")
            step += 1
            self.furthest = max(self.furthest, step)
            self.last = (step, self.clock)
            if step % LOG_EVERY == 0 or step == self.num_steps:
                self.points.append(Entry(0, round(self.clock * 1000), step, {"loss": 1.0}))
            if self.clock - saved_at > self.interval_s and step < self.num_steps:
                self._save(step)
                saved_at = self.clock
        self._event("finished", step=step)

    def _save(self, step: int) -> None:
        """Stand still, then write behind the training's back; committed once written."""
        stall = self._drawn(self.machine.save_stall_s)
        write = self._drawn(self.machine.write_s)
        fields = {"step": step, "stall_s": stall, "write_s": write, "bytes": 1}
        self.writing = (self.clock + stall + write, step, fields)
        self._pass(stall, "saving")

    def _idle(self, mean: float, bucket: str) -> None:
        """Let time pass in which nothing is left to fail."""
        seconds = self._drawn(mean)
        self.clock += seconds
        self.truth[bucket] += seconds

    def _pass(self, seconds: float, bucket: str) -> None:
        """Let time pass up to a failure; what is written in the meantime is committed."""
        until = min(self.clock + seconds, self.dies_at)
        if self.writing is not None and self.writing[0] <= until:
            at, self.committed, fields = self.writing
            self._event("saved", at=at, **fields)
            self.writing = None
        died = until == self.dies_at
        self.truth["failed" if died else bucket] += until - self.clock
        self.clock = until
        if died:
            raise Died

    def _event(self, name: str, at: float | None = None, **fields: Any) -> None:
        t = round((self.clock if at is None else at) * 1000)
        self.events.append({"seq": len(self.events), "t": t, "event": name, **fields})


def iso(t: float) -> str:
    """As `records.now_iso` writes it."""
    return datetime.datetime.fromtimestamp(t, datetime.UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A scenario: what was predicted before it, and what came out."""

    mtbf_s: float
    interval_s: float
    predicted_share: float
    """From the true rate and costs, before anything has run."""
    goodput: Goodput
    advice: IntervalAdvice

    @property
    def holds(self) -> bool:
        """True if the bars are met: enough failures, both predictions near, buckets complete."""
        measured = self.advice.measured_share
        return (
            self.goodput.failures >= MIN_FAILURES
            and abs(measured - self.predicted_share) <= MAX_POINTS
            and abs(measured - self.advice.predicted_share) <= MAX_POINTS
            and abs(sum(self.goodput.shares.values()) - 100) <= MAX_SUM_ERROR
            and all(s >= 0 for s in self.goodput.seconds.values())
        )


def simulate(machine: Machine, mtbf_s: float, interval_s: float, seed: int) -> Outcome:
    """Run one scenario to its end."""
    num_steps = round(MTBFS_OF_WORK * mtbf_s / machine.step_s)
    work_s = num_steps * machine.step_s
    goodput = Training(machine, mtbf_s, interval_s, num_steps, random.Random(seed)).run()
    advice = advise_interval([goodput])
    assert advice is not None, "no checkpoint was committed: the work is too short"
    return Outcome(
        mtbf_s=mtbf_s,
        interval_s=interval_s,
        predicted_share=expected_share(work_s, interval_s, mtbf_s, machine.costs),
        goodput=goodput,
        advice=advice,
    )


def scenarios(seed: int = 0) -> list[Outcome]:
    """Each rate at the default interval and at the one that is best for it."""
    machine = Machine()
    return [
        simulate(machine, mtbf_s, interval_s, seed + 10 * i + j)
        for i, mtbf_s in enumerate(MTBFS_S)
        for j, interval_s in enumerate((PRESENT_INTERVAL_S, best_interval(mtbf_s, machine.costs)))
    ]


def killed_for_real(seed: int, failures: int, folder: Path) -> tuple[Goodput, IntervalAdvice]:
    """A training of two ranks in which each step is a rank's last with the same probability."""
    from studies.catalog import quickstart
    from studies.spec.cell import Cell
    from studies.spec.study import Study

    def faults(attempt: int) -> tuple[Fault, ...]:
        draw = random.Random(f"{seed}/{attempt}")
        steps = max(1, round(draw.expovariate(1 / STEPS_BETWEEN)))
        return (Fault(draw.randrange(2), "step", steps, "kill"),)

    stage = quickstart.pretrain("N1", 10, 0)
    work = Duration.steps(STEPS_BETWEEN * failures)
    stage = replace(
        stage,
        recipe=replace(stage.recipe, duration=work, global_batch=96),
        execution=Execution(
            world_size=2,
            zero_stage=2,
            loader_threads=0,
            checkpoint_every_steps=STEPS_OF_INTERVAL,
            snapshot="blocking",
        ),
    )
    study = Study(name="killed", question="?", cells=(Cell(address="killed", stages=(stage,)),))
    run = RunOptions(store=folder, slots=2, spares=1, num_cpus=3, write_report=False, faults=faults)
    [planned] = run_study(study, run).plan.stages
    goodput = from_store(Records(LocalStore(folder)), planned.identity.science_hash)
    advice = advise_interval([goodput])
    assert advice is not None, "no checkpoint was committed"
    return goodput, advice


def main() -> int:
    """Print the figures; exit status 1 if a bar is missed."""
    from figures import Section, arguments  # on the path of a script, not of the tests

    options = arguments(__doc__, failures=REAL_FAILURES)
    section = Section("goodput", "Goodput against its prediction", options.seed)
    with tempfile.TemporaryDirectory() as folder:
        goodput, advice = killed_for_real(options.seed, options.failures, Path(folder))
    total = sum(goodput.shares.values())
    section.figure(
        f"real SIGKILLs, one per {short_time(advice.rate.mtbf_s)}, saved every "
        f"{short_time(advice.interval_s)}: useful time",
        f"{advice.measured_share:.2f} % measured; {advice.predicted_share:.2f} % predicted from "
        f"the rate seen; {goodput.failures} failures; sum {total:.4f} %",
        f"within {MAX_POINTS:g} points, >= {MIN_FAILURES} failures, sum 100 +- {MAX_SUM_ERROR}",
        goodput.failures >= MIN_FAILURES
        and abs(advice.measured_share - advice.predicted_share) <= MAX_POINTS
        and abs(total - 100) <= MAX_SUM_ERROR,
    )
    for o in scenarios(options.seed):
        name = f"simulated, one per {short_time(o.mtbf_s)}, saved every {short_time(o.interval_s)}"
        section.figure(
            f"{name}: useful time",
            f"{o.advice.measured_share:.2f} % measured; {o.predicted_share:.2f} % predicted from "
            f"the true rate, {o.advice.predicted_share:.2f} % from the rate seen; "
            f"{o.goodput.failures} failures; sum {sum(o.goodput.shares.values()):.4f} %",
            f"within {MAX_POINTS:g} points, >= {MIN_FAILURES} failures, sum 100 +- {MAX_SUM_ERROR}",
            o.holds,
        )
    return section.finish(options.json)


if __name__ == "__main__":
    raise SystemExit(main())
