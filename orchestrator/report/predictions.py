"""Predictions of cells that have not run, registered in the store and scored when they have.

studies/<study>/predictions/000001.json …   one registered prediction each; never changed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.errors import UserError
from orchestrator.plan.cell_facts import cell_facts
from orchestrator.plan.plan import Plan, PlannedStage
from orchestrator.plan.rows import objective_of
from orchestrator.store.known_keys import IsoTime, Level, build_known
from orchestrator.store.records import Records, now_iso
from studies.analysis.laws.by_protocol import DURATION, SIZE, ProtocolLaw, candidates, protocol_law
from studies.analysis.laws.next_runs import NextRuns, PossibleRun, advise, go_or_no_go
from studies.analysis.laws.refusals import StatementKind
from studies.errors import StudyError, unknown
from studies.result_row import ResultRow
from studies.spec.cell import Cell

MAX_REPEATS = 3
"""Further seeds of a finished cell that advice may ask for."""


BUDGET_SHARE = 0.25
MAX_STEPS = 5
"""Of the report's advice; results change what is best next."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Of one evaluation of a cell, in per cent top-1."""

    cell: str
    stage: str
    protocol: str
    science_hash: str
    top1: float | None = None
    """None where no law may be used."""
    low: float | None = None
    high: float | None = None
    level: float | None = None
    law: str | None = None
    statements: tuple[str, ...] = ()
    """Warnings that go with it."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A forecast with a number, as the store keeps it."""

    cell: str
    stage: str
    protocol: str
    science_hash: str
    top1: float
    low: float
    high: float
    level: Level
    law: str | None
    statements: Sequence[str]
    registered_at: IsoTime


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A registered prediction, and what was measured since."""

    record: Registered
    measured: float | None
    """top-1 in per cent; None while it has not run."""

    @property
    def verdict(self) -> str:
        """`open`, `hit` or `miss`."""
        if self.measured is None:
            return "open"
        inside = self.record.low <= self.measured <= self.record.high
        return "hit" if inside else "miss"

    @property
    def z(self) -> float | None:
        """Distance of the measurement in standard deviations, by the interval's width."""
        if self.measured is None:
            return None
        from statistics import NormalDist

        value = self.record.top1
        reach = self.record.high - value if self.measured > value else value - self.record.low
        quantile = NormalDist().inv_cdf(0.5 + self.record.level / 2)
        return (self.measured - value) / reach * quantile if reach > 0 else None


def forecast_cell(plan: Plan, rows: Sequence[ResultRow], address: str) -> list[Forecast]:
    """Predict every evaluation on test of a cell from the other cells' results.

    Raises:
        UserError: the cell has results already, or no evaluation that could be predicted.
        StudyError: there is no such cell.
    """
    cell = plan.study.cell(address)
    stages = [s for s in plan.stages if s.cell.address == address and _is_scored(s)]
    if not stages:
        raise UserError(f"cell {address} has no evaluation on test that could be predicted")
    done = [s.stage.name for s in stages if s.record is not None]
    if done:
        raise UserError(
            f"cell {address} has results already ({', '.join(done)}): a prediction "
            "must be registered before the cell runs; choose a cell that has not run"
        )
    target = _place(plan, cell)
    return [_forecast(plan, rows, planned, target) for planned in stages]


def register(plan: Plan, records: Records, forecasts: Sequence[Forecast]) -> list[int]:
    """Write predictions that have a number into the store; return their numbers there."""
    prefix = _prefix(plan)
    return [
        records.store.append_numbered(prefix, {**vars(one), "registered_at": now_iso()})
        for one in forecasts
        if one.top1 is not None
    ]


def scored(plan: Plan, records: Records) -> list[Scored]:
    """All registered predictions of a study, with what was measured since."""
    found = []
    for key in records.store.numbered_keys(_prefix(plan)):
        plain = records.store.read_json(key)
        if plain is not None:
            record = build_known(Registered, plain, f"record {key}")
            done = records.done(record.science_hash)
            measured = None if done is None else done.metrics.get("top1")
            found.append(Scored(record=record, measured=measured))
    return found


def score_lines(found: Sequence[Scored]) -> list[list[str]]:
    """Header and one line per prediction, for a page or a terminal."""
    lines = [["cell", "protocol", "predicted top-1 %", "interval", "measured", "verdict", "z"]]
    for one in found:
        r, z = one.record, one.z
        lines.append(
            [
                r.cell,
                r.protocol,
                f"{r.top1:.2f}",
                f"{r.low:.2f} to {r.high:.2f} ({r.level:.0%})",
                "" if one.measured is None else f"{one.measured:.2f}",
                one.verdict,
                "" if z is None else f"{z:+.1f}",
            ]
        )
    return lines


def advise_cells(
    plan: Plan, rows: Sequence[ResultRow], address: str, budget: float, stage: str | None
) -> tuple[NextRuns, str, float]:
    """Runs that narrow the target's interval most; also the protocol and the target's own cost.

    Raises:
        UserError: the target has no evaluation, or several and none was named.
        StudyError: no such cell; a budget that is not positive.
    """
    target = _target_stage(plan, address, stage)
    protocol, key = target.stage.recipe.protocol, plan.protocol_key(target)
    done = _law(plan, rows, target)
    place = _place(plan, target.cell)
    options = [
        PossibleRun(
            cell=cell.address,
            axes=_place(plan, cell),
            gpu_hours=max(_gpu_hours(plan, cell), 1e-9),
            times=MAX_REPEATS if _has(rows, cell.address, key) else 1,
            is_measured=_has(rows, cell.address, key),
        )
        for cell in _other_cells(plan, key, address)
        if _is_placed(plan, cell)
    ]
    data = done.data if done is not None else None
    law = done.law if done is not None else None
    if law is None:
        tried = candidates(data, _chance(plan, target)) if data is not None else ()
        law = tried[0] if tried else None
    if law is None:
        raise StudyError(
            f"nothing of {protocol!r} has been measured along an axis yet: run the smallest two "
            "cells first"
        )
    advice = advise(law, data, place, options, budget)
    return advice, protocol, _gpu_hours(plan, target.cell)


def next_runs(plan: Plan, rows: Sequence[ResultRow]) -> list[str]:
    """What to run next to know the largest cell without running it, in sentences.

    The budget is a quarter of that cell's own cost: with more, one might run it.
    """
    scored_stages = [s for s in plan.stages if s.cell.role == "grid" and _is_scored(s)]
    done = {s.cell.address for s in scored_stages if s.record is not None}
    missing = [s for s in scored_stages if s.cell.address not in done]
    placed = [s for s in missing if _is_placed(plan, s.cell)]
    if not placed or not done:
        return []
    target = max(placed, key=lambda s: _gpu_hours(plan, s.cell))
    hours = max(_gpu_hours(plan, target.cell), 1e-9)
    address = target.cell.address
    try:
        found, protocol, cost = advise_cells(
            plan, rows, address, BUDGET_SHARE * hours, target.stage.name
        )
    except (StudyError, UserError) as error:
        return [f"{address}: {error}"]
    said = [f"{address}, {protocol}: costs {cost:.3g} GPU-hours."]
    if found.prediction is not None:
        said = [f"{address}, {protocol}: {go_or_no_go(found.prediction, cost)}"]
    said += [
        f"{'another seed of ' if s.is_repeat else ''}{s.option.cell}: "
        f"{s.option.gpu_hours:.3g} GPU-hours; the target's interval is then {s.width_after:.2f} "
        "points wide"
        for s in found.steps[:MAX_STEPS]
    ]
    said += [s.text for s in found.statements]
    return [*said, f"mae-study advise {plan.study.name} --target {address} --budget HOURS"]


def _is_scored(planned: PlannedStage) -> bool:
    recipe = planned.stage.recipe
    return recipe.IS_EVALUATION and recipe.scored_on == "test"


def _forecast(
    plan: Plan, rows: Sequence[ResultRow], planned: PlannedStage, target: dict[str, float]
) -> Forecast:
    protocol = planned.stage.recipe.protocol
    nothing = Forecast(
        cell=planned.cell.address,
        stage=planned.stage.name,
        protocol=protocol,
        science_hash=planned.identity.science_hash,
    )
    try:
        done = protocol_law(
            _alike(plan, rows, planned), protocol, top=_chance(plan, planned), targets=[target]
        )
    except StudyError as error:
        return replace(nothing, statements=(str(error),))
    said = tuple(s.text for s in done.statements if s.kind is not StatementKind.NOTE)
    if done.law is None or done.conclusion is None or not done.conclusion.predictions:
        return replace(nothing, statements=said)
    p = done.conclusion.predictions[0]
    return replace(
        nothing,
        top1=100 - p.value,
        low=100 - p.high,
        high=100 - p.low,
        level=p.level,
        law=done.law.formula,
        statements=said,
    )


def _alike(plan: Plan, rows: Sequence[ResultRow], planned: PlannedStage) -> list[ResultRow]:
    """Rows of encoders that were trained for what this one is, measured as it is or by name."""
    objective, key = objective_of(planned), plan.protocol_key(planned)
    name = planned.stage.recipe.protocol
    return [
        r
        for r in rows
        if r.objective == objective and (r.protocol_key == key or r.protocol != name)
    ]


def _law(plan: Plan, rows: Sequence[ResultRow], planned: PlannedStage) -> ProtocolLaw | None:
    try:
        protocol = planned.stage.recipe.protocol
        return protocol_law(_alike(plan, rows, planned), protocol, top=_chance(plan, planned))
    except StudyError:
        return None


def _target_stage(plan: Plan, address: str, stage: str | None) -> PlannedStage:
    plan.study.cell(address)
    stages = {s.stage.name: s for s in plan.stages if s.cell.address == address and _is_scored(s)}
    if stage is None and len(stages) == 1:
        return next(iter(stages.values()))
    if stage is None:
        raise UserError(
            f"cell {address} has {len(stages)} evaluations on test; name one with --stage: "
            f"{', '.join(stages) or 'none'}"
        )
    if stage not in stages:
        raise unknown("stage", stage, stages, where=f"cell {address}")
    return stages[stage]


def _place(plan: Plan, cell: Cell) -> dict[str, float]:
    """Encoder parameters and images seen of a cell."""
    at = cell_facts(cell, plan.planner)
    if not at.encoder_params or not at.images_seen:
        raise UserError(
            f"cell {cell.address} has no size or no duration that a law could be read at (its data "
            "may not have been read yet)"
        )
    return {SIZE: float(at.encoder_params), DURATION: float(at.images_seen)}


def _is_placed(plan: Plan, cell: Cell) -> bool:
    at = cell_facts(cell, plan.planner)
    return bool(at.encoder_params and at.images_seen)


def _chance(plan: Plan, planned: PlannedStage) -> float | None:
    """Error of guessing in points, None while the classes are unknown."""
    classes = plan.planner.num_classes(planned.stage)
    return 100 - 100 / classes if classes > 1 else None


def chance_of(plan: Plan) -> float | None:
    """Error of guessing, where all evaluations of the grid share a number of classes."""
    found = {_chance(plan, s) for s in plan.stages if s.cell.role == "grid" and _is_scored(s)}
    return found.pop() if len(found) == 1 else None


def _gpu_hours(plan: Plan, cell: Cell) -> float:
    """Rank-hours of all stages of a cell."""
    stages = [s for s in plan.stages if s.cell.address == cell.address]
    return sum(plan.seconds(s) * s.cost.world_size for s in stages) / 3600


def _other_cells(plan: Plan, key: str, address: str) -> list[Cell]:
    """Cells of the grid; of those that share the protocol's result, the cheapest."""
    found: dict[str, Cell] = {}
    hashes = {
        s.cell.address: s.identity.science_hash for s in plan.stages if plan.protocol_key(s) == key
    }
    for cell in plan.study.cells:
        own = hashes.get(cell.address, cell.address)
        known = found.get(own, cell)
        if cell.role == "grid" and _gpu_hours(plan, cell) <= _gpu_hours(plan, known):
            found[own] = cell
    found.pop(hashes.get(address, address), None)
    return list(found.values())


def _has(rows: Sequence[ResultRow], cell: str, key: str) -> bool:
    return any(r.cell == cell and r.protocol_key == key and r.top1 is not None for r in rows)


def _prefix(plan: Plan) -> str:
    return f"studies/{plan.study.name}/predictions"
