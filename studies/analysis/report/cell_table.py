"""The report's table of every cell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from studies.analysis.curves.results import cost, filled, is_number, with_labels
from studies.result_row import EVALUATIONS, ResultRow

_Protocol = tuple[str, str | None]
"""Protocol with its labels, and split: a column of the table of cells."""


class TableCell(NamedTuple):
    """What is shown, and what it is sorted by."""

    shown: str
    key: str | float


def cell_table(rows: Sequence[ResultRow], study: str) -> tuple[list[str], list[list[TableCell]]]:
    """Header and one line per cell, a value for every column.

    The last column is the command that computes the cell's first stage again, by itself.
    """
    kinds = [r for r in rows if r.kind in EVALUATIONS]
    protocols = sorted({_protocol(r) for r in kinds}, key=str)
    splits = {r.eval_split for r in kinds}
    names = [p if len(splits) == 1 or not split else f"{p} · {split}" for p, split in protocols]
    header = ["cell", "role", "size", "encoder parameters", "duration", "seed", "mask ratio"]
    header += [
        "objective",
        "decoder",
        "pretraining FLOPs",
        *(f"top-1 %: {n}" for n in names),
        "rank-seconds",
        "one stage of it again",
    ]
    by_cell: dict[str, list[ResultRow]] = {}
    for row in filled(rows):
        by_cell.setdefault(row.cell, []).append(row)
    return header, [_cell_line(group, protocols, study) for group in by_cell.values()]


def _protocol(row: ResultRow) -> _Protocol:
    return with_labels(row), row.eval_split


def _cell_line(
    rows: Sequence[ResultRow], protocols: Sequence[_Protocol], study: str
) -> list[TableCell]:
    r = rows[0]
    # A stage's own row comes before those of the conditions within it.
    top1 = {_protocol(row): row.top1 for row in reversed(rows)}
    decoder = "" if r.decoder_depth is None else f"{r.decoder_depth}×{r.decoder_width or '?'}"
    duration = "untrained" if r.role == "untrained" else r.duration or ""
    paid = sum(cost(rows, lambda row: ("", "")).values())
    again = f"mae-study debug {shlex.quote(study)} {shlex.quote(r.cell)} {shlex.quote(r.stage)}"
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
