"""Question: how many labelled images does a pretrained encoder need?

Command:   mae-study run small/few_labels                  (scikit-learn's digits)
           mae-study run small/few_labels --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 1 min on 2 cores with digits, 23 with 4,000 images.
Published: no such table in the paper, see paper/few_labels.
Found:     digits at 25, 50 and 100 labels, means over ten draws: from scratch 28.4, 49.0 and 66.3 %
           top-1, fine-tuned after MAE 56.2, 74.1 and 84.0, probed 59.5, 68.2 and 73.6; standard
           deviations 1.6 to 5.5. With 25 labels a probe is as good as a fine-tune.
Larger:    paper/few_labels
"""

from __future__ import annotations

from mae_core.config import Duration, FeatureProbeRecipe, FeaturesRecipe, ScratchRecipe
from studies.catalog.small.bench import EXECUTION, Bench, bench
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

SHARES = (0.25, 0.5, 1.0)
"""Of the bench's few labels."""
DRAWS = range(10)


def study(data: str | None = None) -> Study:
    """Three numbers of labels, ten draws of each: probe and fine-tune of one MAE, and scratch."""
    on = bench(data)
    counts = [round(share * on.few_labels) for share in SHARES]
    return on.study(
        "few_labels",
        "How many labelled images does a pretrained encoder need?",
        tuple(cell for count in counts for draw in DRAWS for cell in _cells(on, count, draw)),
        axes=("num_labels",),
        notes=(
            "One pretraining; the spread is over ten draws of the labelled images, which are "
            "class-balanced, and the same for all that is compared.",
        ),
    )


def _cells(on: Bench, count: int, draw: int) -> tuple[Cell, Cell]:
    changes = {"data": on.data(0), "num_labels": count, "global_batch": min(count, 50)}
    settings = on.finetune_settings(draw) | changes
    scratch = ScratchRecipe(encoder=on.encoder, **settings)
    return (
        Cell(
            address=f"mae/n{count}/d{draw}",
            stages=(
                on.pretrain(0, norm_pix_loss=True),
                *_probe(on, count, draw),
                on.finetune(draw, **changes),
            ),
        ),
        Cell(
            address=f"scratch/n{count}/d{draw}",
            stages=(Stage(name="scratch", recipe=scratch, execution=EXECUTION),),
        ),
    )


def _probe(on: Bench, count: int, draw: int) -> tuple[Stage, Stage]:
    """Features are the same for all draws, and so computed once."""
    features = FeaturesRecipe(data=on.data(0), features="mean")
    probe = FeatureProbeRecipe(
        data=on.data(0),
        seed=draw,
        features="mean",
        num_labels=count,
        label_seed=draw,
        duration=Duration.epochs(100),
        global_batch=min(count, 256),
    )
    return (
        Stage(name="features", recipe=features, parents=("pretrain",), execution=EXECUTION),
        Stage(name="feature_probe", recipe=probe, parents=("features",), execution=EXECUTION),
    )
