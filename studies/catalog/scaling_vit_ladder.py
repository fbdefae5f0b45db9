"""Question: what law does MAE's accuracy follow in model size, at one patch size and one recipe?

Command:  mae-study run scaling/vit_ladder --data IMAGENET_FOLDER --address RAY_HEAD:6379
Cost:     what `plan` prints.
Expected: no published law; B, L and H alone change patch and recipe together with size, and three
          sizes cannot identify a floor. Ten sizes at patch 16 can.
"""

from __future__ import annotations

from studies.catalog.paper_size_by_duration import cell
from studies.spec.study import Study

SIZES = ("Ti", "XS", "S", "M", "MB", "B", "BL", "L", "LH", "H")
EPOCHS = (100, 300, 800)
PATCH_SIZE = 16


def study() -> Study:
    """Ten encoders from 5 M to 630 M parameters, all with patches of 16 pixels."""
    return Study(
        name="scaling/vit_ladder",
        question="What law does MAE's accuracy follow in model size at a fixed patch size?",
        cells=tuple(
            cell(size, epochs, patch_size=PATCH_SIZE) for size in SIZES for epochs in EPOCHS
        ),
        notes=(
            "With the 8x512 decoder the smallest encoders are a few per cent of the compute: "
            "compare on counted FLOPs, not on parameters alone.",
        ),
    )
