"""Question: how deep and how wide must the decoder be?

Command:   mae-study run small/decoder                  (scikit-learn's digits)
           mae-study run small/decoder --data FOLDER    (a few thousand small images)
Cost:      by `plan` about 3.8 min on 2 cores with digits, 23 with 4,000 images.
Published: Tables 1a and 1b, see paper/decoder.
Larger:    paper/decoder
"""

from __future__ import annotations

from dataclasses import replace

from studies.catalog.small.bench import bench
from studies.spec.study import Study

DEPTHS = (1, 2, 4)


def study(data: str | None = None) -> Study:
    """Three depths and three widths, one varied at a time, at every seed."""
    on = bench(data)
    width = on.decoder.width
    shapes = [(depth, width) for depth in DEPTHS]
    shapes += [(on.decoder.depth, width // 2), (on.decoder.depth, width * 2)]
    return on.study(
        "decoder",
        "How deep and how wide must the decoder be?",
        tuple(
            cell
            for depth, wide in shapes
            for cell in on.cells(
                f"d{depth}x{wide}", decoder=replace(on.decoder, depth=depth, width=wide)
            )
        ),
        axes=("decoder_depth", "decoder_width"),
        published=("MAE paper, Table 1a", "MAE paper, Table 1b"),
    )
