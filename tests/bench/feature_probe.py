"""Print what the probe on kept features saves over the paper's linear probe, and what it misses.

Run: make bench-feature-probe (about 15 minutes on 2 cores)
Both see scikit-learn's digits for 90 epochs. The paper's protocol encodes a new random crop of
each image in every epoch; the other keeps one vector per image and trains a grid of 28 heads.
Bar: the grid, the encoding of its features included, is 20 times cheaper.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mae_core.config import (
    ENCODER_FILE,
    FEATURES_FILE,
    AugmentationConfig,
    DataConfig,
    DecoderConfig,
    Duration,
    EncoderConfig,
    Execution,
    FeatureProbeRecipe,
    FeaturesRecipe,
    LinearProbeRecipe,
    LrScheduleConfig,
    OptimizerConfig,
    PretrainRecipe,
)
from mae_core.data.sources import open_data
from mae_core.evaluate.feature_file import run_features
from mae_core.evaluate.probes.feature_probe import run_feature_probe
from mae_core.evaluate.probes.linear_probe import run_linear_probe
from mae_core.pretrain.masked import run_pretrain
from mae_core.runtime.context import RunContext
from mae_core.runtime.inputs import Parent
from mae_core.train.deepspeed_engine import join_gang, leave_gang

WIDTHS = (32, 48, 64)
SEEDS = (0, 1, 2)
EPOCHS = 90
PRETRAIN_EPOCHS = 20
BATCH = 256
BAR = 20.0
CROPS = AugmentationConfig(crop_scale=(0.5, 1.0), flip=False)
"""Of the pretraining and of the paper's probe; a mirrored digit is another sign."""


def data_config(seed: int) -> DataConfig:
    """The digits enlarged to 32 pixels, another split for every seed."""
    return DataConfig(
        path="digits",
        image_size=32,
        num_channels=1,
        pixel_mean=(0.305,),
        pixel_std=(0.376,),
        split_seed=seed,
        dev_fraction=0.1,
    )


def recipes(width: int, seed: int) -> tuple[Any, ...]:
    """Pretraining, the paper's probe, the features, and the probes on them."""
    encoder = EncoderConfig(width=width, depth=3, num_heads=4, patch_size=4)
    common: dict[str, Any] = {"data": data_config(seed), "seed": seed}
    pretrain = PretrainRecipe(
        **common,
        encoder=encoder,
        decoder=DecoderConfig(width=32, depth=1, num_heads=2),
        augmentation=CROPS,
        duration=Duration.epochs(PRETRAIN_EPOCHS),
        global_batch=128,
        optimizer=OptimizerConfig(base_lr=4e-3),
        lr_schedule=LrScheduleConfig(warmup=Duration.epochs(2)),
    )
    probe: dict[str, Any] = common | {
        "features": "mean",
        "duration": Duration.epochs(EPOCHS),
        "global_batch": BATCH,
    }
    paper = LinearProbeRecipe(
        **probe,
        augmentation=CROPS,
        optimizer=OptimizerConfig(name="sgd", base_lr=1.0, weight_decay=0.0),
    )
    features = FeaturesRecipe(**common, features="mean")
    return pretrain, paper, features, FeatureProbeRecipe(**probe)


def measure(width: int, seed: int, folder: Path) -> dict[str, float]:
    """Top-1 and seconds of both protocols on one encoder."""
    pretrain, paper, features, fast = recipes(width, seed)
    data, execution = open_data(pretrain.data), Execution(loader_threads=0, zero_stage=0)

    def run(function: Callable[..., Any], recipe: Any, file: str) -> tuple[float, float]:
        parents = tuple(
            Parent(name=name, kind=name, files={name: folder / name})
            for name in (file,)
            if (folder / name).exists()
        )
        ctx = RunContext(output_dir=folder, parents=parents)
        began = time.perf_counter()
        metrics = function(recipe, execution, ctx, data)
        return metrics.get("top1", 0.0), time.perf_counter() - began

    run(run_pretrain, pretrain, "none")
    paper_top1, paper_s = run(run_linear_probe, paper, ENCODER_FILE)
    _, features_s = run(run_features, features, ENCODER_FILE)
    fast_top1, probe_s = run(run_feature_probe, fast, FEATURES_FILE)
    return {
        "paper_top1": paper_top1,
        "fast_top1": fast_top1,
        "paper_s": paper_s,
        "features_s": features_s,
        "probe_s": probe_s,
    }


def summary(found: list[dict[str, float]]) -> dict[str, Any]:
    """One encoder's line, over the seeds."""
    difference = [f["fast_top1"] - f["paper_top1"] for f in found]
    ratio = [f["paper_s"] / (f["features_s"] + f["probe_s"]) for f in found]
    again = [f["paper_s"] / f["probe_s"] for f in found]
    spread = statistics.stdev(difference) if len(difference) > 1 else 0.0
    means = {
        key: round(statistics.fmean(f[key] for f in found), 2)
        for key in ("paper_top1", "fast_top1", "paper_s", "features_s", "probe_s")
    }
    return means | {
        "fast - paper, points": f"{statistics.fmean(difference):+.2f} ± {spread:.2f}",
        "seeds": len(found),
        "cheaper, features included": round(statistics.median(ratio), 1),
        "cheaper, features at hand": round(statistics.median(again), 1),
    }


def main() -> None:
    """Measure and print; exit 1 where the bar is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29641"}
    join_gang()
    lines = {}
    for width in arguments.widths:
        found = []
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure(width, seed, Path(folder)))
        lines[f"width {width}"] = summary(found)
    leave_gang()
    print(json.dumps(lines, indent=1, ensure_ascii=False))
    missed = [n for n, line in lines.items() if line["cheaper, features included"] < BAR]
    if missed:
        raise SystemExit(f"less than {BAR:g} times cheaper: {', '.join(missed)}")


if __name__ == "__main__":
    main()
