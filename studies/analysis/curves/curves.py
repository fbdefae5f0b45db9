"""The numbers behind the curves: rows grouped into points, seeds paired, differences judged.

No drawing and no fitted law here: means, spreads and paired differences over seeds only.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from studies.analysis.curves.results import filled, is_number, protocol_key, protocol_label
from studies.result_row import EVALUATIONS, ResultRow

UNTRAINED = "untrained"
MIN_SEEDS = 3
"""Fewer paired seeds than this give no usable spread, so no statement is made."""
SPREADS = 2.0
"""A difference counts when its mean exceeds this many standard deviations over seeds."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One curve point: a size at a duration, with one top-1 (per cent) per pretraining seed."""

    size: str
    duration: str
    epochs: float | None = None
    encoder_params: int | None = None
    pretrain_flops: float | None = None
    values: Mapping[int | None, float] = field(default_factory=dict)
    odd: str = ""
    """Why it is no point of its curve, from the study's checks; it is drawn hollow."""

    @property
    def n(self) -> int:
        """How many seeds were measured."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean over seeds, per cent."""
        return statistics.fmean(self.values.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds; None below two seeds."""
        return spread(self.values.values())


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """End minus start, seed by seed; only seeds measured at both ends count."""

    label: str
    start: Point
    end: Point
    differences: Mapping[int, float]

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
    def every_seed_rises(self) -> bool:
        """Whether each paired seed ends above where it started."""
        return bool(self.differences) and all(d > 0 for d in self.differences.values())

    @property
    def exceeds_seed_spread(self) -> bool | None:
        """Rises by more than the seed spread (mean > 2 sd); None below three paired seeds."""
        if self.mean is None or self.sd is None or self.n < MIN_SEEDS:
            return None
        return self.mean > 0 and self.mean > SPREADS * self.sd

    @property
    def verdict(self) -> str:
        """The statement in words."""
        if self.n < MIN_SEEDS:
            return f"{self.n} paired seed{'' if self.n == 1 else 's'}: too few to judge"
        if self.exceeds_seed_spread:
            return "rises by more than the seed spread"
        mean, sd = self.mean or 0.0, self.sd or 0.0
        if mean < 0 and -mean > SPREADS * sd:
            return "falls by more than the seed spread"
        return "no change beyond the seed spread"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """All points of one protocol, sizes from small to large, durations from short to long."""

    kind: str
    protocol: str
    label: str
    """The protocol, with split and labels added where the protocol alone is ambiguous."""
    points: Mapping[tuple[str, str], Point]
    baseline: tuple[float, ...] = ()
    """Top-1 of the rows without an encoder (raw pixels), one per seed."""
    baseline_protocol: str = ""
    averaged: int = 0
    """Measurements beyond the first of a (size, duration, seed): averaged into it, and said."""

    @property
    def sizes(self) -> tuple[str, ...]:
        """Sizes by encoder parameters."""
        largest = {p.size: (p.encoder_params or 0, p.size) for p in self.points.values()}
        return tuple(sorted(largest, key=lambda size: largest[size]))

    @property
    def durations(self) -> tuple[str, ...]:
        """Trained durations, shortest first; the untrained network is not among them."""
        trained = [p for p in self.points.values() if p.duration != UNTRAINED]
        return ordered_durations((p.duration, p.epochs) for p in trained)

    def line(self, size: str) -> tuple[Point, ...]:
        """The trained points of one size, shortest first."""
        keys = ((size, duration) for duration in self.durations)
        return tuple(self.points[key] for key in keys if key in self.points)


def spread(values: Iterable[float]) -> float | None:
    """Sample standard deviation; None below two values."""
    found = list(values)
    return statistics.stdev(found) if len(found) > 1 else None


def ordered_durations(pairs: Iterable[tuple[str, float | None]]) -> tuple[str, ...]:
    """Distinct duration labels by epochs; labels without epochs go last, by name."""
    known = {label: (math.inf if epochs is None else epochs, label) for label, epochs in pairs}
    return tuple(sorted(known, key=lambda label: known[label]))


def curves(rows: Sequence[ResultRow], odd: Mapping[str, str] = {}) -> tuple[Curve, ...]:
    """One curve per protocol, k-NN first, then linear probe, then fine-tune.

    Rows without a finite top-1 are left out; `unmeasured` counts them. `odd` says of cells why
    they are no points of the others' curve.
    """
    usable = [r for r in filled(rows) if r.kind in EVALUATIONS and is_number(r.top1)]
    groups: dict[tuple[object, ...], list[ResultRow]] = defaultdict(list)
    for row in usable:
        if row.role in ("grid", "untrained"):
            groups[protocol_key(row)].append(row)
    uses = Counter(key[:2] for key in groups)
    order = sorted(groups, key=lambda key: (EVALUATIONS.index(str(key[0])), str(key)))
    baselines = [r for r in usable if r.role == "baseline"]
    return tuple(_curve(groups[key], baselines, odd, alone=uses[key[:2]] == 1) for key in order)


def _curve(
    rows: list[ResultRow], baselines: list[ResultRow], odd: Mapping[str, str], *, alone: bool
) -> Curve:
    first = rows[0]
    groups: dict[tuple[str, str], list[ResultRow]] = defaultdict(list)
    for row in rows:
        groups[row.size or "size unknown", duration_label(row)].append(row)
    points = {key: _point(key, group, odd) for key, group in groups.items()}
    chosen = _baseline(first, baselines)
    return Curve(
        kind=first.kind,
        protocol=first.protocol,
        label=protocol_label(first, alone=alone),
        points=points,
        baseline=tuple(row.top1 or 0.0 for row in chosen),
        baseline_protocol=chosen[0].protocol if chosen else "",
        averaged=len({r.science_hash for r in rows}) - sum(p.n for p in points.values()),
    )


def _baseline(like: ResultRow, baselines: list[ResultRow]) -> list[ResultRow]:
    """Baselines of the very protocol, else of its kind with the same split and labels."""
    key = protocol_key(like)
    exact = [r for r in baselines if protocol_key(r) == key]
    near = [r for r in baselines if (r.kind, *protocol_key(r)[2:]) == (key[0], *key[2:])]
    return list({r.science_hash: r for r in exact or near}.values())


def duration_label(row: ResultRow) -> str:
    """`untrained`, or the duration as written, or its epochs."""
    if row.role == "untrained":
        return UNTRAINED
    if row.duration:
        return row.duration
    return "duration unknown" if row.epochs is None else f"{row.epochs:g}ep"


def _point(key: tuple[str, str], rows: list[ResultRow], odd: Mapping[str, str]) -> Point:
    by_seed: dict[int | None, dict[str, float]] = defaultdict(dict)
    for row in rows:
        # One science hash is one measurement, however many cells share it.
        by_seed[row.seed][row.science_hash] = row.top1 or 0.0
    first = rows[0]
    return Point(
        size=key[0],
        duration=key[1],
        epochs=0.0 if key[1] == UNTRAINED else first.epochs,
        encoder_params=first.encoder_params,
        pretrain_flops=first.pretrain_flops,
        values={seed: statistics.fmean(by_seed[seed].values()) for seed in _seeds(by_seed)},
        odd=why_odd((row.cell for row in rows), odd),
    )


def why_odd(cells: Iterable[str], odd: Mapping[str, str]) -> str:
    """The reasons against any of these cells, empty if there is none."""
    return "; ".join(dict.fromkeys(odd[cell] for cell in cells if cell in odd))


def _seeds(values: Iterable[int | None]) -> list[int | None]:
    return sorted(values, key=lambda seed: (seed is None, seed or 0))


def paired(start: Point, end: Point, label: str) -> PairedDifference:
    """End minus start for the seeds both have; rows without a seed cannot be paired."""
    common = [s for s in end.values if s is not None and s in start.values]
    differences = {s: end.values[s] - start.values[s] for s in common}
    return PairedDifference(label=label, start=start, end=end, differences=differences)


def duration_trends(curve: Curve) -> tuple[PairedDifference, ...]:
    """Per size: untrained to longest, and shortest to longest duration."""
    found = []
    for size in curve.sizes:
        line = curve.line(size)
        starts = [curve.points.get((size, UNTRAINED)), line[0] if len(line) > 1 else None]
        found += [paired(s, line[-1], f"size {size}") for s in starts if s is not None and line]
    return tuple(found)


def size_trends(curve: Curve) -> tuple[PairedDifference, ...]:
    """Per duration (untrained included): smallest to largest size."""
    if len(curve.sizes) < 2:
        return ()
    small, large = curve.sizes[0], curve.sizes[-1]
    found = []
    for duration in (UNTRAINED, *curve.durations):
        start, end = curve.points.get((small, duration)), curve.points.get((large, duration))
        if start is not None and end is not None:
            found.append(paired(start, end, f"duration {duration}"))
    return tuple(found)


def point_text(point: Point) -> str:
    """A point in a line: where it stands, mean ± sd, seeds, and why it is none of its curve."""
    seeds = f"{point.n} seed{'' if point.n == 1 else 's'}"
    text = f"{point.size}, {point.duration}: {plus_minus(point.mean, point.sd, 2)} ({seeds})"
    return text + (f". Not a point of this curve: {point.odd}" if point.odd else "")


def plus_minus(mean: float, sd: float | None, digits: int = 1) -> str:
    """`45.2 ± 0.6`, or the mean alone where one seed gives no spread."""
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def duration_positions(curve: Curve) -> dict[str, float]:
    """log2 of epochs, or ranks where epochs are unknown; the untrained network left of all."""
    epochs = {p.duration: p.epochs or 0.0 for p in curve.points.values()}
    durations = curve.durations
    known = all(epochs[d] > 0 for d in durations)
    x = {d: math.log2(epochs[d]) if known else float(i) for i, d in enumerate(durations)}
    first, last = (min(x.values()), max(x.values())) if x else (0.0, 0.0)
    gap = max((last - first) / max(len(x) - 1, 1), 0.22 * (last - first)) or 1.0
    return {**x, UNTRAINED: first - gap}


def duration_caption(curve: Curve) -> str:
    """What a duration figure shows."""
    seeds = [p.n for p in curve.points.values()]
    count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    start = any(p.duration == UNTRAINED for p in curve.points.values())
    more = f" {curve.averaged} repeated measurements of a seed are averaged into its dot."
    more = more if curve.averaged > 0 else ""
    left = " The network before any training is at left, on a broken axis." if start else ""
    return (
        f"{curve.label}: top-1 against pretraining duration. Dots are seeds ({count} per point), "
        f"lines join means.{left}" + baseline_caption(curve) + more
    )


def baseline_caption(curve: Curve) -> str:
    """The sentence on the raw-pixel line, or nothing."""
    n, protocol = len(curve.baseline), curve.baseline_protocol
    other = f", scored by {protocol}" if protocol != curve.protocol else ""
    return f" Dashed black: raw pixels, no encoder (n = {n}{other})." if n else ""
