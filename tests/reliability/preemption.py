"""Notice of a preemption: SIGTERM with much time and little, twice, in a save, before SIGKILL."""

from __future__ import annotations

import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from figures import Section, arguments

from cluster.connect import connect
from cluster.gang import Gang
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape
from mae_core.checkpoint.commit import Checkpoints
from mae_core.runtime.storage import LocalStorage
from mae_core.train.deepspeed_engine import safe_types

SLOW_SAVE_S = 9.0


def main() -> int:
    """A pool per grace period: a rank reads it when its process starts."""
    options = arguments(__doc__, repeats=3)
    section = Section("preemption", "Notice of a preemption", options.seed)
    draw = random.Random(options.seed)
    cases = [
        ("120 s of grace", 120, "once", 0.3, True),
        ("30 s of grace", 30, "once", 0.3, True),
        ("30 s of grace, SIGTERM twice", 30, "twice", 0.3, True),
        ("30 s of grace, SIGTERM during a save", 30, "saving", 1.5, True),
        ("5 s of grace, a save takes 9 s", 5, "once", SLOW_SAVE_S, False),
        ("SIGTERM, and SIGKILL after 1 s", 30, "killed", 1.5, False),
    ]
    for title, grace, how, save_s, must_save in cases:
        os.environ["MAE_STUDY_GRACE_S"] = str(grace)
        found = []
        with (
            tempfile.TemporaryDirectory() as folder,
            connect(num_cpus=2) as capacity,
            SlotPool("told", 2, capacity, shape=slot_shape(capacity)) as pool,
        ):
            for number in range(options.repeats):
                found.append(once(pool, Path(folder) / str(number), how, save_s, draw))
        lost = [max(0, done - saved) for done, saved, _ in found]
        neither = sum(saved == 0 for _, saved, _ in found)
        section.figure(
            f"{title}: a checkpoint stands",
            f"{len(found) - neither} of {len(found)}",
            "all",
            neither == 0,
        )
        bar = "0" if must_save else ""
        section.figure(
            f"{title}: steps lost",
            ", ".join(map(str, lost)),
            bar,
            sum(lost) == 0 if must_save else None,
        )
        took = max(seconds for _, _, seconds in found)
        section.figure(f"{title}: notice to end", f"{took:.1f} s at most")
    return section.finish(options.json)


def once(
    pool: SlotPool, folder: Path, how: str, save_s: float, draw: random.Random
) -> tuple[int, int, float]:
    """Train, give notice; return steps done, step of the checkpoint that stands, seconds."""
    payload = {"folder": str(folder), "save_s": save_s}
    drive(pool, lambda: pool.num_ready == 2)
    gang = pool.launch("entries:train_until_told", payload, 2)
    assert gang is not None
    drive(pool, lambda: list(folder.glob("checkpoints/*/manifest.json")), gang)
    time.sleep(draw.uniform(0, 0.5))
    if how == "saving":
        before = saving(folder)
        drive(pool, lambda: saving(folder) > before, gang)
    pid = gang.slots[draw.randrange(2)].process.pid
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    if how == "twice":
        time.sleep(0.05)
        os.kill(pid, signal.SIGTERM)
    if how == "killed":
        time.sleep(1.0)
        for slot in gang.slots:
            os.kill(slot.process.pid, signal.SIGKILL)
    drive(pool, lambda: gang.is_finished, gang)
    seconds = time.monotonic() - began
    messages = [o.get("error", {}).get("message", "") for o in gang.outcomes.values()]
    pool.release(gang)
    steps = [int(m[1]) for text in messages if (m := re.search(r"after step (\d+)", text))]
    saved = newest(folder / "checkpoints")
    return (max(steps) if steps else saved), saved, seconds


def saving(folder: Path) -> int:
    """Files that have been written so far."""
    path = folder / "saving"
    text = path.read_text() if path.exists() else ""
    return int(text or 0)


def newest(directory: Path) -> int:
    """Step of the checkpoint that a reader would use, 0 if there is none."""
    checkpoints = Checkpoints(
        LocalStorage(directory), science_hash="told", attempt=9, keep=2, types=safe_types()
    )
    found = checkpoints.find()
    checkpoints.close()
    return found.manifest.step if found else 0


def drive(pool: SlotPool, condition: object, *gangs: Gang) -> None:
    """Let the pool work until something is so."""
    deadline = time.monotonic() + 180
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it does not come true"
        pool.wait(gangs, 0.05)


if __name__ == "__main__":
    sys.exit(main())
