"""2 → 1 → 2 ranks in the middle of a training: same samples and masks; how far are the weights?"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import Section, arguments
from safetensors.torch import load_file
from support.gangs import train

from cluster.connect import connect
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape

WORLDS = (2, 1, 2)
STAGES = [(zero, precision) for precision in ("fp32", "bf16-mixed", "bf16") for zero in range(4)]


def main() -> int:
    """Per ZeRO stage and precision: an undisturbed run on two ranks, and one that changes."""
    options = arguments(__doc__)
    section = Section("elastic", "Another world size goes on: 2 → 1 → 2 ranks", options.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        connect(num_cpus=2) as capacity,
        SlotPool("elastic", 2, capacity, shape=slot_shape(capacity)) as pool,
    ):
        for zero, precision in STAGES:
            measure(section, pool, Path(folder) / f"{zero}-{precision}", zero, precision)
    return section.finish(options.json)


def measure(section: Section, pool: SlotPool, folder: Path, zero: int, precision: str) -> None:
    """Compare samples, masks, losses and weights."""
    settings = {"zero": zero, "precision": precision, "grouped": True}
    settings["execution"] = {"checkpoint_every_steps": 1000}
    whole = train(pool, folder / "whole", 2, **settings)
    parts: list[dict[str, Any]] = []
    for number, world in enumerate(WORLDS):
        stop = {} if number == len(WORLDS) - 1 else {"stop_at": 4}
        parts.append(train(pool, folder / "parts", world, **settings, **stop))
    samples = [s for part in parts for s in part["samples"]]
    masks = {k: v for part in parts for k, v in part["masks"].items()}
    losses = [loss for part in parts for loss in part["losses"]]
    same = samples == whole["samples"] and masks == whole["masks"]
    files = [folder / name / "outputs" / "encoder.safetensors" for name in ("whole", "parts")]
    expected, found = (load_file(f) for f in files)
    weight = max(float((found[n] - w).abs().max()) for n, w in expected.items())
    scale = max(float(w.abs().max()) for w in expected.values())
    loss = max(abs(a - b) for (_, a), (_, b) in zip(whole["losses"], losses, strict=True))
    name = f"ZeRO-{zero} {precision}"
    section.figure(
        f"{name}: samples and masks of {len(samples)} steps",
        "identical" if same else "DIFFERENT",
        "identical",
        same,
    )
    level = parts[-1]["metrics"]["level"]
    section.figure(
        f"{name}: largest difference",
        f"{weight:.2e} in a weight (largest weight {scale:.2f}), {loss:.2e} in a logged loss; "
        f"level {level}",
    )


if __name__ == "__main__":
    sys.exit(main())
