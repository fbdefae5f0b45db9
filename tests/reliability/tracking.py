"""Tracking through outages: what MLflow lacks or has twice, and what it costs a rank.

A journal grows like a training's, with replays after kills, while the server is absent at the
start, comes, is killed for `--minutes`, and comes back. Then a real stage runs in one rank, and
many processes open a fresh store at once:

    python tests/reliability/tracking.py [--minutes 10] [--json OUT]
"""

from __future__ import annotations

import argparse
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
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import psutil  # noqa: E402
from mlflow_servers import Server, compare, runs_of, touch_at_once  # noqa: E402

from orchestrator.journal import JOURNAL_FILE, Entry, JournalWriter  # noqa: E402
from orchestrator.shipping import Item  # noqa: E402
from orchestrator.store import LocalStore  # noqa: E402
from orchestrator.tracked import Shipper  # noqa: E402
from orchestrator.tracking import RunInfo, Target  # noqa: E402

STUDY = "outage"
STAGE = RunInfo(name="a#pretrain", level="stage", identity="stage:1", params={"mask_ratio": 0.75})
LINES_PER_S = 5.0
LINES_PER_ATTEMPT = 100
AT_START_S, BETWEEN_S, CATCH_UP_S = 15.0, 20.0, 120.0
ROUNDS, AT_ONCE = 20, 16
MAX_CPU_PERCENT = 0.1


class Training(threading.Thread):
    """Appends to journals at the pace of a training; now and then it is killed and goes back."""

    def __init__(self, root: Path, shipper: Shipper) -> None:
        super().__init__(daemon=True)
        self._root, self._shipper = root, shipper
        self._stop = threading.Event()
        self.attempts: list[Path] = []
        self.slowest_write_s = 0.0

    def item(self, action: str) -> Item:
        """What the driver would say of this stage now."""
        return Item(
            action=action,
            info=STAGE,
            attempts=tuple(self.attempts),
            tags={"state": action, "attempts": len(self.attempts)},
            entry=Entry(0, 1000, 0, {"final.loss": 0.5}),
            attempt=len(self.attempts),
        )

    def run(self) -> None:
        """Train until told to end."""
        step = 0
        while not self._stop.is_set():
            self.attempts.append(self._root / f"{len(self.attempts) + 1}")
            writer = JournalWriter(self.attempts[-1] / JOURNAL_FILE)
            self._shipper.send(self.item("follow"))
            for _ in range(LINES_PER_ATTEMPT):
                step += 10
                began = time.perf_counter()
                writer.write(step, {"loss": 1 / step, "lr": 0.1 / step, "images_per_s": 7.0})
                writer.event("saved", {"step": step})
                self.slowest_write_s = max(self.slowest_write_s, time.perf_counter() - began)
                if self._stop.wait(1 / LINES_PER_S):
                    break
            writer.close()
            step = max(0, step - 10 * random.Random(step).randint(1, 40))

    def end(self) -> None:
        """Stop training and wait for its last line."""
        self._stop.set()
        self.join()


def outage(minutes: float, folder: Path) -> dict[str, Any]:
    """Go through the outages; compare what arrived with the journals."""
    server = Server(folder)
    target = Target(uri=server.uri, study=STUDY, question="?", artifacts=None,
                    store=LocalStore(folder / "store"))  # fmt: skip
    try:
        shipper = Shipper(target)
        absent = shipper.absent
        training = Training(folder / "attempts", shipper)
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
        shipper.send(training.item("done"))
        problem = shipper.close()
        runs = runs_of(server.uri, STUDY)
        run = next(r for r in runs if r.data.tags["level"] == "stage")
        used = after.user + after.system - cpu.user - cpu.system
        return {
            "minutes_down": minutes,
            "absent_at_start": absent,
            "attempts": len(training.attempts),
            "records": compare(server.uri, run, training.attempts),
            "runs": len(runs),
            "problem": problem,
            "catch_up_s": {"after_start": first, "after_outage": second},
            "slowest_write_ms": round(1000 * training.slowest_write_s, 2),
            "shipper_cpu_percent_while_down": round(100 * used / (60 * minutes), 3),
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
    began = time.monotonic()
    lines = sum((a / JOURNAL_FILE).read_bytes().count(b'"metrics"') for a in training.attempts)
    while time.monotonic() - began < CATCH_UP_S:
        shipper.tend()
        runs = [r for r in runs_of(uri, STUDY) if r.data.tags["level"] == "stage"]
        found = compare(uri, runs[0], training.attempts) if runs else None
        # The training goes on: what it has said in the last seconds may still be on its way.
        if found and found["missing"] <= 3 * 3 * LINES_PER_S:
            return round(time.monotonic() - began, 1)
        time.sleep(0.5)
    raise TimeoutError(f"{lines} lines had not arrived after {CATCH_UP_S:g} s")


def rank(folder: Path) -> dict[str, Any]:
    """Pretrain in this process as a rank does; time the journal, and look for MLflow."""
    import orchestrator.rank_main as rank_main
    from cluster.rank_actor import RankControl
    from orchestrator.datasets import Datasets
    from studies.catalog import quickstart
    from studies.codec import to_plain

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
    payload = {
        "recipe": to_plain(stage.recipe),
        "execution": to_plain(stage.execution),
        "facts": Datasets(LocalStore(folder)).ensure(stage.recipe.data.path).to_json(),
        "science_hash": "0" * 16,
        "directory": str(folder / "attempt"),
        "checkpoints": str(folder / "checkpoints"),
        "encoder": None,
    }
    control = RankControl(0, 1, lambda: False)
    rank_main.warm({}, control)
    cpu = time.process_time()
    values = rank_main.run_stage(payload, control)
    used = time.process_time() - cpu
    working = values["seconds"]["working"]
    return {
        "imported_mlflow": "mlflow" in sys.modules,
        "steps": values["metrics"]["steps"],
        "lines": spent["lines"],
        "training_s": round(working, 2),
        "journal_ms": round(1000 * spent["wall"], 2),
        "journal_cpu_percent": round(100 * spent["cpu"] / used, 4),
        "journal_wall_percent": round(100 * spent["wall"] / working, 4),
    }


def rank_in_a_process(folder: Path) -> dict[str, Any]:
    """`rank` in a process of its own, which has imported what a rank imports and no more."""
    program = (
        f"import sys; sys.path[:0] = {[str(TESTS), str(TESTS.parent)]!r}\n"
        "from pathlib import Path\n"
        "import json, reliability.tracking as section\n"
        "print(json.dumps(section.rank(Path(sys.argv[1]))))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False,
        timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=TESTS.parent,
    )  # fmt: skip
    if ran.returncode != 0:
        raise RuntimeError(f"the rank failed:\n{ran.stderr[-3000:]}")
    figures: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def fresh_stores(folder: Path) -> dict[str, Any]:
    """Let processes open fresh stores at once, round after round."""
    errors = []
    for number in range(ROUNDS):
        errors += touch_at_once(LocalStore(folder / f"{number}"), AT_ONCE)
    return {"rounds": ROUNDS, "processes": AT_ONCE, "errors": len(errors), "texts": errors[:5]}


def holds(figures: dict[str, Any]) -> bool:
    """True if every bar is met."""
    outage_, rank_, fresh = figures["outage"], figures["rank"], figures["fresh_store"]
    records = outage_["records"]
    return (
        outage_["problem"] is None
        and outage_["absent_at_start"] is not None
        and outage_["runs"] == 2
        and records["missing"] == records["doubled"] == records["different"] == 0
        and not rank_["imported_mlflow"]
        and rank_["journal_cpu_percent"] <= MAX_CPU_PERCENT
        and fresh["errors"] == 0
    )


def main() -> int:
    """Print the figures; exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long MLflow is down")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mae-study-tracking-") as folder:
        figures: dict[str, Any] = {"section": "tracking"}
        for name, measure in (
            ("outage", lambda at: outage(options.minutes, at)),
            ("rank", rank_in_a_process),
            ("fresh_store", fresh_stores),
        ):
            place = Path(folder) / name
            place.mkdir()
            figures[name] = measure(place)
            print(f"{name}: {json.dumps(figures[name])}", flush=True)
    figures |= {"seconds": round(time.monotonic() - began, 1), "holds": holds(figures)}
    records = figures["outage"]["records"]
    print(
        f"{records['journal']} records in the journals, {records['mlflow']} in MLflow: "
        f"{records['missing']} missing, {records['doubled']} doubled, "
        f"{records['different']} different; {'ok' if figures['holds'] else 'MISSED'}"
    )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0 if figures["holds"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
