"""Print what it costs to hand a gang its next stage: warm against cold.

Run: make bench-handover
Bar: warm <= 0.5 s median from one stage's result committed to the first finished step of the next;
after 20 mixed stages a result equals the cold one by hash and memory has grown by <= 20 %.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.connect import connect
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape
from cluster.verdict import Cause, judge
from mae_core.config import Duration, Execution
from orchestrator.drive.task import Task, completion, make_payload
from orchestrator.plan.plan import make_plan
from orchestrator.rank.entry import ENTRY, WARM_ENTRY
from orchestrator.rank.payload import StageResult
from orchestrator.store.attempts import AttemptStart
from orchestrator.store.data_facts import Datasets
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import JOURNAL_FILE, JournalReader
from orchestrator.store.records import Records, digest_outputs
from studies.catalog import quickstart
from studies.spec.cell import Cell, Stage
from studies.spec.study import Study

MIXED = [(2, 1), (1, 1), (2, 3), (1, 0), (2, 2)] * 4
"""World size and ZeRO stage of twenty stages."""


def stage(world: int, zero: int, seed: int) -> Stage:
    base = quickstart.pretrain("N2", 2, seed)
    execution = Execution(world_size=world, zero_stage=zero, loader_threads=0)  # type: ignore[arg-type]
    recipe = dataclasses.replace(base.recipe, duration=Duration.epochs(2))
    return dataclasses.replace(base, recipe=recipe, execution=execution)


class Bench:
    """Runs stages one after another as the controller does: start, wait, record."""

    def __init__(self, folder: Path) -> None:
        cells = [
            Cell(address=f"c{i}", stages=(stage(world, zero, i),))
            for i, (world, zero) in enumerate(MIXED)
        ]
        self.records = Records(LocalStore(folder))
        self.datasets = Datasets(self.records.store)
        study = Study(name="bench", question="?", cells=tuple(cells))
        self.plan = make_plan(study, self.records, self.datasets)

    def run(self, pool: SlotPool, number: int) -> dict[str, Any]:
        """Run stage `number`; return times of its first step and commit, digests, memory."""
        task = Task(self.plan.stages[number], ())
        task.attempt = self.records.begin_attempt(task.key, AttemptStart())
        payload = make_payload(task, self.records, self.datasets)
        gang = pool.launch(ENTRY, payload.to_json(), task.num_ranks)
        assert gang is not None
        while not gang.is_finished:
            pool.wait([gang], 0.2)
        verdict = judge(list(gang.outcomes.values()))
        assert verdict.cause is Cause.SUCCESS, verdict
        result = StageResult(**gang.outcomes[0].value or {})
        record = completion(task, result, 0.0, self.records)
        self.records.complete(record)
        committed = time.time()
        pool.release(gang)
        directory = self.records.attempt_dir(task.key, task.attempt)
        first = JournalReader(directory / JOURNAL_FILE).read_new()[0]
        weights = digest_outputs(directory / "outputs")["encoder.safetensors"]
        rss = {gang.slots[r].process.pid: o.rss_bytes for r, o in gang.outcomes.items()}
        return {
            "first": first.timestamp_ms / 1000,
            "committed": committed,
            "weights": weights,
            "rss": rss,
        }


def main() -> None:
    """Run the twenty stages warm, then the last five of them cold, and print both."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        warm: list[dict[str, Any]] = []
        bench = Bench(Path(folder) / "warm")
        with connect(num_cpus=2) as capacity:
            shape = slot_shape(capacity)
            with SlotPool("bench-warm", 2, capacity, shape=shape, warm_entry=WARM_ENTRY) as pool:
                ready = time.time()
                warm = [bench.run(pool, n) for n in range(len(MIXED))]
            cold = []
            fresh = Bench(Path(folder) / "cold")
            for n in range(len(MIXED) - 5, len(MIXED)):
                asked = time.time()
                with SlotPool("bench-cold", 2, capacity, shape=shape) as pool:
                    cold.append(fresh.run(pool, n) | {"asked": asked})
    report(began, ready, warm, cold)


def report(began: float, ready: float, warm: list[Any], cold: list[Any]) -> None:
    """Print the figures."""
    handovers = [b["first"] - a["committed"] for a, b in zip(warm, warm[1:], strict=False)]
    colds = [c["first"] - c["asked"] for c in cold]
    growth = []
    for pid in warm[0]["rss"]:
        seen = [w["rss"][pid] for w in warm if pid in w["rss"]]
        growth.append(100 * (seen[-1] / seen[0] - 1))
    same = sum(w["weights"] == c["weights"] for w, c in zip(warm[-5:], cold, strict=True))
    figures = {
        "embedded Ray and two warm ranks, s": round(ready - began, 2),
        "warm handover median, s (19)": round(statistics.median(handovers), 3),
        "warm handover worst, s": round(max(handovers), 3),
        "cold start median, s (5: new processes on a running Ray)": round(
            statistics.median(colds), 2
        ),
        "weights equal to the cold run's, of 5": same,
        "memory growth over 20 stages, % (worst rank)": round(max(growth), 1),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
