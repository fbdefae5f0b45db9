"""Recipe of an evaluation of the user's own, named by dotted path."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from mae_core.config.base import DOTTED, require
from mae_core.config.evaluation import EvalRecipe

Option = tuple[str, float | int | str]
"""Name and value."""


@dataclass(frozen=True, kw_only=True)
class CustomEvalRecipe(EvalRecipe):
    """An evaluation that the user's code makes; see `docs/extending.md` for its contract."""

    KIND: ClassVar[str] = "custom_eval"
    ENTRY: ClassVar[str] = "mae_core.evaluate.custom:run_custom_eval"

    entry: str = field(metadata=DOTTED)
    """`module:function`; its source is part of the identity."""
    name: str = ""
    """Name of the protocol; empty = the function's."""
    options: tuple[Option, ...] = ()
    """Settings for the function, as pairs of name and number or text."""

    def __post_init__(self) -> None:
        require(":" in self.entry, f"entry {self.entry!r}: write module:function")
        names = [name for name, _ in self.options]
        require(
            len(set(names)) == len(names) and all(name.isidentifier() for name in names),
            f"options {names}: give each name once, of letters, digits and _",
        )
        numbers = [value for _, value in self.options if isinstance(value, float)]
        require(all(map(math.isfinite, numbers)), f"options {self.options}: use finite numbers")

    @property
    def label(self) -> str:
        """Name of the protocol, with its options."""
        name = self.name or self.entry.partition(":")[2]
        shown = ", ".join(f"{key}={value}" for key, value in self.options)
        return f"{name} ({shown})" if shown else name
