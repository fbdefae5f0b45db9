"""Change settings of a study by dotted key: `--set`, and the sweep's winner.

`pretrain.global_batch=512` reaches every stage of that name or kind; `data.…`, `execution.…`
reach every stage. `best.data.path=…` reaches the choice `best` and its candidates: its parents.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, TypeVar

from mae_core.config import RECIPES, BestOfRecipe, Execution
from studies.errors import StudyError, unknown
from studies.spec.cell import Cell, Stage, map_cell
from studies.spec.codec import field_types, from_plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")
GLOBAL_SECTIONS = ("data", "execution")


def parse(assignments: tuple[str, ...]) -> dict[str, object]:
    """Read `key=value` texts; a value is JSON where it parses as JSON, else a string."""
    settings: dict[str, object] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise StudyError(f"--set {text!r}: write key=value, such as pretrain.global_batch=512")
        try:
            settings[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            settings[key.strip()] = value
    return settings


def override_cell(cell: Cell, settings: Mapping[str, object]) -> Cell:
    """Apply settings to every stage of one cell."""
    choices = [s for s in cell.stages if isinstance(s.recipe, BestOfRecipe)]
    return map_cell(
        cell,
        lambda stage: _override_stage(
            stage, settings, {c.name for c in choices if stage.name in c.parents}
        ),
    )


def _override_stage(stage: Stage, settings: Mapping[str, object], choices: Set[str]) -> Stage:
    """Apply to one stage the settings that name it; all at once, so that they may go together.

    `choices` are the searches whose candidate it is: their names reach it too, kinds do not.
    """
    names = {stage.name, stage.kind} | (choices - RECIPES.keys())
    recipe: dict[str, object] = {}
    execution: dict[str, object] = {}
    for key, value in settings.items():
        section, _, rest = key.partition(".")
        below, _, setting = rest.partition(".")
        if section == "execution":
            execution[rest] = value
        elif section == "data":
            recipe[key] = value
        elif section in names and below == "execution" and setting:
            execution[setting] = value
        elif section in names:
            recipe[rest] = value
    return with_settings(stage, recipe, execution)


def with_settings(
    stage: Stage, recipe: Mapping[str, object], execution: Mapping[str, object] = {}
) -> Stage:
    """The stage with other values at dotted paths below its recipe and its execution."""
    if not recipe and not execution:
        return stage
    return dataclasses.replace(
        stage,
        recipe=_replace(stage.recipe, recipe, f"{stage.name}"),
        execution=_replace(stage.execution, execution, "execution"),
    )


def check_section(key: str, stages: list[Stage], *, what: str = "key") -> None:
    """Refuse a key whose first part names no stage, kind or global section, or that ends there."""
    section, _, rest = key.partition(".")
    known = {s.name for s in stages} | {s.kind for s in stages} | set(GLOBAL_SECTIONS)
    if section not in known:
        raise unknown(what, key, _known_keys(stages))
    is_whole = rest in ("", "execution") and section != "data"
    if is_whole or not all(key.split(".")):
        whole = ".".join(filter(None, key.split(".")))
        of_it = [k for k in _known_keys(stages) if k.startswith(f"{whole}.")]
        example = f", such as {of_it[0]}" if of_it else ""
        raise StudyError(f"{what} {key!r} names no setting: write one of {whole}{example}")


def _known_keys(stages: list[Stage]) -> list[str]:
    keys = {f"execution.{f}" for f in field_types(Execution)}
    for stage in stages:
        for name, hint in field_types(type(stage.recipe)).items():
            if isinstance(hint, type) and dataclasses.is_dataclass(hint) and name != "data":
                keys |= {f"{stage.kind}.{name}.{f}" for f in field_types(hint)}
            else:
                keys.add(f"{stage.kind}.{name}")
        keys |= {f"data.{f}" for f in field_types(type(stage.recipe.data))}
    return sorted(keys)


def _replace(value: T, changes: Mapping[str, object], where: str) -> T:
    """Rebuild a dataclass with the values at dotted paths below it."""
    if not changes:
        return value
    direct: dict[str, object] = {}
    nested: dict[str, dict[str, object]] = {}
    hints = field_types(type(value))
    for path, new in changes.items():
        name, _, rest = path.partition(".")
        if name not in hints:
            raise unknown("key", name, hints, where=where)
        if rest:
            nested.setdefault(name, {})[rest] = new
        else:
            direct[name] = from_plain(hints[name], new, f"{where}.{name}")
    for name, below in nested.items():
        current = direct.get(name, getattr(value, name))
        if not dataclasses.is_dataclass(current) or isinstance(current, type):
            raise StudyError(f"{where}.{name} is {current!r}: it has no settings below it")
        direct[name] = _replace(current, below, f"{where}.{name}")
    return dataclasses.replace(value, **direct)
