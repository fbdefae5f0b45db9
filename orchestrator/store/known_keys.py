"""Records of other versions: keys that a reader does not know are left out, missing ones named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from orchestrator.errors import StoreError

T = TypeVar("T")


def build_known(cls: type[T], plain: object, where: str) -> T:
    """Build a dataclass from those keys of a record that it knows.

    Args:
        where: names the record, for people.

    Raises:
        StoreError: it is no mapping, or lacks a key that has no default.
    """
    if not isinstance(plain, Mapping):
        raise StoreError(f"{where} is damaged: {plain!r} is no mapping")
    shape: Any = cls
    fields = {f.name: f for f in dataclasses.fields(shape)}
    lacking = [n for n, f in fields.items() if n not in plain and _is_required(f)]
    if lacking:
        raise StoreError(f"{where} is damaged: it lacks {', '.join(lacking)}")
    return cls(**{name: value for name, value in plain.items() if name in fields})


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return dataclasses.MISSING is field.default is field.default_factory
