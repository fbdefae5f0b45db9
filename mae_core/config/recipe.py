"""What every stage's recipe has, and what it says about its place in the chain of stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mae_core.config.parts import DataConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every stage's recipe has."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1
    """Raise it when a bug fix changes this stage kind's results: old results become stale."""
    ENTRY: ClassVar[str]
    """`module:function` that computes it on each rank: (recipe, execution, context, data)."""
    YIELDS: ClassVar[tuple[str, ...]] = ()
    """Files that it leaves for other stages."""
    INSTEAD: ClassVar[Mapping[str, str]] = {}
    """A needed file, and another that may stand in for it: features for an encoder."""
    TRAINS: ClassVar[bool] = False
    """It has steps and checkpoints, and needs a process group even on one rank."""

    data: DataConfig
    seed: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Files of its parents that it reads; exactly one parent yields each."""
        return ()

    def check_parents(self, parents: Mapping[str, Recipe]) -> None:
        """Refuse (`ConfigError`) parents, given by the name of their stage, that do not fit."""

    @property
    def protocol(self) -> str:
        """What a reader must know to compare two of its results: `k-NN (k=20), class token`."""
        raise NotImplementedError

    @property
    def extensions(self) -> tuple[str, ...]:
        """Code of the user's that takes part: `module:name` of each, sorted."""
        return tuple(sorted(set(_dotted(self))))


def _dotted(value: Any) -> list[str]:
    found: list[str] = []
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            found += _dotted(item)
        elif f.metadata.get("dotted") and isinstance(item, str) and ":" in item:
            found.append(item)
    return found
