"""Two studies, or two families of cells, side by side: paired by cell, stage, seed and image.

A side is `STUDY`, or `STUDY:PREFIX` for the cells whose address begins with PREFIX. What is left of
the address, and the name of the stage, pair the results; seeds are averaged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UserError
from orchestrator.plan import Plan, PlannedStage
from orchestrator.records import Records

LEVEL = 0.95
PREDICTIONS = "predictions.parquet"
_SEED = re.compile(r"(^|/)s\d+(?=/|$)")


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two results that belong together, over their seeds; accuracies in per cent."""

    what: str
    """Address without prefix and seed, and stage: `N4/e40#knn`."""
    first: float
    """Mean top-1 of the first side."""
    second: float
    seeds: int
    """Pairs of seeds."""
    low: float | None
    """Interval of second − first: over seeds (Student's t) with two or more, else over images."""
    high: float | None
    by: str
    """What the interval covers: `seeds`, `images`, or nothing."""
    statement: str
    """What the images of the pairs say (McNemar), in words."""
    same: bool = False
    """Both sides are the same results: there is nothing to compare."""

    @property
    def difference(self) -> float:
        """second − first, points."""
        return self.second - self.first

    @property
    def verdict(self) -> str:
        """In words."""
        if self.same:
            return "the same results"
        if self.low is None or self.high is None:
            return "one pair, no image-by-image predictions: nothing can be concluded"
        if self.low > 0 or self.high < 0:
            return "second higher" if self.difference > 0 else "first higher"
        return "no difference beyond chance"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "difference": self.difference, "verdict": self.verdict}


def split_side(text: str) -> tuple[str, str]:
    """`STUDY:PREFIX` → study and prefix; a Windows drive or URI is no prefix."""
    study, colon, prefix = text.rpartition(":")
    return (study, prefix) if colon and "/" not in prefix[:1] else (text, "")


def compare(
    first: Plan, second: Plan, records: Records, prefixes: tuple[str, str], stage: str | None
) -> list[Difference]:
    """Compare what both sides have finished.

    Raises:
        UserError: they have no finished evaluation in common.
    """
    sides = [
        _results(plan, prefix, stage)
        for plan, prefix in zip((first, second), prefixes, strict=True)
    ]
    shared: dict[str, list[tuple[PlannedStage, PlannedStage]]] = {}
    for key, planned in sides[0].items():
        if key in sides[1]:
            shared.setdefault(_without_seed(key), []).append((planned, sides[1][key]))
    if not shared:
        shown = " and ".join(", ".join(sorted(s)[:3]) or "nothing" for s in sides)
        raise UserError(
            f"the two sides have no finished evaluation in common ({shown}, …): cells are paired "
            "by what follows the prefix in their address; give STUDY:PREFIX for each side, or run "
            "more"
        )
    return [_difference(what, pairs, records) for what, pairs in shared.items()]


def _results(plan: Plan, prefix: str, stage: str | None) -> dict[str, PlannedStage]:
    found = {}
    for planned in plan.stages:
        address = planned.cell.address
        if planned.record is None or not _under(address, prefix) or planned.cell.role == "sweep":
            continue
        if planned.record.metrics.get("top1") is None or stage not in (None, planned.stage.name):
            continue
        if getattr(planned.stage.recipe, "eval_split", "test") == "test":
            found[f"{address[len(prefix) :].strip('/')}#{planned.stage.name}"] = planned
    return found


def _under(address: str, prefix: str) -> bool:
    return not prefix or address == prefix or address.startswith(prefix.rstrip("/") + "/")


def _without_seed(key: str) -> str:
    return _SEED.sub("", key.partition("#")[0]).strip("/") + "#" + key.partition("#")[2]


def _difference(
    what: str, pairs: Sequence[tuple[PlannedStage, PlannedStage]], records: Records
) -> Difference:
    import numpy as np

    top1 = np.array([[_top1(p) for p in pair] for pair in pairs])
    means = top1.mean(axis=0)
    images = [_both(pair, records) for pair in pairs]
    low, high, by = _interval(top1[:, 1] - top1[:, 0], images)
    return Difference(
        what=what,
        first=float(means[0]),
        second=float(means[1]),
        seeds=len(pairs),
        low=low,
        high=high,
        by=by,
        statement=_mcnemar(images),
        same=all(a.identity.science_hash == b.identity.science_hash for a, b in pairs),
    )


def _top1(planned: PlannedStage) -> float:
    assert planned.record is not None
    return float(planned.record.metrics["top1"])


def _interval(differences: Any, images: Sequence[Any]) -> tuple[float | None, float | None, str]:
    """Over seeds where there are two or more, else over the images of the one pair."""
    if len(differences) > 1:
        from scipy import stats

        n = len(differences)
        reach = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * differences.std(ddof=1) / n**0.5
        return float(differences.mean() - reach), float(differences.mean() + reach), "seeds"
    if images[0] is None:
        return None, None, "nothing"
    from studies.analysis.paired import paired_bootstrap

    found = paired_bootstrap(*images[0], level=LEVEL)
    return found.low, found.high, "images"


def _mcnemar(images: Sequence[Any]) -> str:
    """Of the images of a single pair; empty with several seeds, whose images may differ."""
    from studies.analysis.paired import mcnemar

    if len(images) != 1 or images[0] is None:
        return ""
    return mcnemar(*images[0]).statement()


def _both(pair: tuple[PlannedStage, PlannedStage], records: Records) -> Any:
    """Whether each image was right on both sides, or None where images or files differ."""
    first, second = (_right(planned, records) for planned in pair)
    if first is None or second is None or first.keys() != second.keys():
        return None
    order = sorted(first)
    return tuple([side[index] for index in order] for side in (first, second))


def _right(planned: PlannedStage, records: Records) -> Mapping[int, bool] | None:
    import pyarrow.parquet as pq

    record = planned.record
    assert record is not None
    path: Path = records.outputs(record.science_hash, record.attempt) / PREDICTIONS
    if not path.is_file():
        return None
    table = pq.read_table(path, columns=["sample_index", "label", "prediction"]).to_pydict()
    rows = zip(*table.values(), strict=True)
    return {index: label == prediction for index, label, prediction in rows}
