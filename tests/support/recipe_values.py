"""Recipe values of the paper's studies beside the published ones, and the table of deviations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mae_core.augment.randaugment import OPERATIONS
from mae_core.config import (
    AdoptedRecipe,
    BasisRecipe,
    ContrastiveRecipe,
    DecoderConfig,
    Duration,
    EncoderConfig,
    FinetuneRecipe,
    LinearProbeRecipe,
    OptimizerConfig,
    PretrainRecipe,
    Recipe,
    ScratchRecipe,
    TokenizerRecipe,
)
from mae_core.data.transforms import resize
from mae_core.evaluate import classifier
from mae_core.evaluate.probes import linear_probe
from mae_core.model.mae import MAE
from mae_core.model.vit import NORM_EPS, TOKEN_STD, Encoder
from mae_core.train.lr_schedule import LrSchedule
from mae_core.train.optim import (
    LARS_TRUST,
    ParamGroup,
    build_optimizer,
    layer_decay_groups,
    pretrain_groups,
)
from studies.catalog import CATALOG
from studies.load import load_study
from studies.reference.official_recipes import (
    DEVIATIONS,
    OFFICIAL,
    SIZES,
    UNPUBLISHED,
    VARIED,
    Deviation,
)
from studies.spec.axes import size_name
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deviations.md"
STUDIES = tuple(n for n in CATALOG if n.startswith("paper/")) + ("scaling/vit_ladder",)
WITHOUT_RECIPE = (AdoptedRecipe, BasisRecipe, TokenizerRecipe)
"""Kinds that no publication has a recipe of; features are looked at as an evaluation is."""
LARGE_PIXELS = 448
SMALL = EncoderConfig(width=8, depth=2, num_heads=2, patch_size=16)
SMALL_DECODER = DecoderConfig(width=8, depth=1, num_heads=2)


@dataclass(frozen=True)
class Compared:
    """One setting of a stage at a size, ours and the published value."""

    study: str
    recipe: str
    setting: str
    size: str
    ours: object
    official: object
    is_varied: bool
    """An axis of the study has this setting."""

    @property
    def deviations(self) -> tuple[Deviation, ...]:
        """What declares the difference."""
        return tuple(
            d
            for d in DEVIATIONS
            if (d.recipe, d.setting) == (self.recipe, self.setting)
            and self.size in d.sizes
            and (not d.studies or self.study in d.studies)
            and self.ours in d.ours
        )

    @property
    def is_official(self) -> bool:
        """Equal, or what the study is about."""
        return self.is_varied or same(self.ours, self.official)


def same(ours: object, official: object) -> bool:
    """Equal, numbers to rounding."""
    if isinstance(ours, float) and isinstance(official, float):
        return abs(ours - official) <= 1e-12 * max(1.0, abs(official))
    if isinstance(ours, tuple) and isinstance(official, tuple):
        return len(ours) == len(official) and all(map(same, ours, official))
    return ours == official


@cache
def compared() -> tuple[Compared, ...]:
    """Every published value of every stage of the paper's studies, each once."""
    found = (one for name in STUDIES for one in of_study(load_study(name)))
    return tuple(dict.fromkeys(found))


def of_study(study: Study) -> Iterator[Compared]:
    """The published values of a study's stages."""
    varied = {
        key for axis in study.axes for part in axis.split("+") for key in VARIED.get(part, ())
    }
    for cell in study.cells:
        for stage in cell.stages:
            size = size_of(cell, stage)
            if size in SIZES and not isinstance(stage.recipe, WITHOUT_RECIPE):
                yield from _of_stage(
                    study.name, stage.recipe, official_name(study.name, cell, stage), size, varied
                )


def _of_stage(
    study: str, recipe: Recipe, name: str, size: str, varied: set[str]
) -> Iterator[Compared]:
    settings, published = leaves(recipe), OFFICIAL[name]
    if not name.startswith("evaluation"):
        unknown = settings.keys() - published.values.keys() - UNPUBLISHED.keys()
        assert not unknown, f"{study}, {name}: no published value of {sorted(unknown)}"
    for setting in published.values:
        ours = code_value(setting, recipe) if setting.startswith("code.") else settings[setting]
        is_varied = any(setting == key or setting.startswith(f"{key}.") for key in varied)
        official = published.at(setting, size)
        yield Compared(study, name, setting, size, ours, official, is_varied)


def size_of(cell: Cell, stage: Stage) -> str:
    """Size of the network that a stage works on."""
    encoder = stage.recipe.new_encoder
    if encoder is None:
        encoder = next(e for s in cell.stages if (e := s.recipe.new_encoder) is not None)
    return size_name(encoder)


def official_name(study: str, cell: Cell, stage: Stage) -> str:
    """Which published recipe a stage follows."""
    recipe = stage.recipe
    if isinstance(recipe, PretrainRecipe):
        return "pretraining"
    if isinstance(recipe, ContrastiveRecipe):
        return "MoCo v3"
    if isinstance(recipe, LinearProbeRecipe):
        return "linear probe"
    if isinstance(recipe, ScratchRecipe):
        return "from scratch"
    large = ", 448 px" if recipe.data.image_size == LARGE_PIXELS else ""
    if not isinstance(recipe, FinetuneRecipe):
        return f"evaluation{large}"
    # Table 1d compares its targets, normalised pixels among them, under one recipe.
    if large or (_is_normalised(cell) and study != "paper/target"):
        return f"fine-tune, released{large}"
    return "fine-tune, Table 9"


def _is_normalised(cell: Cell) -> bool:
    start = cell.stages[0].recipe
    return isinstance(start, AdoptedRecipe) or getattr(start, "norm_pix_loss", False)


def leaves(value: Any, where: str = "") -> dict[str, object]:
    """Science settings by dotted path; durations and tuples are leaves."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(value):
        item, path = getattr(value, field.name), f"{where}{field.name}"
        if field.metadata.get("execution"):
            continue
        if dataclasses.is_dataclass(item) and not isinstance(item, Duration):
            found |= leaves(item, f"{path}.")
        else:
            found[path] = item
    if where == "data.":
        found["data.evaluation_crop"] = value.evaluation_crop
    return found


def code_value(setting: str, recipe: Any) -> object:
    """A value that no recipe has, measured on the parts that run."""
    return CODE[setting.removeprefix("code.")](recipe)


@cache
def resize_filter() -> str:
    """The filter of Pillow's that images are resized with."""
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    found = resize(image, 17, 23).permute(1, 2, 0).numpy().astype(int)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    pillow = {n: Image.fromarray(image).resize((23, 17), f) for n, f in filters.items()}
    return min(pillow, key=lambda name: int(np.abs(found - np.asarray(pillow[name])).sum()))


def _adamw_eps(recipe: Any) -> object:
    groups = [ParamGroup([nn.Parameter(torch.zeros(1))], 0.0)]
    return build_optimizer(recipe.optimizer, groups, 1.0).param_groups[0]["eps"]


def _lr_curve(recipe: Recipe) -> tuple[float, ...]:
    curve = LrSchedule(peak_lr=1.0, min_lr=0.0, warmup_steps=10, total_steps=110)
    return tuple(round(curve.at(step), 12) for step in (0, 5, 10, 60, 110))


def _network(recipe: Any) -> nn.Module:
    """What a stage trains, made as it is but of two small blocks."""
    data = replace(recipe.data, image_size=32, eval_crop=None)
    if isinstance(recipe, FinetuneRecipe):
        return _built(ScratchRecipe(data=data, encoder=SMALL, features=recipe.features))
    return _built(PretrainRecipe(data=data, encoder=SMALL, decoder=SMALL_DECODER))


@cache
def _built(recipe: Any) -> nn.Module:
    if isinstance(recipe, PretrainRecipe):
        return MAE(recipe)
    return classifier.build_classifier(recipe, None, 2)


def _without_decay(recipe: Any) -> str:
    module = _network(recipe)
    groups = pretrain_groups(module, 1.0)
    if isinstance(recipe, FinetuneRecipe):
        groups = layer_decay_groups(module, 1.0, 0.5, 2)
    exempt = {id(p) for group in groups if not group.weight_decay for p in group.params}
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    words = {"1-D": [p for _, p in named if p.ndim == 1]}
    for word, end in (("class token", "cls_token"), ("positions", "encoder.positions")):
        words[word] = [p for n, p in named if n.endswith(end) and id(p) in exempt]
    known = {id(p) for group in words.values() for p in group}
    assert exempt == known, "parameters without decay that have no name here"
    return ", ".join(word for word, group in words.items() if group) or "nothing"


def _positions(recipe: Any) -> str:
    trained = [n for n, _ in _network(recipe).named_parameters() if n.endswith("positions")]
    return "trained" if trained else "fixed"


def _patch_bias(recipe: Any) -> float:
    encoder = next(m for m in _network(recipe).modules() if isinstance(m, Encoder))
    return float(encoder.patch_embed.bias.detach().abs().max())


def _qkv_matrix(recipe: Any) -> str:
    """Whether the weights of q, k and v are drawn as one matrix (Xavier's bound √(6 / 4D))."""
    encoder = next(m for m in _network(recipe).modules() if isinstance(m, Encoder))
    weight = encoder.blocks[0].attn.qkv.weight.detach()  # type: ignore[union-attr]
    is_whole = float(weight.abs().max()) <= (6 / sum(weight.shape)) ** 0.5
    return "whole" if is_whole else "q, k and v apart"


def _layer_scales(recipe: Any) -> tuple[float, ...]:
    groups = layer_decay_groups(_network(recipe), 1.0, 0.5, 2)
    return tuple(sorted({group.lr_scale for group in groups}))


def _probe_norm(recipe: Any) -> tuple[object, ...]:
    norm = linear_probe.Head(4, 2, 0).norm
    return norm.affine, norm.eps, norm.momentum


CODE: Mapping[str, Callable[[Any], object]] = {
    "interpolation": lambda recipe: resize_filter(),
    "adamw_eps": _adamw_eps,
    "lr_of_batch_4096": lambda recipe: OptimizerConfig(base_lr=1.0).lr(4096),
    "lr_curve": _lr_curve,
    "qkv_matrix": _qkv_matrix,
    "token_std": lambda recipe: TOKEN_STD,
    "patch_bias_bound": _patch_bias,
    "rand_augment_operations": lambda recipe: len(OPERATIONS),
    "head_std": lambda recipe: (
        linear_probe.HEAD_STD if isinstance(recipe, LinearProbeRecipe) else classifier.HEAD_STD
    ),
    "new_norm_eps": lambda recipe: NORM_EPS,
    "without_decay": _without_decay,
    "positions": _positions,
    "layer_scales": _layer_scales,
    "probe_norm": _probe_norm,
    "probe_norm_images": lambda recipe: recipe.global_batch,
    "precision": lambda recipe: recipe.training.precision,
    "lars_trust": lambda recipe: LARS_TRUST,
    "beit_min_block": lambda recipe: recipe.mask.smallest_block(14),
    "jitter": lambda recipe: dataclasses.astuple(recipe.views[0].jitter),
    "views": lambda recipe: tuple(
        (v.grayscale, v.blur, v.blur_sigma, v.solarize) for v in recipe.views
    ),
}


def undeclared() -> list[Compared]:
    """Differences that no deviation declares."""
    return [one for one in compared() if not one.is_official and not one.deviations]


def unused() -> list[Deviation]:
    """Declared deviations that are none."""
    found = {d for one in compared() if not one.is_official for d in one.deviations}
    return [d for d in DEVIATIONS if d not in found]


def summary() -> str:
    """One line: how much is official."""
    wrong = undeclared()
    values = [one for one in compared() if same(one.ours, one.official) or one in wrong]
    return (
        f"recipe values: {len(values) - len(wrong)} of {len(values)} official, "
        f"{len(DEVIATIONS)} declared deviations"
    )


def deviation_table() -> list[str]:
    """The rows of the page."""
    head = ["| recipe | setting | official | here | where | why |", "|---|---|---|---|---|---|"]
    return head + [_row(d) for d in DEVIATIONS]


def _row(d: Deviation) -> str:
    official = dict.fromkeys(text(OFFICIAL[d.recipe].at(d.setting, size)) for size in d.sizes)
    where = ", ".join(f"`{name}`" for name in d.studies) or "all"
    if d.sizes != SIZES:
        where += f" ({', '.join(d.sizes)})"
    found = (one.ours for one in compared() if d in one.deviations and not one.is_official)
    ours = sorted({text(value) for value in found})
    cells = (d.recipe, f"`{d.setting}`", joined(official), joined(ours), where, d.reason)
    return f"| {' | '.join(cells)} |"


def joined(texts: Iterable[str]) -> str:
    """`1, 2`."""
    return ", ".join(texts)


def text(value: object) -> str:
    """A value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
