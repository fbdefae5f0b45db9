"""Result rows as files: CSV, Parquet and JSON."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_type_hints

from studies.json_text import json_text
from studies.result_row import ResultRow, Value, columns_of


def write_csv(rows: Sequence[ResultRow], path: Path) -> None:
    """One line per row, a header of column names."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.DictWriter(stream, columns_of(rows))
        writer.writeheader()
        writer.writerows(row.to_dict() for row in rows)


def write_parquet(rows: Sequence[ResultRow], path: Path) -> None:
    """Columns keep their types even where every value is missing."""
    import pyarrow as pa
    from pyarrow import parquet

    types: dict[str, pa.DataType] = {"int": pa.int64(), "float": pa.float64()}
    hints = get_type_hints(ResultRow)
    found = [row.to_dict() for row in rows]
    columns = columns_of(rows)
    schema: pa.Schema = pa.schema(
        [(name, types.get(_type(hints.get(name), name, found), pa.string())) for name in columns]
    )
    parquet.write_table(pa.Table.from_pylist(found, schema=schema), path)


def _type(hint: object, column: str, rows: Sequence[Mapping[str, Value]]) -> str:
    """`int` for `int | None`, `str` for a Literal; an axis holds numbers or categories."""
    if hint is not None:
        return next((t.__name__ for t in (int, float) if hint in (t, t | None)), "str")
    places = [row[column] for row in rows if column in row]
    return "float" if all(isinstance(place, float) for place in places) else "str"


def write_json(value: object, path: Path) -> None:
    """Any value; what is no finite number becomes null, and a byte of no character its escape."""
    text = json_text(value, indent=2) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
