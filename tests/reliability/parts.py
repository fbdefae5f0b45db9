"""Leave one part of the saved state out of a resume: does the exactness test fail each time?"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import Section, arguments
from support.gangs import PARTS, attempt, train

from cluster.connect import connect
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape


def main() -> int:
    """Per ZeRO stage: a whole run, then one per part, and one in which nothing is left out."""
    options = arguments(__doc__)
    section = Section("parts", "Every part of the saved state matters", options.seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        connect(num_cpus=2) as capacity,
        SlotPool("parts", 2, capacity, shape=slot_shape(capacity)) as pool,
    ):
        for zero in (1, 2, 3):
            seen = {p: noticed(pool, Path(folder) / f"{zero}", zero, p) for p in PARTS}
            control = noticed(pool, Path(folder) / f"{zero}", zero, "nothing")
            how = ", ".join(f"{p}: {w or 'NOT NOTICED'}" for p, w in seen.items())
            section.figure(
                f"ZeRO-{zero}: parts noticed",
                f"{sum(map(bool, seen.values()))} of {len(seen)} ({how})",
                "all",
                all(seen.values()),
            )
            section.figure(
                f"ZeRO-{zero}: nothing left out", control or "exact", "exact", not control
            )
    section.figure("loss scaler", "there is none: fp32, bf16-mixed and bf16 only")
    return section.finish(options.json)


def noticed(pool: SlotPool, folder: Path, zero: int, part: str) -> str:
    """How leaving a part out shows; empty if it does not."""
    settings: dict[str, Any] = {"zero": zero, "noise": True, "steps": 10, "log_every": 4}
    settings["execution"] = {"record_state": True}
    if not (folder / "whole").exists():
        WHOLE[zero] = train(pool, folder / "whole", 2, **settings)
    stopped = train(pool, folder / part, 2, **settings, stop_at=5)
    resumed = attempt(pool, folder / part, 2, **settings, leave_out=part)
    if resumed is None:
        return "refused before a step"
    if resumed["state"] != WHOLE[zero]["state"]:
        return "final state differs"
    same = stopped["losses"] + resumed["losses"] == WHOLE[zero]["losses"]
    return "" if same else "losses differ"


WHOLE: dict[int, dict[str, Any]] = {}

if __name__ == "__main__":
    sys.exit(main())
