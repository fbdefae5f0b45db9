"""Kill the driver of a study at random moments: the same command finishes it, each stage once."""

from __future__ import annotations

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
        results = [once(folder, folder / f"s{i}", draw.uniform(2, whole))
                   for i in range(options.kills)]  # fmt: skip
        killed = sum(r["killed"] for r in results)
        section.figure("drivers killed", f"{killed} of {len(results)} at random moments of "
                       f"{whole:.0f} s (the others had finished)")  # fmt: skip
        for key, title in (("finished", "studies finished by the same command"),
                           ("once", "each of 12 stages done once"),
                           ("clean", "no orphan process after it")):  # fmt: skip
            good = sum(r[key] for r in results)
            section.figure(title, f"{good} of {len(results)}", "all", good == len(results))
        survived = head_killed(folder, folder / "head")
        section.figure("Ray's head killed in the middle", survived or "the study finished by "
                       "itself, in the same command", "finishes", not survived)  # fmt: skip
    return section.finish(options.json)


def command(folder: Path, store: Path) -> list[str]:
    """The command that is repeated."""
    run = [sys.executable, "-m", "orchestrator.cli", "run", str(folder / "twelve.py")]
    return [*run, "--store", str(store), "--no-report", "--quiet"]


def finish(folder: Path, store: Path) -> int:
    """Run to the end."""
    return subprocess.run(command(folder, store), timeout=300, check=False).returncode


def once(folder: Path, store: Path, after_s: float) -> dict[str, bool]:
    """One study whose driver is killed after so many seconds."""
    before = rays()
    driver = subprocess.Popen(command(folder, store))
    try:
        driver.wait(after_s)
        killed = False
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()
        killed = True
    code = finish(folder, store)
    deadline = time.monotonic() + 30
    while rays() - before and time.monotonic() < deadline:
        time.sleep(0.5)
    return {
        "killed": killed,
        "finished": code == 0,
        "once": done_once(store),
        "clean": not rays() - before,
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


def rays() -> set[int]:
    """Processes of any Ray on this machine that still live."""
    names = ("ray::", "raylet", "gcs_server")
    return {
        p.pid
        for p in psutil.process_iter(["name", "status"])
        if p.info["name"].startswith(names) and p.info["status"] != psutil.STATUS_ZOMBIE
    }


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
