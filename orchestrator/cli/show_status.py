"""Status, logs and data summaries as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.plan.plan import Plan, PlannedStage, Status, find_stage
from orchestrator.report.goodput import study_goodput
from orchestrator.store.attempts import Attempt, AttemptEnd
from orchestrator.store.journal import JOURNAL_FILE, JournalReader
from orchestrator.store.records import Records
from studies.analysis.goodput.accounting import DRIVER_LOST, SUCCESS, Goodput
from studies.analysis.goodput.interval_advice import StudyGoodput, causes_text, sentence, short_time
from studies.errors import StudyError, unknown

if TYPE_CHECKING:
    from mae_core.data.facts import DataFacts

LOG_TAIL = 200
"""Lines of a log that are shown."""
VERDICTS_SHOWN = 3
"""Failed attempts that are shown of a stage, and its decisions; the latest."""
LEAST_SHARE = 0.05
"""Per cent of the time below which a bucket is not mentioned."""


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
    for sweep in plan.sweeps:
        at, wanted = f" at {sweep.label}" if sweep.label else "", sweep.trials.sweep.num_trials
        console.print(
            f"sweep{at}: {len(sweep.scores)} of {wanted} trials done"
            + (f", winner {sweep.winner.settings}" if sweep.winner else ""),
            highlight=False,
            markup=False,
        )
    if again := _changed(plan):
        _say(
            console,
            f"{len(again)} stages have changed since they were run: `mae-study plan` says how; "
            "what was computed stays in the store",
        )
    _print_verdicts(plan, records, console)
    _print_goodput(study_goodput(plan, records), console)


def _changed(plan: Plan) -> list[str]:
    """Addresses of the stages whose results are not counted, since they are of other settings."""
    return [p.address for p in plan.stages if p.status in (Status.CHANGED, Status.STALE)]


def _print_verdicts(plan: Plan, records: Records, console: Console) -> None:
    """Why attempts failed, what was decided then, and which are not over."""
    for planned, attempts in _started(plan, records):
        failed = _failed(attempts)
        if len(failed) > VERDICTS_SHOWN:
            earlier = len(failed) - VERDICTS_SHOWN
            _say(console, f"{planned.address} {earlier} earlier failed attempts (all: --json)")
        for number, end in failed[-VERDICTS_SHOWN:]:
            message = end.message.partition("\n")[0]
            what = end.cause + (f": {message}" if message else "")
            _say(console, f"{planned.address} attempt {number} ended: {what}")
        if not planned.status.is_work:
            continue
        if attempts[-1].end is None:
            number = attempts[-1].number
            _say(console, f"{planned.address} attempt {number} running or killed")
        decisions = records.decisions(planned.identity.science_hash)
        for made in decisions[-VERDICTS_SHOWN:]:
            _say(console, f"{planned.address} decided: {made.decision}: {made.reason}")


def _print_goodput(goodput: StudyGoodput, console: Console) -> None:
    """Where the time went, and which checkpoint interval would have been best."""
    if goodput.is_empty:
        return
    whole, count = goodput.whole, len(goodput.stages)
    plural = "" if count == 1 else "s"
    _say(console, f"time of {count} stage{plural}, {short_time(whole.span_s)}: {_shares(whole)}")
    repeated = {a: g for a, g in goodput.stages.items() if g.attempts > 1}
    if repeated:
        table = Table()
        for name in ("stage", "attempts", "ended by", "repeated steps", "time (%)"):
            table.add_column(name)
        for address, g in repeated.items():
            counts = str(g.attempts), causes_text(g), str(g.lost_steps)
            shares = ", ".join(f"{b} {s:.1f}" for b, s in g.shares.items() if s >= LEAST_SHARE)
            table.add_row(*map(escape, (address, *counts, shares)))
        console.print(table)
    if goodput.advice is not None:
        _say(console, sentence(goodput.advice))


def _shares(goodput: Goodput) -> str:
    """`81.2 % useful, 9.1 % starting`: what rounds to 0.0 is left out."""
    shown = [f"{s:.1f} % {b}" for b, s in goodput.shares.items() if s >= LEAST_SHARE]
    return ", ".join(shown) or "nothing yet"


def _say(console: Console, text: str) -> None:
    """Print text that others wrote: no markup, no colours, no folding."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def status_json(plan: Plan, records: Records) -> dict[str, object]:
    """The same as plain values."""
    _, _, counts = _matrix(plan)
    started = _started(plan, records)
    goodput = study_goodput(plan, records)
    return {
        "study": plan.study.name,
        "matrix": [
            {"size": s, "duration": d, "done": done, "expected": expected}
            for (s, d), (done, expected) in counts.items()
        ],
        "changed": _changed(plan),
        "unfinished": [
            {
                "stage": p.address,
                **attempts[-1].to_json(),
                "decisions": [d.to_json() for d in records.decisions(p.identity.science_hash)],
            }
            for p, attempts in started
            if p.status.is_work
        ],
        "failed_attempts": [
            {"stage": p.address, "number": number, **end.to_json()}
            for p, attempts in started
            for number, end in _failed(attempts)
        ],
        "goodput": None if goodput.is_empty else goodput.to_dict(),
    }


def _matrix(plan: Plan) -> tuple[list[str], list[str], dict[tuple[str, str], tuple[int, int]]]:
    sizes: dict[str, None] = {}
    durations: dict[str, float] = {}
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for planned in plan.stages:
        if planned.cell.role == "sweep":
            continue
        pretrain = planned.cell.pretrain
        encoder = pretrain.recipe.new_encoder if pretrain else None
        size = (encoder.name or "?") if encoder else "(no encoder)"
        training = pretrain.recipe.training if pretrain else None
        span = training.duration if training else None  # none of an encoder made elsewhere
        duration = "·" if span is None else str(span)
        sizes[size] = None
        durations[duration] = -1.0 if span is None else span.value
        done, expected = counts.get((size, duration), (0, 0))
        counts[size, duration] = (done + (planned.status is Status.DONE), expected + 1)
    return list(sizes), sorted(durations, key=lambda d: durations[d]), counts


def _ratio(count: tuple[int, int] | None) -> str:
    if count is None:
        return ""
    colour = "green" if count[0] == count[1] else "yellow" if count[0] else "default"
    return f"[{colour}]{count[0]}/{count[1]}[/]"


def _started(plan: Plan, records: Records) -> list[tuple[PlannedStage, list[Attempt]]]:
    """Stages that were ever started, each identity once, with their attempts."""
    known = records.known_stages()
    unique = {p.identity.science_hash: p for p in reversed(plan.stages)}
    found = [(p, records.attempts(h)) for h, p in reversed(unique.items()) if h in known]
    return [(planned, attempts) for planned, attempts in found if attempts]


def _failed(attempts: list[Attempt]) -> list[tuple[int, AttemptEnd]]:
    """Numbers and ends of the attempts that did not succeed."""
    # What came before another attempt is over, even if its driver could not write it down.
    lost = AttemptEnd(cause=DRIVER_LOST, message="its driver was killed first")
    over = [a for a in attempts if a.end is not None or a is not attempts[-1]]
    ends = [(a.number, a.end or lost) for a in over]
    return [(number, end) for number, end in ends if end.cause != SUCCESS]


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
    chosen = next((a for a in attempts if a.number == (attempt or attempts[-1].number)), None)
    if chosen is None:
        raise unknown("attempt", str(attempt), [str(a.number) for a in attempts])
    directory = records.attempt_dir(planned.identity.science_hash, chosen.number)
    _say(
        console,
        f"{planned.address} attempt {chosen.number} of {len(attempts)}, "
        f"started {chosen.start.started_at}",
    )
    _print_file(console, directory / f"rank{rank}.log")
    entries = JournalReader(directory / JOURNAL_FILE).read_new()
    if entries:
        last = entries[-1]
        shown = "  ".join(f"{k} {v:.6g}" for k, v in last.metrics.items())
        _say(console, f"last metrics at step {last.step}: {shown}")
    end = chosen.end
    if end is None:
        console.print("no end recorded: it is running, or its driver was killed")
        return
    _say(console, f"ended {end.ended_at}: {end.cause} {end.message}")
    if end.traceback:
        _say(console, end.traceback)


def _print_file(console: Console, path: Path) -> None:
    if not path.exists():
        _say(console, f"no output kept at {path}")
        return
    lines = path.read_text(errors="replace").splitlines()
    if len(lines) > LOG_TAIL:
        _say(console, f"… {len(lines) - LOG_TAIL} earlier lines in {path}")
    for line in lines[-LOG_TAIL:]:
        _say(console, line)


def print_mapping(values: Mapping[str, object], console: Console, indent: int = 0) -> None:
    """Print nested plain values, one per line."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            _say(console, f"{'  ' * indent}{key}")
            print_mapping(value, console, indent + 1)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            _say(console, f"{'  ' * indent}{key:18} {shown}")


def import_json(facts: DataFacts, destination: str) -> dict[str, object]:
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
    names = facts.first_skipped
    values = import_json(facts, destination).items()
    print_mapping({k: v for k, v in values if k != "first_left_out"}, console)
    if names:
        more = ", the first" if facts.num_skipped > len(names) else ""
        _say(console, f"{facts.num_skipped} files cannot be decoded and were left out{more}:")
    for name in names:
        _say(console, f"  {name}")
