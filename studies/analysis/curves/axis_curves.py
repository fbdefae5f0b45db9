"""The numbers behind a figure over one of the study's axes: series of points, and published ones.

Rows of one figure share a family of evaluations, a split and a number of labels. What else differs
among them (objective, size, another axis of the study) makes them different series; seeds of one
series at one place make one point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mae_core.config import RECIPES, EncoderUse, Family, LinearProbeRecipe, kinds_that
from studies.analysis.curves.curves import PairedDifference, Point, paired
from studies.analysis.curves.results import filled, is_number
from studies.reference import Published, published_set
from studies.result_row import EVALUATIONS, Place, ResultRow
from studies.spec.axes import AXES, Axis, axis, joined, shown, tick

FAMILIES = {kind: recipe.FAMILY.value for kind, recipe in RECIPES.items()}
"""Kinds that a figure may show together: a supervised run, and the best of a search on dev, are
compared with fine-tunes."""
TUNED = (LinearProbeRecipe.KIND, *kinds_that(EncoderUse.TUNES))
"""Kinds of the paper's Figure 9, from nothing fine-tuned to everything."""

WITHIN = {"severity", "corruption"}
"""Axes of the conditions within a stage, whose rows serve their own figure alone."""

Key = tuple[tuple[str, Place], ...]
"""What tells one series from another: (axis, place) pairs."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Measured points along the axis."""

    label: str
    key: Key
    points: tuple[tuple[Place, Point], ...]
    """In the order of the axis."""

    @property
    def best(self) -> tuple[Place, Point]:
        """Where the mean is highest."""
        return max(self.points, key=lambda pair: pair[1].mean)

    @property
    def worst(self) -> tuple[Place, Point]:
        """Where the mean is lowest."""
        return min(self.points, key=lambda pair: pair[1].mean)


@dataclass(frozen=True, kw_only=True)
class PublishedSeries:
    """Published points along the axis."""

    label: str
    """With its source: `MAE paper, Fig 5: ViT-L/16`."""
    objective: str
    points: tuple[tuple[Place, float], ...]
    links: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class AxisCurve:
    """One figure: a measure of a family of evaluations over one axis."""

    axis: Axis
    measure: str
    family: str
    title: str
    protocols: tuple[str, ...]
    series: tuple[Series, ...]
    published: tuple[PublishedSeries, ...] = ()
    lines: tuple[tuple[str, tuple[float, ...]], ...] = ()
    """What has no place on the axis: (label, one value per seed)."""

    @property
    def order(self) -> tuple[Place, ...]:
        """Every place of the figure, measured or published, in the order of the axis."""
        own = [at for s in self.series for at, _ in s.points]
        return ordered(self.axis, [*own, *(at for s in self.published for at, _ in s.points)])


def axis_curves(
    rows: Sequence[ResultRow],
    *,
    axes: Sequence[str],
    measures: Sequence[str] = ("top1",),
    published: Sequence[str] = (),
    odd: Mapping[str, str] = {},
) -> tuple[AxisCurve, ...]:
    """A figure for each axis, measure and family of evaluations that has a point on it.

    `odd` says of cells why they are no points of the others' curve.
    """
    known = [(row, _places(row)) for row in filled(rows)]
    reference = [row for name in published for row in published_set(name) if row.is_verified]
    found = []
    for measure in measures:
        for name in axes:
            groups: dict[tuple[str, ...], list[_Located]] = defaultdict(list)
            for row, at in known:
                value = _value(row, measure)
                # A condition within a stage is no result of the stage, and the reverse.
                if value is not None and at.keys() & WITHIN == {name} & WITHIN:
                    groups[_group(row, at, name)].append(
                        _Located(row, at, value, odd.get(row.cell, ""))
                    )
            for group in sorted(_scored(groups), key=_group_rank):
                curve = _curve(name, axes, measure, groups[group], reference)
                found += [curve] if curve else []
    return tuple(found)


def _scored(groups: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """What is scored on test; on dev, what has no test: candidates of a choice are not results."""
    known = set(groups)
    return [g for g in known if g[1] != "dev" or (g[0], "test", *g[2:]) not in known]


def _group_rank(group: tuple[str, ...]) -> tuple[object, ...]:
    families = [family.value for family in Family]
    return families.index(group[0]) if group[0] in families else len(families), group


@dataclass(frozen=True)
class _Located:
    row: ResultRow
    at: Mapping[str, Place]
    value: float
    odd: str


def _places(row: ResultRow) -> dict[str, Place]:
    """The row's places on the study's axes, and on those that every row has."""
    at: dict[str, Place] = dict(row.places)
    if row.size is not None:
        at.setdefault("size", row.size)
    if row.objective is not None:
        at.setdefault("objective", row.objective)
    return at


def _value(row: ResultRow, measure: str) -> float | None:
    """What a measure takes from a row; None if it takes nothing."""
    if measure in ("top1", "mce"):
        value = getattr(row, measure)
        return value if row.kind in EVALUATIONS and is_number(value) else None
    if FAMILIES.get(row.kind) != FAMILIES["pretrain"]:
        return None
    value = row.rank_seconds if measure == "speedup" else row.pretrain_flops
    return value or None


def _group(row: ResultRow, at: Mapping[str, Place], axis_name: str) -> tuple[str, ...]:
    """Family, split, labels and data set: what differs in one of them is another figure."""
    family = FAMILIES.get(row.kind, row.kind.replace("_", " ").capitalize())
    if axis_name == "tuned_blocks" and row.kind in TUNED:
        family = FAMILIES["partial_finetune"]
    dataset = "" if axis_name == "dataset" else str(at.get("dataset", ""))
    labels = "" if axis_name == "num_labels" else str(row.num_labels or "")
    return family, row.eval_split or "", labels, dataset


def _curve(
    name: str,
    axes: Sequence[str],
    measure: str,
    rows: list[_Located],
    reference: Sequence[Published],
) -> AxisCurve | None:
    placed = [r for r in rows if name in r.at and r.row.role == "grid"]
    if not placed:
        return None
    series = _relative(_series(name, axes, placed), measure)
    first = placed[0].row
    family, _, _, dataset = _group(first, placed[0].at, name)
    protocols = tuple(dict.fromkeys(r.row.protocol for r in placed))
    labels = f"{first.num_labels} labels" if first.num_labels and name != "num_labels" else None
    title = protocols[0] if len(protocols) == 1 else family
    if len(protocols) > 1:
        split = "dev" if first.eval_split == "dev" else ""
        title = ", ".join(filter(None, (dataset, family, labels, split)))
    kinds = {kind for kind in FAMILIES if _same_family(kind, family)} | {r.row.kind for r in placed}
    reference = [r for r in reference if not dataset or r.at.get("dataset", dataset) == dataset]
    return AxisCurve(
        axis=axis(name),
        measure=measure,
        family=family,
        title=title,
        protocols=protocols,
        series=series,
        published=_published(name, measure, kinds, reference),
        lines=_lines(rows) if measure == "top1" and name not in WITHIN else (),
    )


def _same_family(kind: str, family: str) -> bool:
    return FAMILIES[kind] == family or (
        family == FAMILIES["partial_finetune"] and kind == "partial_finetune"
    )


def _series(name: str, axes: Sequence[str], rows: list[_Located]) -> tuple[Series, ...]:
    """Rows by what differs among them beside the axis; one axis varied at a time stays so."""
    part_of = set(name.split("+"))
    declared = [a for a in axes if a != name and not part_of & set(a.split("+"))]
    if name != "dataset":  # each has a figure of its own
        declared = [a for a in declared if a != "dataset"]
    names = [*declared, *(a for a in ("objective", "size") if a not in declared and a != name)]
    split = [a for a in names if len({r.at.get(a) for r in rows}) > 1]
    keys = {id(r): tuple((a, r.at[a]) for a in split if a in r.at) for r in rows}
    _separate(name, rows, keys)
    groups: dict[Key, list[_Located]] = defaultdict(list)
    for r in rows:
        groups[keys[id(r)]].append(r)
    found = [_one_series(name, key, group) for key, group in groups.items()]
    if any(a in declared for a in split) and any(len(s.points) > 1 for s in found):
        # A point of another axis' variation is no curve over this one.
        found = [s for s in found if len(s.points) > 1]
    return tuple(sorted(found, key=lambda s: _rank(s.key)))


def _separate(name: str, rows: list[_Located], keys: dict[int, Key]) -> None:
    """Extend keys by what tells two measurements of a place apart, where nothing else does."""
    for column in ("duration", "protocol", "stage"):
        at: dict[object, set[str]] = defaultdict(set)
        for r in rows:
            at[keys[id(r)], r.at[name], r.row.seed].add(getattr(r.row, column) or "")
        if any(len(values) > 1 for values in at.values()):
            for r in rows:
                keys[id(r)] = (*keys[id(r)], (column, getattr(r.row, column) or ""))


def _rank(key: Key) -> tuple[object, ...]:
    """Order of series: that of their axes."""
    ranks: list[object] = []
    for name, at in key:
        order = AXES[name].order if name in AXES else ()
        number = at if isinstance(at, float) else float(order.index(at) if at in order else 99)
        ranks += [number, str(at)]
    return tuple(ranks)


def _one_series(name: str, key: Key, rows: list[_Located]) -> Series:
    by_place: dict[Place, dict[int | None, dict[str, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    replicate = _replicate(rows)
    for r in rows:
        by_place[r.at[name]][getattr(r.row, replicate)][r.row.science_hash] = r.value
    label = ", ".join(shown(a, at) for a, at in key) or "measured here"
    points = []
    for at in ordered(axis(name), by_place):
        seeds = sorted(by_place[at], key=lambda s: (s is None, s or 0))
        values = {s: sum(v.values()) / len(v) for s in seeds if (v := by_place[at][s])}
        why = "; ".join(dict.fromkeys(r.odd for r in rows if r.at[name] == at and r.odd))
        points.append((at, Point(size=label, duration=tick(name, at), values=values, odd=why)))
    return Series(label=label, key=key, points=tuple(points))


def _replicate(rows: list[_Located]) -> str:
    """What was repeated: the seed of pretraining, or of one pretraining the draw of labels."""
    is_one_encoder = len({r.row.seed for r in rows}) == 1
    draws = {r.row.label_seed for r in rows}
    return "label_seed" if is_one_encoder and len(draws) > 1 else "seed"


def _relative(series: tuple[Series, ...], measure: str) -> tuple[Series, ...]:
    """Costs relative to the most expensive (speed-up) or the cheapest (FLOPs) of the series."""
    if measure in ("top1", "mce"):
        return series
    found = []
    for s in series:
        means = [p.mean for _, p in s.points]
        most, least = max(means), min(means)
        points = tuple(
            (at, _scaled(p, most, least, invert=measure == "speedup")) for at, p in s.points
        )
        found.append(Series(label=s.label, key=s.key, points=points))
    return tuple(found)


def _scaled(point: Point, most: float, least: float, *, invert: bool) -> Point:
    values = {s: most / v if invert else v / least for s, v in point.values.items()}
    return Point(size=point.size, duration=point.duration, values=values)


def _published(
    name: str, measure: str, kinds: set[str], rows: Sequence[Published]
) -> tuple[PublishedSeries, ...]:
    metric = {"speedup": "speedup", "relative_flops": "relative FLOPs"}.get(measure, measure)
    groups: dict[tuple[str, ...], dict[Place, Published]] = defaultdict(dict)
    for row in rows:
        at = joined(name, row.at) if "+" in name else row.at.get(name)
        if row.kind in kinds and row.metric == metric and at is not None:
            own = {*name.split("+"), "size", "objective", "duration"}
            rest = [shown(a, p) for a, p in row.at.items() if a not in own]
            model = [] if name == "size" else [row.model]
            # The first of a set at a place: repeats of it (seeds) are further down the table.
            groups[row.set, row.method, ", ".join([*model, *rest])].setdefault(at, row)
    alone = len({group[1] for group in groups}) == 1
    return tuple(
        _published_series(name, group, points, alone=alone) for group, points in groups.items()
    )


def _published_series(
    name: str, group: tuple[str, ...], points: Mapping[Place, Published], *, alone: bool
) -> PublishedSeries:
    source, method, rest = group
    parts = [part for part in ("" if alone and rest else method, rest) if part]
    return PublishedSeries(
        label=f"{source}: {', '.join(parts)}",
        objective=str(next(iter(points.values())).at.get("objective", "")),
        points=tuple((at, points[at].value) for at in ordered(axis(name), points)),
        links=tuple(dict.fromkeys(p.link for p in points.values() if p.link)),
    )


def _lines(rows: list[_Located]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """Untrained networks and raw pixels: they have no place on the axis."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for r in rows:
        if r.row.role == "baseline":
            found["raw pixels"][r.row.science_hash] = r.value
        elif r.row.role == "untrained":
            found["untrained network"][r.row.science_hash] = r.value
    return tuple((label, tuple(values.values())) for label, values in found.items())


def ordered(of: Axis, found: Iterable[Place]) -> tuple[Place, ...]:
    """Distinct places in the order of the axis: numbers by size, categories as is usual."""
    distinct = list(dict.fromkeys(found))
    parts = of.name.split("+")
    orders = [AXES[part].order if part in AXES else of.order for part in parts]

    def rank(at: Place) -> tuple[float, ...]:
        if not isinstance(at, str):
            return (0.0, at)
        words = at.split(", ") if len(parts) > 1 else [at]
        usual = [o.index(w) if w in o else len(o) for o, w in zip(orders, words, strict=False)]
        return (1.0, *usual, distinct.index(at))

    return tuple(sorted(distinct, key=rank))


def trends(curve: AxisCurve) -> list[PairedDifference]:
    """Per series: from its lowest to its highest point, then from every other to the highest."""
    found = []
    for s in curve.series:
        if len(s.points) > 1:
            (_, low), (_, high) = s.worst, s.best
            found.append(paired(low, high, "extremes"))
            others = [p for _, p in s.points if p is not low and p is not high]
            found += [paired(p, high, "to the highest") for p in others]
    return found
