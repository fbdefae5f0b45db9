"""What a careful reader would object to in a study, found before it is paid for.

Pure: a study in, findings out. A finding never stops a run; `plan` shows it and the report repeats
it. What cannot be asked for at all (a choice on the test set, trials ranked by reconstruction loss,
a checkpoint of a longer cosine run as a shorter duration) is refused elsewhere and is no finding.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from mae_core.config import AdoptedRecipe, Duration, PretrainRecipe, Recipe, num_keep
from mae_core.model.flops import encoder_forward_flops, pretrain_flops_per_image
from studies.spec.axes import size_name
from studies.spec.canonical_json import digest, leaves
from studies.spec.cell import Cell
from studies.spec.codec import to_plain
from studies.spec.study import Study

Level = Literal["warning", "note"]

MAX_WARMUP_SHARE = 0.2
"""A warm-up that takes more of the shortest run shapes the curve."""
DWARFED = 0.5
"""Share of the training FLOPs from which on a decoder hides the encoder's size."""
MIN_SIZES_FOR_FLOOR = 4
BESIDE_SIZE = ("encoder.name", "encoder.width", "encoder.depth", "encoder.num_heads")
"""What may differ between sizes without being another variable."""
ALWAYS_FREE = ("seed", "duration", "lr_schedule", "data.split_seed", "data.subset_seed")
"""What differs along a curve, or between its seeds."""
AXIS_KEYS: Mapping[str, tuple[str, ...]] = {
    "mask_ratio": ("mask_ratio",),
    "decoder_depth": ("decoder.depth",),
    "decoder_width": ("decoder.width", "decoder.num_heads"),
    "mask_tokens": ("mask_tokens_in_encoder",),
    "target": ("target", "target_dim", "norm_pix_loss"),
    "augmentation": ("augmentation",),
    "mask_sampling": ("mask", "mask_ratio"),
    "size": ("encoder",),
    "train_fraction": ("data.train_fraction",),
    "objective": ("",),
    "base_lr": ("optimizer.base_lr",),
    "patch_size": ("encoder.patch_size",),
    "dataset": ("data",),
}
"""Settings that an axis of a study varies on purpose; the empty one stands for all."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that a reader of the results should know."""

    code: str
    """Short and stable, such as `warmup-share`."""
    level: Level
    """`warning`: a conclusion may be wrong; `note`: know it."""
    message: str
    """What it is, in which values, and what to do."""
    cells: tuple[str, ...] = ()
    """Addresses that it is about; their points are drawn hollow where they share a curve."""

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "code": self.code,
            "level": self.level,
            "message": self.message,
            "cells": list(self.cells),
        }


def check_study(study: Study, duplicates: Mapping[str, Mapping[str, int]] = {}) -> list[Finding]:
    """All findings of a study, warnings first.

    `duplicates` are, by data path and split, the images of dev and test that are in train too.
    """
    grid = [cell for cell in study.cells if cell.role == "grid"]
    checks: tuple[Callable[[Study, list[Cell]], Iterator[Finding]], ...] = (
        _mixed_curves,
        _size_and_more,
        _warmup,
        _lr_not_scaled,
        _evaluations_by_size,
        _eval_crops,
        _losses,
        _decoder,
        _few_sizes,
        _one_seed,
        _sweep_seed,
        _sweep_budget,
    )
    found = [finding for check in checks for finding in check(study, grid)]
    found += _duplicates(duplicates)
    return sorted(found, key=lambda finding: finding.level != "warning")


def _trained(cells: list[Cell]) -> list[tuple[Cell, PretrainRecipe]]:
    """Cells with an MAE pretraining that has steps."""
    return [
        (cell, cell.pretrain.recipe)
        for cell in cells
        if cell.pretrain is not None
        and isinstance(cell.pretrain.recipe, PretrainRecipe)
        and cell.pretrain.recipe.duration.value > 0
    ]


def _by_size(cells: list[Cell]) -> dict[str, list[tuple[Cell, PretrainRecipe]]]:
    groups: dict[str, list[tuple[Cell, PretrainRecipe]]] = defaultdict(list)
    for cell, recipe in _trained(cells):
        groups[size_name(recipe.encoder)].append((cell, recipe))
    return dict(groups)


def _settings(recipe: PretrainRecipe) -> dict[str, str]:
    """Every setting by dotted key, as text: of thousands of recipes, so without a codec."""
    return dict(_texts(recipe, ""))


def _texts(value: object, where: str) -> Iterator[tuple[str, str]]:
    for name, item in vars(value).items():
        if hasattr(type(item), "__dataclass_fields__") and not isinstance(item, Duration):
            yield from _texts(item, f"{where}{name}.")
        else:
            yield f"{where}{name}", repr(item)


def _is_under(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(p == "" or key == p or key.startswith(p + ".") for p in prefixes)


def _varied(study: Study) -> tuple[str, ...]:
    """Settings that the study's axes vary on purpose."""
    keys: list[str] = []
    for axis in study.axes:
        for part in axis.split("+"):
            keys += AXIS_KEYS.get(part, (part.partition(".")[2],) if "." in part else ())
    return tuple(keys)


def _differing(recipes: list[PretrainRecipe], free: tuple[str, ...]) -> list[str]:
    """Settings that are not alike in all recipes, but for those that may differ."""
    settings = [_settings(recipe) for recipe in recipes]
    keys = sorted({key for one in settings for key in one})
    return [
        key
        for key in keys
        if not _is_under(key, free) and len({one.get(key) for one in settings}) > 1
    ]


def _mixed_curves(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """Points of one size that differ in more than what the study varies."""
    free = (*ALWAYS_FREE, *_varied(study))
    for size, members in _by_size(cells).items():
        differing = _differing([recipe for _, recipe in members], free)
        for key in differing:
            values = [leaves(to_plain(recipe)).get(key) for _, recipe in members]
            usual, _ = Counter(map(str, values)).most_common(1)[0]
            odd = [
                (cell.address, value)
                for (cell, _), value in zip(members, values, strict=True)
                if str(value) != usual
            ]
            yield Finding(
                code="mixed-curve",
                level="warning",
                message=f"{size}: {len(odd)} of {len(members)} cells have another {key} "
                f"({odd[0][0]}: {odd[0][1]}, the others {usual}): they are not points of one "
                "curve; give them the same, or make it an axis of the study",
                cells=tuple(address for address, _ in odd),
            )


def _size_and_more(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """Sizes that change patch, recipe or resolution with them."""
    groups = _by_size(cells)
    if len(groups) < 2:
        return
    first = [members[0][1] for members in groups.values()]
    free = (*ALWAYS_FREE, *BESIDE_SIZE, *(k for k in _varied(study) if k != "encoder"))
    for key in _differing(first, free):
        shown = ", ".join(
            f"{size} {leaves(to_plain(recipe)).get(key)}"
            for size, recipe in zip(groups, first, strict=True)
        )
        yield Finding(
            code="size-and-more",
            level="warning",
            message=f"sizes differ in {key} too ({shown}): what looks like an effect of size may "
            "be its effect; add a control that keeps it fixed",
        )


def _warmup(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """A fixed warm-up under durations that shrink."""
    sizes: dict[tuple[Duration, Duration], list[str]] = defaultdict(list)
    for size, members in _by_size(cells).items():
        runs = {(r.duration, r.lr_schedule.warmup) for _, r in members}
        same_unit = [(d, w) for d, w in runs if d.unit == w.unit and w.value > 0]
        shares = {round(w.value / d.value, 6) for d, w in same_unit}
        if len(same_unit) > 1 and len(shares) > 1:
            sizes[min(same_unit, key=lambda pair: pair[0].value)].append(size)
    for (shortest, warmup), names in sizes.items():
        share = warmup.value / shortest.value
        yield Finding(
            code="warmup-share",
            level="warning" if share > MAX_WARMUP_SHARE else "note",
            message=f"the warm-up of {warmup} is {share:.0%} of the shortest run ({shortest}) and "
            f"less of longer ones ({', '.join(names)}): short runs get less of the rate; set it in "
            "proportion to the duration, or know that the paper's is kept",
        )


def _lr_not_scaled(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """Batches that differ while the learning rate stays."""
    groups: dict[float, set[int]] = defaultdict(set)
    for _, recipe in _trained(cells):
        groups[recipe.optimizer.lr(recipe.global_batch)].add(recipe.global_batch)
    for lr, batches in groups.items():
        if len(batches) > 1:
            yield Finding(
                code="lr-not-scaled",
                level="warning",
                message=f"batches of {', '.join(map(str, sorted(batches)))} share the learning "
                f"rate {lr:g}: with linear scaling it follows the batch; keep base_lr the same",
            )


def _evaluations_by_size(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """Evaluation recipes that differ by size."""
    recipes: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for cell in cells:
        if cell.encoder is None:
            continue
        for stage in cell.stages:
            if stage.recipe.IS_EVALUATION and stage.recipe.new_encoder is None:
                recipes[stage.name][size_name(cell.encoder)].add(_without_data(stage.recipe))
    for name, by_size in recipes.items():
        if len({frozenset(found) for found in by_size.values()}) > 1:
            yield Finding(
                code="evaluation-by-size",
                level="note",
                message=f"stage {name} has other settings at other sizes ({', '.join(by_size)}): "
                "each size is at its own best, and the difference between sizes is of both; a "
                "control with one recipe for all separates them",
            )


@functools.lru_cache(maxsize=65536)
def _without_data(recipe: Recipe) -> str:
    """Digest of an evaluation's settings, but for its images and seeds."""
    plain = to_plain(recipe).items()
    return digest({k: v for k, v in plain if k not in ("data", "seed", "label_seed")})


def _eval_crops(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """Images of one size that are seen through different windows."""
    found: dict[int, dict[float, str]] = defaultdict(dict)
    for cell in cells:
        for stage in cell.stages:
            if stage.recipe.scored_on is not None:
                data = stage.recipe.data
                found[data.image_size].setdefault(
                    data.evaluation_crop, f"{cell.address} {stage.name}"
                )
    for size, crops in found.items():
        if len(crops) > 1:
            seen = "; ".join(f"{crop:g} in {where}" for crop, where in crops.items())
            yield Finding(
                code="eval-crop",
                level="warning",
                message=f"evaluations at {size} pixels see different shares of an image ({seen}): "
                "their results differ by the crop too; set data.eval_crop alike",
            )


def _losses(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """Pretraining losses that look comparable and are not."""
    keys = ("mask_ratio", "mask", "target", "target_dim", "norm_pix_loss", "loss_on")
    recipes = [recipe for _, recipe in _trained(cells)]
    settings = [_settings(recipe) for recipe in recipes]
    found = sorted(k for k in {k for one in settings for k in one} if _is_under(k, keys))
    varied = [k for k in found if len({one.get(k) for one in settings}) > 1]
    if varied:
        yield Finding(
            code="losses-not-comparable",
            level="note",
            message=f"cells differ in {', '.join(varied)}: their pretraining losses are on "
            "different scales and rank nothing; compare evaluations, or `reconstruction` stages, "
            "which use one ratio and target",
        )


def _decoder(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """Decoders that take most of the compute of small encoders."""
    groups = _by_size(cells)
    shares = {size: _share_of_decoder(members[0][1]) for size, members in groups.items()}
    large = [f"{size} {share:.0%}" for size, share in shares.items() if share > DWARFED]
    if large and len(groups) > 1:
        yield Finding(
            code="decoder-dwarfs-encoder",
            level="note",
            message=f"most training FLOPs are not the encoder's on visible patches "
            f"({', '.join(large)}): against compute, sizes lie closer than their encoders do; "
            "read size curves over encoder parameters, or shrink the decoder",
        )


def _share_of_decoder(recipe: PretrainRecipe) -> float:
    data, kept = recipe.data, num_keep(recipe.num_patches, recipe.mask_ratio)
    visible = encoder_forward_flops(recipe.encoder, data.image_size, data.num_channels, kept)
    return 1 - min(1.0, 3 * visible / pretrain_flops_per_image(recipe).algorithmic)


def _few_sizes(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """A size axis that cannot show a floor."""
    sizes = len(_by_size(cells)) + len(
        {c.address for c in cells if c.pretrain and isinstance(c.pretrain.recipe, AdoptedRecipe)}
    )
    if "size" in study.axes and 1 < sizes < MIN_SIZES_FOR_FLOOR:
        yield Finding(
            code="few-sizes",
            level="note",
            message=f"{sizes} sizes: a power law with a floor has three free numbers and needs "
            f"{MIN_SIZES_FOR_FLOOR} or more; the report draws no law over size",
        )


def _one_seed(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """Curves whose seed noise is not measured."""
    seeds = {recipe.seed for _, recipe in _trained(cells)}
    if len(seeds) == 1:
        yield Finding(
            code="one-seed",
            level="note",
            message="every pretraining has the same seed: a difference between two cells cannot be "
            "distinguished from chance; repeat at least one cell at other seeds",
        )


def _sweep_seed(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """A winner that is judged where it was chosen."""
    if study.sweep is None:
        return
    used = {stage.recipe.seed for stage in study.sweep.base.stages}
    shared = [c.address for c in cells if c.pretrain and c.pretrain.recipe.seed in used]
    if shared:
        yield Finding(
            code="sweep-seed",
            level="warning",
            message=f"the sweep and {len(shared)} cells of the grid ({shared[0]}, …) share the "
            f"seed {', '.join(map(str, sorted(used)))}: its winner was chosen for its luck there; "
            "give the sweep a different seed",
            cells=tuple(shared),
        )


def _sweep_budget(study: Study, cells: list[Cell]) -> Iterator[Finding]:
    """Sizes that were not searched as hard as others."""
    sweep = study.sweep
    if sweep is None:
        return
    trunks = sweep.sizes or tuple(
        s.recipe.encoder for s in sweep.base.stages if isinstance(s.recipe, PretrainRecipe)
    )
    searched = {size_name(encoder) for encoder in trunks}
    others = [size for size in _by_size(cells) if size not in searched]
    if not others or not searched:
        return
    if sweep.sizes:
        message = "have their own settings: sizes are tuned with different budgets; search them"
    else:
        message = "take that winner or their own settings: that it is best there too is assumed"
    yield Finding(
        code="sweep-budget",
        level="warning" if sweep.sizes else "note",
        message=f"the sweep searched {', '.join(sorted(searched))} with {sweep.num_trials} trials "
        f"each; {', '.join(others)} {message} (`sizes` searches each size alike)",
    )


def _duplicates(duplicates: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    for path, by_split in duplicates.items():
        for split, count in by_split.items():
            if count:
                yield Finding(
                    code="train-test-duplicates",
                    level="warning",
                    message=f"{path}: {count} images of {split} are in train too, byte for byte: "
                    f"accuracy on {split} is too high; remove them and import again",
                )
