"""What would run and why: every stage of a study with its identity, status and cost."""

from __future__ import annotations

import contextlib
import enum
import functools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from mae_core.config import CLASSIFIER_FILE, AdoptedRecipe, EncoderConfig, InferenceRecipe
from mae_core.errors import ConfigError
from mae_core.model.cost import Cost
from orchestrator.plan.accepted import Known, Resolved, keep_state, load_accepted
from orchestrator.plan.estimate import Rates, TimedStage, cost_of
from orchestrator.store.adopted import with_digests
from orchestrator.store.data_facts import Datasets, data_paths
from orchestrator.store.records import DoneRecord, Records
from orchestrator.sweep.trials import Trials, Values, Winner, apply_winner
from studies.errors import unknown
from studies.result_row import Place
from studies.spec.axes import places, size_name
from studies.spec.canonical_json import FieldChange, differences
from studies.spec.cell import Cell, Stage
from studies.spec.checks import Finding, check_study
from studies.spec.codec import to_plain
from studies.spec.coordinates import Coordinates, coordinates
from studies.spec.identity import UNKNOWN_DATA, Identity, identify
from studies.spec.protocols import protocol_keys
from studies.spec.study import Study
from studies.spec.sweep import Settings, by_size


class Status(enum.Enum):
    """Where a planned stage stands."""

    DONE = "done"
    MISSING = "missing"
    CHANGED = "changed"
    """Its address is known with another identity: a decision is due."""
    STALE = "stale"
    """Done, but a parent was run again since."""
    AFTER_SWEEP = "after sweep"
    """Its settings come from a sweep that has no winner yet."""

    @property
    def is_work(self) -> bool:
        """True if a run would start it."""
        return self is not Status.DONE


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """One stage of one cell."""

    cell: Cell
    coordinates: Coordinates
    """Of the cell."""
    stage: Stage
    places: Mapping[str, Place]
    """Where the stage stands on the study's axes."""
    identity: Identity
    status: Status
    reason: str
    cost: Cost
    record: DoneRecord | None = None
    sweep: str = ""
    """Hash of the sweep whose trial it is, or whose winner it repeats; empty in the grid."""
    changes: tuple[FieldChange, ...] = ()
    """From the accepted settings; for a changed stage."""

    @property
    def address(self) -> str:
        """`cell#stage`"""
        return f"{self.cell.address}#{self.stage.name}"


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Where the sweep stands."""

    trials: Trials
    values: dict[int, Values]
    """Of finished trials, by each of the sweep's protocols."""
    winner: Winner | None
    encoder: EncoderConfig | None = None
    """The size that is searched; None = the winner is for all cells."""
    transferred: Settings | None = None
    """Settings that won at the size before."""

    @property
    def label(self) -> str:
        """The size that is searched, empty for the only sweep."""
        return "" if self.encoder is None else size_name(self.encoder)

    @property
    def scores(self) -> dict[int, float]:
        """Of finished trials, by the protocol that names the winner."""
        at = self.trials.sweep.protocols.index(self.trials.sweep.objective)
        return {number: values[at] for number, values in self.values.items()}

    @property
    def missing(self) -> int:
        """Trials still to finish."""
        return 0 if self.winner else max(0, self.trials.sweep.num_trials - len(self.scores))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of a whole study, with the sweep's winner filled in where there is one."""

    study: Study
    stages: tuple[PlannedStage, ...]
    sweeps: tuple[SweepPlan, ...]
    """In the order in which they run: one per size, or the only one."""
    rates: Rates
    planner: Planner
    unknown_data: tuple[str, ...] = ()
    """Data sets that have not been scanned yet; `run` does."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    duplicates: dict[str, dict[str, int]] = field(default_factory=dict)
    """Images of dev and test that are in train too, by data path and split."""

    @property
    def drift(self) -> list[PlannedStage]:
        """Stages whose address is known with another identity."""
        return [s for s in self.stages if s.status is Status.CHANGED]

    @property
    def work(self) -> list[PlannedStage]:
        """Stages that a run would start, each identity once."""
        wanted = [s for s in self.stages if s.status.is_work and not self._is_settled(s)]
        return self.once_each(wanted)

    def once_each(self, stages: Iterable[PlannedStage]) -> list[PlannedStage]:
        """Stages of which cells share some, each identity once."""
        return list({(s.identity.science_hash, self._unread_path(s)): s for s in stages}.values())

    def _is_settled(self, planned: PlannedStage) -> bool:
        """A trial that failed is left alone once its sweep is decided."""
        return planned.cell.role == "sweep" and any(
            s.winner is not None and s.trials.sweep_hash == planned.sweep for s in self.sweeps
        )

    def _unread_path(self, planned: PlannedStage) -> str:
        """Sets that have not been read share the fingerprint `unknown`: their paths differ."""
        path = planned.stage.recipe.data.path
        return path if path in self.unknown_data else ""

    @functools.cached_property
    def protocol_keys(self) -> tuple[str, ...]:
        """Of each stage, in their order: alike where they measure in the same way."""
        return tuple(protocol_keys(self.stages))

    def protocol_key(self, planned: PlannedStage) -> str:
        """Key of one of the plan's stages."""
        return self._key_of[planned.cell.address, planned.stage.name]

    @functools.cached_property
    def _key_of(self) -> dict[tuple[str, str], str]:
        names = [(s.cell.address, s.stage.name) for s in self.stages]
        return dict(zip(names, self.protocol_keys, strict=True))

    @property
    def has_work(self) -> bool:
        """True if a run has something to do: stages, trials, or only the sweep's decision."""
        return bool(self.work) or any(s.winner is None for s in self.sweeps)

    @property
    def num_missing_trials(self) -> int:
        """Trials still to finish, of all sizes."""
        return sum(s.missing for s in self.sweeps)

    def seconds(self, stage: PlannedStage) -> float:
        """Estimated wall-clock of one stage."""
        return self.rates.seconds(stage.stage.kind, stage.cost)

    @property
    def sweep_rank_seconds(self) -> float:
        """Estimated rank-seconds of the trials still to run."""
        return sum(self._trial_seconds(s) * s.missing for s in self.sweeps if s.missing)

    def ahead_s(self, known: Collection[str], num_asked: int) -> float:
        """Estimated rank-seconds of work beside the stages of the `known` hashes.

        That is trials of the current sweep beyond those it has asked for, those of later sweeps,
        and cells that wait for a winner.
        """
        waiting = [s for s in self.work if s.cell.role != "sweep"]
        cells = sum(
            self.seconds(s) * s.cost.world_size
            for s in waiting
            if s.cell.uses_winner or s.identity.science_hash not in known
        )
        searched = [s for s in self.sweeps if s.winner is None]
        unasked = [max(0, s.missing - (num_asked if s is searched[0] else 0)) for s in searched]
        trials = zip(searched, unasked, strict=True)
        return cells + sum(self._trial_seconds(s) * count for s, count in trials)

    def _trial_seconds(self, sweep: SweepPlan) -> float:
        """Mean rank-seconds of a sweep's trials."""
        sweep_hash = sweep.trials.sweep_hash
        trial = [s for s in self.stages if s.cell.role == "sweep" and s.sweep == sweep_hash]
        cells = {s.cell.address for s in trial}
        return sum(self.seconds(s) * s.cost.world_size for s in trial) / max(len(cells), 1)

    @property
    def rank_seconds(self) -> float:
        """Estimated rank-seconds of all work, sweep included."""
        grid = [s for s in self.work if s.cell.role != "sweep"]
        own = sum(self.seconds(s) * s.cost.world_size for s in grid)
        return own + self.sweep_rank_seconds


def make_plan(study: Study, records: Records, datasets: Datasets) -> Plan:
    """Plan a study against the store; raises `StudyError`, `ConfigError` for what cannot be run."""
    study = with_digests(study, records)
    paths = data_paths(study)
    fingerprints = {path: datasets.fingerprint(path) for path in paths}
    sweeps = _plan_sweeps(study, records, fingerprints)
    for sweep in sweeps:
        if sweep.winner is not None:
            study = apply_winner(study, sweep.winner.settings, sweep.encoder)
    accepted = load_accepted(records, study.name)
    known = records.known_stages()
    planner = Planner(records, datasets, fingerprints, accepted, known, study)
    grid = [p for cell in study.cells for p in planner.plan_cell(cell)]
    trials = [planned for sweep in sweeps for planned in _plan_trials(sweep, planner)]
    stages = (*trials, *grid)
    samples = [
        TimedStage(s.stage.kind, s.cost, s.record.seconds) for s in stages if s.record is not None
    ]
    unknown = tuple(p for p, f in fingerprints.items() if f == UNKNOWN_DATA)
    return Plan(
        study=study,
        stages=stages,
        sweeps=sweeps,
        rates=Rates(samples),
        planner=planner,
        unknown_data=unknown,
        fingerprints=fingerprints,
        duplicates={p: dict(f.in_train_too) for p in paths if (f := datasets.facts(p))},
    )


def _plan_sweeps(
    study: Study, records: Records, fingerprints: dict[str, str]
) -> tuple[SweepPlan, ...]:
    if study.sweep is None:
        return ()
    found: list[SweepPlan] = []
    before: Settings | None = None
    for encoder, sweep in zip(study.sweep.sizes or (None,), by_size(study.sweep), strict=True):
        trials = Trials(records.store, sweep, fingerprints)
        winner = trials.winner()
        found.append(
            SweepPlan(
                trials=trials,
                values=trials.values(records),
                winner=winner,
                encoder=encoder,
                transferred=before if study.sweep.transfer else None,
            )
        )
        before = winner.settings if winner else None
    return tuple(found)


def _plan_trials(sweep: SweepPlan, planner: Planner) -> list[PlannedStage]:
    """Stages of the trials so far that are possible; the base stands for them if there is none.

    Once there is a winner, also those of its repetitions at further seeds.
    """
    stages: list[PlannedStage] = []
    for cell in sweep.trials.cells().values():
        with contextlib.suppress(ConfigError):  # settings that are impossible only together
            stages += planner.plan_cell(cell)
    stages = stages or planner.plan_cell(sweep.trials.cell(0, {}))
    again = sweep.trials.repeats(sweep.winner) if sweep.winner else ()
    stages += [planned for cell in again for planned in planner.plan_cell(cell)]
    return [replace(planned, sweep=sweep.trials.sweep_hash) for planned in stages]


class Planner:
    """Plans one cell after another against the store."""

    def __init__(
        self,
        records: Records,
        datasets: Datasets,
        fingerprints: dict[str, str],
        accepted: Mapping[tuple[str, str], Known],
        known: set[str],
        study: Study,
    ) -> None:
        self._records, self._datasets, self._axes = records, datasets, study.axes
        self._swept = [axis.key for axis in study.sweep.space] if study.sweep else []
        self._fingerprints, self._accepted, self._known = fingerprints, accepted, known

    def plan_cell(self, cell: Cell) -> list[PlannedStage]:
        """Identity, status and cost of each stage of a cell."""
        identities = identify(cell, self._fingerprints)
        at = coordinates(cell, self._axes, self._swept)
        done: dict[str, DoneRecord | None] = {}
        planned = []
        for stage in cell.stages:
            identity = identities[stage.name]
            known = identity.science_hash in self._known
            record = self._records.done(identity.science_hash) if known else None
            parents = [done[p] for p in stage.parents]
            status, reason, changes = self._status(cell, stage, identity, record, parents)
            done[stage.name] = record if status is Status.DONE else None
            planned.append(
                PlannedStage(
                    cell=cell,
                    coordinates=at,
                    stage=stage,
                    places=places(self._axes, cell, stage),
                    identity=identity,
                    status=status,
                    reason=reason,
                    cost=self.cost(cell, stage),
                    record=record if status is Status.DONE else None,
                    changes=changes,
                )
            )
        return planned

    def cost(self, cell: Cell, stage: Stage) -> Cost:
        """Parameters, steps and FLOPs of a stage."""
        split = stage.recipe.scored_on or "test"
        self._check_classes(cell, stage)
        return cost_of(cell, stage, self._datasets.size(stage.recipe.data, split))

    def _check_classes(self, cell: Cell, stage: Stage) -> None:
        """Refuse a set that a classifier cannot be scored on, where the classes are known."""
        recipe = stage.recipe
        if not isinstance(recipe, InferenceRecipe):
            return
        parents = [cell.stage(name).recipe for name in stage.parents]
        tuned = next(p for p in parents if CLASSIFIER_FILE in p.YIELDS)
        own, its = (self._datasets.facts(r.data.path) for r in (recipe, tuned))
        if own is None or its is None:
            return
        try:
            recipe.check_classes(own.class_names, its.class_names)
        except ConfigError as error:
            raise ConfigError(f"{cell.address}#{stage.name}: {error}") from error

    def num_train(self, stage: Stage) -> int:
        """Training images of a stage's data."""
        return self._datasets.size(stage.recipe.data).num_train

    def num_classes(self, stage: Stage) -> int:
        """Classes of a stage's data; 0 = unknown."""
        return self._datasets.size(stage.recipe.data).num_classes

    def _status(
        self,
        cell: Cell,
        stage: Stage,
        identity: Identity,
        record: DoneRecord | None,
        parents: list[DoneRecord | None],
    ) -> tuple[Status, str, tuple[FieldChange, ...]]:
        accepted = self._accepted.get((cell.address, stage.name))
        # What was planned but never finished binds nobody.
        has_result = accepted is not None and self._records.done(accepted.hash) is not None
        if cell.uses_winner:
            if has_result:
                return Status.CHANGED, "its sweep changed and will run again", ()
            return Status.AFTER_SWEEP, "its settings come from the sweep's winner", ()
        if record is not None:
            current = {p.science_hash: p.outputs for p in parents if p is not None}
            if current == record.parents:
                return Status.DONE, f"attempt {record.attempt}, {record.finished_at}", ()
            return Status.STALE, "a parent was run again since", ()
        is_other = accepted is not None and accepted.hash != identity.science_hash
        if accepted is not None and is_other and has_result and cell.role != "sweep":
            changes = tuple(differences(accepted.science, identity.science))
            own = tuple(c for c in changes if c.key != "parents" and c.old != UNKNOWN_DATA)
            return Status.CHANGED, _explain(own), own
        if isinstance(stage.recipe, AdoptedRecipe) and not stage.recipe.sha256:
            return Status.MISSING, f"adopt it first: --name {stage.recipe.name}", ()
        return Status.MISSING, "never finished", ()


def _explain(changes: tuple[FieldChange, ...]) -> str:
    if not changes:
        return "a parent's identity changed"
    shown = [f"{key}: {_show(old)} → {_show(new)}" for key, old, new in changes[:3]]
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return "; ".join(shown) + more


def _show(value: object) -> str:
    return "default" if value is None else str(value)


def accept(records: Records, plan: Plan) -> None:
    """Keep the plan as what this study's addresses stand for, if it differs from the last."""
    stages = {
        s.address: Known(hash=s.identity.science_hash, science=s.identity.science)
        for s in plan.stages
        if not s.cell.uses_winner and s.cell.role != "sweep"
    }
    keep_state(records, plan.study.name, Resolved(study=to_plain(plan.study), stages=stages))


def plan_findings(plan: Plan) -> list[Finding]:
    """What a careful reader would object to in the plan's study and data."""
    return check_study(plan.study, plan.duplicates)


def find_stage(plan: Plan, cell: str, stage: str | None) -> PlannedStage:
    """Return the planned stage; raises `StudyError` with the nearest known name."""
    in_cell = [s for s in plan.stages if s.cell.address == cell]
    if not in_cell:
        raise unknown("cell", cell, {s.cell.address for s in plan.stages})
    if stage is None:
        return in_cell[0]
    for planned in in_cell:
        if planned.stage.name == stage:
            return planned
    raise unknown("stage", stage, [s.stage.name for s in in_cell], where=f"cell {cell}")
