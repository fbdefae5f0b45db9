"""Axes: where a stage of a cell stands, read off its recipes, so that overrides move it.

A study names the axes of its question (`Study.axes`), and the report draws a figure for each. An
axis is one of `AXES`, any dotted key of a recipe (`pretrain.decoder.num_heads`), or several joined
by `+`, whose combinations are then categories (`mask_sampling+mask_ratio`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mae_core.config import (
    RECIPES,
    BestOfRecipe,
    EncoderConfig,
    EvalRecipe,
    InferenceRecipe,
    PretrainRecipe,
    Recipe,
)
from mae_core.model.sizes import ENCODERS
from studies.errors import unknown
from studies.result_row import Place
from studies.spec.cell import Cell, Stage

Scale = Literal["linear", "log", "continuous", "rank", "category"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What a figure needs to know of its x-axis."""

    name: str
    label: str
    """For people, with its unit."""
    scale: Scale = "category"
    """rank: numbers at equal distances, as in the paper's Figure 9; continuous: on a logarithmic
    axis whose ticks are not the places."""
    order: tuple[str, ...] = ()
    """Of the categories, where one is usual; others follow as they come."""
    is_percent: bool = False
    """A share that is written in per cent."""


AXES: dict[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis(name="mask_ratio", label="mask ratio", scale="linear", is_percent=True),
        Axis(name="decoder_depth", label="decoder depth (blocks)", scale="log"),
        Axis(name="decoder_width", label="decoder width", scale="log"),
        Axis(
            name="mask_tokens",
            label="where mask tokens are processed",
            order=("decoder only", "encoder and decoder"),
        ),
        Axis(
            name="target",
            label="reconstruction target",
            order=("pixels", "normalised pixels", "principal components", "tokens"),
        ),
        Axis(
            name="augmentation",
            label="augmentation in pretraining",
            order=("none", "fixed-size crop", "random-size crop", "crop + colour jitter"),
        ),
        Axis(
            name="mask_sampling",
            label="mask sampling",
            order=("random", "block", "grid"),
        ),
        Axis(name="duration", label="pretraining duration (epochs)", scale="log"),
        Axis(name="parameters", label="encoder parameters", scale="log"),
        Axis(name="compute", label="pretraining compute (FLOPs)", scale="continuous"),
        Axis(name="size", label="encoder", scale="rank", order=tuple(ENCODERS)),
        Axis(
            name="objective",
            label="objective",
            order=("from scratch", "MoCo v3", "MAE"),
        ),
        Axis(name="tuned_blocks", label="fine-tuned blocks", scale="rank"),
        Axis(
            name="train_fraction",
            label="share of the training images",
            scale="log",
            is_percent=True,
        ),
        Axis(name="num_labels", label="labelled training images", scale="log"),
        Axis(name="base_lr", label="base learning rate of pretraining", scale="log"),
        Axis(name="patch_size", label="patch size (pixels)", scale="rank"),
        Axis(name="dataset", label="data set"),
        Axis(name="severity", label="severity of corruption (0: clean)", scale="linear"),
        Axis(name="corruption", label="corruption"),
    )
}


MEASURES = ("top1", "mce", "speedup", "relative_flops")
"""What a figure may show: accuracy and mean corruption error in per cent; of a pretraining,
rank-hours relative to the slowest of its series, and counted FLOPs relative to the cheapest."""


def axis(name: str) -> Axis:
    """Return the axis of that name; raises `StudyError` with the nearest known one."""
    if name in AXES:
        return AXES[name]
    if "+" in name:
        parts = [axis(part) for part in parts_of(name)]
        return Axis(name=name, label=", ".join(p.label for p in parts))
    section, _, key = name.partition(".")
    if not key:
        raise unknown("axis", name, AXES)
    if section in RECIPES and key.split(".")[0] not in _field_names(RECIPES[section]):
        raise unknown("axis", name, [f"{section}.{f}" for f in _field_names(RECIPES[section])])
    return Axis(name=name, label=name, scale="rank")


def parts_of(name: str) -> tuple[str, ...]:
    """Axes that a `+` axis joins; of any other, itself."""
    return tuple(name.split("+"))


def places(names: Iterable[str], cell: Cell, stage: Stage) -> dict[str, Place]:
    """Where a stage stands on each axis that applies to it."""
    found = {name: place(name, cell, stage) for name in names}
    return {name: at for name, at in found.items() if at is not None}


def place(name: str, cell: Cell, stage: Stage) -> Place | None:
    """Where a stage stands on one axis; None where the axis does not apply to it."""
    if "+" in name:
        return joined(name, {part: place(part, cell, stage) for part in parts_of(name)})
    if name in _READERS:
        return _READERS[name](cell, stage)
    return _dotted(name, cell, stage)


class JoinedPlace(str):
    """The category of a `+` axis: places on its parts, and their words as its text."""

    parts: tuple[Place, ...]

    def __new__(cls, text: str, parts: tuple[Place, ...] = ()) -> JoinedPlace:
        """Hold the parts beside the text; a copy of the text sets them later."""
        made = super().__new__(cls, text)
        made.parts = parts
        return made


def joined(name: str, at: Mapping[str, Place | None]) -> JoinedPlace | None:
    """The category of a `+` axis, from the places on its parts; None if one is missing."""
    found = {part: place for part in parts_of(name) if (place := at.get(part)) is not None}
    if len(found) < len(parts_of(name)):
        return None
    words = [shown(part, place) for part, place in found.items()]
    return JoinedPlace(", ".join(words), tuple(found.values()))


def shown(name: str, at: Place) -> str:
    """A place in words, away from its axis: `75 %` of a mask ratio, `8 decoder blocks`."""
    if isinstance(at, str):
        return at
    one = name.replace("_", " ").replace("decoder depth", "decoder block")
    if name == "decoder_depth":
        return f"{at:g} {one}{'' if at == 1 else 's'}"
    return tick(name, at) if name == "mask_ratio" else f"{one} {tick(name, at)}"


def tick(name: str, at: Place) -> str:
    """A place at its axis, whose label says what it is: `75 %`, `8`."""
    if isinstance(at, str):
        return at
    return f"{100 * at:g} %" if name in AXES and AXES[name].is_percent else f"{at:g}"


def origin(cell: Cell, stage: Stage) -> Stage | None:
    """The stage that starts the encoder this stage has or reads; None for a basis, raw pixels."""
    return next((s for s in chain(cell, stage) if s.recipe.new_encoder is not None), None)


def size_name(encoder: EncoderConfig) -> str:
    """What an encoder is called."""
    return encoder.name or f"{encoder.width}x{encoder.depth}"


def chain(cell: Cell, stage: Stage) -> Iterator[Stage]:
    """The stage, then what it builds on, nearest first."""
    waiting = [stage]
    while waiting:
        current = waiting.pop(0)
        yield current
        waiting += [cell.stage(name) for name in current.parents]


Reader = Callable[[Cell, Stage], Place | None]


def _of_origin(read: Callable[[Recipe], Place | None]) -> Reader:
    def reader(cell: Cell, stage: Stage) -> Place | None:
        start = origin(cell, stage)
        return None if start is None else read(start.recipe)

    return reader


def _of_pretrain(read: Callable[[PretrainRecipe], Place | None]) -> Reader:
    return _of_origin(lambda recipe: read(recipe) if isinstance(recipe, PretrainRecipe) else None)


def _target(recipe: PretrainRecipe) -> str:
    if recipe.target == "pixels":
        return "normalised pixels" if recipe.norm_pix_loss else "pixels"
    return str({"pca": "principal components"}.get(recipe.target, recipe.target))


def _augmentation(recipe: PretrainRecipe) -> str:
    views = recipe.augmentation
    crop = "random-size crop" if views.crop_scale is not None else ""
    crop = "fixed-size crop" if views.fixed_crop_margin is not None else crop
    if views.custom:
        return str(views.custom)
    if views.color_jitter:
        return "crop + colour jitter" if crop else "colour jitter"
    return crop or ("flip" if views.flip else "none")


def _objective(recipe: Recipe) -> str:
    return recipe.objective_name


def _epochs(recipe: Recipe) -> float | None:
    duration = recipe.training.duration if recipe.training else None
    return float(duration.value) if duration is not None and duration.unit == "epochs" else None


def _size(cell: Cell, stage: Stage) -> str | None:
    """`H`, and `H@448` where it is evaluated at another resolution than it was pretrained at."""
    start = origin(cell, stage)
    if start is None or start.recipe.new_encoder is None:
        return None
    name = size_name(start.recipe.new_encoder)
    pixels = stage.recipe.data.image_size
    return name if pixels == start.recipe.data.image_size else f"{name}@{pixels}"


def _num_labels(cell: Cell, stage: Stage) -> float | None:
    number = stage.recipe.num_labels if isinstance(stage.recipe, EvalRecipe) else None
    return None if number is None else float(number)


def _tuned_blocks(cell: Cell, stage: Stage) -> float | None:
    """0 for a probe of frozen features, all of them for a full fine-tune (paper Figure 9)."""
    start, recipe = origin(cell, stage), stage.recipe
    if start is None or start.recipe.new_encoder is None or not isinstance(recipe, EvalRecipe):
        return None
    if isinstance(recipe, BestOfRecipe):  # of candidates that tune as many blocks
        return _tuned_blocks(cell, cell.stage(stage.parents[0]))
    return recipe.tuned_blocks(start.recipe.new_encoder.depth)


def _dataset(cell: Cell, stage: Stage) -> str | None:
    """The stage's name, if it sees other images than its encoder did: it is named after them.

    The candidates of a choice go by the name of the choice.
    """
    start = origin(cell, stage)
    if start is None:
        return None
    choices = [s.name for s in cell.stages if s.kind == "best_of" and stage.name in s.parents]
    is_other = stage.recipe.data.path != start.recipe.data.path
    is_named = is_other or isinstance(stage.recipe, InferenceRecipe)
    return (choices or [stage.name])[0] if is_named else None


def _dotted(name: str, cell: Cell, stage: Stage) -> Place | None:
    section, _, path = name.partition(".")
    for candidate in chain(cell, stage):
        if section in (candidate.name, candidate.kind):
            value: object = candidate.recipe
            for part in path.split("."):
                value = getattr(value, part, None)
            if value is None:
                return None
            if isinstance(value, int | float) and not isinstance(value, bool):
                return float(value)
            return str(value)
    return None


def _field_names(recipe: type[Recipe]) -> list[str]:
    return [f.name for f in dataclasses.fields(recipe)]


_READERS: dict[str, Reader] = {
    "mask_ratio": _of_pretrain(lambda r: float(r.mask_ratio)),
    "decoder_depth": _of_pretrain(lambda r: float(r.decoder.depth)),
    "decoder_width": _of_pretrain(lambda r: float(r.decoder.width)),
    "mask_tokens": _of_pretrain(
        lambda r: "encoder and decoder" if r.mask_tokens_in_encoder else "decoder only"
    ),
    "target": _of_pretrain(_target),
    "augmentation": _of_pretrain(_augmentation),
    "mask_sampling": _of_pretrain(lambda r: str(r.mask.sampling)),
    "duration": _of_origin(_epochs),
    "size": _size,
    "objective": _of_origin(_objective),
    "tuned_blocks": _tuned_blocks,
    "train_fraction": _of_origin(lambda r: float(r.data.train_fraction)),
    "base_lr": _of_origin(lambda r: r.training.base_lr if r.training else None),
    "patch_size": _of_origin(lambda r: float(r.new_encoder.patch_size) if r.new_encoder else None),
    "dataset": _dataset,
    "num_labels": _num_labels,
    # Conditions within one stage: rows of their own (`orchestrator.plan.corruption_rows`).
    "severity": lambda cell, stage: None,
    "corruption": lambda cell, stage: None,
    # Counted, and in every row of the results table.
    "parameters": lambda cell, stage: None,
    "compute": lambda cell, stage: None,
}
