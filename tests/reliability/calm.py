"""A clean hour in which nobody is taken for hanging.

Half of it is one training of two ranks, the other half are studies with all their sections
(start, restore, save, evaluate), one after another in fresh stores.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from drivers import STUDY, Watched
from figures import Section, arguments

from cluster.connect import connect
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape


def main() -> int:
    """Train and run studies in peace for `--minutes`."""
    options = arguments(__doc__, minutes=60.0)
    section = Section("calm", "A clean hour", options.seed)
    half_s = options.minutes * 60 / 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alarms, steps, trained_s = training(folder, half_s)
        ends, studied_s = studies(folder, half_s)
    minutes = (trained_s + studied_s) / 60
    alarms += ends["hang"]
    section.figure("clean training", f"{trained_s / 60:.1f} min on two ranks, {steps} steps")
    causes = ", ".join(f"{n} {cause}" for cause, n in sorted(ends.items()))
    section.figure(
        "clean studies", f"{studied_s / 60:.1f} min, {sum(ends.values())} attempts ({causes})"
    )
    section.figure(
        "false alarms",
        f"{alarms} in {minutes:.1f} min",
        "0 in an hour",
        alarms == 0 if minutes >= 60 or alarms else None,
    )
    return section.finish(options.json)


def training(folder: Path, seconds: float) -> tuple[int, int, float]:
    """Train with the limits of a real run; return alarms, steps done, seconds."""
    with (
        connect(num_cpus=2) as capacity,
        SlotPool("clean", 2, capacity, shape=slot_shape(capacity)) as pool,
    ):
        gang = pool.launch("entries:train_until_told", {"folder": str(folder), "save_s": 0.0}, 2)
        assert gang is not None
        began = time.monotonic()
        while time.monotonic() - began < seconds and not gang.is_finished:
            pool.wait([gang], 0.2)
        trained = time.monotonic() - began
        gang.request_stop()
        deadline = time.monotonic() + 60
        while not gang.is_finished and time.monotonic() < deadline:
            pool.wait([gang], 0.2)
        steps = min(heartbeat.step for heartbeat in gang.heartbeats.values())
        assert steps > 0, "ranks that tell no section are never found hanging: nothing was tried"
        return int(gang.hang is not None), steps, trained


def studies(folder: Path, seconds: float) -> tuple[Counter[str], float]:
    """Run a study of twelve stages again and again; return how its attempts ended, seconds."""
    (folder / "twelve.py").write_text(STUDY)
    began, ends, count = time.monotonic(), Counter[str](), 0
    while time.monotonic() - began < seconds:
        store, count = folder / f"s{count}", count + 1
        if (code := Watched(folder, store).wait(600)) != 0:
            raise RuntimeError(f"a study that nobody disturbed ended with {code}")
        for end in store.glob("stages/*/*/ends/*.json"):
            ends[json.loads(end.read_text())["cause"]] += 1
    return ends, time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
