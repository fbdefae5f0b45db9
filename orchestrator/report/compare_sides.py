"""Studies, versions of one, or families of cells, side by side: by cell, stage, seed and image.

A side is `STUDY`, `STUDY@N` for its Nth state in the store, or either with `:PREFIX` for the cells
whose address begins with it. What is left of the address, and the name of the stage, pair the
results; pairs that differ in their seeds only are averaged. Two results that cells share are one
pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from orchestrator.errors import StoreError, UserError
from orchestrator.plan.history import kept_plan, kept_states
from orchestrator.plan.plan import Plan, PlannedStage
from orchestrator.plan.rows import make_rows
from orchestrator.store.kept_files import output
from orchestrator.store.records import Records
from studies.analysis.curves.differences import LEVEL, Difference
from studies.result_row import ResultRow
from studies.spec.coordinates import stage_family
from studies.spec.protocols import protocol_keys

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]

Images = tuple[list[bool], list[bool]]
"""Whether each image was right, on either side."""
PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the studies that are compared."""

    text: str
    """As it was asked for."""
    plan: Plan
    prefix: str
    label: str = ""
    """What figures and tables call it."""

    def rows(self, records: Records, protocols: Sequence[str]) -> list[ResultRow]:
        """Results of the side's cells, each named by what distinguishes the sides.

        `protocols` are keys of the plan's stages, made together with those of the other sides.
        """
        return [
            replace(
                row,
                cell=f"{self.label}/{row.cell}",
                size=f"{row.size} {self.label}" if row.size else None,
                objective=f"{row.objective} {self.label}" if row.objective else None,
            )
            for row in make_rows(self.plan, records, protocols)
            if _under(row.cell, self.prefix)
        ]


def split_side(text: str) -> tuple[str, int | None, str]:
    """`STUDY@2:PREFIX` → study, version and prefix; a Windows drive or URI is no prefix."""
    study, colon, prefix = text.rpartition(":")
    if not colon or "/" in prefix[:1]:
        study, prefix = text, ""
    name, at, version = study.rpartition("@")
    prefix = prefix.rstrip("/")
    if at and version.isascii() and version.isdigit():
        return name, int(version), prefix
    return study, None, prefix


def read_sides(
    texts: Sequence[str], records: Records, plan_of: Callable[[str], Plan]
) -> list[Side]:
    """Plan every side, and find names that distinguish them.

    Args:
        plan_of: plans a study as it is now; `@N` is the Nth state that the store has of it.

    Raises:
        UserError: there is no such state.
        StoreError: the study was never run here.
    """
    sides = []
    for text in texts:
        name, version, prefix = split_side(text)
        plan = plan_of(name) if version is None else _version(records, name, version)
        sides.append(Side(text=text, plan=plan, prefix=prefix))
    is_one = len({side.plan.study.name for side in sides}) == 1
    labels = [_label(side, is_one=is_one) for side in sides]
    return [
        replace(side, label=label if labels.count(label) == 1 else f"{label} ({i + 1})")
        for i, (side, label) in enumerate(zip(sides, labels, strict=True))
    ]


def _version(records: Records, study: str, version: int) -> Plan:
    states = kept_states(records, study)
    if version not in states:
        raise UserError(
            f"{study}@{version}: the store has {len(states)} state(s) of {study}: use "
            f"{study}@{min(states)} to {study}@{max(states)}"
        )
    return kept_plan(records, states[version])[0]


def _label(side: Side, *, is_one: bool) -> str:
    """The study's name, or of one study the version and the prefix."""
    name, version, prefix = split_side(side.text)
    if not is_one:
        return ":".join(filter(None, [side.plan.study.name, prefix]))
    parts = [f"@{version}" if version else "", prefix]
    return " ".join(filter(None, parts)) or "now"


def rows_of(sides: Sequence[Side], records: Records) -> list[list[ResultRow]]:
    """Results of each side; a protocol has one key on all sides."""
    keys = protocol_keys([stage for side in sides for stage in side.plan.stages])
    left = iter(keys)
    return [side.rows(records, [next(left) for _ in side.plan.stages]) for side in sides]


def compare(
    first: Side, second: Side, records: Records, stage: str | None = None
) -> list[Difference]:
    """Compare what both sides have finished.

    Raises:
        UserError: they have no finished evaluation in common.
    """
    sides = [_results(side, stage) for side in (first, second)]
    families: dict[tuple[str, str, str], dict[tuple[str, str], Pair]] = {}
    for (at, name), planned in sides[0].items():
        other = sides[1].get((at, name))
        if other is not None:
            pair = Pair(at=(at,), first=planned, second=other)
            pairs = families.setdefault((name, _family(planned), _family(other)), {})
            known = pairs.setdefault(pair.hashes, pair)
            pairs[pair.hashes] = replace(known, at=(*known.at, at)) if known is not pair else pair
    if not families:
        shown = " and ".join(", ".join(sorted(map("#".join, s))[:3]) or "nothing" for s in sides)
        raise UserError(
            f"{first.text} and {second.text} have no finished evaluation in common ({shown}, …): "
            "cells are paired by what follows the prefix in their address; give STUDY:PREFIX for "
            "each side, or run more"
        )
    named = f"{second.label} − {first.label}"
    # A family has one hash for each draw: its pairs differ in their seeds.
    lines = [list(pairs.values()) for pairs in families.values()]
    return [
        _difference(named, what, pairs, records)
        for what, pairs in zip(_labels(lines), lines, strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A finished evaluation of both sides: one, however many cells share the two results."""

    at: tuple[str, ...]
    """What is left of both addresses without the prefixes of the sides, of each of the cells."""
    first: PlannedStage
    second: PlannedStage

    @property
    def both(self) -> tuple[PlannedStage, PlannedStage]:
        """In the order of the sides."""
        return self.first, self.second

    @property
    def hashes(self) -> tuple[str, str]:
        """What the two results are."""
        return self.first.identity.science_hash, self.second.identity.science_hash


def _family(planned: PlannedStage) -> str:
    return stage_family(planned.cell, planned.stage)


def _labels(families: Sequence[Sequence[Pair]]) -> list[str]:
    """A name for each: what the addresses of its pairs have in common, else all of them."""
    stages = [f"#{pairs[0].first.stage.name}" for pairs in families]
    addresses = [[at for pair in pairs for at in pair.at] for pairs in families]
    shared = [_in_common(a) + stage for a, stage in zip(addresses, stages, strict=True)]
    return [
        label if shared.count(label) == 1 else ", ".join(each) + stage
        for label, each, stage in zip(shared, addresses, stages, strict=True)
    ]


def _in_common(addresses: Sequence[str]) -> str:
    """The segments that addresses share, place by place."""
    parts = zip(*(address.split("/") for address in addresses), strict=False)
    return "/".join(p[0] for p in parts if len(set(p)) == 1)


def _results(side: Side, stage: str | None) -> dict[tuple[str, str], PlannedStage]:
    """Finished evaluations on test, by what is left of the address, and the stage."""
    found = {}
    for planned in side.plan.stages:
        address = planned.cell.address
        if planned.record is None or planned.cell.role == "sweep":
            continue
        if not _under(address, side.prefix) or stage not in (None, planned.stage.name):
            continue
        top1 = planned.record.metrics.get("top1")
        if top1 is None or not math.isfinite(top1):
            continue
        if planned.stage.recipe.scored_on in (None, "test"):
            at = address[len(side.prefix) :].strip("/")
            found[at, planned.stage.name] = planned
    return found


def _under(address: str, prefix: str) -> bool:
    return not prefix or address == prefix or address.startswith(prefix.rstrip("/") + "/")


def _difference(sides: str, what: str, pairs: Sequence[Pair], records: Records) -> Difference:
    import numpy as np

    top1 = np.array([[_top1(p) for p in pair.both] for pair in pairs])
    means = top1.mean(axis=0)
    images = [_images(pair, records) for pair in pairs]
    low, high, by = _interval(top1[:, 1] - top1[:, 0], images)
    return Difference(
        sides=sides,
        what=what,
        first=float(means[0]),
        second=float(means[1]),
        seeds=len(pairs),
        low=low,
        high=high,
        by=by,
        statement=_mcnemar(images),
        same=all(first == second for first, second in (pair.hashes for pair in pairs)),
    )


def _top1(planned: PlannedStage) -> float:
    assert planned.record is not None
    return float(planned.record.metrics["top1"])


def _interval(
    differences: F64, images: Sequence[Images | None]
) -> tuple[float | None, float | None, str]:
    """Over seeds where there are two or more, else over the images of the one pair."""
    if len(differences) > 1:
        from scipy import stats

        n = len(differences)
        reach = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * differences.std(ddof=1) / n**0.5
        return float(differences.mean() - reach), float(differences.mean() + reach), "seeds"
    if images[0] is None:
        return None, None, "nothing"
    from studies.analysis.curves.paired_tests import paired_bootstrap

    found = paired_bootstrap(*images[0], level=LEVEL)
    return found.low, found.high, "images"


def _mcnemar(images: Sequence[Images | None]) -> str:
    """Of the images of a single pair; empty with several seeds, whose images may differ."""
    from studies.analysis.curves.paired_tests import mcnemar

    if len(images) != 1 or images[0] is None:
        return ""
    return mcnemar(*images[0]).statement()


def _images(pair: Pair, records: Records) -> Images | None:
    """Whether each image was right on both sides, or None where images or files differ."""
    first, second = (_right(planned, records) for planned in pair.both)
    if first is None or second is None or first.keys() != second.keys():
        return None
    order = sorted(first)
    return [first[index] for index in order], [second[index] for index in order]


def _right(planned: PlannedStage, records: Records) -> Mapping[int, bool] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    record = planned.record
    assert record is not None
    if PREDICTIONS not in record.outputs:
        return None
    path = output(records, record, PREDICTIONS)
    try:
        table = pq.read_table(path, columns=["sample_index", "label", "prediction"]).to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} holds no predictions: {error}") from error
    rows = zip(*table.values(), strict=True)
    return {index: label == prediction for index, label, prediction in rows}
