"""Kill the driver of a study at random moments: the same command finishes it, each stage once."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from figures import Section, arguments

STUDY = '''
"""Twelve stages of seconds."""
from dataclasses import replace

from mae_core.config import Duration, Execution, LrScheduleConfig
from studies.catalog import quickstart as base
from studies.spec import Cell, Study

TWO = Execution(world_size=2, zero_stage=2, loader_threads=0, checkpoint_every_steps=20)


def cell(epochs, seed):
    stage = base.pretrain("N1", epochs, seed)
    first = LrScheduleConfig(warmup=Duration.epochs(1))
    quick = [replace(s, recipe=replace(s.recipe, duration=Duration.epochs(3), lr_schedule=first))
             if hasattr(s.recipe, "duration") else s
             for s in base.evaluations(seed, features="mean")]
    return Cell(address=f"e{epochs}/s{seed}", stages=(replace(stage, execution=TWO), *quick))


def study():
    return Study(name="twelve", question="is each stage done once?",
                 cells=(cell(10, 0), cell(10, 1), cell(10, 2)))
'''


def main() -> int:
    """Kill, run again until it is done, look at what is left; then once with Ray's head killed."""
    options = arguments(__doc__, kills=30)
    section = Section("drivers", "The driver killed, Ray's head killed", options.seed)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "twelve.py").write_text(STUDY)
        whole = time.monotonic()
        assert finish(folder, folder / "calm") == 0
        whole = time.monotonic() - whole
        results = [
            once(folder, folder / f"s{i}", draw.uniform(2, whole)) for i in range(options.kills)
        ]
        killed = sum(r["killed"] for r in results)
        section.figure(
            "drivers killed",
            f"{killed} of {len(results)} at random moments of "
            f"{whole:.0f} s (the others had finished)",
        )
        for key, title in (
            ("finished", "studies finished by the same command"),
            ("once", "each of 12 stages done once"),
            ("clean", "no orphan process after it"),
        ):
            good = sum(r[key] for r in results)
            section.figure(title, f"{good} of {len(results)}", "all", good == len(results))
        survived = head_killed(folder, folder / "head")
        section.figure(
            "Ray's head killed in the middle",
            survived or "the study finished by itself, in the same command",
            "finishes",
            not survived,
        )
    return section.finish(options.json)


def command(folder: Path, store: Path, study: str = "twelve", *more: str) -> list[str]:
    """The command that is repeated."""
    run = [sys.executable, "-m", "orchestrator.cli.main", "run", str(folder / f"{study}.py")]
    return [*run, "--store", str(store), "--no-report", "--quiet", *more]


class Watched:
    """A driver, and every process that it or its children ever started."""

    def __init__(self, folder: Path, store: Path, study: str = "twelve", *more: str) -> None:
        self.driver = psutil.Popen(command(folder, store, study, *more))
        self.family: set[psutil.Process] = set()

    def wait(self, timeout_s: float) -> int | None:
        """Exit code, None if it still runs after so many seconds."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.family |= set(self.driver.children(recursive=True))
            with contextlib.suppress(psutil.TimeoutExpired):
                code: int = self.driver.wait(min(0.2, max(deadline - time.monotonic(), 0)))
                return code
        return None

    def survivors(self) -> list[psutil.Process]:
        """Of the family, those that live; a number that was given anew is another process."""
        return [p for p in self.family if p.is_running() and not _is_zombie(p)]


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def finish(folder: Path, store: Path) -> int | None:
    """Run to the end."""
    return Watched(folder, store).wait(300)


def once(folder: Path, store: Path, after_s: float) -> dict[str, bool]:
    """One study whose driver is killed after so many seconds."""
    first = Watched(folder, store)
    killed = first.wait(after_s) is None
    if killed:
        first.driver.kill()
        first.driver.wait()
    second = Watched(folder, store)
    code = second.wait(300)
    deadline = time.monotonic() + 30
    while (left := first.survivors() + second.survivors()) and time.monotonic() < deadline:
        time.sleep(0.5)
    for process in left:
        print(f"  left after it: {process.pid} {process.name()}", flush=True)
    return {
        "killed": killed,
        "finished": code == 0,
        "once": done_once(store),
        "clean": not left,
    }


def done_once(store: Path) -> bool:
    """True if all stages have one completion record and one successful attempt."""
    done = sorted(store.glob("stages/*/*/done.json"))
    ends = Counter(
        str(path.parent.parent)
        for path in store.glob("stages/*/*/ends/*.json")
        if json.loads(path.read_text())["cause"] == "success"
    )
    return len(done) == 12 and len(ends) == 12 and set(ends.values()) == {1}


def head_killed(folder: Path, store: Path) -> str:
    """Kill the embedded Ray's control service; return what went wrong."""
    driver = subprocess.Popen(command(folder, store))
    deadline = time.monotonic() + 60
    while not list(store.glob("stages/*/*/checkpoints/step-*/manifest.json")):
        if driver.poll() is not None or time.monotonic() > deadline:
            return "no checkpoint was seen"
        time.sleep(0.1)
    family = psutil.Process(driver.pid).children(recursive=True)
    for process in [p for p in family if p.name() == "gcs_server"]:
        os.kill(process.pid, signal.SIGKILL)
    code = driver.wait(240)
    if code != 0 or not done_once(store):
        return f"exit code {code}, stages done once: {done_once(store)}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
