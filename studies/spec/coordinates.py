"""Where a cell stands: its coordinates as values, read off its recipes and never off its address.

Rows of the results table, comparisons, figures and MLflow's params are distinguished by these.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mae_core.config import Duration
from studies.result_row import Place
from studies.spec.axes import chain, place, places, size_name
from studies.spec.canonical_json import digest, fields_of
from studies.spec.cell import Cell, Stage

SEEDS = ("seed", "label_seed")
"""Settings of a recipe that only draw: cells that differ in nothing else repeat each other."""
DATA_SEEDS = ("split_seed", "subset_seed")
"""The same of a recipe's data."""


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Of one cell of a study."""

    seed: int | None
    """Of pretraining; of the first stage where the cell trains no encoder."""
    size: str | None
    """What its encoder is called; None of a cell without one."""
    duration: Duration | None
    """Of pretraining; None of a cell without, and of an imported encoder."""
    axes: Mapping[str, Place]
    """Where its encoder stands on the axes that the study names; of a study with a sweep also what
    the sweep varies."""
    cell: Cell = field(repr=False, compare=False)

    @functools.cached_property
    def family(self) -> str:
        """What is left of the cell without its seeds, as a digest: alike in cells that repeat it.

        Made when it is first asked for: a plan of thousands of cells does without.
        """
        return digest([_repeated(stage) for stage in self.cell.stages])


def coordinates(cell: Cell, axes: Sequence[str] = (), swept: Sequence[str] = ()) -> Coordinates:
    """Read the coordinates of a cell off its recipes.

    Args:
        axes: those that its study names.
        swept: settings that its study's sweep varies, by dotted key.
    """
    start = cell.pretrain or next(iter(cell.stages), None)
    training = cell.pretrain.recipe.training if cell.pretrain else None
    varied = {key: _setting(key, cell) for key in swept}
    return Coordinates(
        seed=start.recipe.seed if start else None,
        size=size_name(cell.encoder) if cell.encoder else None,
        duration=training.duration if training else None,
        axes={key: at for key, at in varied.items() if at is not None}
        | (places(axes, cell, start) if start else {}),
        cell=cell,
    )


def _setting(key: str, cell: Cell) -> Place | None:
    """The value of a dotted key in the first stage that has it, or builds on one that has."""
    found = (place(key, cell, stage) for stage in cell.stages)
    return next((at for at in found if at is not None), None)


def stage_family(cell: Cell, stage: Stage) -> str:
    """What is left of a stage and all that it builds on without seeds, as a digest."""
    return digest([_repeated(one) for one in chain(cell, stage)])


def seedless(stage: Stage) -> dict[str, object]:
    """A stage's recipe in canonical form, without what only draws."""
    plain = fields_of(stage.recipe, stage.name)
    found = {key: value for key, value in plain.items() if key not in SEEDS}
    data = plain["data"]
    assert isinstance(data, dict)
    return found | {"data": {key: data[key] for key in data if key not in DATA_SEEDS}}


def _repeated(stage: Stage) -> list[object]:
    # The path of the data is execution; cells that read other data do not repeat each other.
    plain = [stage.name, stage.kind, seedless(stage), list(stage.parents)]
    return [*plain, stage.recipe.data.path]
