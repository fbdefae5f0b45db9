"""Status, logs and data summaries as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.journal import JOURNAL_FILE, JournalReader
from orchestrator.plan import Plan, PlannedStage, Status
from orchestrator.records import Records
from studies.errors import StudyError, unknown

if TYPE_CHECKING:
    from mae_core.data.facts import DataFacts

LOG_TAIL = 200
"""Lines of a log that are shown."""


def print_status(plan: Plan, records: Records, console: Console) -> None:
    """Print a matrix of done/expected stages per size and duration, then what is amiss."""
    sizes, durations, counts = _matrix(plan)
    _say(console, f"{plan.study.name}: stages done / expected")
    table = Table()
    table.add_column("size")
    for duration in durations:
        table.add_column(duration, justify="right")
    for size in sizes:
        table.add_row(escape(size), *(_ratio(counts.get((size, d))) for d in durations))
    console.print(table)
    if plan.sweep is not None:
        sweep = plan.sweep
        console.print(
            f"sweep: {len(sweep.scores)} of {sweep.trials.sweep.num_trials} trials done"
            + (f", winner {sweep.winner['settings']}" if sweep.winner else ""),
            highlight=False,
            markup=False,
        )
    for planned, attempt in _unfinished(plan, records):
        end = attempt.get("end")
        what = f"ended: {end['cause']}: {end.get('message', '')}" if end else "running or killed"
        _say(console, f"{planned.address} attempt {attempt['number']} {what}")


def _say(console: Console, text: str) -> None:
    """Print text that others wrote: no markup, no colours, no folding."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def status_json(plan: Plan, records: Records) -> dict[str, Any]:
    """The same as plain values."""
    _, _, counts = _matrix(plan)
    return {
        "study": plan.study.name,
        "matrix": [
            {"size": s, "duration": d, "done": done, "expected": expected}
            for (s, d), (done, expected) in counts.items()
        ],
        "unfinished": [{"stage": p.address, **a} for p, a in _unfinished(plan, records)],
    }


def _matrix(plan: Plan) -> tuple[list[str], list[str], dict[tuple[str, str], tuple[int, int]]]:
    sizes: dict[str, None] = {}
    durations: dict[str, float] = {}
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for planned in plan.stages:
        if planned.cell.role == "sweep":
            continue
        pretrain = planned.cell.pretrain
        recipe: Any = pretrain.recipe if pretrain else None
        size = (recipe.encoder.name or "?") if recipe else "(no encoder)"
        duration = str(recipe.duration) if recipe else "·"
        sizes[size] = None
        durations[duration] = recipe.duration.value if recipe else -1.0
        done, expected = counts.get((size, duration), (0, 0))
        counts[size, duration] = (done + (planned.status is Status.DONE), expected + 1)
    return list(sizes), sorted(durations, key=lambda d: durations[d]), counts


def _ratio(count: tuple[int, int] | None) -> str:
    if count is None:
        return ""
    colour = "green" if count[0] == count[1] else "yellow" if count[0] else "default"
    return f"[{colour}]{count[0]}/{count[1]}[/]"


def _unfinished(plan: Plan, records: Records) -> list[tuple[PlannedStage, dict[str, Any]]]:
    """Stages with attempts that did not finish: the last attempt of each."""
    found = []
    known = records.known_stages()
    for planned in plan.stages:
        science_hash = planned.identity.science_hash
        if planned.status.is_work and science_hash in known:
            attempts = records.attempts(science_hash)
            if attempts:
                found.append((planned, attempts[-1]))
    return found


def print_logs(
    plan: Plan,
    records: Records,
    console: Console,
    *,
    cell: str,
    stage: str | None,
    attempt: int | None,
    rank: int,
) -> None:
    """Print an attempt's log, its end and its last metrics."""
    planned = find_stage(plan, cell, stage)
    attempts = records.attempts(planned.identity.science_hash)
    if not attempts:
        raise StudyError(f"{planned.address} has not been started yet")
    chosen = next((a for a in attempts if a["number"] == (attempt or attempts[-1]["number"])), None)
    if chosen is None:
        raise unknown("attempt", str(attempt), [str(a["number"]) for a in attempts])
    directory = records.attempt_dir(planned.identity.science_hash, chosen["number"])
    _say(
        console,
        f"{planned.address} attempt {chosen['number']} of {len(attempts)}, "
        f"started {chosen.get('started_at')}",
    )
    _print_file(console, directory / f"rank{rank}.log")
    entries = JournalReader(directory / JOURNAL_FILE).read_new()
    if entries:
        last = entries[-1]
        shown = "  ".join(f"{k} {v:.6g}" for k, v in last.metrics.items())
        _say(console, f"last metrics at step {last.step}: {shown}")
    end = chosen["end"]
    if end is None:
        console.print("no end recorded: it is running, or its driver was killed")
        return
    _say(console, f"ended {end['ended_at']}: {end['cause']} {end.get('message', '')}")
    if end.get("traceback"):
        _say(console, end["traceback"])


def _print_file(console: Console, path: Any) -> None:
    if not path.exists():
        _say(console, f"no output kept at {path}")
        return
    lines = path.read_text(errors="replace").splitlines()
    if len(lines) > LOG_TAIL:
        _say(console, f"… {len(lines) - LOG_TAIL} earlier lines in {path}")
    for line in lines[-LOG_TAIL:]:
        _say(console, line)


def find_stage(plan: Plan, cell: str, stage: str | None) -> PlannedStage:
    """Return the planned stage; raises `StudyError` with the nearest known name."""
    in_cell = [s for s in plan.stages if s.cell.address == cell]
    if not in_cell:
        raise unknown("cell", cell, {s.cell.address for s in plan.stages})
    if stage is None:
        return in_cell[0]
    for planned in in_cell:
        if planned.stage.name == stage:
            return planned
    raise unknown("stage", stage, [s.stage.name for s in in_cell], where=f"cell {cell}")


def print_mapping(values: dict[str, Any], console: Console, indent: int = 0) -> None:
    """Print nested plain values, one per line."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            _say(console, f"{'  ' * indent}{key}")
            print_mapping(value, console, indent + 1)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            _say(console, f"{'  ' * indent}{key:18} {shown}")


def import_json(facts: DataFacts, destination: str) -> dict[str, Any]:
    """What an import has written and left out, as plain values."""
    return {
        "train": facts.num_train,
        "dev": facts.num_dev,
        "test": facts.num_test,
        "classes": len(facts.class_names),
        "left_out": facts.num_skipped,
        "first_left_out": list(facts.first_skipped),
        "fingerprint": facts.fingerprint,
        "destination": destination,
    }


def print_import(facts: DataFacts, destination: str, console: Console) -> None:
    """Print what an import has written, then name the first files that it left out."""
    values = import_json(facts, destination)
    names = values.pop("first_left_out")
    print_mapping(values, console)
    if names:
        more = ", the first" if facts.num_skipped > len(names) else ""
        _say(console, f"{facts.num_skipped} files cannot be decoded and were left out{more}:")
    for name in names:
        _say(console, f"  {name}")
