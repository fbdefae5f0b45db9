"""Result rows of a made-up study of 200 cells."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from studies.result_row import ResultRow

SIZES = {"Ti": 5.5e6, "S": 21.6e6, "B": 85.7e6, "L": 303e6, "H": 630e6}


GFLOPS = {"Ti": 34.0, "S": 39.0, "B": 58.7, "L": 124.5, "H": 291.4}


EPOCHS = (50, 100, 200, 400, 800)


IMAGES = 1_281_167


KINDS = {"knn": (48, 0.6), "linear_probe": (62, 0.8), "finetune": (78, 0.35)}


def rows(*, sizes: int = 5, durations: int = 5, seeds: int = 8) -> list[ResultRow]:
    """Results of sizes x durations x seeds: 200 cells by default."""
    found: list[ResultRow] = []
    for i, size in enumerate(list(SIZES)[:sizes]):
        for epochs in EPOCHS[:durations]:
            for seed in range(seeds):
                found += cell(size, epochs, seed, rank=i)
    return found


def cell(size: str, epochs: int, seed: int, *, rank: int) -> Iterator[ResultRow]:
    """Rows of one cell: a pretraining and four evaluations."""
    rng = np.random.default_rng((rank, epochs, seed))
    place = {
        "study": "made-up",
        "cell": f"{size}/e{epochs}/s{seed}",
        "role": "grid",
        "size": size,
        "encoder_params": int(SIZES[size]),
        "duration": f"{epochs}ep",
        "epochs": float(epochs),
        "images_seen": epochs * IMAGES,
        "seed": seed,
        "objective": "MAE",
        "mask_ratio": 0.75,
        "pretrain_flops": 1e9 * GFLOPS[size] * epochs * IMAGES,
        "world_size": 8,
    }
    seconds = GFLOPS[size] * epochs * 2.0
    name = place["cell"]
    yield ResultRow(
        **place,
        stage="pretrain",
        kind="pretrain",
        protocol="MAE",
        seconds=seconds,
        science_hash=f"{name}p",
    )  # type: ignore[arg-type]
    for kind, (start, slope) in KINDS.items():
        loss = 14 * (SIZES[size] / 5e6) ** -0.3 + 9 * slope * (epochs / 50) ** -0.5
        top1 = start + 22 - loss + 0.2 * rng.standard_normal()
        yield ResultRow(
            **place,
            stage=kind,
            kind=kind,
            protocol=kind.replace("_", " "),
            eval_split="test",
            num_eval_images=50_000,
            top1=top1,
            seconds=600,
            science_hash=f"{name}{kind}",
        )  # type: ignore[arg-type]
    held_out = 0.38 + 0.1 / math.log2(epochs) + 0.001 * rng.standard_normal()
    yield ResultRow(
        **place,
        stage="reconstruction",
        kind="reconstruction",
        loss=held_out,
        protocol="held-out loss at 75 %",
        eval_split="test",
        seconds=60,
        science_hash=f"{name}r",
    )  # type: ignore[arg-type]
