"""The one way in which values become JSON that people and their programs read."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping


def json_text(value: object, indent: int = 1, *, is_ascii: bool = False) -> str:
    """Strict JSON of any value; a number that is not finite becomes null."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=is_ascii, allow_nan=False)


def plain(value: object) -> object:
    """Dataclasses as their fields, enums as their values, anything unknown as its text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(below) for below in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
