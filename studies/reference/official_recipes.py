"""What the publications say of their recipes, setting by setting, and where ours differ on purpose.

`OFFICIAL` has a value for every setting of a recipe that a publication or its released code fixes,
`UNPUBLISHED` names the others, `DEVIATIONS` where the catalogue's paper studies differ and why.
A test compares all three with the studies: an undeclared difference fails, and so does a declared
one that is none any more. `code.*` are values that no recipe has: they are measured on the parts.
Paper = arXiv 2111.06377; code = github.com/facebookresearch/mae (numbers only).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mae_core.config import IMAGENET_MEAN, IMAGENET_STD, Duration

Setting = object
"""A number, a text, a tuple of them, a duration, or None."""


class BySize(NamedTuple):
    """A value that depends on the size."""

    B: Setting
    L: Setting
    H: Setting


@dataclass(frozen=True, kw_only=True)
class OfficialRecipe:
    """The published recipe of one kind of stage."""

    name: str
    source: str
    values: Mapping[str, Setting | BySize]
    """By dotted path in our recipe, or `code.` and a name."""

    def at(self, setting: str, size: str) -> Setting:
        """Value for a size."""
        value = self.values[setting]
        return getattr(value, size) if isinstance(value, BySize) else value


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """A setting that the paper's studies have otherwise, on purpose."""

    recipe: str
    """Name of the official recipe."""
    setting: str
    ours: tuple[Setting, ...]
    """All values that we use in its place."""
    reason: str
    sizes: tuple[str, ...] = ("B", "L", "H")
    studies: tuple[str, ...] = ()
    """Studies that differ; none = all."""


SIZES = ("B", "L", "H")
_IMAGES = {
    "data.image_size": 224,
    "data.evaluation_crop": 224 / 256,
    "data.num_channels": 3,
    "data.pixel_mean": IMAGENET_MEAN,
    "data.pixel_std": IMAGENET_STD,
}
_LARGE_IMAGES = {"data.image_size": 448, "data.evaluation_crop": 1.0}
_CROP = {
    "augmentation.crop_aspect": (3 / 4, 4 / 3),
    "augmentation.flip": True,
    "augmentation.fixed_crop_margin": None,
    "augmentation.color_jitter": 0.0,
    "augmentation.custom": None,
    "code.interpolation": "bicubic",
}
_SUPERVISED_CROP = _CROP | {
    "augmentation.crop_scale": (0.08, 1.0),
    "augmentation.crop_misfit": "retry",
}
_ADAMW = {"optimizer.name": "adamw", "optimizer.clip_grad_norm": None, "code.adamw_eps": 1e-8}
_LR = {"code.lr_of_batch_4096": 16.0, "code.lr_curve": (0.0, 0.5, 1.0, 0.5, 0.0)}
"""Of a base rate of 1; of 110 steps at 0, 5, 10 (end of the warm-up), 60 and 110."""
_ENCODER = {
    "encoder.width": BySize(768, 1024, 1280),
    "encoder.depth": BySize(12, 24, 32),
    "encoder.num_heads": BySize(12, 16, 16),
    "encoder.patch_size": BySize(16, 16, 14),
    "encoder.mlp_ratio": 4.0,
    "encoder.norm_eps": 1e-6,
    "code.token_std": 0.02,
    "code.patch_bias_bound": BySize(768**-0.5, 768**-0.5, 588**-0.5),
}
_RAND_AUGMENT = {
    "rand_augment.num_ops": 2,
    "rand_augment.magnitude": 9.0,
    "rand_augment.magnitude_std": 0.5,
    "rand_augment.probability": 0.5,
    "rand_augment.interpolation": "bicubic",
    "code.rand_augment_operations": 15,
}
_MIX = {
    "mix.mixup_alpha": 0.8,
    "mix.cutmix_alpha": 1.0,
    "mix.switch_probability": 0.5,
    "mix.probability": 1.0,
    "mix.level": "batch",
}
_ERASING = {
    "erasing.probability": 0.25,
    "erasing.area": (0.02, 1 / 3),
    "erasing.aspect": (0.3, 1 / 0.3),
}
_TABLE_9 = {
    **_IMAGES,
    **_SUPERVISED_CROP,
    **_ADAMW,
    **_LR,
    **_RAND_AUGMENT,
    **_MIX,
    "optimizer.base_lr": 1e-3,
    "optimizer.betas": (0.9, 0.999),
    "optimizer.weight_decay": 0.05,
    "duration": BySize(Duration.epochs(100), Duration.epochs(50), Duration.epochs(50)),
    "global_batch": 1024,
    "lr_schedule.warmup": Duration.epochs(5),
    "lr_schedule.min_lr": 1e-6,
    "layer_decay": 0.75,
    "drop_path": BySize(0.1, 0.1, 0.2),
    "label_smoothing": 0.1,
    "features": "cls",
    "erasing": None,
    "ema_decay": None,
    "num_labels": None,
    "precision": "fp32",
    "code.head_std": 2e-5,
    "code.new_norm_eps": 1e-6,
    "code.without_decay": "1-D, class token, positions",
    "code.positions": "trained",
    "code.layer_scales": (0.125, 0.25, 0.5, 1.0),
}
SCRATCH_LEAVES_OPEN = ("code.layer_scales", "lr_schedule.min_lr")
"""What Table 11 does not say, or what has no meaning there."""
_RELEASED = {
    **{k: v for k, v in _TABLE_9.items() if k != "erasing"},
    **_ERASING,
    "optimizer.base_lr": BySize(5e-4, 1e-3, 1e-3),
    "layer_decay": BySize(0.65, 0.75, 0.75),
    "drop_path": BySize(0.1, 0.2, 0.3),
    "features": "mean",
    "mix.group_size": BySize(32, 32, 16),
    "precision": "fp16 by autocast",
}

OFFICIAL: Mapping[str, OfficialRecipe] = {
    recipe.name: recipe
    for recipe in (
        OfficialRecipe(
            name="pretraining",
            source="paper Table 8, A.1; PRETRAIN.md, main_pretrain.py, models_mae.py",
            values={
                **_IMAGES,
                **_CROP,
                **_ADAMW,
                **_LR,
                **_ENCODER,
                "augmentation.crop_scale": (0.2, 1.0),
                "augmentation.crop_misfit": "retry",
                "optimizer.base_lr": 1.5e-4,
                "optimizer.betas": (0.9, 0.95),
                "optimizer.weight_decay": 0.05,
                "lr_schedule.warmup": Duration.epochs(40),
                "lr_schedule.min_lr": 0.0,
                "global_batch": 4096,
                "decoder.width": 512,
                "decoder.depth": 8,
                "decoder.num_heads": 16,
                "mask_ratio": 0.75,
                "mask.sampling": "random",
                "mask.min_aspect": 0.3,
                "mask_tokens_in_encoder": False,
                "target": "pixels",
                "loss_on": "masked",
                "objective": "mae",
                "precision": "fp16 by autocast",
                "code.without_decay": "1-D",
                "code.positions": "fixed",
                "code.qkv_matrix": "whole",
                "code.beit_min_block": 16,
            },
        ),
        OfficialRecipe(
            name="linear probe",
            source="paper Table 10, A.1; FINETUNE.md, main_linprobe.py, util/crop.py, util/lars.py",
            values={
                **_IMAGES,
                **_CROP,
                **_LR,
                "augmentation.crop_scale": (0.08, 1.0),
                "augmentation.crop_misfit": "clip",
                "optimizer.name": "lars",
                "optimizer.base_lr": 0.1,
                "optimizer.momentum": 0.9,
                "optimizer.weight_decay": 0.0,
                "optimizer.clip_grad_norm": None,
                "duration": Duration.epochs(90),
                "global_batch": 16384,
                "lr_schedule.warmup": Duration.epochs(10),
                "lr_schedule.min_lr": 0.0,
                "features": "cls",
                "num_labels": None,
                "code.head_std": 0.01,
                "code.probe_norm": (False, 1e-6, 0.1),
                "code.probe_norm_images": 512,
                "code.lars_trust": 0.001,
                "code.precision": "fp16 by autocast",
            },
        ),
        OfficialRecipe(
            name="fine-tune, Table 9",
            source="paper Table 9, A.1; defaults of main_finetune.py",
            values=_TABLE_9,
        ),
        OfficialRecipe(
            name="fine-tune, released",
            source="FINETUNE.md, main_finetune.py, util/datasets.py: encoders of normalised pixels",
            values=_RELEASED,
        ),
        OfficialRecipe(
            name="fine-tune, released, 448 px",
            source="paper Table 3; FINETUNE.md, util/datasets.py",
            values={**_RELEASED, **_LARGE_IMAGES},
        ),
        OfficialRecipe(
            name="from scratch",
            source="paper Table 11, A.2",
            values={
                **{k: v for k, v in _TABLE_9.items() if k not in SCRATCH_LEAVES_OPEN},
                **_ENCODER,
                "optimizer.base_lr": 1e-4,
                "optimizer.betas": (0.9, 0.95),
                "optimizer.weight_decay": 0.3,
                "duration": BySize(
                    Duration.epochs(300), Duration.epochs(200), Duration.epochs(200)
                ),
                "global_batch": 4096,
                "lr_schedule.warmup": Duration.epochs(20),
                "layer_decay": 1.0,
                "drop_path": BySize(0.1, 0.2, 0.2),
                "ema_decay": 0.9999,
            },
        ),
        OfficialRecipe(
            name="evaluation", source="paper A.1, A.4; util/datasets.py", values=_IMAGES
        ),
        OfficialRecipe(
            name="evaluation, 448 px",
            source="paper Table 13; util/datasets.py",
            values={**_IMAGES, **_LARGE_IMAGES},
        ),
        OfficialRecipe(
            name="MoCo v3",
            source="arXiv 2104.02057; github.com/facebookresearch/moco-v3, CONFIG.md, main_moco.py",
            values={
                **_IMAGES,
                **_CROP,
                **_ADAMW,
                **_LR,
                **{k: v for k, v in _ENCODER.items() if not k.startswith("code.")},
                "augmentation.crop_scale": (0.08, 1.0),
                "augmentation.crop_misfit": "retry",
                "code.interpolation": "bilinear",
                "code.jitter": (0.4, 0.4, 0.2, 0.1, 0.8),
                "code.views": ((0.2, 1.0, (0.1, 2.0), 0.0), (0.2, 0.1, (0.1, 2.0), 0.2)),
                "code.without_decay": "nothing",
                "code.token_std": 1e-6,
                "code.qkv_matrix": "q, k and v apart",
                "head_width": 4096,
                "output_width": 256,
                "temperature": 0.2,
                "momentum": 0.99,
                "train_patch_embed": False,
                "optimizer.base_lr": 1.5e-4,
                "optimizer.betas": (0.9, 0.999),
                "optimizer.weight_decay": 0.1,
                "lr_schedule.warmup": Duration.epochs(40),
                "lr_schedule.min_lr": 0.0,
                "duration": Duration.epochs(300),
                "global_batch": 4096,
                "precision": "fp16 by autocast",
            },
        ),
    )
}

DEVIATIONS = (
    Deviation(
        recipe="pretraining",
        setting="code.patch_bias_bound",
        ours=(0.0,),
        reason="The released code says that it initialises the patch projection like a linear "
        "layer, whose bias is 0 there; Conv2d's uniform default stays by omission. ViT's JAX code "
        "has 0 too.",
    ),
    Deviation(
        recipe="pretraining",
        setting="encoder.patch_size",
        ours=(16,),
        sizes=("H",),
        studies=("scaling/vit_ladder",),
        reason="The study's question: sizes at one patch size.",
    ),
    Deviation(
        recipe="pretraining",
        setting="lr_schedule.warmup",
        ours=(Duration.epochs(5),),
        studies=("paper/lr_by_size",),
        reason="A proxy of 50 epochs, of which 40 would be warm-up.",
    ),
    Deviation(
        recipe="pretraining",
        setting="lr_schedule.warmup",
        ours=(Duration.epochs(1),),
        sizes=("L", "H"),
        studies=("paper/wall_clock",),
        reason="10 epochs, of which only the time counts.",
    ),
    *(
        Deviation(
            recipe=recipe,
            setting="precision",
            ours=("bf16-mixed",),
            reason="fp16 overflowed in many reports (NaN after hundreds of epochs); bf16 has the "
            "range of fp32 and needs no loss scale."
            if recipe == "pretraining"
            else "As in pretraining.",
        )
        for recipe in OFFICIAL
        if "precision" in OFFICIAL[recipe].values
    ),
    Deviation(
        recipe="linear probe",
        setting="duration",
        ours=(Duration.epochs(50),),
        sizes=("L", "H"),
        reason="FINETUNE.md: 50 epochs are sufficient for L and H; half of the cost.",
    ),
    Deviation(
        recipe="linear probe",
        setting="code.probe_norm_images",
        ours=(16384,),
        reason="BatchNorm sees the global batch, not the images of one process: the result is the "
        "same on any number of GPUs.",
    ),
    Deviation(
        recipe="linear probe",
        setting="code.precision",
        ours=("fp32",),
        reason="The encoder is frozen: its features, and the head, need not be rounded.",
    ),
    *(
        Deviation(
            recipe=recipe,
            setting="features",
            ours=("mean",),
            reason="FINETUNE.md pools the patch tokens: the class token performs similarly, and "
            "may give NaN for H in mixed precision.",
        )
        for recipe in ("fine-tune, Table 9", "from scratch")
    ),
    Deviation(
        recipe="from scratch",
        setting="code.patch_bias_bound",
        ours=(0.0,),
        reason="As in pretraining.",
    ),
    Deviation(
        recipe="fine-tune, released",
        setting="global_batch",
        ours=(512,),
        studies=("paper/few_labels",),
        reason="Of 1,000 labelled images a batch of 1024 would be all.",
    ),
    Deviation(
        recipe="fine-tune, released",
        setting="optimizer.base_lr",
        ours=(2.5e-4, 1e-3),
        sizes=("B",),
        studies=("paper/transfer",),
        reason="The paper tunes rate and epochs for each set; here half and twice the rate are "
        "tried.",
    ),
    Deviation(
        recipe="fine-tune, released",
        setting="optimizer.base_lr",
        ours=(5e-4, 2e-3),
        sizes=("L", "H"),
        studies=("paper/transfer",),
        reason="As for B.",
    ),
    *(
        Deviation(
            recipe="fine-tune, released",
            setting=setting,
            ours=(ours,),
            sizes=sizes,
            studies=("paper/control_finetune",),
            reason="The study's question: all sizes with the recipe of L.",
        )
        for setting, ours, sizes in (
            ("optimizer.base_lr", 1e-3, ("B",)),
            ("layer_decay", 0.75, ("B",)),
            ("duration", Duration.epochs(50), ("B",)),
            ("drop_path", 0.2, ("B", "H")),
            ("mix.group_size", 32, ("H",)),
        )
    ),
    Deviation(
        recipe="MoCo v3",
        setting="code.interpolation",
        ours=("bicubic",),
        sizes=("B", "L"),
        reason="One way to resize for all methods that are compared.",
    ),
    Deviation(
        recipe="MoCo v3",
        setting="code.without_decay",
        ours=("1-D",),
        sizes=("B", "L"),
        reason="Biases and norms are treated as in MAE's pretraining.",
    ),
    Deviation(
        recipe="MoCo v3",
        setting="code.token_std",
        ours=(0.02,),
        sizes=("B", "L"),
        reason="One initialisation for all methods that are compared: MAE's.",
    ),
    Deviation(
        recipe="MoCo v3",
        setting="code.qkv_matrix",
        ours=("whole",),
        sizes=("B", "L"),
        reason="As for the class token: the bound of their weights is smaller by √2.",
    ),
)

VARIED: Mapping[str, tuple[str, ...]] = {
    "mask_ratio": ("mask_ratio",),
    "decoder_depth": ("decoder.depth",),
    "decoder_width": ("decoder.width",),
    "mask_tokens": ("mask_tokens_in_encoder",),
    "target": ("target",),
    "augmentation": ("augmentation",),
    "mask_sampling": ("mask.sampling",),
    "base_lr": ("optimizer.base_lr",),
    "patch_size": ("encoder.patch_size",),
    "num_labels": ("num_labels",),
    "tuned_blocks": ("duration",),
}
"""Settings that an axis of a study varies on purpose; the epochs of a partial fine-tune are
searched, as in the paper (section 4.3)."""

UNPUBLISHED: Mapping[str, str] = {
    "seed": "any",
    "data.eval_crop": "`data.evaluation_crop` is what stands for it",
    "data.dev_fraction": "where a study chooses on dev",
    "data.split_seed": "any",
    "data.subset_seed": "any",
    "data.train_fraction": "an axis of paper/unique_data",
    "eval_split": "test, or dev for what is chosen among",
    "label_seed": "any",
    "norm_pix_loss": "both are published; an axis of paper/target",
    "target_dim": "of targets that are no pixels",
    "num_blocks": "the axis of paper/partial_finetune",
    "mask.min_block": "`code.beit_min_block` is what stands for it",
    "optimizer.momentum": "AdamW has none",
    "optimizer.betas": "LARS has none",
    "mix.group_size": "Table 9 and 11 were trained on TPUs; the released recipe says it",
    "duration": "of pretraining: an axis of the studies",
    "lr_schedule.min_lr": "Table 11 does not say",
    "views": "`code.views` and `code.jitter` stand for it",
}
"""Settings that an official recipe may leave open, and why."""
