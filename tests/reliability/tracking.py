"""Tracking through outages: what MLflow lacks or has twice, and what it costs a rank.

A journal grows like a training's, with replays after kills, while the server is absent at the
start, comes, is killed for `--minutes`, and comes back. Then a real stage runs in one rank, and
many processes open a fresh store at once:

    python tests/reliability/tracking.py [--minutes 10] [--seed N] [--json OUT]
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
PATHS = [str(TESTS / "reliability"), str(TESTS), str(TESTS.parent)]
sys.path[:0] = PATHS

import psutil  # noqa: E402
from figures import Section, arguments  # noqa: E402
from support.mlflow_servers import (  # noqa: E402
    Server,
    compare,
    compare_points,
    journal_points,
    runs_of,
    touch_at_once,
)

from orchestrator.store.driver import LocalStore  # noqa: E402
from orchestrator.store.journal import JOURNAL_FILE, JournalWriter  # noqa: E402
from orchestrator.tracking.mlflow_database import Destination  # noqa: E402
from orchestrator.tracking.run_values import (  # noqa: E402
    Point,
    RunInfo,
    RunStatus,
    RunUpdate,
)
from orchestrator.tracking.shipper import Shipper  # noqa: E402

STUDY = "outage"
CELL = RunInfo(name="a", level="cell", identity="cell:a")
STAGE = RunInfo(
    name="a#pretrain",
    level="stage",
    identity="stage:1",
    parent=CELL,
    params={"mask_ratio": 0.75},
)
LINES_PER_S = 5.0
LINES_PER_ATTEMPT = 100
AT_START_S, BETWEEN_S, CATCH_UP_S = 15.0, 20.0, 120.0
ROUNDS, AT_ONCE = 20, 16
MAX_CPU_PERCENT = 0.1


class Training(threading.Thread):
    """Appends to journals at the pace of a training; now and then it is killed and goes back."""

    def __init__(self, root: Path, shipper: Shipper, seed: int) -> None:
        super().__init__(daemon=True)
        self._root, self._shipper, self._random = root, shipper, random.Random(seed)
        self._ended = threading.Event()
        self.attempts: list[Path] = []
        self.slowest_write_s = 0.0

    def update(self, status: RunStatus) -> RunUpdate:
        """What the driver would say of this stage now."""
        return RunUpdate(
            info=STAGE,
            status=status,
            attempts=tuple(self.attempts),
            tags={"state": status.value, "attempts": str(len(self.attempts))},
            results=(Point("final.loss", 0.5, 1000),) if status is RunStatus.FINISHED else (),
            attempt=len(self.attempts),
        )

    def run(self) -> None:
        """Train until told to end."""
        step = 0
        while not self._ended.is_set():
            self.attempts.append(self._root / f"{len(self.attempts) + 1}")
            writer = JournalWriter(self.attempts[-1] / JOURNAL_FILE)
            self._shipper.send(self.update(RunStatus.RUNNING))
            for _ in range(LINES_PER_ATTEMPT):
                step += 10
                began = time.perf_counter()
                writer.write(step, {"loss": 1 / step, "lr": 0.1 / step, "images_per_s": 7.0})
                writer.event("saved", {"step": step})
                self.slowest_write_s = max(self.slowest_write_s, time.perf_counter() - began)
                if self._ended.wait(1 / LINES_PER_S):
                    break
            writer.close()
            step = max(0, step - 10 * self._random.randint(1, 40))

    def end(self) -> None:
        """Stop training and wait for its last line."""
        self._ended.set()
        self.join()


def outage(minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Go through the outages; compare what arrived with the journals."""
    server = Server(folder)
    target = Destination(uri=server.uri, study=STUDY, question="?", origin="x")
    try:
        shipper = Shipper(target)
        absent = shipper.absent
        training = Training(folder / "attempts", shipper, seed)
        training.start()
        _tend(shipper, AT_START_S)
        server.start()
        first = _catch_up(shipper, server.uri, training)
        _tend(shipper, BETWEEN_S)
        server.kill()
        cpu = psutil.Process(shipper.pid).cpu_times()
        _tend(shipper, 60 * minutes)
        after = psutil.Process(shipper.pid).cpu_times()
        server.start()
        second = _catch_up(shipper, server.uri, training)
        training.end()
        shipper.send(training.update(RunStatus.FINISHED))
        problem = shipper.close()
        runs = runs_of(server.uri, STUDY)
        run = next(r for r in runs if r.data.tags["level"] == "stage")
        used = after.user + after.system - cpu.user - cpu.system
        return {
            "minutes_down": minutes,
            "absent": absent,
            "attempts": len(training.attempts),
            "records": compare(server.uri, run, training.attempts),
            "runs": len(runs),
            "problem": problem,
            "caught_up_s": (first, second),
            "slowest_write_ms": round(1000 * training.slowest_write_s, 2),
            "shipper_cpu_percent": round(100 * used / (60 * minutes), 3),
        }
    finally:
        server.kill()


def _tend(shipper: Shipper, seconds: float) -> None:
    """What a driver does meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        shipper.tend()
        time.sleep(0.2)


def _catch_up(shipper: Shipper, uri: str, training: Training) -> float:
    """Seconds until everything that is in the journals now has arrived."""
    began, wanted = time.monotonic(), journal_points(training.attempts)
    while time.monotonic() - began < CATCH_UP_S:
        shipper.tend()
        runs = [r for r in runs_of(uri, STUDY) if r.data.tags["level"] == "stage"]
        if runs and compare_points(uri, runs[0], wanted)["missing"] == 0:
            return round(time.monotonic() - began, 1)
        time.sleep(0.5)
    raise TimeoutError(f"{len(wanted)} records had not arrived after {CATCH_UP_S:g} s")


def rank(folder: Path) -> dict[str, Any]:
    """Pretrain in this process as a rank does; time the journal, and look for MLflow."""
    import orchestrator.rank.entry as rank_main
    from cluster.ranks.actor import RankControl
    from cluster.ranks.environment import stage_environment
    from orchestrator.rank.payload import StagePayload
    from orchestrator.store.data_facts import Datasets
    from studies.catalog import quickstart

    spent = {"cpu": 0.0, "wall": 0.0, "lines": 0}

    class TimedWriter(JournalWriter):
        """The writer, with a clock around the call that all lines go through."""

        def _append(self, content: dict[str, Any]) -> None:
            cpu, wall = time.thread_time(), time.perf_counter()
            super()._append(content)
            spent["cpu"] += time.thread_time() - cpu
            spent["wall"] += time.perf_counter() - wall
            spent["lines"] += 1

    rank_main.JournalWriter = TimedWriter  # type: ignore[misc]
    stage = quickstart.pretrain("N1", 100, 0)
    payload = StagePayload(
        recipe=stage.recipe,
        execution=stage.execution,
        facts=Datasets(LocalStore(folder)).ensure(stage.recipe.data.path),
        science_hash="0" * 16,
        directory=folder / "attempt",
        checkpoints=folder / "checkpoints",
    )
    os.environ |= stage_environment(rank=0, world=1, local_rank=0, local_world=1)
    (folder / "attempt" / "outputs").mkdir(parents=True)
    control = RankControl(0, 1, lambda: False)
    rank_main.warm({}, control)
    cpu = time.process_time()
    result = rank_main.run(payload, control)
    used = time.process_time() - cpu
    working = result.seconds["working"]
    return {
        "imported_mlflow": "mlflow" in sys.modules,
        "steps": result.metrics["steps"],
        "lines": spent["lines"],
        "training_s": round(working, 2),
        "journal_ms": round(1000 * spent["wall"], 2),
        "journal_cpu_percent": round(100 * spent["cpu"] / used, 4),
        "journal_wall_percent": round(100 * spent["wall"] / working, 4),
    }


def rank_in_a_process(folder: Path) -> dict[str, Any]:
    """`rank` in a process of its own, which has imported what a rank imports and no more."""
    program = (
        f"import sys; sys.path[:0] = {PATHS!r}\n"
        "import json, pathlib, tracking\n"
        "print(json.dumps(tracking.rank(pathlib.Path(sys.argv[1]))))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=TESTS.parent,
    )
    if ran.returncode != 0:
        raise RuntimeError(f"the rank failed:\n{ran.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def fresh_stores(folder: Path) -> list[str]:
    """Let processes open fresh stores at once, round after round; return their errors."""
    rounds = (touch_at_once(LocalStore(folder / f"{n}"), AT_ONCE) for n in range(ROUNDS))
    return [error for errors in rounds for error in errors]


def report(section: Section, found: dict[str, Any], alone: dict[str, Any]) -> None:
    """Figures of the outage and of the rank."""
    records = found["records"]
    of = f"of {records['journal']}"
    section.figure(
        "MLflow absent at the start", found["absent"] or "no", "said", bool(found["absent"])
    )
    section.figure(
        "records missing after the outages",
        f"{records['missing']} {of}",
        "0",
        records["missing"] == 0,
    )
    section.figure("records doubled", f"{records['doubled']} {of}", "0", records["doubled"] == 0)
    section.figure(
        "records with another value or time",
        f"{records['different']} {of}",
        "0",
        records["different"] == 0,
    )
    section.figure(
        "runs made, of a study, a cell and a stage", found["runs"], "3", found["runs"] == 3
    )
    section.figure(
        "what the shipper lacked in the end",
        found["problem"] or "nothing",
        "nothing",
        found["problem"] is None,
    )
    section.figure("attempts, each going over steps of the one before", found["attempts"])
    section.figure("minutes down", f"{found['minutes_down']:g}")
    section.figure("caught up after the absence at the start", f"{found['caught_up_s'][0]} s")
    section.figure("caught up after the outage", f"{found['caught_up_s'][1]} s")
    section.figure("slowest line of the journal", f"{found['slowest_write_ms']} ms")
    section.figure("CPU of the shipper while MLflow was down", f"{found['shipper_cpu_percent']} %")
    section.figure(
        "MLflow imported by a rank", alone["imported_mlflow"], "False", not alone["imported_mlflow"]
    )
    section.figure(
        "tracking's CPU time in a rank",
        f"{alone['journal_cpu_percent']} % ({alone['lines']} lines, {alone['journal_ms']} ms, in "
        f"{alone['steps']} steps of {alone['training_s']} s in all)",
        f"{MAX_CPU_PERCENT} %",
        alone["journal_cpu_percent"] <= MAX_CPU_PERCENT,
    )


def main() -> int:
    """Print the figures; exit status 1 if a bar is missed."""
    options = arguments(__doc__, minutes=10.0)
    section = Section("tracking", "MLflow away, and many processes at a fresh store", options.seed)
    with tempfile.TemporaryDirectory(prefix="mae-study-tracking-") as folder:
        places = [Path(folder) / name for name in ("outage", "rank", "fresh")]
        for place in places:
            place.mkdir()
        found = outage(options.minutes, options.seed, places[0])
        report(section, found, rank_in_a_process(places[1]))
        errors = fresh_stores(places[2])
    section.figure(
        f"errors of {AT_ONCE} processes at a fresh store, {ROUNDS} times",
        f"{len(errors)} of {ROUNDS * AT_ONCE}{': ' + errors[0] if errors else ''}",
        "0",
        not errors,
    )
    return section.finish(options.json)


if __name__ == "__main__":
    raise SystemExit(main())
