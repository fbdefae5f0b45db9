"""The report's table of every cell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from studies.analysis.results import (
    ProtocolKey,
    cost,
    filled,
    is_number,
    protocol_key,
    protocol_names,
)
from studies.result_row import EVALUATIONS, ResultRow


class TableCell(NamedTuple):
    """What is shown, and what it is sorted by."""

    shown: str
    key: str | float


def cell_table(
    rows: Sequence[ResultRow], study: str, store_option: str = ""
) -> tuple[list[str], list[list[TableCell]]]:
    """Header and one line per cell, a value for every column.

    The last column is the command that computes the cell's first stage again, by itself.
    """
    names = protocol_names(r for r in rows if r.kind in EVALUATIONS)
    protocols = sorted(names, key=lambda key: names[key])
    header = ["cell", "role", "size", "encoder parameters", "duration", "seed", "mask ratio"]
    header += [
        "objective",
        "decoder",
        "pretraining FLOPs",
        *(f"top-1 %: {names[key]}" for key in protocols),
        "rank-seconds",
        "one stage of it again",
    ]
    by_cell: dict[str, list[ResultRow]] = {}
    for row in filled(rows):
        by_cell.setdefault(row.cell, []).append(row)
    return header, [_cell_line(group, protocols, study, store_option) for group in by_cell.values()]


def _cell_line(
    rows: Sequence[ResultRow], protocols: Sequence[ProtocolKey], study: str, store_option: str
) -> list[TableCell]:
    r = rows[0]
    # A stage's own row comes before those of the conditions within it.
    top1 = {protocol_key(row): row.top1 for row in reversed(rows)}
    decoder = "" if r.decoder_depth is None else f"{r.decoder_depth}×{r.decoder_width or '?'}"
    duration = "untrained" if r.role == "untrained" else r.duration or ""
    paid = sum(cost(rows, lambda row: ("", "")).values())
    names = " ".join(map(shlex.quote, (study, r.cell, r.stage)))
    again = f"mae-study debug {names}{store_option}"
    return [
        _text(r.cell),
        _text(r.role),
        TableCell(r.size or "", r.encoder_params or 0),
        _number(r.encoder_params, ","),
        TableCell(duration, r.epochs or 0.0),
        _number(r.seed, "d"),
        _number(r.mask_ratio, "g"),
        _text(r.objective or ""),
        TableCell(decoder, (r.decoder_depth or 0) * 100_000 + (r.decoder_width or 0)),
        _number(r.pretrain_flops, ".3g"),
        *(_number(top1.get(protocol), ".2f") for protocol in protocols),
        _number(paid, ".1f"),
        _text(again),
    ]


def _text(value: str) -> TableCell:
    return TableCell(value, value)


def _number(value: float | None, form: str) -> TableCell:
    """Shown and sort key; what is missing or NaN sorts below every number."""
    if value is None or not is_number(value):
        return _text("")
    return TableCell(format(value, form), value)
