"""Result rows as curves and tables take them: complete, measured, and paid for once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from studies.result_row import EVALUATIONS, ResultRow

_CELL_COLUMNS = (
    "size",
    "encoder_params",
    "duration",
    "epochs",
    "mask_ratio",
    "decoder_depth",
    "decoder_width",
    "seed",
    "pretrain_flops",
)


def is_number(value: float | None) -> bool:
    """Whether a measurement can be drawn: neither missing nor NaN nor infinite."""
    return value is not None and math.isfinite(value)


def filled(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rows with the cell's columns (size, seed, FLOPs ...) copied from rows of the same cell.

    An evaluation may leave them to the pretraining row; a value that a row has is kept.
    """
    known: dict[str, dict[str, object]] = defaultdict(dict)
    for row in rows:
        for name in _CELL_COLUMNS:
            if getattr(row, name) is not None:
                known[row.cell].setdefault(name, getattr(row, name))
    return [_fill(row, known[row.cell]) for row in rows]


def _fill(row: ResultRow, known: Mapping[str, object]) -> ResultRow:
    absent = {k: v for k, v in known.items() if getattr(row, k) is None}
    return replace(row, **absent) if absent else row  # type: ignore[arg-type]


def unmeasured(rows: Sequence[ResultRow]) -> int:
    """Evaluation rows whose top-1 is missing, NaN or infinite."""
    return sum(r.kind in EVALUATIONS and not is_number(r.top1) for r in rows)


def protocol_key(row: ResultRow) -> tuple[object, ...]:
    """What two measurements must share to be compared."""
    return (row.kind, row.protocol, row.eval_split, row.num_labels)


def protocol_label(row: ResultRow, *, alone: bool) -> str:
    """The protocol, with split and label count when it alone would mix two measurements."""
    extra = [] if alone else [part for part in (row.eval_split, _labels(row)) if part]
    return " · ".join([row.protocol, *extra])


def with_labels(row: ResultRow) -> str:
    """The protocol and the number of labels, unless its own name says it."""
    return " · ".join(filter(None, [row.protocol, _labels(row)]))


def _labels(row: ResultRow) -> str:
    labels = f"{row.num_labels} labels"
    return "" if row.num_labels is None or labels in row.protocol else labels


def why_odd(cells: Iterable[str], odd: Mapping[str, str]) -> str:
    """The reasons against any of these cells, empty if there is none."""
    return "; ".join(dict.fromkeys(odd[cell] for cell in cells if cell in odd))


def cost(
    rows: Iterable[ResultRow], key: Callable[[ResultRow], tuple[str, str]]
) -> dict[tuple[str, str], float]:
    """Rank-seconds summed by `key(row)`; a stage that several cells share is paid once."""
    total: dict[tuple[str, str], float] = defaultdict(float)
    once = {row.science_hash or (row.cell, row.stage): row for row in rows}
    for row in once.values():
        if is_number(row.rank_seconds):
            total[key(row)] += row.rank_seconds
    return dict(total)
