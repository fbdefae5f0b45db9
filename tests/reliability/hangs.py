"""Four kinds of hang, found and named by the tests' gangs; then clean training without an alarm."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

from figures import Section, arguments

from cluster.connect import connect
from cluster.gang import SlotPool, slot_shape

TESTS = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run the hang tests, read what they found, then train in peace for `--minutes`."""
    options = arguments(__doc__, minutes=60.0)
    section = Section("hangs", "Hangs", options.seed)
    with tempfile.TemporaryDirectory() as folder:
        hangs(section, Path(folder) / "junit.xml")
        alarms, steps, seconds = clean(Path(folder), options.minutes * 60)
    section.figure("clean training", f"{seconds / 60:.0f} min on two ranks, checkpoints up to "
                   f"step {steps}")  # fmt: skip
    section.figure("false alarms", f"{alarms} in {seconds / 60:.0f} min", "0 in an hour",
                   alarms == 0 if seconds >= 3600 or alarms else None)  # fmt: skip
    return section.finish(options.json)


def hangs(section: Section, junit: Path) -> None:
    """A stopped process, a held interpreter lock, a stuck loader, a deadlocked collective."""
    run = [sys.executable, "-m", "pytest", "-q", str(TESTS / "test_gang_faults.py"), "-k",
           "hang_is_found", f"--junitxml={junit}", "-p", "no:cacheprovider"]  # fmt: skip
    subprocess.run(run, check=False, timeout=600, stdout=subprocess.DEVNULL)
    cases = list(ElementTree.parse(junit).iter("testcase"))
    passed = [c for c in cases if c.find("failure") is None and c.find("error") is None]
    for case in passed:
        name = re.sub(r".*\[(\w+)-.*", r"\1", case.get("name", ""))
        values = {p.get("name"): p.get("value") for p in case.iter("property")}
        section.figure(name, f"found and named after {values.get('found_after_s')} s")
    section.figure("hangs found within their limit + 10 s and named",
                   f"{len(passed)} of {len(cases)}", "4 of 4", len(passed) == 4)  # fmt: skip


def clean(folder: Path, seconds: float) -> tuple[int, int, float]:
    """Train with the limits of a real run; return alarms, last saved step, seconds."""
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
        names = sorted(p.parent.name for p in folder.glob("checkpoints/*/manifest.json"))
        return int(gang.hang is not None), int(names[-1].split("-")[1]), trained


if __name__ == "__main__":
    sys.exit(main())
