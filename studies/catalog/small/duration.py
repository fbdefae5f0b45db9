"""Question: when does longer pretraining stop to pay?

Command:   mae-study run small/duration                  (scikit-learn's digits)
           mae-study run small/duration --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 2.6 min on 2 cores with digits, 16 with 4,000 images.
Published: Figure 7, see paper/duration.
Larger:    paper/duration
"""

from __future__ import annotations

from mae_core.config import Duration
from studies.catalog.small.bench import bench
from studies.spec.study import Study

SHARES = (0, 0.25, 0.5, 1, 2)
"""Of the usual number of epochs; 0 is the untrained network."""


def study(data: str | None = None) -> Study:
    """Four durations at every seed, each a full run of its own, and the untrained network."""
    on = bench(data)
    return on.study(
        "duration",
        "When does longer pretraining stop to pay?",
        tuple(
            cell
            for share in SHARES
            for cell in on.cells(
                f"e{share * on.epochs:g}", duration=Duration.epochs(share * on.epochs)
            )
        ),
        axes=("duration",),
        published=("MAE paper, Fig 7",),
    )
