"""Records as typed values: what another version wrote is read, what is damaged is named.

Keys that a reader does not know are left out, and those that an older writer did not know have
their defaults. A value of another type than its field's is damage.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from orchestrator.errors import DamagedRecord

T = TypeVar("T")


def _check_time(value: str) -> None:
    """Raise `ValueError` unless a text is a time or empty."""
    if value:
        datetime.fromisoformat(value)


def _check_process(value: int) -> None:
    """Raise `ValueError` for what is no process number."""
    if not 0 <= value < 1 << 31:
        raise ValueError(f"{value} is no process number")


def _check_level(value: float) -> None:
    """Raise `ValueError` unless an interval can have this level."""
    if not 0 < value < 1:
        raise ValueError(f"{value} is no level of confidence")


ProcessNumber = Annotated[int, _check_process]
"""0 where it is not known."""
Level = Annotated[float, _check_level]
"""Of confidence, between 0 and 1."""
IsoTime = Annotated[str, _check_time]
"""ISO 8601; empty where it is not known."""


def build_known(cls: type[T], plain: object, where: str) -> T:
    """Build a dataclass from those keys of a record that it knows; nested ones likewise.

    Args:
        where: names the record, for people.

    Raises:
        DamagedRecord: it is no mapping, lacks a key that has no default, or holds a value that is
            none of its field's type.
    """
    if isinstance(plain, cls):
        return plain
    if not isinstance(plain, Mapping):
        raise DamagedRecord(f"{where} is damaged: {_shown(plain)} is no mapping")
    shape: Any = cls
    fields = {f.name: f for f in dataclasses.fields(shape)}
    lacking = [n for n, f in fields.items() if n not in plain and _is_required(f)]
    if lacking:
        raise DamagedRecord(f"{where} is damaged: it lacks {', '.join(lacking)}")
    hints = _hints(shape)
    try:
        known = {n: _typed(hints[n], plain[n], f"{where}: {n}") for n in fields if n in plain}
        return cls(**known)
    except DamagedRecord:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise DamagedRecord(f"{where} is damaged: {error}") from error


@functools.cache
def _hints(cls: Any) -> Mapping[str, object]:
    return typing.get_type_hints(cls, include_extras=True)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return dataclasses.MISSING is field.default is field.default_factory


def _typed(hint: Any, plain: Any, where: str) -> Any:
    """Return a value of a field's type; raises `ValueError`, `TypeError` or `DamagedRecord`."""
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        value = _typed(members[0], plain, where)
        for check in members[1:]:
            check(value)
        return value
    if origin in (Union, types.UnionType):
        return _either(members, plain, where)
    if hint is Any or (origin is Literal and plain in members):
        return plain
    if origin in (tuple, list, Sequence) and isinstance(plain, list | tuple):
        return _items(origin, members, plain, where)
    if origin in (dict, Mapping) and isinstance(plain, Mapping):
        return {_typed(members[0], k, where): _typed(members[1], plain[k], where) for k in plain}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build_known(hint, plain, where)
    if hint is float and type(plain) is int:
        return float(plain)
    if isinstance(hint, type) and type(plain) is hint:
        return plain
    raise TypeError(f"{where.rpartition(': ')[2]} is {_shown(plain)}")


def _either(members: Sequence[Any], plain: Any, where: str) -> Any:
    """As the member that is exactly its type, else as the first that takes it."""
    if type(plain) in members:
        return plain
    problems: list[Exception] = []
    for member in members:
        try:
            return _typed(member, plain, where)
        except (TypeError, ValueError, DamagedRecord) as problem:
            problems.append(problem)
    raise problems[0]


def _items(origin: Any, members: Sequence[Any], plain: Sequence[Any], where: str) -> Any:
    is_fixed = origin is tuple and members[-1] is not Ellipsis
    hints = members if is_fixed else [members[0]] * len(plain)
    typed = (_typed(hint, item, where) for hint, item in zip(hints, plain, strict=True))
    return tuple(typed) if origin is tuple else list(typed)


def _shown(plain: object) -> str:
    text = repr(plain)
    return text if len(text) <= 60 else f"{text[:60]}…"
