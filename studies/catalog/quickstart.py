"""Question: do MAE's frozen features get better with pretraining duration, at four tiny sizes?

Command:  mae-study run quickstart        (or `make quickstart`)
Cost:     under 10 minutes on 2 CPU cores; no download: scikit-learn's handwritten digits.
Expected: k-NN and linear probe rise from the untrained net to the longest duration by far more
          than the seed spread, at every size. Raw pixels reach about 98 % with k-NN: the digits are
          so easy that this study shows a trend with duration, not a scaling law.
"""

from __future__ import annotations

from mae_core.config import (
    NO_AUGMENTATION,
    DataConfig,
    DecoderConfig,
    Duration,
    EvalSplit,
    Execution,
    FinetuneRecipe,
    KnnRecipe,
    LinearProbeRecipe,
    LrScheduleConfig,
    OptimizerConfig,
    PretrainRecipe,
)
from mae_core.model import sizes
from studies.result_row import Role
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study
from studies.spec.sweep import Choices, Sweep

SIZES = ("N1", "N2", "N3", "N4")
EPOCHS = (40, 100, 240)
SEEDS = (0, 1, 2)
FINETUNED = "N4"
SWEEP_EPOCHS = 40
SWEEP_SEED = 3
"""A seed of its own: the winner is run again on the grid's seeds."""


def study() -> Study:
    """4 sizes × (untrained + 3 durations) × 3 paired seeds, a sweep and the raw-pixel baseline."""
    grid = [cell(size, n, seed) for seed in SEEDS for size in SIZES for n in (0, *EPOCHS)]
    return Study(
        name="quickstart",
        question="Do MAE's frozen features get better with pretraining duration?",
        cells=(*(pixels(seed) for seed in SEEDS), *grid),
        sweep=sweep(),
        notes=(
            "1,797 scans of 8x8 pixels show a trend with duration. They cannot show a scaling law: "
            "the sizes are tiny, and drawing 360 test scans alone moves an accuracy by 1-2 points.",
            "Raw pixels are drawn as a baseline. On images this small k-NN on pixels beats every "
            "network; what the curves show is what pretraining adds to an untrained network.",
        ),
    )


def data(seed: int) -> DataConfig:
    """The digits, split by seed: cells of one seed share their split, so seeds pair them."""
    return DataConfig(
        path="digits",
        image_size=8,
        num_channels=1,
        pixel_mean=(0.305,),
        pixel_std=(0.376,),
        split_seed=seed,
        dev_fraction=0.1,
    )


def cell(size: str, epochs: int, seed: int) -> Cell:
    """One point of the grid; mask ratio and decoder are the sweep's winner's."""
    stages = (pretrain(size, epochs, seed), *evaluations(seed, features="mean"))
    if size == FINETUNED:
        stages = (*stages, finetune(seed))
    role: Role = "grid" if epochs else "untrained"
    return Cell(address=f"{size}/e{epochs}/s{seed}", stages=stages, role=role, uses_winner=True)


def pretrain(size: str, epochs: int, seed: int) -> Stage:
    """MAE on 16 patches of 2x2 pixels; no crop and no flip, which would turn digits into others."""
    recipe = PretrainRecipe(
        data=data(seed),
        encoder=sizes.encoder(size),
        decoder=DecoderConfig(width=32, depth=1, num_heads=2),
        augmentation=NO_AUGMENTATION,
        duration=Duration.epochs(epochs),
        global_batch=128,
        optimizer=OptimizerConfig(base_lr=4e-3),
        # In proportion to the duration: a fixed warm-up would favour long runs.
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(epochs // 10)),
        seed=seed,
    )
    return Stage(name="pretrain", recipe=recipe, execution=Execution(loader_threads=0))


def evaluations(seed: int, *, features: str, split: EvalSplit = "test") -> tuple[Stage, ...]:
    """k-NN, linear probe on all labels, and linear probe on 100 labels."""
    parents = () if features == "pixels" else ("pretrain",)
    common = {"data": data(seed), "seed": seed, "features": features, "eval_split": split}
    knn = KnnRecipe(**common)  # type: ignore[arg-type]
    probe = LinearProbeRecipe(
        **common,  # type: ignore[arg-type]
        augmentation=NO_AUGMENTATION,
        duration=Duration.epochs(100),
        global_batch=256,
        optimizer=OptimizerConfig(name="sgd", base_lr=0.3, weight_decay=0.0),
    )
    few = LinearProbeRecipe(
        **common,  # type: ignore[arg-type]
        augmentation=NO_AUGMENTATION,
        num_labels=100,
        label_seed=seed,
        duration=Duration.epochs(300),
        global_batch=100,
        optimizer=OptimizerConfig(name="sgd", base_lr=0.3, weight_decay=0.0),
    )
    named = (("knn", knn), ("linear_probe", probe), ("linear_100", few))
    execution = Execution(loader_threads=0)
    return tuple(Stage(name=n, recipe=r, parents=parents, execution=execution) for n, r in named)


def finetune(seed: int) -> Stage:
    """End-to-end fine-tuning on 100 labels."""
    recipe = FinetuneRecipe(
        data=data(seed),
        seed=seed,
        num_labels=100,
        label_seed=seed,
        augmentation=NO_AUGMENTATION,
        duration=Duration.epochs(60),
        global_batch=50,
        optimizer=OptimizerConfig(base_lr=1e-2, betas=(0.9, 0.999)),
        drop_path=0.0,
    )
    return Stage(
        name="finetune_100",
        recipe=recipe,
        parents=("pretrain",),
        execution=Execution(loader_threads=0),
    )


def pixels(seed: int) -> Cell:
    """The same evaluations on raw pixels, without any network."""
    return Cell(
        address=f"pixels/s{seed}", stages=evaluations(seed, features="pixels"), role="baseline"
    )


def sweep() -> Sweep:
    """Mask ratio × decoder depth × decoder width, scored by the linear probe on dev."""
    seed = SWEEP_SEED
    stages = (
        pretrain("N3", SWEEP_EPOCHS, seed),
        *evaluations(seed, features="mean", split="dev")[1:2],
    )
    return Sweep(
        base=Cell(address="sweep", stages=stages, role="sweep"),
        space=(
            Choices(key="pretrain.mask_ratio", values=(0.5, 0.625, 0.75, 0.875)),
            Choices(key="pretrain.decoder.depth", values=(1, 2)),
            Choices(key="pretrain.decoder.width", values=(16, 32)),
        ),
        objective="linear_probe",
        num_trials=12,
    )
