"""Kill the driver of a sweep at random moments: the same command ends with exactly the target.

`python tests/reliability/sweeps.py --kills 20`. Each sweep has a store of its own, is killed once
(SIGKILL to the driver alone, its ranks are left to notice), and is started again.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drivers import Watched
    from figures import Section

STUDY = '''
"""A sweep of {trials} trials of a second."""
from studies.catalog import quickstart as base
from studies.spec import Cell, Range, Study, Sweep


def study():
    stages = (base.pretrain("N1", 4, 3), base.evaluations(3, features="mean", split="dev")[0])
    sweep = Sweep(
        base=Cell(address="sweep", stages=stages, role="sweep"),
        space=(Range(key="pretrain.mask_ratio", low=0.4, high=0.9),),
        objective="knn",
        num_trials={trials},
    )
    return Study(name="killed", question="is each trial done once?", cells=(), sweep=sweep)
'''
TRIALS = 8
LIMIT_S = 300
MAX_STARTS = 4
"""Ray may not start on a machine that is overloaded; the message says to run the command again."""


@dataclass(frozen=True, kw_only=True)
class Killed:
    """One sweep that was killed once and started again."""

    is_killed: bool
    """False if it had finished before."""
    at_trials: int
    """Trials that were recorded when it was killed."""
    finished: bool
    exact: bool
    """As many trials with a score as wanted, and as many recorded."""
    kept: bool
    """Every trial that was recorded before the kill has its settings and its score after it."""
    once: bool
    """Every stage has one completion record and one attempt that succeeded."""
    decided: bool
    starts: int = 1
    """Times that the command was given after the kill."""


def main() -> int:
    """Time a sweep that is left alone, then kill others at moments of that time."""
    from figures import Section, arguments  # on the path of a script, not of the tests

    options = arguments(__doc__, kills=20)
    section = Section("sweeps", "The driver of a sweep killed", options.seed)
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_study(folder)
        began = time.monotonic()
        assert sweep(folder, folder / "calm").wait(LIMIT_S) == 0
        whole = time.monotonic() - began
        first = first_trial(folder / "calm")
        found = []
        for number in range(options.kills):
            # Half of them at any moment of the run, half once trials are at work.
            begin = 0.5 if number % 2 else first * whole
            found.append(once(folder, folder / f"s{number}", draw.uniform(begin, whole)))
            print(f"  {number}: {found[-1]}", flush=True)
    report(section, found, whole)
    return section.finish(options.json)


def write_study(folder: Path, trials: int = TRIALS) -> Path:
    """Write the study, and return its path."""
    path = folder / "killed.py"
    path.write_text(STUDY.format(trials=trials))
    return path


def sweep(folder: Path, store: Path) -> Watched:
    """Start the command that is repeated."""
    from drivers import Watched

    return Watched(folder, store, study="killed")


def first_trial(store: Path) -> float:
    """Share of a finished run that had passed when its first trial was asked for."""
    asked = [p.stat().st_mtime for p in trial_files(store)]
    ended = max(p.stat().st_mtime for p in store.glob("sweeps/*/winner-*.json"))
    started = min(p.stat().st_mtime for p in store.iterdir())
    return max(0.1, (min(asked) - started) / max(ended - started, 1e-9))


def once(folder: Path, store: Path, after_s: float) -> Killed:
    """One sweep whose driver is killed after so many seconds, then run to its end."""
    first = sweep(folder, store)
    is_killed = first.wait(after_s) is None
    if is_killed:
        first.driver.kill()
        first.driver.wait()
    before = {p.name: json.loads(p.read_text()) for p in trial_files(store)}
    starts, code = 0, None
    while code != 0 and starts < MAX_STARTS:
        code = sweep(folder, store).wait(LIMIT_S)
        starts += 1
    found = judge(store, before, TRIALS, is_killed=is_killed, finished=code == 0)
    return replace(found, starts=starts)


def judge(
    store: Path, before: dict[str, Any], trials: int, *, is_killed: bool, finished: bool
) -> Killed:
    """What a finished sweep of so many trials has left in its store."""
    after = {p.name: json.loads(p.read_text()) for p in trial_files(store)}
    done = sorted(store.glob("stages/*/*/done.json"))
    successes = Counter(
        str(path.parent.parent)
        for path in store.glob("stages/*/*/ends/*.json")
        if json.loads(path.read_text())["cause"] == "success"
    )
    scored = [r for p in done if (r := json.loads(p.read_text()))["kind"] == "knn"]
    return Killed(
        is_killed=is_killed,
        at_trials=len(before),
        finished=finished,
        exact=len(after) == len(scored) == trials,
        kept=before.items() <= after.items(),
        once=len(done) == 2 * trials == len(successes) and set(successes.values()) == {1},
        decided=len(list(store.glob("sweeps/*/winner-*.json"))) == 1,
    )


def trial_files(store: Path) -> list[Path]:
    """Records of the trials that were asked for."""
    return sorted(store.glob("sweeps/*/trials/*.json"))


def report(section: Section, found: list[Killed], whole: float) -> None:
    """Counts of what must hold in every one."""
    killed = [k for k in found if k.is_killed]
    at = Counter(k.at_trials for k in killed)
    spread = ", ".join(f"{n} after {trials} trials" for trials, n in sorted(at.items()))
    section.figure(
        "sweeps killed",
        f"{len(killed)} of {len(found)} at random moments of "
        f"{whole:.0f} s (the others had finished): {spread}",
    )
    bars = (
        ("finished", "finished by the same command"),
        ("exact", f"exactly {TRIALS} trials recorded and scored"),
        ("kept", "no recorded trial lost or changed"),
        ("once", "each stage of a trial done once"),
        ("decided", "decided once"),
    )
    for name, title in bars:
        good = sum(getattr(k, name) for k in found)
        section.figure(title, f"{good} of {len(found)}", "all", good == len(found))
    more = sum(k.starts - 1 for k in found)
    section.figure("commands given again because Ray did not start", more)


if __name__ == "__main__":
    sys.exit(main())
