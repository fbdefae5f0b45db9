"""Question: how does MAE's accuracy scale with model size and with pretraining duration?

Command:  mae-study plan paper/size_by_duration
          mae-study run  paper/size_by_duration --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:     what `plan` prints; at 1600 epochs 1.2e20, 2.6e20 and 6.0e20 FLOPs for B, L and H.
Expected: paper Figure 7 and Table 3: ViT-L linear probe 57.3/64.4/69.7/73.5/75.1 % and fine-tune
          82.3/83.3/84.3/84.9/85.1 % at 100/200/400/800/1600 epochs (raw pixels); fine-tune of
          B/L/H 83.6/85.9/86.9 % at 1600 epochs (normalised pixels, as here).
"""

from __future__ import annotations

from mae_core.config import Duration, Execution, PretrainRecipe
from mae_core.model import sizes
from studies.catalog.evaluations import IMAGENET, paper_evaluations
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

SIZES = ("B", "L", "H")
EPOCHS = (100, 200, 400, 800, 1600)
GPUS_PER_GANG = 8
MICRO_BATCH = {"BL": 128, "L": 128, "LH": 64, "H": 64}
"""Images per 80 GB GPU and forward; 256 for smaller sizes."""


def study() -> Study:
    """ViT-B/L/H × 100…1600 epochs on ImageNet-1k; each duration is a full run of its own."""
    return Study(
        name="paper/size_by_duration",
        question="How does MAE's accuracy scale with model size and pretraining duration?",
        cells=tuple(cell(size, epochs) for size in SIZES for epochs in EPOCHS),
        notes=(
            "Three sizes cannot identify the floor of a scaling law, and H also has a smaller "
            "patch; scaling/vit_ladder asks that question.",
        ),
    )


def cell(size: str, epochs: int, *, seed: int = 0, patch_size: int | None = None) -> Cell:
    """One point of the grid (paper Table 8)."""
    execution = Execution(world_size=GPUS_PER_GANG, loader_threads=12)
    pretrain = Stage(
        name="pretrain",
        recipe=PretrainRecipe(
            data=IMAGENET,
            encoder=sizes.encoder(size, patch_size=patch_size),
            duration=Duration.epochs(epochs),
            precision="bf16-mixed",
            seed=seed,
        ),
        execution=Execution(
            world_size=GPUS_PER_GANG,
            micro_batch=MICRO_BATCH.get(size, 256),
            loader_threads=12,
        ),
    )
    evaluations = paper_evaluations(size, IMAGENET, seed=seed, execution=execution)
    return Cell(address=f"{size}/e{epochs}/s{seed}", stages=(pretrain, *evaluations))
