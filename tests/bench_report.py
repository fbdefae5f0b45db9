"""Print how long the report of a 200-cell study takes, and how large its page is.

Run: make bench-report
The study is made up: 5 sizes x 5 durations x 4 seeds, and 100 cells of a mask-ratio ablation, each
with k-NN, linear probe, fine-tune and reconstruction loss. Bars: 15 s on one core, 10 MB.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from studies.analysis.laws.by_protocol import study_laws
from studies.analysis.report.page import ReportMeta, write_report
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
        "study": "made-up", "cell": f"{size}/e{epochs}/s{seed}", "role": "grid", "size": size,
        "encoder_params": int(SIZES[size]), "duration": f"{epochs}ep", "epochs": float(epochs),
        "images_seen": epochs * IMAGES, "seed": seed, "objective": "MAE", "mask_ratio": 0.75,
        "pretrain_flops": 1e9 * GFLOPS[size] * epochs * IMAGES, "world_size": 8,
    }  # fmt: skip
    seconds = GFLOPS[size] * epochs * 2.0
    name = place["cell"]
    yield ResultRow(**place, stage="pretrain", kind="pretrain", protocol="MAE", seconds=seconds,
                    science_hash=f"{name}p")  # type: ignore[arg-type]  # fmt: skip
    for kind, (start, slope) in KINDS.items():
        loss = 14 * (SIZES[size] / 5e6) ** -0.3 + 9 * slope * (epochs / 50) ** -0.5
        top1 = start + 22 - loss + 0.2 * rng.standard_normal()
        yield ResultRow(**place, stage=kind, kind=kind, protocol=kind.replace("_", " "),
                        eval_split="test", num_eval_images=50_000, top1=top1, seconds=600,
                        science_hash=f"{name}{kind}")  # type: ignore[arg-type]  # fmt: skip
    held_out = 0.38 + 0.1 / math.log2(epochs) + 0.001 * rng.standard_normal()
    yield ResultRow(**place, stage="reconstruction", kind="reconstruction", loss=held_out,
                    protocol="held-out loss at 75 %", eval_split="test", seconds=60,
                    science_hash=f"{name}r")  # type: ignore[arg-type]  # fmt: skip


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="write the report here and leave it")
    keep = parser.parse_args().keep
    results = rows()
    began, cpu = time.perf_counter(), time.process_time()
    meta = ReportMeta(
        study="made-up",
        question="How fast is a report?",
        command="make bench-report",
        created_at="2026-01-01T00:00:00Z",
        laws=study_laws(results, top=99.9),
    )
    with tempfile.TemporaryDirectory() as scratch:
        files = write_report(results, meta=meta, gallery=(), directory=keep or Path(scratch))
        size = files.html.stat().st_size / 1e6
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    cells = len({row.cell for row in results})
    print(f"report of {cells} cells, {len(results)} rows, {len(files.figures)} figures")
    print(f"  {wall:.1f} s wall, {cpu:.1f} s of CPU (bar: 15)  {'ok' if cpu <= 15 else 'MISS'}")
    print(f"  page {size:.2f} MB (bar: 10)  {'ok' if size <= 10 else 'MISS'}")


if __name__ == "__main__":
    main()
