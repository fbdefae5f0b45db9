"""Published numbers, with their sources: facts to draw beside ours and to test fits against.

`published.csv` has a row per number: where it stands in which publication, and where on our axes
(`at`). The rows are read once, on first use; nothing heavy is imported.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from studies.errors import unknown
from studies.result_row import Place


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published number."""

    source: str
    """Who published it: `MAE paper` (arXiv 2111.06377), `mmpretrain` ..."""
    table: str
    """Where in the source: `Table 1a`, `Fig 5`, `README`."""
    model: str
    method: str
    """As the source calls it; `at["objective"]` is our word for it."""
    setting: str
    """What else the source says of the run."""
    epochs: float | None
    """Of pretraining; None where there is none or the source does not say."""
    kind: str
    """The stage kind that measures the same: finetune, linear_probe ...; empty if none does."""
    metric: str
    """`top1` (per cent) if one of our kinds measures it; else the source's words."""
    dataset: str
    value: float
    at: Mapping[str, Place]
    """Where it stands on our axes (`studies.spec.axes`)."""
    is_verified: bool
    """Read in the source; False: from memory or at second hand, never drawn."""
    link: str

    @property
    def set(self) -> str:
        """Name that studies use: `MAE paper, Fig 5`."""
        return f"{self.source}, {self.table}"


@functools.cache
def published() -> tuple[Published, ...]:
    """Every row of the table, in its order."""
    with (Path(__file__).parent / "published.csv").open(newline="", encoding="utf-8") as stream:
        return tuple(_row(line) for line in csv.DictReader(stream))


def published_set(name: str) -> tuple[Published, ...]:
    """The rows of one table or figure; raises `StudyError` that names the nearest known set."""
    found = _sets().get(name)
    if found is None:
        raise unknown("published set", name, _sets())
    return found


def select(
    *,
    sets: tuple[str, ...] | None = None,
    kind: str | None = None,
    metric: str | None = None,
    dataset: str | None = None,
    verified: bool = True,
    **at: Place,
) -> tuple[Published, ...]:
    """Rows by table, kind of measurement and places: `select(kind="finetune", size="L")`.

    An axis that is given must be named by the row and have that value. Raises `StudyError` for an
    unknown set.
    """
    rows = published() if sets is None else [r for s in sets for r in published_set(s)]
    wanted = {"kind": kind, "metric": metric, "dataset": dataset}
    return tuple(
        r
        for r in rows
        if (r.is_verified or not verified)
        and all(v is None or getattr(r, k) == v for k, v in wanted.items())
        and all(r.at.get(axis) == place for axis, place in at.items())
    )


@functools.cache
def _sets() -> dict[str, tuple[Published, ...]]:
    found: dict[str, tuple[Published, ...]] = {}
    for row in published():
        found[row.set] = (*found.get(row.set, ()), row)
    return found


def _row(line: dict[str, str]) -> Published:
    pairs = [part.split("=", 1) for part in line["at"].split("; ") if part]
    return Published(
        source=line["source"],
        table=line["table"],
        model=line["model"],
        method=line["method"],
        setting=line["setting"],
        epochs=float(line["epochs"]) if line["epochs"] else None,
        kind=line["kind"],
        metric=line["metric"],
        dataset=line["dataset"],
        value=float(line["value"]),
        at={axis: _place(text) for axis, text in pairs},
        is_verified=line["verified"] == "yes",
        link=line["link"],
    )


def _place(text: str) -> Place:
    try:
        return float(text)
    except ValueError:
        return text
