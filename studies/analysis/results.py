"""Result rows as laws, curves and tables take them: complete, by protocol, and paid for once."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
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

ProtocolKey = tuple[str, str, str | None, int | None]
"""Kind, recipe, split and number of labels."""


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


def distinct(rows: Iterable[ResultRow]) -> list[ResultRow]:
    """The first row of each science hash: a result that cells share is one measurement."""
    found: dict[str, ResultRow] = {}
    for row in rows:
        found.setdefault(row.science_hash, row)
    return list(found.values())


def unmeasured(rows: Sequence[ResultRow]) -> int:
    """Evaluation rows whose top-1 is missing, NaN or infinite."""
    return sum(r.kind in EVALUATIONS and not is_number(r.top1) for r in rows)


def protocol_key(row: ResultRow) -> ProtocolKey:
    """What two measurements must share to be compared."""
    return row.kind, row.protocol_key or row.protocol, row.eval_split, row.num_labels


def protocol_names(rows: Iterable[ResultRow]) -> dict[ProtocolKey, str]:
    """Each protocol of the rows, as they come, with a name that no other has.

    The protocol's own; with split, number of labels or stage where others go by it too.
    """
    first = {protocol_key(row): row for row in reversed(list(rows))}
    names = {key: row.protocol for key, row in reversed(first.items())}
    labelled = {
        key: " · ".join([row.protocol, *filter(None, (row.eval_split, _labels(row)))])
        for key, row in first.items()
    }
    staged = {key: f"{labelled[key]} · {row.stage}" for key, row in first.items()}
    for longer in (labelled, staged):
        uses = Counter(names.values())
        names = {key: longer[key] if uses[name] > 1 else name for key, name in names.items()}
    return names


def by_protocol(rows: Iterable[ResultRow]) -> dict[str, list[ResultRow]]:
    """Rows of each protocol, by its name."""
    found = list(rows)
    names = protocol_names(found)
    groups: dict[str, list[ResultRow]] = {name: [] for name in names.values()}
    for row in found:
        groups[names[protocol_key(row)]].append(row)
    return groups


def _labels(row: ResultRow) -> str:
    return "" if row.num_labels is None else f"{row.num_labels} labels"


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
