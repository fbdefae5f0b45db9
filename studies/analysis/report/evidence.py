"""What the curves show in words: the headline, paired differences, and how far seeds cover them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from studies.analysis.curves.curves import (
    DURATION,
    MIN_SEEDS,
    SCALING,
    UNTRAINED,
    Change,
    Curve,
    CurvePoint,
    PairedDifference,
    Series,
    in_order,
    plus_minus,
    trends,
)
from studies.analysis.curves.from_rows import places_of
from studies.analysis.results import filled
from studies.result_row import Place, ResultRow


@dataclass(frozen=True, kw_only=True)
class EvidenceLine:
    """A line of the page's table of paired differences."""

    protocol: str
    compares: str
    primary: bool
    start: str
    start_top1: str
    end: str
    end_top1: str
    difference: str
    pairs: int
    every_seed_rises: bool
    exceeds: bool | None
    """Whether it rises by more than the seed spread; None if seeds are too few to judge."""
    change: Change
    verdict: str
    sentence: str


def evidence(curves: Iterable[Curve]) -> list[EvidenceLine]:
    """A line for every paired difference, those that answer a curve's question marked."""
    return [_line(curve, trend) for curve in curves for trend in trends(curve)]


def _line(curve: Curve, trend: PairedDifference) -> EvidenceLine:
    start, end = _name(curve, trend.start), _name(curve, trend.end)
    rise = "no seed was measured at both"
    if trend.differences:
        rises = f"{trend.rises} of {trend.n} seeds rise"
        rise = f"paired difference {trend.text} points, {rises}: {trend.verdict}"
    ends = f"from {start} {trend.start.text} to {end} {trend.end.text}"
    return EvidenceLine(
        protocol=curve.subject,
        compares=trend.label,
        primary=trend.is_primary,
        start=start,
        start_top1=trend.start.text,
        end=end,
        end_top1=trend.end.text,
        difference=trend.text,
        pairs=trend.n,
        every_seed_rises=trend.every_seed_rises,
        exceeds=None if trend.change is Change.UNKNOWN else trend.change is Change.RISES,
        change=trend.change,
        verdict=trend.verdict,
        sentence=f"{curve.subject}: {ends}; {rise}.",
    )


def _name(curve: Curve, point: CurvePoint) -> str:
    if curve.is_scaling:
        size_first = curve.axis.name == DURATION
        return " ".join([point.series, point.label][:: 1 if size_first else -1])
    return point.label if len(curve.series) == 1 else f"{point.series}: {point.label}"


def headline(curves: Sequence[Curve], axes: Sequence[str]) -> str:
    """How often longer training helps; over axes of the study, where each figure has its ends."""
    told = [_gain(curves)] if not axes or any(c.axis.name == DURATION for c in curves) else []
    extremes = [text for curve in curves if (text := in_words(curve))] if axes else []
    if axes and not extremes:
        return "Fewer than two points of an axis are measured yet: nothing can be said."
    seeds = [p.n for c in curves for s in c.series for p in s.points] if axes else []
    few = (
        ""
        if min(seeds, default=MIN_SEEDS) >= MIN_SEEDS
        else (" Points of fewer than 3 seeds may differ by chance.")
    )
    return "\n".join([*told, *extremes]) + few


def _gain(curves: Sequence[Curve]) -> str:
    """How many (protocol, size) pairs rise from the untrained network to the longest duration."""
    by_size = [c for c in curves if c.axis.name == DURATION]
    if not by_size:
        return "No evaluated cell yet: nothing can be said."
    found = [trend for curve in by_size for trend in trends(curve)]
    start, chosen = "the untrained network", [t for t in found if t.start.at == UNTRAINED]
    if not chosen:
        start, chosen = "the shortest duration", found
    if not chosen:
        return "No size has two durations or an untrained network: durations cannot be compared."
    judged = [t for t in chosen if t.change is not Change.UNKNOWN]
    if not judged:
        return "Too few paired seeds (fewer than 3) to say whether pretraining helps beyond chance."
    rising = sum(t.change is Change.RISES for t in judged)
    rest = len(chosen) - len(judged)
    return (
        f"From {start} to the longest duration, top-1 rises by more than the seed spread in "
        f"{rising} of {len(judged)} (protocol, size) pairs with at least 3 paired seeds"
        + (f"; {rest} more have too few." if rest else ".")
    )


def in_words(curve: Curve) -> str | None:
    """The finding of a figure in a sentence: where each series is highest and lowest."""
    told = []
    for series in curve.series:
        if len(series.points) < 2:
            continue
        high, low = (choose(series.points, key=lambda p: p.mean) for choose in (max, min))
        who = f"{series.label}: " if len(curve.series) > 1 else ""
        ends = (f"{p.label} ({plus_minus(p.mean, p.sd)}, n = {p.n})" for p in (high, low))
        told.append(f"{who}highest at {next(ends)}, lowest at {next(ends)}")
    return f"{curve.title} over {curve.axis.label}: {'; '.join(told)}." if told else None


@dataclass(frozen=True, kw_only=True)
class CoverageCell:
    """Seeds of a place, under every protocol that is asked of it."""

    found: int
    expected: int

    @property
    def is_full(self) -> bool:
        """Whether none is missing."""
        return self.found >= self.expected


@dataclass(frozen=True, kw_only=True)
class CoverageTable:
    """Seeds of each series at each place of an axis."""

    corner: str
    places: tuple[str, ...]
    rows: tuple[tuple[str, tuple[CoverageCell, ...]], ...]
    """(series, a cell per place)."""


def coverage(
    rows: Sequence[ResultRow], curves: Sequence[Curve], axes: Sequence[str], expected: int | None
) -> list[CoverageTable]:
    """Per axis: seeds measured in every figure of it, by series and place.

    Without axes of the study, by size and duration, cells without any evaluation included.
    """
    grid = [r for r in filled(rows) if r.role in ("grid", "untrained")]
    seeds = expected or len({r.seed for r in grid if r.seed is not None})
    if not axes:
        sizes = [c for c in curves if c.axis.name == DURATION]
        return [_sizes(grid, sizes, seeds)] if grid else []
    by_axis: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.measure == "top1" and curve.axis.name != "corruption":
            by_axis.setdefault(curve.axis.name, []).append(curve)
    return [_coverage(group, seeds) for group in by_axis.values()]


def _coverage(curves: Sequence[Curve], expected: int) -> CoverageTable:
    first = curves[0]
    places = in_order(first.axis, [p.at for c in curves for s in c.series for p in s.points])
    labels = {at: word for c in curves for at, word in c.labels.items()}
    series = list(dict.fromkeys(s.label for c in curves for s in c.series))
    return _table(first.axis.label, curves, series, {at: labels[at] for at in places}, expected)


def _sizes(grid: Sequence[ResultRow], curves: Sequence[Curve], expected: int) -> CoverageTable:
    by_params = sorted({(r.encoder_params or 0, r.size or "size unknown") for r in grid})
    labels: dict[Place, str] = {}
    for r in grid:
        at = places_of(r)[DURATION]
        labels.setdefault(at, "untrained" if at == UNTRAINED else r.duration or f"{at}")
    numbers = sorted(at for at in labels if isinstance(at, float))
    words = sorted(at for at in labels if isinstance(at, str))
    places: dict[Place, str] = {at: labels[at] for at in numbers} | {at: labels[at] for at in words}
    sizes = list(dict.fromkeys(size for _, size in by_params))
    return _table("size", curves, sizes, places, expected)


def _table(
    corner: str,
    curves: Sequence[Curve],
    series: Sequence[str],
    places: Mapping[Place, str],
    expected: int,
) -> CoverageTable:
    rows = []
    for label in series:
        # A protocol that no cell of this series was evaluated by is not asked of it.
        asked = [c for c in curves if any(_is_of(s, label) for s in c.series)]
        counts = [_complete([c for c in asked if _asks(c, at)], label, at) for at in places]
        cells = tuple(CoverageCell(found=n, expected=expected) for n in counts)
        rows.append((label, cells))
    return CoverageTable(corner=corner, places=tuple(places.values()), rows=tuple(rows))


def _asks(curve: Curve, at: Place) -> bool:
    """Over size and duration each protocol is asked everywhere; else where it has a point."""
    return curve.axis.name in SCALING or at in curve.places


def _complete(curves: Sequence[Curve], label: str, at: Place) -> int:
    """Seeds that all of the curves have."""
    seeds = [
        {seed for s in curve.series if _is_of(s, label) if (p := s.point(at)) for seed in p.values}
        for curve in curves
    ]
    return len(set.intersection(*seeds)) if seeds else 0


def _is_of(series: Series, label: str) -> bool:
    """Whether a series is the one of this name, or one of several of this size."""
    return series.label == label or ("size", label) in series.key
