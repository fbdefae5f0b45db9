"""Sweep: a search over settings as data, and what is refused of it."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace
from typing import Literal

from mae_core.config import EncoderConfig, EvalRecipe
from mae_core.errors import ConfigError
from studies.errors import StudyError, unknown
from studies.spec.axes import size_name
from studies.spec.cell import Cell, Stage, map_cell
from studies.spec.identity import identify
from studies.spec.overrides import check_section, override_cell, with_settings

METRICS = ("top1", "top5")
"""What a sweep may maximise: accuracies in percent, the same at every mask ratio."""
MAX_COMBINATIONS = 10_000
"""A larger grid is a mistake."""


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


SearchAxis = Choices | Range
Settings = dict[str, float | int | str]
"""A value for each axis of a sweep, by its dotted key."""


Sampler = Literal["tpe", "gp", "random", "grid"]


Rule = Literal["objective", "mean_rank"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search over settings by an evaluation on the dev split; its winner flows into the grid."""

    base: Cell
    """The cell whose settings are varied; its address is the prefix of the trials'."""
    space: tuple[SearchAxis, ...]
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


def check_axes(sweep: Sweep) -> None:
    """Refuse an axis that is misspelt, takes an impossible value, or varies nothing.

    Raises `StudyError` naming axis and value. Values that are impossible only together are left
    to the trial that draws them.
    """
    for axis in sweep.space:
        check_section(axis.key, list(sweep.base.stages), what="sweep axis")
        cells = [with_value(sweep.base, axis, value) for value in axis.examples]
        for cell in cells:
            for name in sweep.protocols:
                check_objective(cell, name)
        found = [identify(cell, {}) for cell in cells]
        hashes = {tuple(one[name].science_hash for name in sweep.protocols) for one in found}
        if len(cells) > 1 and len(hashes) == 1:
            names = " or ".join(repr(name) for name in sweep.protocols)
            raise StudyError(
                f"sweep axis {axis.key!r} does not change what {names} computes: "
                "name a setting of that stage or of one it builds on"
            )


def with_value(cell: Cell, axis: SearchAxis, value: float | int | str) -> Cell:
    """The cell at one value of an axis; raises `StudyError` if that is impossible."""
    try:
        return override_cell(cell, {axis.key: value})
    except (StudyError, ConfigError) as error:
        where = f"sweep axis {axis.key!r} = {value!r} in cell {cell.address}"
        raise StudyError(f"{where}: {error}") from error


def check_sweep(sweep: Sweep) -> None:
    """Refuse grids, sizes and seeds that do not go together."""
    if sweep.sampler == "grid":
        _check_grid(sweep)
    names = [size_name(encoder) for encoder in sweep.sizes]
    if len(set(names)) < len(names):
        raise StudyError(f"a sweep has each size once, not {', '.join(names)}: name the encoders")
    own = {stage.recipe.seed for stage in sweep.base.stages}
    if own & set(sweep.repeat_seeds) or len(set(sweep.repeat_seeds)) < len(sweep.repeat_seeds):
        raise StudyError(
            f"repeat_seeds {sweep.repeat_seeds}: use each once, and none of the trials' own "
            f"({', '.join(map(str, sorted(own)))}): the winner was chosen for its score there"
        )
    by_size(sweep)  # each is checked as it is made


def check_protocols(sweep: Sweep) -> None:
    """Refuse protocols that may not choose, and rules that have nothing to choose between."""
    check_objective(sweep.base, sweep.objective)
    if not sweep.objectives:
        if sweep.rule != "objective":
            raise StudyError(f"sweep rule {sweep.rule!r} compares protocols: name `objectives`")
        return
    if len(set(sweep.objectives)) < max(2, len(sweep.objectives)):
        raise StudyError(
            f"sweep objectives {sweep.objectives}: name two protocols or more, each once; one "
            "alone is the `objective`"
        )
    if sweep.objective not in sweep.objectives:
        raise StudyError(
            f"sweep objective {sweep.objective!r} is none of {', '.join(sweep.objectives)}: the "
            "winner of several protocols is named by one of them"
        )
    for name in sweep.objectives:
        check_objective(sweep.base, name)


def by_size(sweep: Sweep) -> tuple[Sweep, ...]:
    """The plain sweeps that a sweep is: one per size, or itself."""
    if not sweep.sizes:
        return (sweep,)
    return tuple(_at_size(sweep, encoder) for encoder in sweep.sizes)


def _at_size(sweep: Sweep, encoder: EncoderConfig) -> Sweep:
    before = sweep.base.encoder
    if before is None:
        raise StudyError(f"the sweep's base {sweep.base.address} has no encoder to vary in size")

    def change(stage: Stage) -> Stage:
        if stage.recipe.new_encoder != before:
            return stage
        return with_settings(stage, {"encoder": encoder})

    name = size_name(encoder)
    try:
        base = map_cell(sweep.base, change)
    except ConfigError as error:
        raise StudyError(f"the sweep's base cannot have the size {name}: {error}") from error
    return replace(sweep, base=replace(base, address=f"{base.address}/{name}"), sizes=())


def axis_values(axis: SearchAxis) -> tuple[float | int | str, ...]:
    """All values of an axis; raises `StudyError` for a range without a step."""
    if isinstance(axis, Choices):
        return axis.values
    if axis.step is None:
        raise StudyError(f"sweep axis {axis.key!r}: a grid needs a step, or choices")
    count = math.floor((axis.high - axis.low) / axis.step + 1e-9) + 1
    return tuple(round(axis.low + i * axis.step, 12) for i in range(count))


def combinations(sweep: Sweep) -> tuple[Settings, ...]:
    """Settings of every possible trial of a grid, in the order in which they are tried.

    The order is drawn by the sweep's seed: a grid that is not finished has tried all parts of it.
    """
    found = []
    for values in itertools.product(*(axis_values(axis) for axis in sweep.space)):
        settings = dict(zip((axis.key for axis in sweep.space), values, strict=True))
        try:
            override_cell(sweep.base, settings)
        except (ConfigError, StudyError):  # impossible only together
            continue
        found.append(settings)
    random.Random(sweep.seed).shuffle(found)
    return tuple(found)


def _check_grid(sweep: Sweep) -> None:
    total = math.prod(len(axis_values(axis)) for axis in sweep.space)
    if total > MAX_COMBINATIONS:
        raise StudyError(f"a grid of {total} combinations: use another sampler, or fewer values")
    possible = len(combinations(sweep))
    if sweep.num_trials > possible:
        raise StudyError(
            f"a grid of {possible} possible combinations has no {sweep.num_trials} trials: "
            "lower num_trials or add values"
        )
