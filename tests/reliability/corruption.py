"""Damage a real 2-rank ZeRO-2 checkpoint at random, many times: is every damage found in time?"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from unittest import mock

from figures import Section, arguments
from support.checkpoint_cases import DAMAGES
from support.gangs import train

from cluster.connect import connect
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape
from mae_core.checkpoint.commit import Checkpoints
from mae_core.runtime.storage import LocalStorage
from mae_core.train.deepspeed_engine import safe_types


def main() -> int:
    """Make two checkpoints, then damage the newer one and look, `--count` times."""
    options = arguments(__doc__, count=1000)
    section = Section("corruption", "Damaged checkpoints", options.seed)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original"
        make(original)
        found = trials(original / "checkpoints", Path(folder) / "damaged", options)
        kinds, used, detected, unpickled = found
        num = sum(kinds.values())
        section.figure("damages", f"{num}: " + ", ".join(f"{n} {k}" for k, n in kinds.items()))
        section.figure(
            "found before anything was unpickled",
            f"{detected} of {num}",
            "all",
            detected == num and unpickled == 0,
        )
        section.figure("previous checkpoint used", f"{used} of {num}", "all", used == num)
        rate = throughput(Path(folder))
        section.figure(
            "verification (SHA-256)", f"{rate:.2f} GB/s per core", ">= 1 GB/s", rate >= 1
        )
    return section.finish(options.json)


def make(folder: Path) -> None:
    """Two checkpoints of a ZeRO-2 training on two ranks."""
    with (
        connect(num_cpus=2) as capacity,
        SlotPool("corruption", 2, capacity, shape=slot_shape(capacity)) as pool,
    ):
        for _ in range(2):  # the second goes on from the first and stops four steps later
            train(pool, folder, 2, zero=2, stop_at=4)


def trials(source: Path, target: Path, options: object) -> tuple[Counter[str], int, int, int]:
    """Return damages by kind, how often the previous was used, how often found, unpickled."""
    draw = random.Random(options.seed)  # type: ignore[attr-defined]
    kinds: Counter[str] = Counter()
    used = detected = unpickled = 0
    older, newer = sorted(p.name for p in source.iterdir())
    with mock.patch("torch.load", side_effect=AssertionError) as load:
        while sum(kinds.values()) < options.count:  # type: ignore[attr-defined]
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            damage = DAMAGES[sum(kinds.values()) % len(DAMAGES)]
            if not damage(target / newer, draw):
                continue  # two equal files were exchanged: nothing is damaged
            kinds[damage.__name__] += 1
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                found = look(target)
            detected += newer in said.getvalue()
            used += found == older
        unpickled = load.call_count
    return kinds, used, detected, unpickled


def look(directory: Path) -> str | None:
    """Name of the checkpoint that a reader of the run agrees on."""
    checkpoints = Checkpoints(
        LocalStorage(directory), science_hash="test", attempt=9, keep=2, types=safe_types()
    )
    found = checkpoints.find()
    checkpoints.close()
    return found and found.name


def throughput(folder: Path) -> float:
    """GB/s of one core over a file in the page cache; median of five."""
    file = folder / "large"
    content = os.urandom(1 << 24)
    with file.open("wb") as stream:
        for _ in range(32):
            stream.write(content)
    storage = LocalStorage(folder)
    rates = []
    for _ in range(5):
        began = time.process_time()
        size, _ = storage.digest("large")
        rates.append(size / 1e9 / (time.process_time() - began))
    return sorted(rates)[2]


if __name__ == "__main__":
    sys.exit(main())
