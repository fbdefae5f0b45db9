"""How long training waits for a checkpoint, in the background and not, for a ViT-B."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import Section, arguments
from support.gangs import finish, values

from cluster.connect import connect
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape

MTBF_S = 3600.0
"""One failure an hour, the rate that the recommended interval is for."""
EVERY = 6
STEPS = 1 + 5 * EVERY


def main() -> int:
    """Train twice, saving every few steps: copied and written beside, and written at once."""
    options = arguments(__doc__)
    section = Section("stall", "Snapshots that do not stall", options.seed)
    with tempfile.TemporaryDirectory() as folder, connect(num_cpus=2) as capacity:
        with SlotPool("stall", 2, capacity, shape=slot_shape(capacity)) as pool:
            found = {
                kind: measure(pool, Path(folder) / kind, kind)
                for kind in ("background", "blocking")
            }
    report(section, found)
    return section.finish(options.json)


def measure(pool: SlotPool, folder: Path, snapshot: str) -> dict[str, Any]:
    """Return rank 0's step times and save events."""
    payload = {
        "folder": str(folder),
        "size": "B",
        "image_size": 64,
        "steps": STEPS,
        "global_batch": 16,
        "execution": {
            "world_size": 2,
            "zero_stage": 1,
            "loader_threads": 0,
            "checkpoint_every_steps": EVERY,
            "snapshot": snapshot,
        },
    }
    gang = pool.launch("entries:train_large", payload, 2)
    verdict = finish(pool, gang, 1200)
    assert verdict.cause.value == "success", verdict.message + verdict.traceback
    found: dict[str, Any] = values(gang)[0]
    return found


def report(section: Section, found: dict[str, dict[str, Any]]) -> None:
    """Medians over the saves of each run; the first copies into memory that is not there yet."""
    saves = {k: [f for _, n, f in v["events"] if n == "saved"] for k, v in found.items()}
    stall = statistics.median(s["stall_s"] for s in saves["background"][1:])
    written = statistics.median(s["write_s"] for s in saves["background"])
    blocking = statistics.median(s["stall_s"] for s in saves["blocking"][1:])
    interval = math.sqrt(2 * stall * MTBF_S)
    share = 100 * stall / interval
    size = saves["background"][0]["bytes"]
    section.figure("model", f"ViT-B encoder, {size / 1e6:.0f} MB per checkpoint, 2 ranks, ZeRO-1")
    section.figure(
        "saves measured",
        f"{len(saves['background'])} in the background, {len(saves['blocking'])} blocking",
    )
    section.figure("first stall", f"{saves['background'][0]['stall_s']:.3f} s (fresh memory)")
    section.figure("stall", f"{stall:.3f} s median")
    section.figure("interval for one failure an hour (Young)", f"{interval:.0f} s")
    section.figure("stall over that interval", f"{share:.2f} %", "<= 1 %", share <= 1)
    section.figure("written in the background in", f"{written:.2f} s median")
    section.figure("the same save while training waits", f"{blocking:.2f} s median")
    lost = [extra_time(found["background"], i) for i in range(1, len(saves["background"]))]
    quiet = statistics.median(quiet_steps(found["background"]))
    section.figure("a step while nothing is written", f"{quiet:.3f} s median")
    section.figure(
        "training time lost to writing in the background",
        f"{statistics.median(lost):.2f} s per save, {100 * statistics.median(lost) / interval:.2f} "
        "% of the interval",
    )


def gaps(found: dict[str, Any]) -> list[tuple[float, float]]:
    """(begin, seconds) of each step."""
    steps = found["steps"]
    return [(a, b - a) for a, b in zip(steps[:-1], steps[1:], strict=True)]


def windows(found: dict[str, Any]) -> list[tuple[float, float]]:
    """Times in which a checkpoint was being written."""
    saved = [(t, f) for t, n, f in found["events"] if n == "saved"]
    return [(t - f["write_s"], t) for t, f in saved]


def quiet_steps(found: dict[str, Any]) -> list[float]:
    """Seconds of the steps that no writing touches, without the first."""
    busy = windows(found)
    return [s for t, s in gaps(found)[1:] if not any(a < t + s and t < b for a, b in busy)]


def extra_time(found: dict[str, Any], number: int) -> float:
    """Seconds that the steps during one writing took beyond quiet ones, without the stall."""
    begin, end = windows(found)[number]
    touched = [s for t, s in gaps(found) if begin < t + s and t < end]
    stall = [f["stall_s"] for _, n, f in found["events"] if n == "saved"][number]
    return sum(touched) - stall - len(touched) * statistics.median(quiet_steps(found))


if __name__ == "__main__":
    sys.exit(main())
