"""Rehearse failures on the user's own cluster: the same run, once undisturbed and once killed.

Each attempt of the disturbed run carries a fault drawn from a seed: one rank, one fault point,
one hit. What comes out is compared by hash with the undisturbed run, and metric by metric.
"""

from __future__ import annotations

import json
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.ranks.outcome import JsonObject
from mae_core.config import STATE_FILE, Duration, Execution, Precision, PretrainRecipe
from orchestrator.drive.observer import View
from orchestrator.rank.faults import Fault, read_faults
from orchestrator.report.goodput import from_store
from orchestrator.run import RunOptions, run_study
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import StageReader, read_events
from orchestrator.store.kept_files import output
from orchestrator.store.records import DoneRecord, Records
from orchestrator.tracking.mlflow_runs import stage_history
from studies.catalog import quickstart
from studies.spec.cell import Cell
from studies.spec.study import Study

BATCH = 96
INTERVAL = 10
"""Steps between checkpoints."""
STEPS_PER_KILL = 3 * INTERVAL
"""No attempt gets further before its fault, so that all of them happen before the end."""
LATE = 3
"""Every so many attempts the fault comes after a checkpoint: a stage without any progress would
be given up, which is right and not what is rehearsed."""


@dataclass(frozen=True, kw_only=True)
class DrillOptions:
    """What to rehearse, and where."""

    store: Path
    """A directory for the drill alone; a cluster needs one that all its nodes see."""
    kills: int = 3
    seed: int = 0
    world_size: int = 2
    zero_stage: int = 2
    precision: Precision = "fp32"
    snapshot: str = "background"
    spares: int = 1
    """Warm processes that stand by; 0 = a fresh one after each kill."""
    action: str = "kill"
    address: str | None = None


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One rehearsed failure."""

    attempt: int
    rank: int
    point: str
    at: float
    """Unix seconds."""
    step: int
    """Last step that the killed rank had finished."""
    resumed_from: int
    lost_steps: int
    recovery_s: float
    """From the kill to the next finished step."""
    waited_s: float
    """From the kill to the begin of the next attempt: long if no warm process stood by."""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """What a drill has found."""

    options: DrillOptions
    kills: list[Kill]
    is_exact: bool
    """Weights, optimizer, generators and next samples equal those of the undisturbed run."""
    differences: list[str]
    num_metrics: int
    """(key, step) pairs of the undisturbed run."""
    metrics_lost: int
    metrics_doubled: int
    """Rows in MLflow beyond one per pair."""
    metrics_changed: int
    """Losses and learning rates that differ from the undisturbed run's."""
    goodput: dict[str, float]
    """Share of the disturbed run's time by bucket, %."""

    @property
    def lost_steps(self) -> list[int]:
        """Steps that had to be done again, per kill."""
        return [k.lost_steps for k in self.kills]

    @property
    def recovery_s(self) -> list[float]:
        """Seconds from kill to the next finished step, per kill."""
        return [k.recovery_s for k in self.kills]

    @property
    def is_passed(self) -> bool:
        """True if nothing was lost but time."""
        lost = self.metrics_lost + self.metrics_doubled + self.metrics_changed
        return self.is_exact and lost == 0 and len(self.kills) == self.options.kills

    def to_json(self) -> JsonObject:
        """As plain values, with the summary that is printed."""
        options = asdict(self.options) | {"store": str(self.options.store)}
        return asdict(self) | {
            "options": options,
            "passed": self.is_passed,
            "interval": INTERVAL,
            "by_point": dict(Counter(k.point for k in self.kills)),
            "median_recovery_s": statistics.median(self.recovery_s) if self.kills else None,
            "max_lost_steps": max(self.lost_steps, default=0),
        }


def run_drill(options: DrillOptions, view: View | None = None) -> Certificate:
    """Run both; raises what `run_study` raises."""
    study = drill_study(options)
    planned = DrawnFaults(options)
    calm = _run(study, options, options.store / "calm", None, view)
    rough = _run(study, options, options.store / "rough", planned, view)
    return _compare(options, calm, rough)


def drill_study(options: DrillOptions) -> Study:
    """A pretraining of seconds that saves every few steps and records its final state."""
    stage = quickstart.pretrain("N1", 10, 0)
    assert isinstance(stage.recipe, PretrainRecipe)
    recipe = replace(
        stage.recipe,
        duration=Duration.steps(STEPS_PER_KILL * options.kills + 2 * INTERVAL),
        lr_schedule=replace(stage.recipe.lr_schedule, warmup=Duration.steps(INTERVAL)),
        global_batch=BATCH,
        precision=options.precision,
    )
    execution = Execution(
        world_size=options.world_size,
        zero_stage=options.zero_stage,  # type: ignore[arg-type]
        loader_threads=0,
        checkpoint_every_steps=INTERVAL,
        snapshot=options.snapshot,  # type: ignore[arg-type]
        record_state=True,
    )
    cell = Cell(address="drill", stages=(replace(stage, recipe=recipe, execution=execution),))
    return Study(name="drill", question="Is anything lost when ranks are killed?", cells=(cell,))


class DrawnFaults:
    """Draws one fault per attempt, from the seed and the attempt's number alone."""

    def __init__(self, options: DrillOptions) -> None:
        self._options = options

    def __call__(self, attempt: int) -> Sequence[Fault]:
        """Faults of an attempt (from 1); none once all kills are done."""
        options = self._options
        if attempt > options.kills:
            return ()
        draw = random.Random(f"{options.seed}/{attempt}")
        rank = draw.randrange(options.world_size)
        if attempt % LATE == 0:
            point, hit = "step", draw.randint(INTERVAL + INTERVAL // 2, STEPS_PER_KILL)
        else:
            point = draw.choice(sorted(REACH))
            only_first, most = REACH[point]
            rank, hit = (0 if only_first else rank), draw.randint(1, most)
        return (Fault(rank, point, hit, options.action),)


REACH: dict[str, tuple[bool, int]] = {
    "start": (False, 1),
    "restore": (False, 1),
    "load": (False, STEPS_PER_KILL),
    "step": (False, STEPS_PER_KILL),
    "log": (False, 1),
    "save": (False, 2),
    "copied": (False, 2),
    "write": (False, 20),
    "fsync": (False, 3),
    "rename": (True, 2),
    "delete": (True, 2),
    "committed": (False, 2),
}
"""Fault point → (only rank 0 comes by, hits that every attempt of the drill's length reaches)."""


@dataclass(frozen=True)
class _Run:
    records: Records
    key: str
    uri: str


def _run(
    study: Study,
    options: DrillOptions,
    store: Path,
    faults: DrawnFaults | None,
    view: View | None,
) -> _Run:
    outcome = run_study(
        study,
        RunOptions(
            store=store,
            address=options.address,
            num_cpus=options.world_size + options.spares if options.address is None else None,
            slots=options.world_size,
            spares=options.spares if faults else 0,
            write_report=False,
            faults=faults,
        ),
        view,
    )
    [planned] = outcome.plan.stages
    return _Run(Records(LocalStore(store)), planned.identity.science_hash, outcome.tracking_uri)


def _compare(options: DrillOptions, calm: _Run, rough: _Run) -> Certificate:
    differences = _differences(calm, rough)
    expected, found = (_curve(run) for run in (calm, rough))
    # Two rows of one key and step at different times would be drawn as two points.
    rows = Counter((key, step) for key, step, _ in stage_history(rough.uri, "drill", rough.key))
    shipped = {pair for pair in rows if pair in expected}
    return Certificate(
        options=options,
        kills=_kills(rough),
        is_exact=not differences,
        differences=differences,
        num_metrics=len(expected),
        metrics_lost=len(expected) - len(shipped),
        metrics_doubled=sum(n - 1 for pair, n in rows.items() if pair in expected),
        metrics_changed=sum(
            found.get(pair) != value
            for pair, value in expected.items()
            if pair[0] in ("loss", "lr", "grad_norm")
        ),
        goodput=from_store(rough.records, rough.key).shares,
    )


def _differences(calm: _Run, rough: _Run) -> list[str]:
    """Names of what is not equal between the two results."""
    states = [_state(run) for run in (calm, rough)]
    names = states[0].keys() | states[1].keys()
    found = [n for n in sorted(names) if states[0].get(n) != states[1].get(n)]
    outputs = [_done(run).outputs for run in (calm, rough)]
    weights = [n for n in outputs[0] if n.endswith(".safetensors")]
    return found + [n for n in weights if outputs[0][n] != outputs[1].get(n)]


def _done(run: _Run) -> DoneRecord:
    record = run.records.done(run.key)
    assert record is not None, "a study that ran to its end has its record"
    return record


def _state(run: _Run) -> JsonObject:
    path = output(run.records, _done(run), STATE_FILE)
    content: JsonObject = json.loads(path.read_text())
    files: JsonObject = content.pop("files")
    return content | files


def _attempts(run: _Run) -> list[Path]:
    return [run.records.attempt_dir(run.key, a.number) for a in run.records.attempts(run.key)]


def _curve(run: _Run) -> dict[tuple[str, int], float]:
    reader = StageReader()
    reader.follow(_attempts(run))
    with reader.reading() as entries:
        return {(key, e.step): value for e in entries for key, value in e.metrics.items()}


def _kills(run: _Run) -> list[Kill]:
    """What the ranks noted before they died, with what the next attempts say."""
    directories = _attempts(run)
    events = [read_events(d / "journal.jsonl") for d in directories]
    found = []
    for number, directory in enumerate(directories):
        notes = read_faults(directory)
        if not notes:
            continue
        note = notes[0]
        step = _restored(events[number]) + note.steps
        later = [e for part in events[number + 1 :] for e in part]
        resumed = next((e["step"] for e in later if e["event"] == "restored"), 0)
        began = next((e["t"] / 1000 for e in later if e["event"] == "began"), float("nan"))
        stepped = next((e["t"] / 1000 for e in later if e["event"] == "stepped"), float("nan"))
        found.append(
            Kill(
                attempt=number + 1,
                rank=note.fault.rank,
                point=note.fault.point,
                at=note.at,
                step=step,
                resumed_from=resumed,
                lost_steps=max(0, step - resumed),
                recovery_s=stepped - note.at,
                waited_s=began - note.at,
            )
        )
    return found


def _restored(events: list[JsonObject]) -> int:
    """Step that an attempt went on from; where it died before that, it has done no step."""
    return next((int(e["step"]) for e in events if e["event"] == "restored"), 0)
