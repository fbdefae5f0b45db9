"""Question: when does longer pretraining stop to pay?

Command:   mae-study run paper/duration --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:      about 60 GPU-days by `plan` (6.5e20 FLOPs at an assumed 125 TFLOP/s).
Published: Figure 7 (ViT-L) at 100/200/400/800/1600 epochs: linear probe 57.3/64.4/69.7/73.5/75.1,
           fine-tune 82.3/83.3/84.3/84.9/85.1. It does not saturate.
Small:     small/duration
"""

from __future__ import annotations

from studies.catalog.paper.stages import ablation
from studies.spec.study import Study

EPOCHS = (100, 200, 400, 800, 1600)


def study() -> Study:
    """ViT-L at five durations, each a full run of its own under its own cosine."""
    return Study(
        name="paper/duration",
        question="When does longer pretraining stop to pay?",
        cells=tuple(ablation(f"e{epochs}", epochs=epochs) for epochs in EPOCHS),
        axes=("duration",),
        published=("MAE paper, Fig 7",),
        notes=("An intermediate checkpoint of a long run is not a shorter run: none is drawn.",),
    )
