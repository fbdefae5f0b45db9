"""What a stage leaves for its completion record, with the one way to write and read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mae_core.runtime.json_values import Json


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What a stage measured, and how that came about."""

    values: Mapping[str, float | str | None]
    """Results by name; None where one does not exist."""
    per_class: Mapping[str, float] = field(default_factory=dict)
    """Accuracy of each class, in per cent."""
    details: Mapping[str, Json] = field(default_factory=dict)
    """What helps to understand the results, and is none itself."""

    def number(self, name: str) -> float | None:
        """A result, None if it is missing or no number."""
        value = self.values.get(name)
        return value if isinstance(value, int | float) else None

    def to_json(self) -> dict[str, Json]:
        """As a completion record holds it: the values, `per_class` and `details` beside them."""
        parts = {"per_class": self.per_class, "details": self.details}
        return {**self.values, **{name: dict(part) for name, part in parts.items() if part}}

    @classmethod
    def from_json(cls, plain: Mapping[str, Json]) -> Metrics:
        """Read what `to_json` wrote."""
        plain = dict(plain)
        per_class, details = plain.pop("per_class", None), plain.pop("details", None)
        found = per_class.items() if isinstance(per_class, Mapping) else ()
        return cls(
            values={
                k: v for k, v in plain.items() if v is None or isinstance(v, int | float | str)
            },
            per_class={k: v for k, v in found if isinstance(v, int | float)},
            details=details if isinstance(details, Mapping) else {},
        )
