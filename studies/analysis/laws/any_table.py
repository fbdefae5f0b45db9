"""Laws of any table of results, with the columns that its owner names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from studies.analysis.laws import forms
from studies.analysis.laws.by_protocol import ProtocolLaw, law_of, usable
from studies.analysis.laws.fit import Method
from studies.analysis.laws.forms import Law
from studies.analysis.laws.frontier import best_per_bin
from studies.analysis.laws.observations import Observations, observe
from studies.analysis.laws.refusals import Statement
from studies.analysis.laws.selection import default_candidates, one_axis_candidates
from studies.errors import StudyError, unknown

Measure = Literal["loss", "error", "accuracy"]
ONE: Mapping[str, Callable[[str], Law]] = {
    "power": forms.power,
    "power-floor": forms.power_floor,
    "broken": forms.broken,
    "saturating": forms.saturating,
}
TWO: Mapping[str, Callable[[str, str], Law]] = {
    "product": forms.product,
    "additive": forms.additive,
    "additive-shared": forms.additive_shared,
}
FRONTIER = "frontier"
HASH = "science_hash"
"""Column of the results table that says which rows are one measurement."""
NAMES = (*ONE, *TWO, "bounded", FRONTIER)
"""`bounded` is of one axis or of two, and needs the error of chance; `frontier` is fitted to the
best of each bin of its axis, a quarter of a decade wide."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What of a table is fitted."""

    y: str
    """Column of results."""
    axes: tuple[str, ...]
    """Columns of what was varied, one or two."""
    measure: Measure = "loss"
    """`error` and `accuracy` are in per cent; an accuracy's error is 100 minus it."""
    by: str | None = None
    """Column whose values have a law each."""
    where: tuple[tuple[str, str], ...] = ()
    """Only rows with these values."""
    laws: tuple[str, ...] = ()
    """Names of `NAMES`; none: all that suit the axes compete."""
    top: float | None = None
    """Error of chance, for the bounded law."""


def read_table(path: Path) -> dict[str, list[object]]:
    """Columns of a CSV or Parquet file.

    Raises:
        StudyError: it is neither, or cannot be read.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        is_parquet = path.suffix == ".parquet"
        table = parquet.read_table(path) if is_parquet else csv.read_csv(path)
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"{path} is no CSV or Parquet table ({reason})") from error
    return dict(table.to_pydict())


def fit_table(
    table: Mapping[str, Sequence[object]],
    question: Question,
    targets: Sequence[Mapping[str, float]] = (),
    method: Method | None = None,
) -> list[ProtocolLaw]:
    """A law for each group of rows, chosen by what it predicts at the large end.

    Rows with equal axes are seeds of one cell; rows without a number are left out and said.

    Raises:
        StudyError: a column, law or target that does not fit.
    """
    for name in (question.y, *question.axes, *(name for name, _ in question.where)):
        _require(table, name)
    tried = _candidates(question)
    for target in targets:
        missing = [axis for axis in question.axes if axis not in target]
        if missing:
            raise StudyError(f"a target needs {', '.join(question.axes)}; {missing[0]} is missing")
    chosen = method or Method(starts=4)
    found = []
    for label, rows in _groups(table, question).items():
        data = _observations(table, rows, question)
        statements: tuple[Statement, ...] = ()
        if question.laws == (FRONTIER,):
            best = best_per_bin(usable(data), question.axes[0])
            data, statements = best.data, best.statements
        law = law_of(label, data, tried, targets, chosen)
        found.append(replace(law, statements=(*statements, *law.statements)))
    return found


def _require(table: Mapping[str, Sequence[object]], name: str) -> None:
    if name not in table:
        raise unknown("column", name, table, where="the table")


def _candidates(question: Question) -> tuple[Law, ...]:
    axes, top = question.axes, question.top
    if not 1 <= len(axes) <= 2:
        raise StudyError(f"{len(axes)} axes: laws here are of one or two")
    if not question.laws:
        if len(axes) == 1:
            return one_axis_candidates(axes[0], top=top)
        return default_candidates(top=top, size=axes[0], duration=axes[1])
    if FRONTIER in question.laws and len(question.laws) > 1:
        raise StudyError("frontier is fitted to the best runs alone: do not name it with others")
    return tuple(_law(name, axes, top) for name in question.laws)


def _law(name: str, axes: tuple[str, ...], top: float | None) -> Law:
    if name not in NAMES:
        raise unknown("law", name, NAMES)
    if name == "bounded":
        if top is None:
            raise StudyError("the bounded law needs the error of chance: --top 99.9, for example")
        return forms.bounded(top, *axes) if len(axes) == 2 else forms.bounded_power(top, *axes)
    wanted = 2 if name in TWO else 1
    if len(axes) != wanted:
        raise StudyError(f"the law {name!r} has {wanted} axes, and {len(axes)} are named")
    return TWO[name](axes[0], axes[1]) if wanted == 2 else ONE.get(name, forms.frontier)(axes[0])


def _groups(table: Mapping[str, Sequence[object]], question: Question) -> dict[str, list[int]]:
    """Rows that are asked for, by label."""
    asked = [
        i
        for i in range(len(table[question.y]))
        if all(str(table[name][i]) == value for name, value in question.where)
    ]
    rows = _measured_once(table, asked, question)
    if not rows:
        shown = " and ".join(f"{name}={value}" for name, value in question.where)
        raise StudyError(f"no row has {shown}" if shown else "the table has no rows")
    if question.by is None:
        return {question.y: rows}
    _require(table, question.by)
    found: dict[str, list[int]] = {}
    for i in rows:
        found.setdefault(f"{question.by} {table[question.by][i]}", []).append(i)
    return found


def _measured_once(
    table: Mapping[str, Sequence[object]], rows: Sequence[int], question: Question
) -> list[int]:
    """Of a table of our results, the first row of each: cells that share one are no seeds of it."""
    if HASH not in table:
        return list(rows)
    columns = [HASH, question.y, *question.axes]
    first: dict[tuple[object, ...], int] = {}
    for i in rows:
        first.setdefault(tuple(str(table[name][i]) for name in columns), i)
    return list(first.values())


def _observations(
    table: Mapping[str, Sequence[object]], rows: Sequence[int], question: Question
) -> Observations:
    values = [_number(table[question.y][i], question.y) for i in rows]
    errors = [100 - v for v in values] if question.measure == "accuracy" else values
    axes = {a: [_number(table[a][i], a) for i in rows] for a in question.axes}
    return observe(axes, errors, percent=question.measure != "loss")


def _number(value: object, column: str) -> float:
    """NaN for what is missing; a word is refused."""
    if value is None or value == "":
        return math.nan
    try:
        return float(value if isinstance(value, int | float) else str(value))
    except ValueError as error:
        raise StudyError(f"column {column!r} holds {value!r}, which is no number") from error


def prediction_lines(found: Sequence[ProtocolLaw], measure: Measure) -> list[list[str]]:
    """Header and a line per target of each law."""
    lines = [["group", "at", f"predicted {measure}", "interval", "beyond the data"]]
    for one in found:
        if one.conclusion is None:
            continue
        for p in one.conclusion.predictions:
            at = ", ".join(f"{axis} {value:.4g}" for axis, value in p.target.items())
            ends = [p.value, p.low, p.high]
            if measure == "accuracy":
                ends = [100 - p.value, 100 - p.high, 100 - p.low]
            beyond = ", ".join(f"{a} {x:.1f}×" for a, x in p.extrapolation.items() if x > 1.01)
            value, low, high = (f"{v:.5g}" for v in ends)
            lines.append([one.label, at, value, f"{low} to {high} ({p.level:.0%})", beyond])
    return lines
