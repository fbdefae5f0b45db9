"""Between frozen dataclasses and plain JSON, in both directions, checked on the way in.

The resolved study that the store keeps is written with `to_plain`, and it runs again.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from mae_core.config import RECIPES, AnyRecipe, Duration, Recipe
from mae_core.errors import ConfigError
from studies.errors import StudyError, unknown

T = TypeVar("T")


def to_plain(value: object) -> Any:
    """Turn dataclasses into dicts (recipes tagged by `kind`, durations as text)."""
    if isinstance(value, Duration):
        return (
            str(value)
            if float(f"{value.value:g}") == value.value
            else f"{value.value!r} {value.unit}"
        )
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": value.KIND, **plain} if isinstance(value, Recipe) else plain
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    return value


def recipe_from_plain(plain: Mapping[str, object]) -> AnyRecipe:
    """Rebuild a recipe from `to_plain`'s dict."""
    return typing.cast(AnyRecipe, _recipe(plain, "recipe"))


def from_plain(hint: object, plain: object, where: str) -> object:
    """Build a value of type `hint` from JSON; raises `StudyError` naming `where`."""
    if hint is Any:
        return plain
    origin = get_origin(hint)
    if origin is Literal:
        if plain not in get_args(hint):
            known = ", ".join(map(repr, get_args(hint)))
            raise StudyError(f"{where} = {plain!r}: use one of {known}")
        return plain
    if origin in (Union, types.UnionType):
        return _union(get_args(hint), plain, where)
    if origin is tuple:
        return _tuple(get_args(hint), plain, where)
    if hint is Duration:
        return _duration(plain, where)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, plain, where)
    assert isinstance(hint, type)
    return _scalar(hint, plain, where)


def field_types(cls: type) -> Mapping[str, object]:
    """Resolved annotations of a dataclass's fields."""
    known: Any = cls  # what is cached must be hashable
    return _field_types(known)


@functools.cache
def _field_types(cls: Any) -> Mapping[str, object]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def build(cls: type[T], plain: object, where: str) -> T:
    """Build a dataclass from a dict."""
    if isinstance(plain, cls):
        return plain
    if not isinstance(plain, dict):
        raise StudyError(f"{where} = {plain!r}: expected a mapping for {cls.__name__}")
    hints = field_types(cls)
    for key in plain:
        if key not in hints:
            raise unknown("key", key, hints, where=where)
    values = {k: from_plain(hints[k], v, f"{where}.{k}") for k, v in plain.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise StudyError(f"{where}: {error}") from error


def _union(members: tuple[object, ...], plain: object, where: str) -> object:
    if plain is None and type(None) in members:
        return None
    options = [m for m in members if m is not type(None)]
    classes = [m for m in options if isinstance(m, type) and dataclasses.is_dataclass(m)]
    if isinstance(plain, dict) and len(classes) == len(options):
        if all(_is_recipe(cls) for cls in classes):
            return _recipe(plain, where)
        return build(max(classes, key=lambda c: len(plain.keys() & field_types(c))), plain, where)
    problems = []
    for option in sorted(options, key=lambda o: o in (float, str)):  # int before float
        try:
            return from_plain(option, plain, where)
        except (StudyError, ConfigError) as error:
            problems.append(str(error))
    raise StudyError(problems[0])


def _is_recipe(hint: type) -> bool:
    return issubclass(hint, Recipe)


def _recipe(plain: Mapping[str, object], where: str) -> Recipe:
    rest = dict(plain)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in RECIPES:
        raise unknown("stage kind", str(kind), RECIPES, where=where)
    return build(RECIPES[kind], rest, where)


def _tuple(members: tuple[object, ...], plain: object, where: str) -> tuple[object, ...]:
    if not isinstance(plain, list | tuple):
        raise StudyError(f"{where} = {plain!r}: expected a list")
    if len(members) == 2 and members[1] is Ellipsis:
        return tuple(from_plain(members[0], v, f"{where}[{i}]") for i, v in enumerate(plain))
    if len(plain) != len(members):
        raise StudyError(f"{where} = {plain!r}: expected {len(members)} values")
    pairs = zip(members, plain, strict=True)
    return tuple(from_plain(m, v, f"{where}[{i}]") for i, (m, v) in enumerate(pairs))


def _duration(plain: object, where: str) -> Duration:
    if isinstance(plain, Duration):
        return plain
    if isinstance(plain, str):
        return Duration.parse(plain)
    raise StudyError(f"{where} = {plain!r}: write a number and its unit, such as 800ep or 5000st")


def _scalar(hint: type, plain: object, where: str) -> object:
    if hint is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    if hint is int and isinstance(plain, float) and plain.is_integer():
        return int(plain)
    if isinstance(plain, bool) != (hint is bool) or not isinstance(plain, hint):
        raise StudyError(f"{where} = {plain!r}: expected {hint.__name__}")
    return plain
