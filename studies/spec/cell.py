"""Cell and Stage: one point of a study's grid, and one piece of work for it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from mae_core.config import RECIPES, AnyRecipe, EncoderConfig, Execution
from mae_core.errors import ConfigError
from studies.errors import StudyError, unknown
from studies.result_row import Role

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

    @functools.cached_property
    def pretrain(self) -> Stage | None:
        """The stage that starts this cell's encoder, None for a baseline without one."""
        return next((s for s in self.stages if s.recipe.new_encoder is not None), None)

    @property
    def encoder(self) -> EncoderConfig | None:
        """What that stage trains, None of a cell without one."""
        return self.pretrain.recipe.new_encoder if self.pretrain else None


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


def map_cell(cell: Cell, change: Callable[[Stage], Stage]) -> Cell:
    """Return a copy of `cell` with `change(stage)` in place of each stage."""
    return replace(cell, stages=tuple(change(s) for s in cell.stages))
