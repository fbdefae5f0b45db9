"""What the small studies run on: scikit-learn's digits, or a folder of small images (`--data`).

A bench is a data set with the network and the recipes that two cores can train on it in seconds.
The question of a small study is its big sister's; the answer is that of a small data set.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mae_core.config import (
    NO_AUGMENTATION,
    AugmentationConfig,
    DataConfig,
    DecoderConfig,
    Duration,
    EncoderConfig,
    Execution,
    FinetuneRecipe,
    LinearProbeRecipe,
    LrScheduleConfig,
    OptimizerConfig,
    PretrainRecipe,
)
from mae_core.model.sizes import encoder
from studies.catalog import quickstart
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

DIGITS_NOTE = (
    "1,797 scans of 8x8 pixels, 16 patches each: a trend beyond the seed spread is one, a point or "
    "two is not (360 test scans).",
    "The published numbers are ViT-L's on ImageNet: compare the shape of the curves, not heights.",
)
IMAGES_NOTE = (
    "A few thousand small images and short runs: what differs by less than the seed spread does "
    "not differ here, and need not at scale.",
    DIGITS_NOTE[1],
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A data set with a network and recipes that fit two cores."""

    suffix: str
    """Of the study's name, so that digits and images are two studies of one store."""
    path: str
    encoders: tuple[EncoderConfig, EncoderConfig]
    """Two sizes; single-size studies take the larger."""
    decoder: DecoderConfig
    augmentation: AugmentationConfig
    epochs: float
    """Of pretraining, where duration is not the question."""
    base_lr: float
    seeds: tuple[int, ...]
    few_labels: int
    """Labelled images of a fine-tune: with all labels nothing is left to gain on digits."""
    finetune_epochs: float
    notes: tuple[str, ...]

    def data(self, seed: int) -> DataConfig:
        """The images; cells of one seed share their split, so that seeds pair them."""
        if self.path == "digits":
            return quickstart.data(seed)
        return DataConfig(
            path=self.path,
            image_size=32,
            dev_fraction=0.1,
            expected_images=4000,
            expected_classes=10,
        )

    @property
    def encoder(self) -> EncoderConfig:
        """The larger of the two."""
        return self.encoders[1]

    def pretrain(self, seed: int, *, parents: tuple[str, ...] = (), **changes: Any) -> Stage:
        """MAE with raw pixels as the target, as in the paper's ablations; or with `changes`."""
        duration = changes.get("duration", Duration.epochs(self.epochs))
        recipe = PretrainRecipe(
            data=self.data(seed),
            encoder=self.encoder,
            decoder=self.decoder,
            augmentation=self.augmentation,
            norm_pix_loss=False,
            duration=duration,
            global_batch=128,
            optimizer=OptimizerConfig(base_lr=self.base_lr),
            # In proportion to the duration: a fixed warm-up would favour long runs.
            lr_schedule=LrScheduleConfig(warmup=replace(duration, value=duration.value / 10)),
            seed=seed,
        )
        recipe = replace(recipe, **changes)
        return Stage(name="pretrain", recipe=recipe, parents=parents, execution=EXECUTION)

    def linear_probe(self, seed: int, **changes: Any) -> Stage:
        """Linear probe of the mean patch token with all labels, without augmentation."""
        recipe = LinearProbeRecipe(
            data=self.data(seed),
            seed=seed,
            features="mean",
            augmentation=NO_AUGMENTATION,
            duration=Duration.epochs(100),
            global_batch=256,
            optimizer=OptimizerConfig(name="sgd", base_lr=0.3, weight_decay=0.0),
        )
        return _evaluation("linear_probe", replace(recipe, **changes))

    def finetune_settings(self, seed: int) -> dict[str, Any]:
        """Settings of a fine-tune on few labels, which training from scratch shares."""
        return {
            "data": self.data(seed),
            "seed": seed,
            "num_labels": self.few_labels,
            "label_seed": seed,
            "augmentation": self.augmentation,
            "duration": Duration.epochs(self.finetune_epochs),
            "global_batch": 50,
            "optimizer": OptimizerConfig(base_lr=1e-2, betas=(0.9, 0.999)),
            "lr_schedule": LrScheduleConfig(warmup=Duration.epochs(5)),
            "drop_path": 0.0,
        }

    def finetune(self, seed: int, **changes: Any) -> Stage:
        """End-to-end fine-tuning on few labels."""
        recipe = FinetuneRecipe(**(self.finetune_settings(seed) | changes))
        return _evaluation("finetune", recipe)

    def cells(self, address: str, **changes: Any) -> tuple[Cell, ...]:
        """A variant at each seed, probed and fine-tuned."""
        return tuple(
            self.cell(f"{address}/s{seed}", seed, self.pretrain(seed, **changes))
            for seed in self.seeds
        )

    def cell(self, address: str, seed: int, *stages: Stage) -> Cell:
        """A cell of these stages, probed and fine-tuned."""
        more = (self.linear_probe(seed), self.finetune(seed))
        return Cell(address=address, stages=(*stages, *more))

    def study(self, name: str, question: str, cells: tuple[Cell, ...], **more: Any) -> Study:
        """The small sister called `name`."""
        notes = (*more.pop("notes", ()), *self.notes)
        return Study(
            name=f"small/{name}{self.suffix}", question=question, cells=cells, notes=notes, **more
        )


EXECUTION = Execution(loader_threads=0)


def _evaluation(name: str, recipe: LinearProbeRecipe | FinetuneRecipe) -> Stage:
    return Stage(name=name, recipe=recipe, parents=("pretrain",), execution=EXECUTION)


def _vit(width: int) -> EncoderConfig:
    return EncoderConfig(
        width=width, depth=4, num_heads=width // 32, patch_size=4, name=f"w{width}"
    )


DIGITS = Bench(
    suffix="",
    path="digits",
    encoders=(encoder("N2"), encoder("N4")),
    decoder=DecoderConfig(width=32, depth=1, num_heads=2),
    augmentation=NO_AUGMENTATION,
    epochs=100,
    base_lr=4e-3,
    seeds=(0, 1, 2),
    few_labels=100,
    finetune_epochs=60,
    notes=DIGITS_NOTE,
)


def bench(data: str | None) -> Bench:
    """Return the digits, or the images at `data`: 32 pixels, patches of 4."""
    if data in (None, "digits"):
        return DIGITS
    return Bench(
        suffix="-images",
        path=str(data),
        encoders=(_vit(64), _vit(96)),
        decoder=DecoderConfig(width=64, depth=1, num_heads=2),
        augmentation=AugmentationConfig(),
        epochs=20,
        base_lr=1e-3,
        seeds=(0, 1),
        few_labels=500,
        finetune_epochs=30,
        notes=IMAGES_NOTE,
    )
