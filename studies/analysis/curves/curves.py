"""A curve: a measure over one axis, a series of points per setting, differences paired by seed.

No drawing and no fitted law here: means, spreads and paired differences over seeds only.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from studies.result_row import Place
from studies.spec.axes import AXES, Axis, JoinedPlace

UNTRAINED = 0.0
"""The place of a network before any training on the axis of durations."""
DURATION, PARAMETERS, COMPUTE = SCALING = ("duration", "parameters", "compute")
"""Axes of a study that names none: more is more, and what matters is the gain from end to end."""
MIN_SEEDS = 3
"""Fewer paired seeds than this give no usable spread, so no statement is made."""
SPREADS = 2.0
"""A difference counts when its mean exceeds this many standard deviations over seeds."""

Key = tuple[tuple[str, Place], ...]
"""What distinguishes one series from another: (axis, place) pairs."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One place of a series, with one value (top-1 in per cent, or a cost) per seed."""

    at: Place
    label: str
    """The place in words: `800ep`, `75 %`."""
    series: str
    """Label of its series."""
    values: Mapping[int | None, float] = field(default_factory=dict)
    odd: str = ""
    """Why it is no point of its curve, from the study's checks; it is drawn hollow."""

    @property
    def n(self) -> int:
        """How many seeds were measured."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; None below two seeds."""
        return spread(self.values.values())

    @property
    def text(self) -> str:
        """In a line: mean ± sd (seeds)."""
        return f"{plus_minus(self.mean, self.sd)} ({self.n})"


@dataclass(frozen=True, kw_only=True)
class Series:
    """Measured points along the axis."""

    label: str
    key: Key
    points: tuple[CurvePoint, ...]
    """In the order of the axis."""

    @property
    def trained(self) -> tuple[CurvePoint, ...]:
        """Points but for the untrained network's."""
        return tuple(p for p in self.points if p.at != UNTRAINED)

    def point(self, at: Place) -> CurvePoint | None:
        """The point at a place, if it was measured."""
        return next((p for p in self.points if p.at == at), None)


@dataclass(frozen=True, kw_only=True)
class PublishedSeries:
    """Published points along the axis."""

    label: str
    """With its source: `MAE paper, Fig 5: ViT-L/16`."""
    objective: str
    points: tuple[tuple[Place, float], ...]
    links: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ReferenceLine:
    """What has no place on the axis: raw pixels, or an untrained network."""

    label: str
    values: tuple[float, ...]
    """One per seed."""
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One figure: a measure of evaluations that may be compared, over one axis."""

    axis: Axis
    measure: str
    kind: str
    """Of the only protocol; empty where the figure shows a family of protocols."""
    title: str
    protocols: tuple[str, ...]
    series: tuple[Series, ...]
    places: tuple[Place, ...]
    """Every place of the figure, measured or published, in the order of the axis."""
    labels: Mapping[Place, str]
    """The places in words."""
    published: tuple[PublishedSeries, ...] = ()
    lines: tuple[ReferenceLine, ...] = ()
    averaged: int = 0
    """Measurements beyond the first of a seed at a point: averaged into it, and said."""

    @property
    def is_scaling(self) -> bool:
        """Whether more of the axis is more: its ends are compared, not its extremes."""
        return self.axis.name in SCALING

    @property
    def subject(self) -> str:
        """What is shown over what, for headings."""
        return self.title if self.is_scaling else f"{self.title}, over {self.axis.label}"

    def point(self, series: str, at: Place) -> CurvePoint | None:
        """The point of a series at a place, if it was measured."""
        return next((p for s in self.series if s.label == series if (p := s.point(at))), None)


class Change(enum.Enum):
    """What paired seeds say of a difference."""

    RISES = "rises by more than the seed spread"
    FALLS = "falls by more than the seed spread"
    NONE = "no change beyond the seed spread"
    UNKNOWN = "too few to judge"
    """Fewer than three paired seeds."""


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """End minus start, seed by seed; only seeds measured at both ends count."""

    label: str
    start: CurvePoint
    end: CurvePoint
    differences: Mapping[int, float]
    is_primary: bool = False
    """Whether it answers the question of its curve; the others are listed below."""

    @property
    def n(self) -> int:
        """Paired seeds."""
        return len(self.differences)

    @property
    def mean(self) -> float | None:
        """Mean paired difference, percentage points; None without a pair."""
        return statistics.fmean(self.differences.values()) if self.differences else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation of the paired differences; None below two pairs."""
        return spread(self.differences.values())

    @property
    def rises(self) -> int:
        """Seeds that end above where they started."""
        return sum(d > 0 for d in self.differences.values())

    @property
    def every_seed_rises(self) -> bool:
        """Whether each paired seed ends above where it started."""
        return 0 < self.n == self.rises

    @property
    def change(self) -> Change:
        """Whether its mean exceeds twice the spread over at least three paired seeds."""
        if self.mean is None or self.sd is None or self.n < MIN_SEEDS:
            return Change.UNKNOWN
        if abs(self.mean) <= SPREADS * self.sd:
            return Change.NONE
        return Change.RISES if self.mean > 0 else Change.FALLS

    @property
    def verdict(self) -> str:
        """The statement in words."""
        if self.change is Change.UNKNOWN:
            return f"{self.n} paired seed{'' if self.n == 1 else 's'}: {self.change.value}"
        return str(self.change.value)

    @property
    def text(self) -> str:
        """Signed mean ± sd."""
        return "–" if self.mean is None else signed(self.mean, self.sd)


def spread(values: Iterable[float]) -> float | None:
    """Sample standard deviation; None below two values."""
    found = list(values)
    return statistics.stdev(found) if len(found) > 1 else None


def plus_minus(mean: float, sd: float | None, digits: int = 1) -> str:
    """`45.2 ± 0.6`, or the mean alone where one seed gives no spread."""
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def signed(mean: float, sd: float | None, digits: int = 1) -> str:
    """`+1.2 ± 0.6`."""
    return ("+" if mean >= 0 else "") + plus_minus(mean, sd, digits)


def paired(
    start: CurvePoint, end: CurvePoint, label: str, *, is_primary: bool = False
) -> PairedDifference:
    """End minus start for the seeds both have; rows without a seed cannot be paired."""
    common = [s for s in end.values if s is not None and s in start.values]
    differences = {s: end.values[s] - start.values[s] for s in common}
    return PairedDifference(
        label=label, start=start, end=end, differences=differences, is_primary=is_primary
    )


def trends(curve: Curve) -> list[PairedDifference]:
    """The differences that answer the question of a curve, series by series."""
    if curve.axis.name == DURATION:
        return [trend for s in curve.series for trend in _durations(s)]
    if curve.axis.name == PARAMETERS:
        pairs = [(s, s.points) for s in curve.series if len(s.points) > 1]
        return [paired(p[0], p[-1], f"duration {s.label}") for s, p in pairs]
    if curve.axis.name == COMPUTE or curve.measure != "top1":
        return []
    return [trend for s in curve.series for trend in _extremes(s)]


def _durations(series: Series) -> list[PairedDifference]:
    """From the untrained network to the longest duration, then from the shortest."""
    line, start, label = series.trained, series.point(UNTRAINED), f"size {series.label}"
    found = []
    if line and start is not None:
        found.append(paired(start, line[-1], label, is_primary=True))
    return found + ([paired(line[0], line[-1], label)] if len(line) > 1 else [])


def _extremes(series: Series) -> list[PairedDifference]:
    """From the lowest to the highest point, then from every other to the highest."""
    if len(series.points) < 2:
        return []
    low, high = (choose(series.points, key=lambda p: p.mean) for choose in (min, max))
    others = [p for p in series.points if p is not low and p is not high]
    first = paired(low, high, "extremes", is_primary=True)
    return [first, *(paired(p, high, "to the highest") for p in others)]


def in_order(of: Axis, found: Iterable[Place]) -> tuple[Place, ...]:
    """Distinct places in the order of the axis: numbers by size, categories as is usual."""
    distinct = list(dict.fromkeys(found))
    parts = of.name.split("+")
    orders = [AXES[part].order if part in AXES else of.order for part in parts]

    def rank(at: Place) -> tuple[float, ...]:
        if not isinstance(at, str):
            return (0.0, at)
        own = at.parts if isinstance(at, JoinedPlace) else (at,)
        usual = [o.index(str(w)) if w in o else len(o) for o, w in zip(orders, own, strict=False)]
        return (1.0, *usual, distinct.index(at))

    return tuple(sorted(distinct, key=rank))
