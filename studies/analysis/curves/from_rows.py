"""Curves from result rows: which rows share a figure, what its series are, what stands beside.

Over size, duration and compute each protocol has figures of its own. Over the axes that a study
names, rows of one figure share a family of evaluations, a split and a number of labels. What else
differs among them (objective, size, another axis of the study) makes them different series; seeds
of one series at one place make one point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from mae_core.config import RECIPES, EncoderUse, Family, LinearProbeRecipe, kinds_that
from studies.analysis.curves.curves import (
    COMPUTE,
    DURATION,
    PARAMETERS,
    SCALING,
    UNTRAINED,
    Curve,
    CurvePoint,
    Key,
    PublishedSeries,
    ReferenceLine,
    Series,
    in_order,
)
from studies.analysis.curves.published import published_series
from studies.analysis.results import filled, is_number, protocol_key, protocol_names, why_odd
from studies.reference import Published, published_set
from studies.result_row import EVALUATIONS, Place, ResultRow
from studies.spec.axes import AXES, axis, shown, tick

FAMILIES = {kind: recipe.FAMILY.value for kind, recipe in RECIPES.items()}
"""Kinds that a figure may show together: a supervised run, and the best of a search on dev, are
compared with fine-tunes."""
TUNED = (LinearProbeRecipe.KIND, *kinds_that(EncoderUse.TUNES))
"""Kinds of the paper's Figure 9, from nothing fine-tuned to everything."""

WITHIN = {"severity", "corruption"}
"""Axes of the conditions within a stage, whose rows serve their own figure alone."""
ACCURACIES = ("top1", "mce")
"""Measures that are read as they are; costs are relative within a series."""

Group = tuple[str, ...]
"""Family, split, labels and data set."""


@dataclass(frozen=True)
class _Located:
    """A measured row with its places."""

    row: ResultRow
    at: Mapping[str, Place]
    value: float

    @property
    def is_untrained(self) -> bool:
        return self.row.role == "untrained"


def scaling_curves(
    rows: Sequence[ResultRow], odd: Mapping[str, str] = {}, axes: Sequence[str] = SCALING
) -> tuple[Curve, ...]:
    """Top-1 over duration, encoder parameters and compute, a figure for each protocol.

    Rows without a finite top-1 are left out. `odd` says of cells why they are no points of the
    others' curve.
    """
    known = _located(rows, "top1")
    shown = [r for r in known if r.row.role in ("grid", "untrained") and not r.at.keys() & WITHIN]
    names = protocol_names(r.row for r in shown)
    groups: dict[str, list[_Located]] = defaultdict(list)
    for r in shown:
        groups[names[protocol_key(r.row)]].append(r)
    kinds = {name: groups[name][0].row.kind for name in groups}
    order = sorted(groups, key=lambda name: (EVALUATIONS.index(kinds[name]), name))
    baselines = [r for r in known if r.row.role == "baseline"]
    found = []
    for name in axes:
        for protocol in order:
            first = groups[protocol][0].row
            lines = _baselines([first.protocol], _near(first, baselines))
            figure = _Figure(name, (), "top1", groups[protocol], odd)
            curve = figure.curve(title=protocol, kind=first.kind, lines=lines)
            found += [curve] if curve else []
    return tuple(found)


def axis_curves(
    rows: Sequence[ResultRow],
    *,
    axes: Sequence[str],
    measures: Sequence[str] = ("top1",),
    published: Sequence[str] = (),
    odd: Mapping[str, str] = {},
) -> tuple[Curve, ...]:
    """A figure for each axis, measure and family of evaluations that has a point on it."""
    reference = [row for name in published for row in published_set(name) if row.is_verified]
    found = []
    for measure in measures:
        known = _located(rows, measure)
        for name in axes:
            groups: dict[Group, list[_Located]] = defaultdict(list)
            for r in known:
                # A condition within a stage is no result of the stage, and the reverse.
                if r.at.keys() & WITHIN == {name} & WITHIN:
                    groups[_group(r, name)].append(r)
            for group in sorted(_scored(groups), key=_group_rank):
                figure = _Figure(name, axes, measure, groups[group], odd)
                curve = _family_curve(figure, groups[group], reference)
                found += [curve] if curve else []
    return tuple(found)


def _located(rows: Sequence[ResultRow], measure: str) -> list[_Located]:
    values = ((row, _value(row, measure)) for row in filled(rows))
    return [_Located(row, places_of(row), v) for row, v in values if v is not None]


def places_of(row: ResultRow) -> dict[str, Place]:
    """The row's places on the study's axes, and on those that every row has."""
    duration: Place = row.duration or "duration unknown"
    if row.role == "untrained":
        duration = UNTRAINED
    elif row.epochs is not None:
        duration = float(row.epochs)
    known = {
        "size": row.size,
        "objective": row.objective,
        DURATION: duration,
        PARAMETERS: float(row.encoder_params) if row.encoder_params else None,
        COMPUTE: row.pretrain_flops or None,
    }
    return {k: at for k, at in known.items() if at is not None} | dict(row.places)


def _value(row: ResultRow, measure: str) -> float | None:
    """What a measure takes from a row; None if it takes nothing."""
    if measure in ACCURACIES:
        value = row.top1 if measure == "top1" else row.mce
        return value if row.kind in EVALUATIONS and is_number(value) else None
    if FAMILIES.get(row.kind) != FAMILIES["pretrain"]:
        return None
    value = row.rank_seconds if measure == "speedup" else row.pretrain_flops
    return value or None


def _group(r: _Located, axis_name: str) -> Group:
    """What differs in one of these is another figure."""
    family = FAMILIES.get(r.row.kind, r.row.kind.replace("_", " ").capitalize())
    if axis_name == "tuned_blocks" and r.row.kind in TUNED:
        family = FAMILIES["partial_finetune"]
    dataset = "" if axis_name == "dataset" else str(r.at.get("dataset", ""))
    labels = "" if axis_name == "num_labels" else str(r.row.num_labels or "")
    return family, r.row.eval_split or "", labels, dataset


def _scored(groups: Iterable[Group]) -> list[Group]:
    """What is scored on test; on dev, what has no test: candidates of a choice are not results."""
    known = set(groups)
    return [g for g in known if g[1] != "dev" or (g[0], "test", *g[2:]) not in known]


def _group_rank(group: Group) -> tuple[object, ...]:
    families = [family.value for family in Family]
    return families.index(group[0]) if group[0] in families else len(families), group


def _family_curve(
    figure: _Figure, rows: Sequence[_Located], reference: Sequence[Published]
) -> Curve | None:
    """A figure of a family of evaluations, with what is published of it."""
    if not figure.rows:
        return None
    name, first = figure.name, figure.rows[0]
    family, split, _, dataset = _group(first, name)
    protocols = figure.protocols
    labels = first.row.num_labels if name != "num_labels" else None
    title = protocols[0]
    if len(protocols) > 1:
        parts = (dataset, family, f"{labels} labels" if labels else "", "dev" * (split == "dev"))
        title = ", ".join(filter(None, parts))
    kinds = {kind for kind in FAMILIES if _same_family(kind, family)}
    kinds |= {r.row.kind for r in figure.rows}
    reference = [r for r in reference if not dataset or r.at.get("dataset", dataset) == dataset]
    lines: list[ReferenceLine] = []
    if figure.measure == "top1" and name not in WITHIN:
        lines = _baselines(protocols, [r for r in rows if r.row.role == "baseline"])
        if name not in SCALING:
            lines += _lines("untrained network", [r for r in rows if r.is_untrained])
    published = published_series(name, figure.measure, kinds, reference)
    return figure.curve(title=title, lines=lines, published=published)


def _same_family(kind: str, family: str) -> bool:
    return FAMILIES[kind] == family or (
        family == FAMILIES["partial_finetune"] and kind == "partial_finetune"
    )


class _Figure:
    """The rows of one figure, with the words for their places."""

    def __init__(
        self,
        name: str,
        axes: Sequence[str],
        measure: str,
        rows: Sequence[_Located],
        odd: Mapping[str, str],
    ) -> None:
        self.name, self.axes, self.measure, self.odd = name, axes, measure, odd
        self.axis = axis(name)
        # An untrained network has a place among durations, and costs nothing.
        roles = ("grid", "untrained") if name in SCALING else ("grid",)
        placed = [r for r in rows if name in r.at and r.row.role in roles]
        # A duration in words has no place beside numbers.
        self.rows = [
            r for r in placed if not (axes and name == DURATION and isinstance(r.at[name], str))
        ]
        self.params: dict[Place, int] = {}
        self.durations: dict[Place, str] = {UNTRAINED: "untrained"}
        for r in self.rows:
            size = r.at.get("size", "")
            self.params[size] = max(self.params.get(size, 0), r.row.encoder_params or 0)
            self.durations.setdefault(r.at[DURATION], r.row.duration or f"{r.at[DURATION]}")

    @property
    def protocols(self) -> tuple[str, ...]:
        """Of its rows, as they come."""
        return tuple(dict.fromkeys(r.row.protocol for r in self.rows))

    def curve(
        self,
        *,
        title: str,
        kind: str = "",
        lines: Sequence[ReferenceLine] = (),
        published: tuple[PublishedSeries, ...] = (),
    ) -> Curve | None:
        """The figure's numbers; None without a point."""
        if not self.rows:
            return None
        series = self._series()
        own = [p.at for s in series for p in s.points]
        places = in_order(self.axis, [*own, *(at for s in published for at, _ in s.points)])
        measured = len({r.row.science_hash for r in self.rows})
        return Curve(
            axis=self.axis,
            measure=self.measure,
            kind=kind,
            title=title,
            protocols=self.protocols,
            series=series,
            places=places,
            labels={at: self._word(self.name, at) for at in places},
            published=published,
            lines=tuple(lines),
            averaged=max(0, measured - sum(p.n for s in series for p in s.points)),
        )

    def _word(self, name: str, at: Place) -> str:
        """A place at its axis in words; parameters go by their size, durations as written."""
        if name == DURATION:
            return self.durations.get(at, tick(name, at))
        sizes = (str(r.at["size"]) for r in self.rows if r.at.get(name) == at and "size" in r.at)
        return next(sizes, "size unknown") if name == PARAMETERS else tick(name, at)

    def _series(self) -> tuple[Series, ...]:
        """Rows by what differs among them besides the axis; one axis varied at a time stays so."""
        declared = self._declared()
        own = (DURATION if self.name == PARAMETERS else "size") if not self.axes else ""
        names = [*([own] if own else []), *declared, "objective", "size"]
        names = [n for n in dict.fromkeys(names) if n != self.name]
        split = [n for n in names if n == own or len({r.at.get(n) for r in self.rows}) > 1]
        if self.name == PARAMETERS and "size" in split:
            split.remove("size")
        if own == "size" and self._follows_from_size("objective"):
            split = [n for n in split if n != "objective"]
        keys = {id(r): tuple((a, r.at[a]) for a in split if a in r.at) for r in self.rows}
        self._separate(keys)
        groups: dict[Key, list[_Located]] = defaultdict(list)
        for r in self.rows:
            groups[keys[id(r)]].append(r)
        found = [self._one_series(key, group) for key, group in groups.items()]
        if any(a in declared for a in split) and any(len(s.points) > 1 for s in found):
            # A point of another axis' variation is no curve over this one.
            found = [s for s in found if len(s.points) > 1]
        return tuple(sorted(found, key=lambda s: self._rank(s.key)))

    def _follows_from_size(self, name: str) -> bool:
        """Whether a size never has two of it: then it distinguishes no series of a size."""
        pairs = {(r.at.get("size"), r.at.get(name)) for r in self.rows}
        return len(pairs) == len({size for size, _ in pairs})

    def _declared(self) -> list[str]:
        """Axes that the study names beside this one; each data set has a figure of its own."""
        part_of = {*self.name.split("+")} | ({"dataset"} - {self.name})
        return [a for a in self.axes if a != self.name and not part_of & set(a.split("+"))]

    def _separate(self, keys: dict[int, Key]) -> None:
        """Extend keys by what two measurements of one place differ in, if nothing else does."""
        protocols = protocol_names(r.row for r in self.rows)
        columns: dict[str, Callable[[ResultRow], str]] = {
            "size": lambda row: row.size or "",
            "duration": lambda row: row.duration or "",
            "protocol": lambda row: protocols[protocol_key(row)],
            "stage": lambda row: row.stage,
        }
        for column, read in columns.items():
            at: dict[object, set[str]] = defaultdict(set)
            for r in self.rows:
                at[keys[id(r)], r.at[self.name], r.row.seed].add(read(r.row))
            if any(len(values) > 1 for values in at.values()):
                for r in self.rows:
                    keys[id(r)] = (*keys[id(r)], (column, read(r.row)))

    def _rank(self, key: Key) -> tuple[object, ...]:
        """Order of series: that of their axes; sizes by their parameters."""
        ranks: list[object] = []
        for name, at in key:
            order = AXES[name].order if name in AXES else ()
            number = float(order.index(at) if at in order else 99) if isinstance(at, str) else at
            number = float(self.params.get(at, 0)) or number if name == "size" else number
            ranks += [number, str(at)]
        return tuple(ranks)

    def _one_series(self, key: Key, rows: list[_Located]) -> Series:
        by_place: dict[Place, list[_Located]] = defaultdict(list)
        for r in rows:
            by_place[r.at[self.name]].append(r)
        told = [self._word(a, at) if a == DURATION else shown(a, at) for a, at in key]
        label, replicate = ", ".join(told) or "measured here", _replicate(rows)
        points = []
        for at in in_order(self.axis, by_place):
            values: dict[int | None, list[float]] = defaultdict(list)
            # One science hash is one measurement, however many cells and seeds share it.
            for r in {r.row.science_hash: r for r in reversed(by_place[at])}.values():
                values[getattr(r.row, replicate)].append(r.value)
            seeds = sorted(values, key=lambda s: (s is None, s or 0))
            point = CurvePoint(
                at=at,
                label=self._word(self.name, at),
                series=label,
                values={s: fmean(values[s]) for s in seeds},
                odd=why_odd((r.row.cell for r in by_place[at]), self.odd),
            )
            points.append(point)
        return Series(label=label, key=key, points=_relative(points, self.measure))


def _replicate(rows: list[_Located]) -> str:
    """What was repeated: the seed of pretraining, or of one pretraining the draw of labels."""
    is_one_encoder = len({r.row.seed for r in rows}) == 1
    draws = {r.row.label_seed for r in rows}
    return "label_seed" if is_one_encoder and len(draws) > 1 else "seed"


def _relative(points: Sequence[CurvePoint], measure: str) -> tuple[CurvePoint, ...]:
    """Costs relative to the most expensive (speed-up) or the cheapest (FLOPs) of the series."""
    if measure in ACCURACIES:
        return tuple(points)
    means = [p.mean for p in points]
    most, least = max(means), min(means)
    found = []
    for p in points:
        values = {s: most / v if measure == "speedup" else v / least for s, v in p.values.items()}
        found.append(CurvePoint(at=p.at, label=p.label, series=p.series, values=values))
    return tuple(found)


def _near(like: ResultRow, baselines: Iterable[_Located]) -> list[_Located]:
    """Baselines of a protocol's kind, split and labels."""
    of = (like.kind, like.eval_split, like.num_labels)
    return [r for r in baselines if (r.row.kind, r.row.eval_split, r.row.num_labels) == of]


def _baselines(protocols: Sequence[str], near: Sequence[_Located]) -> list[ReferenceLine]:
    """Raw pixels, by one of the very protocols if there is such a row."""
    exact = [r for r in near if r.row.protocol in protocols]
    return _lines("raw pixels", exact or near)


def _lines(label: str, rows: Sequence[_Located]) -> list[ReferenceLine]:
    """One line of distinct measurements, if there are any."""
    values = {r.row.science_hash: r.value for r in rows}
    if not values:
        return []
    protocol = rows[0].row.protocol
    return [ReferenceLine(label=label, values=tuple(values.values()), protocol=protocol)]
