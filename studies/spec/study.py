"""Study, Cell, Stage: a question, the points that answer it, and the work for each point."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mae_core.config import RECIPES, AnyRecipe, EncoderConfig, EvalRecipe, Execution
from mae_core.errors import ConfigError
from studies.errors import StudyError, unknown
from studies.result_row import Role

METRICS = ("top1", "top5")
"""What a sweep may maximise: accuracies in percent, the same at every mask ratio."""

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,63}")


def check_address(what: str, text: str) -> None:
    """Refuse names that are not safe as a path: segments of letters, digits and `._+=-`."""
    if not text or len(text) > 200 or not all(_SEGMENT.fullmatch(s) for s in text.split("/")):
        raise StudyError(
            f"{what} {text!r}: use segments of letters, digits and . _ + = -, "
            "separated by /, each starting with a letter or digit"
        )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One piece of work for a cell."""

    name: str
    """Unique within the cell, such as `knn` or `linear_100`."""
    recipe: AnyRecipe
    """Science: what is computed."""
    parents: tuple[str, ...] = ()
    """Stages of the same cell whose outputs this one reads."""
    execution: Execution = field(default_factory=Execution)
    """How it is computed; no part of the identity."""

    def __post_init__(self) -> None:
        check_address("stage name", self.name)

    @property
    def kind(self) -> str:
        """What the stage does: pretrain, knn, linear_probe, finetune."""
        return self.recipe.KIND


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One point of the study's grid."""

    address: str
    """Readable, unique within the study: `M/e300/s0`."""
    stages: tuple[Stage, ...]
    """In an order in which parents come first."""
    role: Role = "grid"
    uses_winner: bool = False
    """The sweep's winning settings replace this cell's before it is planned."""

    def __post_init__(self) -> None:
        check_address("cell address", self.address)
        seen: dict[str, Stage] = {}
        for stage in self.stages:
            _check_stage(self.address, stage, seen)
            seen[stage.name] = stage

    def stage(self, name: str) -> Stage:
        """Return the stage of that name; raises `StudyError` if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise unknown("stage", name, [s.name for s in self.stages], where=f"cell {self.address}")

    @property
    def pretrain(self) -> Stage | None:
        """The stage that starts this cell's encoder, None for a baseline without one."""
        return next((s for s in self.stages if hasattr(s.recipe, "encoder")), None)


def _check_stage(cell: str, stage: Stage, earlier: dict[str, Stage]) -> None:
    if stage.name in earlier:
        raise StudyError(f"cell {cell} has two stages named {stage.name!r}")
    for parent in stage.parents:
        if parent not in earlier:
            raise unknown("parent", parent, earlier, where=f"cell {cell}, stage {stage.name}")
    for file in stage.recipe.needs:
        files = {file, stage.recipe.INSTEAD.get(file, file)}
        sources = [p for p in stage.parents if files & set(earlier[p].recipe.YIELDS)]
        if len(sources) != 1:
            able = ", ".join(kind for kind, recipe in RECIPES.items() if files & set(recipe.YIELDS))
            raise StudyError(
                f"cell {cell}, stage {stage.name}: {stage.kind} needs one parent that leaves "
                f"{' or '.join(sorted(files))} (a stage of kind {able}), found {len(sources)}"
            )
    try:
        stage.recipe.check_parents({p: earlier[p].recipe for p in stage.parents})
    except ConfigError as error:
        raise StudyError(f"cell {cell}, stage {stage.name}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Choices:
    """An axis of a sweep: one of some values."""

    key: str
    """Dotted key of a setting, such as `pretrain.decoder.depth`."""
    values: tuple[float | int | str, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 1:
            raise StudyError(f"sweep axis {self.key!r} has no values")
        if len(set(self.values)) < len(self.values):
            raise StudyError(f"sweep axis {self.key!r} has a value twice: {self.values}")

    @property
    def examples(self) -> tuple[float | int | str, ...]:
        """Values that must be possible for the axis to be."""
        return self.values


@dataclass(frozen=True, kw_only=True)
class Range:
    """An axis of a sweep: a number between two bounds, on a grid of `step` if given."""

    key: str
    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise StudyError(f"sweep axis {self.key!r}: low {self.low} must be < high {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise StudyError(f"sweep axis {self.key!r}: log needs low > 0 and no step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise StudyError(
                f"sweep axis {self.key!r}: step {self.step} must be in (0, high - low]"
            )

    @property
    def examples(self) -> tuple[float, ...]:
        """Values that must be possible for the axis to be: the bounds and one between them."""
        # Without a step, no round number: a setting that is a whole number needs one.
        step = 0.381966 * (self.high - self.low) if self.step is None else self.step
        return (self.low, self.low + step, self.high)


Axis = Choices | Range
Sampler = Literal["tpe", "gp", "random", "grid"]
Rule = Literal["objective", "mean_rank"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search over settings by an evaluation on the dev split; its winner flows into the grid."""

    base: Cell
    """The cell whose settings are varied; its address is the prefix of the trials'."""
    space: tuple[Axis, ...]
    objective: str
    """Stage of `base` whose `metric` on dev is maximised; never a reconstruction loss."""
    metric: str = "top1"
    """`top1` or `top5`."""
    num_trials: int
    """Finished trials to reach, whatever happened in between; with `sizes`, at each of them."""
    seed: int = 0
    """Of the sampler."""
    objectives: tuple[str, ...] = ()
    """Stages of `base` that are maximised together, `objective` among them: the decision keeps
    their Pareto front. None: `objective` alone."""
    rule: Rule = "objective"
    """Which trial of the front wins: `objective`: the best by that protocol; `mean_rank`: the one
    with the best mean rank over `objectives`, ties by `objective`."""
    sampler: Sampler = "tpe"
    """`tpe`: Tree-structured Parzen Estimator (Bergstra et al. 2011), running trials taken for bad;
    `gp`: Gaussian process; `random`; `grid`: all combinations, in an order drawn by `seed`."""
    sizes: tuple[EncoderConfig, ...] = ()
    """Encoders that are searched one after another in this order, smallest first, each with
    `num_trials` of its own; a cell takes the winner of its encoder. None: one winner for all."""
    transfer: bool = True
    """The winner of a size is the first trial of the next: is it best there too?"""
    repeat_seeds: tuple[int, ...] = ()
    """Seeds at which the winner is run again on dev: its own score is the best of many and too
    high, and their spread is the seed noise that settings are compared with."""

    def __post_init__(self) -> None:
        from studies.spec.overrides import check_axes  # which builds on this module
        from studies.spec.search import check_protocols, check_sweep  # as does this

        check_protocols(self)
        if self.metric not in METRICS:
            raise unknown("metric", self.metric, METRICS, where="the sweep")
        if self.num_trials < 1:
            raise StudyError(f"sweep of {self.num_trials} trials: must be ≥ 1")
        keys = [axis.key for axis in self.space]
        if not keys:
            raise StudyError("a sweep needs at least one axis")
        if len(set(keys)) < len(keys):
            raise StudyError(f"a sweep has one axis per key, not {', '.join(keys)}")
        check_axes(self)
        check_sweep(self)

    @property
    def protocols(self) -> tuple[str, ...]:
        """Stages that score a trial, in the order of its values."""
        return self.objectives or (self.objective,)


def check_objective(cell: Cell, name: str) -> None:
    """Refuse to choose by anything but an evaluation on the dev split."""
    stage = cell.stage(name)
    if not isinstance(stage.recipe, EvalRecipe):
        raise StudyError(
            f"sweep objective {name!r} is a {stage.kind} stage: name an evaluation; "
            "reconstruction losses at different mask ratios are not comparable"
        )
    if stage.recipe.eval_split != "dev":
        raise StudyError(
            f"sweep objective {name!r} is scored on {stage.recipe.eval_split!r}: "
            "nothing is chosen on the test set, use eval_split='dev'"
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the cells that answer it."""

    name: str
    question: str
    cells: tuple[Cell, ...]
    sweep: Sweep | None = None
    notes: tuple[str, ...] = ()
    """What a reader of the report must know: what such data can show and what it cannot."""
    axes: tuple[str, ...] = ()
    """What the report draws accuracy against, a figure each (`studies.spec.axes`); none: duration,
    parameters and compute. Not part of any identity."""
    measures: tuple[str, ...] = ("top1",)
    """What it draws: `top1`, and of pretraining `speedup`, `relative_flops`."""
    published: tuple[str, ...] = ()
    """Sets of `studies.reference` that it draws beside the measured: `MAE paper, Fig 5`."""

    def __post_init__(self) -> None:
        from studies.spec.axes import check_figures  # which builds on this module
        from studies.spec.overrides import check_winner_fits  # as does this
        from studies.spec.search import check_sizes  # as does this

        check_address("study name", self.name)
        check_figures(self)
        seen = set()
        for cell in self.cells:
            if cell.address in seen:
                raise StudyError(f"study {self.name} has two cells at address {cell.address!r}")
            seen.add(cell.address)
            if cell.uses_winner and self.sweep is None:
                raise StudyError(f"cell {cell.address} uses a sweep's winner, and there is none")
        if self.sweep is not None:
            check_sizes(self.sweep, self.cells)
            check_winner_fits(self.sweep, self.cells)

    def cell(self, address: str) -> Cell:
        """Return the cell at `address`; raises `StudyError` if there is none."""
        for cell in self.cells:
            if cell.address == address:
                return cell
        known = [c.address for c in self.cells]
        raise unknown("cell", address, known, where=f"study {self.name}")

    def map_stages(self, change: Any) -> Study:
        """Return a copy with `change(stage)` in place of each stage, the sweep's base included."""
        cells = tuple(map_cell(c, change) for c in self.cells)
        sweep = self.sweep and replace(self.sweep, base=map_cell(self.sweep.base, change))
        return replace(self, cells=cells, sweep=sweep)

    def all_stages(self) -> Iterator[Stage]:
        """Every stage of the grid and of the sweep's base."""
        for cell in (*self.cells, *((self.sweep.base,) if self.sweep else ())):
            yield from cell.stages


def map_cell(cell: Cell, change: Any) -> Cell:
    """Return a copy of `cell` with `change(stage)` in place of each stage."""
    return replace(cell, stages=tuple(change(s) for s in cell.stages))
