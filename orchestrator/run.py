"""From a request to a finished study: data, plan, lease, cluster, controller, tracking, report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from cluster.connect import Capacity, connect
from cluster.embedded.preflight import memory_left
from cluster.errors import HeadLost
from cluster.ranks.stop_request import GRACE_VARIABLE
from cluster.slot_pool import SlotPool
from cluster.slots import SlotShape, max_slots, slot_shape
from orchestrator.drive.adopted_stages import take_adopted
from orchestrator.drive.controller import Controller
from orchestrator.drive.observer import Observer, View
from orchestrator.drive.orphans import (
    close_orphans,
    drop_finished_checkpoints,
    set_damage_apart,
)
from orchestrator.drive.outcome import RunOutcome
from orchestrator.drive.remedies import PastAttempt, allowed_sizes
from orchestrator.drive.signals import Notice
from orchestrator.drive.task import Task
from orchestrator.errors import DriftError, Preempted, StagesFailed, UserError
from orchestrator.plan.pasted import command
from orchestrator.plan.plan import Plan, accept, make_plan
from orchestrator.plan.rows import make_rows
from orchestrator.rank.entry import WARM_ENTRY
from orchestrator.rank.faults import FaultPlan
from orchestrator.report.study_report import report_dir, write_report
from orchestrator.store.data_facts import Datasets, data_paths
from orchestrator.store.driver import LocalStore
from orchestrator.store.kept_facts import keep_facts
from orchestrator.store.lease import Lease, LeaseTimes, hold
from orchestrator.store.records import Records
from orchestrator.store.sharing import obey
from orchestrator.tracking.mlflow_database import default_uri
from orchestrator.tracking.study_tracking import Tracking, sync_key, sync_study
from orchestrator.tracking.uri import without_credentials
from studies.analysis.report.curve_page import summary_text
from studies.spec.study import Study

RANK_BYTES = 2 << 30
"""Memory reserved for a rank on a CPU: torch and DeepSpeed take a quarter of it."""
MAX_RECONNECTS = 3
"""An embedded Ray that dies is restarted this often."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run a study."""

    store: Path
    address: str | None = None
    num_cpus: int | None = None
    cpus_per_rank: int | None = None
    slots: int | None = None
    spares: int = 0
    """Warm ranks beyond the slots, to take the place of one that dies."""
    tracking_uri: str | None = None
    accept_changes: bool = False
    write_report: bool = True
    faults: FaultPlan | None = None
    """Faults to rehearse, by the number of a stage's attempt."""
    grace_s: float | None = None
    """Seconds that a preempted or interrupted run has to save; None = what each stage says."""
    lease_times: LeaseTimes = LeaseTimes()


def run_study(
    study: Study,
    options: RunOptions,
    view: View | None = None,
    *,
    notice: Notice | None = None,
) -> RunOutcome:
    """Do what is missing of a study; raises `UserError` and its like for what stops it.

    Args:
        view: what a person sees of it; by default nothing.
    """
    view = view or View()
    if options.grace_s is not None:  # inherited by the embedded Ray and its ranks
        os.environ[GRACE_VARIABLE] = f"{options.grace_s:g}"
    obey(options.store)
    store = LocalStore(options.store)
    if options.tracking_uri is None:
        default_uri(store)  # refuses a path that MLflow could not find again
    store.check_writable()
    records, datasets = Records(store), Datasets(store)
    _scan_data(study, datasets, view)
    plan = make_plan(study, records, datasets)
    _check_drift(plan, options)
    if not plan.has_work:
        return _nothing_to_do(plan, records, options)
    with hold(store, study.name, options.lease_times) as lease:
        # Again, now that nobody else changes it.
        plan = make_plan(study, records, datasets)
        set_damage_apart(plan, records)
        _check_drift(plan, options)
        if take_adopted(plan.stages, records):
            plan = make_plan(study, records, datasets)
        accept(records, plan)
        keep_facts(store, datasets, data_paths(study))
        if close_orphans(plan, records):
            plan = make_plan(study, records, datasets)  # some had finished their stage
        drop_finished_checkpoints(plan, records)
        session = _Session(study, plan, records, datasets, options, view, notice or Notice())
        return session.run(lease)


def _scan_data(study: Study, datasets: Datasets, view: View) -> None:
    """Compute the facts of data sets that have not been read yet, with a progress bar."""
    for path in data_paths(study):
        if datasets.facts(path) is None:
            with view.progress(escape(f"reading {path}")) as advance:
                datasets.ensure(path, advance)


def _check_drift(plan: Plan, options: RunOptions) -> None:
    if not plan.drift or options.accept_changes:
        return
    shown = "\n".join(f"  {s.address}: {s.reason}" for s in plan.drift[:10])
    more = f"\n  and {len(plan.drift) - 10} more" if len(plan.drift) > 10 else ""
    raise DriftError(
        f"{len(plan.drift)} stages of {plan.study.name} are known with other settings:\n"
        f"{shown}{more}\n"
        "--accept-changes makes new results under these settings; the old ones stay in the store"
    )


def _nothing_to_do(plan: Plan, records: Records, options: RunOptions) -> RunOutcome:
    """Everything is done: at most MLflow or the report has to catch up."""
    accept(records, plan)
    for planned in plan.stages:
        records.write_identity(planned.identity.science_hash, planned.identity.science)
    problem = None
    uri = options.tracking_uri or default_uri(records.store)
    if records.store.read(sync_key(uri, plan)) is None:
        problem = sync_study(records, plan, options.tracking_uri)
    report = report_dir(records, plan.study.name) / "index.html"
    if options.write_report and not report.exists():
        write_report(plan, records, report.parent)
    return RunOutcome(
        plan=plan,
        num_started=0,
        report=report if report.exists() else None,
        tracking_problem=problem,
    )


@dataclass
class _Session:
    """One run that has work to do."""

    study: Study
    plan: Plan
    records: Records
    datasets: Datasets
    options: RunOptions
    view: View
    notice: Notice

    def run(self, lease: Lease) -> RunOutcome:
        needed, _ = self._ranks()
        if self.options.slots is not None and needed > self.options.slots:
            raise UserError(
                f"a stage of this study needs {needed} ranks and --slots is {self.options.slots}: "
                "raise --slots or lower execution.world_size"
            )
        # MLflow first: its database is migrated before any other process exists.
        tracking = Tracking(
            self.records.store, self.plan, self.options.tracking_uri, over_if=lease.over_if
        )
        with tracking, self.view as view:
            view.say(f"tracking into {without_credentials(tracking.uri)}")
            failed, problem = self._drive(lease, (tracking, view))
            lease.check()
            final = make_plan(self.study, self.records, self.datasets)
            accept(self.records, final)
            report = None
            if self.options.write_report:
                report = write_report(
                    final, self.records, report_dir(self.records, self.study.name)
                )
            tracking.sync(final, report and report.parent)
        if failed or problem:
            raise StagesFailed(_describe_failures(failed, problem, self.records, final, report))
        return RunOutcome(
            plan=final,
            num_started=len(self.plan.work),
            report=report,
            tracking_problem=tracking.problem,
            summary=summary_text(
                make_rows(final, self.records),
                axes=final.study.axes,
                measures=final.study.measures,
                published=final.study.published,
            ),
            tracking_uri=tracking.uri,
        )

    def _drive(
        self, lease: Lease, observers: tuple[Observer, ...]
    ) -> tuple[list[Task], str | None]:
        """Drive all stages to their end, restarting an embedded Ray that dies."""
        history: dict[str, list[PastAttempt]] = {}
        plan = self.plan
        if not plan.has_work:  # a driver that was killed at the end had done it
            return [], None
        for left in reversed(range(MAX_RECONNECTS + 1)):
            try:
                with self._pool(lease) as pool:
                    controller = Controller(
                        plan,
                        records=self.records,
                        datasets=self.datasets,
                        pool=pool,
                        lease=lease,
                        observers=observers,
                        replan=self._replan,
                        history=history,
                        faults=self.options.faults,
                    )
                    try:
                        self._control(controller, lease)
                    except HeadLost:
                        history = controller.abandon()
                        raise
                    return controller.failed(), controller.sweep_problem
            except HeadLost as error:
                plan = self._replan()
                if not plan.has_work:  # it was lost when all was done
                    return [], None
                if self.options.address or not left:
                    raise
                self.view.say(
                    f"{escape(str(error))}: starting another; stages go on from their checkpoints"
                )
        raise AssertionError("unreachable: the last round returns or raises")

    def _control(self, controller: Controller, lease: Lease) -> None:
        """Run until everything is done or a stop is requested."""
        grace_s = self.options.grace_s
        try:
            with self.notice.deferred():
                if controller.run(lambda: self.notice.is_given):
                    return
                self.view.say("preempted: running stages commit a checkpoint first")
                controller.stop("preempted", grace_s)
        except KeyboardInterrupt:
            lease.assert_held()
            self.view.say("stopping: running stages commit a checkpoint first")
            controller.stop("cancelled", grace_s)
            raise
        raise Preempted

    @contextlib.contextmanager
    def _pool(self, lease: Lease) -> Iterator[SlotPool]:
        """Connect, and start the ranks."""
        packages = tuple(str(p) for p in _package_dirs()) if self.options.address else ()
        with connect(
            self.options.address, num_cpus=self.options.num_cpus, py_modules=packages
        ) as capacity:
            shape = slot_shape(capacity, cpus_per_rank=self.options.cpus_per_rank)
            needed, useful = self._ranks()
            fitting = min(max_slots(capacity, shape), _slots_in_memory(capacity, shape))
            wanted = self.options.slots or max(needed, min(useful, fitting))
            self.view.say(
                f"{capacity.nodes} node(s), {capacity.cpus} CPUs, {capacity.gpus} GPUs: "
                f"starting {wanted} warm rank(s)"
            )
            prefix = f"mae-study/{self.study.name}/{self.records.store_id()}/"
            with SlotPool(
                f"{prefix}{lease.epoch}",
                wanted,
                capacity,
                shape=shape,
                spares=self.options.spares,
                warm_entry=WARM_ENTRY,
                sweep_prefix=prefix,
            ) as pool:
                yield pool

    def _ranks(self) -> tuple[int, int]:
        """Ranks that the largest stage to do needs at least, and those that could work at once."""
        sizes = [s.cost.world_size for s in self.plan.work]
        smallest = [
            allowed_sizes(s.stage.execution, s.cost.split.global_batch if s.cost.split else None)[
                -1
            ]
            for s in self.plan.work
        ]
        trials = max((s.missing for s in self.plan.sweeps), default=0)  # one size at a time
        for sweep in self.plan.sweeps if trials else ():
            base = [s.execution.world_size for s in sweep.trials.sweep.base.stages]
            sizes, smallest = sizes + base, smallest + base
        return max(smallest, default=1), sum(sizes) + trials

    def _replan(self) -> Plan:
        plan = make_plan(self.study, self.records, self.datasets)
        _check_drift(plan, self.options)
        accept(self.records, plan)
        return plan


def _slots_in_memory(capacity: Capacity, shape: SlotShape) -> int:
    """Ranks that this machine's free memory holds; a cluster's nodes are its own affair."""
    if not capacity.is_local or shape.gpus:
        return max_slots(capacity, shape)
    return max(1, int(memory_left() / RANK_BYTES))


def _package_dirs() -> list[Path]:
    root = Path(__file__).resolve().parent.parent
    return [root / name for name in ("mae_core", "studies", "cluster", "orchestrator")]


def _describe_failures(
    failed: list[Task], problem: str | None, records: Records, plan: Plan, report: Path | None
) -> str:
    lines = [problem] if problem else []
    if failed:
        lines.append(f"{len(failed)} stages failed:")
        lines += [f"  {t.planned.address}: {t.reason}" for t in failed[:10]]
    if len(failed) > 10:
        lines.append(f"  and {len(failed) - 10} more")
    done = f"what succeeded is kept{f', report in {report}' if report else ''}"
    first = failed[0].planned if failed else None
    words = (first.cell.address, first.stage.name) if first else ("CELL", "STAGE")
    logs = f"`{command(records, plan.study.name, 'logs', *words)}` shows the full story"
    return "\n".join([*lines, f"{logs}; {done}"])
