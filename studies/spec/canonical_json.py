"""Identity is content: canonical JSON of what changes a result, and its SHA-256.

What has no canonical form (callables, sets, NaN) is refused. A field at its default is left out,
so that a new field leaves old identities alone; 800 and 800.0 are the same number.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from studies.errors import StudyError

HASH_LENGTH = 20
"""Hex digits: 80 bits, no collision below billions of stages."""


def canonical(value: object, where: str = "value") -> object:
    """Reduce `value` to JSON types, without execution fields; raises `StudyError` if it cannot."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, enum.Enum):
        return canonical(value.value, where)
    if isinstance(value, float):
        return _number(value, where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return fields_of(value, where)
    if isinstance(value, list | tuple):
        return [canonical(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, dict):
        return _mapping(value, where)
    raise StudyError(
        f"{where} is a {type(value).__name__}, which has no canonical form and so no identity: "
        "use numbers, strings, tuples, dicts or frozen dataclasses"
    )


def _number(value: float, where: str) -> float | int:
    if not math.isfinite(value):
        raise StudyError(f"{where} is {value}, which has no identity: use a finite number")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _mapping(value: Mapping[object, object], where: str) -> dict[str, object]:
    found = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise StudyError(f"{where} has the key {key!r}: only strings have a canonical form")
        found[key] = canonical(item, f"{where}.{key}")
    return found


def fields_of(value: object, where: str) -> dict[str, object]:
    """A dataclass in canonical form, by field."""
    cls: Any = type(value)  # what is cached must be hashable
    return {
        name: canonical(item, f"{where}.{name}")
        for name, default in _science_fields(cls)
        if (item := getattr(value, name)) != default
    }


@functools.cache
def _science_fields(cls: Any) -> tuple[tuple[str, object], ...]:
    """Names and defaults of the fields that count."""
    found = []
    for f in dataclasses.fields(cls):
        if f.metadata.get("execution"):
            continue
        default = f.default
        if f.default_factory is not dataclasses.MISSING:
            default = f.default_factory()
        found.append((f.name, default))
    return tuple(found)


def leaves(value: object, where: str = "") -> dict[str, object]:
    """Leaves of nested mappings by dotted key; lists are leaves."""
    if not isinstance(value, dict):
        return {where: value}
    return {
        key: leaf
        for name, inner in value.items()
        for key, leaf in leaves(inner, f"{where}.{name}".lstrip(".")).items()
    }


def digest(plain: object) -> str:
    """Hash a canonical value."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


class FieldChange(NamedTuple):
    """A setting that differs; None where it is absent, at its default."""

    key: str
    """Dotted."""
    old: object
    new: object


def differences(old: object, new: object, where: str = "") -> list[FieldChange]:
    """Compare two canonical values field by field."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d
            for key in sorted(old.keys() | new.keys())
            for d in differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
        ]
    return [] if old == new else [FieldChange(where, old, new)]
