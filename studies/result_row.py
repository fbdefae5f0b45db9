"""One row of the results table: what a stage of a cell measured, and where the cell stands.

The table is the hand-over from running to analysis: `studies.analysis` reads nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from mae_core.config import RECIPES

Role = Literal["grid", "untrained", "baseline", "sweep", "repeat"]
Place = float | str
"""A position on an axis: a number, or the name of a category."""
Value = float | int | str | None
"""What a column holds."""
PLACES = "places"
AXIS_COLUMN = "axis."
"""What the columns of the study's axes begin with."""


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One finished stage of one cell. None where a column does not apply."""

    study: str
    cell: str
    """Address within the study, such as `M/e300/s0`."""
    stage: str
    """Name of the stage within its cell, such as `knn` or `linear_100`."""
    kind: str
    """pretrain, knn, linear_probe, finetune."""
    protocol: str
    """What a reader must know to compare two numbers: `k-NN k=20 mean tokens`."""
    protocol_key: str = ""
    """Alike in results that were measured in the same way (`studies.spec.protocols`)."""
    role: Role
    """grid: a curve point; untrained: duration 0; baseline: no encoder; sweep: a trial;
    repeat: the winner of a sweep at another seed, on dev."""
    science_hash: str
    size: str | None = None
    encoder_params: int | None = None
    """Encoder parameters without head and fixed positions."""
    total_params: int | None = None
    """Encoder + decoder."""
    duration: str | None = None
    """`800ep`"""
    epochs: float | None = None
    """Passes over the training set; 0 for an untrained network."""
    steps: int | None = None
    images_seen: int | None = None
    mask_ratio: float | None = None
    decoder_depth: int | None = None
    decoder_width: int | None = None
    objective: str | None = None
    """What trained the encoder: `MAE`, `MoCo v3`, `from scratch`, or a custom `module:name`."""
    places: Mapping[str, Place] = field(default_factory=dict)
    """Where it stands on the axes that the study names: `{"mask_ratio": 0.75}`. In a table each
    axis has a column of its own, `axis.mask_ratio`."""
    seed: int | None = None
    """Pretraining seed; seeds pair cells of one grid."""
    family: str = ""
    """Alike in cells that differ in seeds only (`studies.spec.coordinates`)."""
    pretrain_flops: float | None = None
    """Algorithmic FLOPs of the whole pretraining (reference count, not an optimisation's)."""
    stage_flops: float | None = None
    """Executed FLOPs of this stage."""
    num_labels: int | None = None
    label_seed: int | None = None
    """Which draw of labelled images, where `num_labels` is given."""
    eval_split: str | None = None
    num_eval_images: int | None = None
    top1: float | None = None
    """Per cent."""
    top5: float | None = None
    """Per cent."""
    loss: float | None = None
    """Cross-entropy for evaluations, masked-patch error for pretraining (not comparable
    across mask ratios or targets)."""
    mce: float | None = None
    """Mean corruption error, per cent of a stated baseline's; lower is better."""
    seconds: float | None = None
    """Wall-clock seconds of the attempt that finished."""
    world_size: int | None = None
    device: str | None = None
    images_per_s: float | None = None
    finished_at: str | None = None
    """ISO 8601, UTC."""
    output_dir: str | None = None

    @property
    def rank_seconds(self) -> float:
        """Wall-clock seconds × ranks: what was paid."""
        return (self.seconds or 0.0) * (self.world_size or 1)

    def to_dict(self) -> dict[str, Value]:
        """Plain values by column, in the order of `columns_of`."""
        own: dict[str, Value] = {name: getattr(self, name) for name in COLUMNS}
        return own | {AXIS_COLUMN + axis: place for axis, place in self.places.items()}


COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(ResultRow) if f.name != PLACES)
"""What every row has, whatever its study varies."""


def columns_of(rows: Iterable[ResultRow]) -> list[str]:
    """Columns of a table of these rows: those of every row, then one per axis that one has."""
    axes = dict.fromkeys(AXIS_COLUMN + axis for row in rows for axis in row.places)
    return [*COLUMNS, *axes]


EVALUATIONS = tuple(kind for kind, recipe in RECIPES.items() if recipe.IS_EVALUATION)
"""Kinds that have an accuracy, in the order of figures."""
