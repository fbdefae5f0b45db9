"""What the pretraining of a cell is and costs, in the columns of the results table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from mae_core.config import Duration, PretrainRecipe
from orchestrator.plan.plan import Planner
from studies.result_row import Value
from studies.spec.axes import size_name
from studies.spec.cell import Cell


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """Of one cell; None where a column does not apply. Columns are `studies.result_row`'s."""

    seed: int | None = None
    size: str | None = None
    encoder_params: int | None = None
    total_params: int | None = None
    duration: str | None = None
    epochs: float | None = None
    steps: int | None = None
    images_seen: int | None = None
    mask_ratio: float | None = None
    decoder_depth: int | None = None
    decoder_width: int | None = None
    pretrain_flops: float | None = None

    def to_dict(self) -> Mapping[str, Value]:
        """What applies, by column."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def cell_facts(cell: Cell, planner: Planner) -> CellFacts:
    """Read the columns of a cell off its pretraining; a baseline has only a seed.

    Of an imported encoder only its makers know how long it was trained.
    """
    start, encoder = cell.pretrain, cell.encoder
    if start is None or encoder is None:
        return CellFacts(seed=cell.stages[0].recipe.seed)
    cost, recipe, size = planner.cost(cell, start), start.recipe, size_name(encoder)
    if recipe.training is None:
        return CellFacts(seed=recipe.seed, size=size, encoder_params=cost.encoder_params)
    duration = recipe.training.duration
    masked = recipe if isinstance(recipe, PretrainRecipe) else None
    return CellFacts(
        seed=recipe.seed,
        size=size,
        encoder_params=cost.encoder_params,
        total_params=cost.total_params,
        duration=str(duration),
        epochs=_epochs(duration, cost.images, planner.num_train(start)),
        steps=cost.steps,
        images_seen=cost.images,
        mask_ratio=masked.mask_ratio if masked else None,
        decoder_depth=masked.decoder.depth if masked else None,
        decoder_width=masked.decoder.width if masked else None,
        pretrain_flops=cost.algorithmic_flops,
    )


def _epochs(duration: Duration, images: int, num_train: int) -> float | None:
    """Epochs as the study asks for them; else passes over the training set."""
    if duration.unit == "epochs":
        return float(duration.value)
    return images / num_train if num_train else None
