"""Question: how many labelled images does a pretrained encoder need?

Command:   mae-study run paper/few_labels --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 91 GPU-days by `plan` (9.8e20 FLOPs at an assumed 125 TFLOP/s).
Published: no such table in the paper. Assran et al. (arXiv 2204.07141) evaluate MAE on 1 % of
           ImageNet's labels and on 1 to 5 images per class.
Lists:     the field's 1 % and 10 % lists are data sets of their own: `mae-study data subset
           IMAGENET LIST FOLDER`, then `--set finetune.data.path=FOLDER` and
           `--set finetune.num_labels=null`.
Small:     small/few_labels
"""

from __future__ import annotations

from dataclasses import replace

from mae_core.config import FeatureProbeRecipe, FeaturesRecipe
from studies.catalog.evaluations import IMAGENET, paper_finetune, stage
from studies.catalog.paper.stages import EVALUATION, mae
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

SIZES = ("B", "L", "H")
EPOCHS = 1600
COUNTS = (1000, 5000, 12_811)
"""One and five images per class, and 1 %."""
DRAWS = range(10)
DATA = replace(IMAGENET, dev_fraction=0.02)
BATCH = 512


def study() -> Study:
    """Three sizes, three numbers of labels, ten draws; the pretrainings are paper/comparison's."""
    return Study(
        name="paper/few_labels",
        question="How many labelled images does a pretrained encoder need?",
        cells=tuple(
            _cell(size, count, draw) for size in SIZES for count in COUNTS for draw in DRAWS
        ),
        axes=("num_labels", "size"),
        notes=(
            "One pretraining per size; the spread is over ten draws of the labelled images, "
            "class-balanced, nested, and the same for all sizes.",
            "Probes choose their learning rate and decay on 2 % of the training images, which have "
            "more labels than some of the draws: the fine-tune chooses nothing.",
        ),
    )


def _cell(size: str, count: int, draw: int) -> Cell:
    few = {"num_labels": count, "label_seed": draw, "seed": draw}
    probe = FeatureProbeRecipe(data=DATA, global_batch=BATCH, **few)  # type: ignore[arg-type]
    tuned = replace(paper_finetune(size, DATA, draw), global_batch=BATCH, **few)  # type: ignore[arg-type]
    return Cell(
        address=f"{size}/n{count}/d{draw}",
        stages=(
            mae(size, epochs=EPOCHS, norm_pix_loss=True),
            Stage(
                name="features",
                recipe=FeaturesRecipe(data=DATA),
                parents=("pretrain",),
                execution=EVALUATION,
            ),
            Stage(name="feature_probe", recipe=probe, parents=("features",), execution=EVALUATION),
            stage("finetune", tuned, EVALUATION),
        ),
    )
