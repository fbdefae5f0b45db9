"""Scores of a sweep over mask ratio and decoder: the trials that may be compared."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from studies.analysis.results import filled, is_number, protocol_key
from studies.analysis.sweeps.settings import ChosenSetting
from studies.result_row import EVALUATIONS, ResultRow


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One setting of the sweep with the top-1 of its trials."""

    mask_ratio: float
    decoder_depth: int
    decoder_width: int | None
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the trials of this setting, per cent."""
        return statistics.fmean(self.values)


@dataclass(frozen=True, kw_only=True)
class SweepSurface:
    """The sweep's trials that may be ranked: one protocol, one size, one duration."""

    protocol: str
    size: str | None
    duration: str | None
    points: tuple[SweepPoint, ...]
    left_out: int
    """Finite trials of another protocol, size or duration, or without mask ratio or depth."""


def sweep_surface(rows: Sequence[ResultRow], objective: str | None = None) -> SweepSurface | None:
    """Top-1 over mask ratio, decoder depth and width of the sweep's trials; None without any.

    Only trials of one protocol, size and duration are comparable: those of the stage
    `objective` if there are some, then the most frequent combination.
    """
    trials = [
        r for r in filled(rows) if r.role == "sweep" and r.kind in EVALUATIONS and is_number(r.top1)
    ]
    named = [r for r in trials if r.stage == objective] or trials
    counts = Counter((*protocol_key(r), r.size, r.duration) for r in named)
    if not counts:
        return None
    best = counts.most_common(1)[0][0]
    kept = [r for r in named if (*protocol_key(r), r.size, r.duration) == best]
    points = _sweep_points(kept)
    if not points:
        return None
    return SweepSurface(
        protocol=" · ".join(filter(None, (kept[0].protocol, kept[0].eval_split))),
        size=kept[0].size,
        duration=kept[0].duration,
        points=points,
        left_out=len(trials) - sum(len(p.values) for p in points),
    )


def _sweep_points(rows: Iterable[ResultRow]) -> tuple[SweepPoint, ...]:
    groups: dict[tuple[float, int, int | None], list[float]] = defaultdict(list)
    for r in rows:
        if r.mask_ratio is not None and r.decoder_depth is not None and r.top1 is not None:
            groups[r.mask_ratio, r.decoder_depth, r.decoder_width].append(r.top1)
    return tuple(
        SweepPoint(mask_ratio=m, decoder_depth=d, decoder_width=w, values=tuple(values))
        for (m, d, w), values in sorted(groups.items(), key=lambda g: (g[0][2] or 0, g[0]))
    )


def is_winner(point: SweepPoint, winner: ChosenSetting | None) -> bool:
    """Whether each of mask ratio, depth and width that the winner names is this point's."""
    if winner is None:
        return False
    mine = {
        "mask_ratio": point.mask_ratio,
        "decoder.depth": point.decoder_depth,
        "decoder.width": point.decoder_width,
    }
    named = [(winner.of_pretraining(path), value or 0.0) for path, value in mine.items()]
    pairs = [(chosen, value) for chosen, value in named if isinstance(chosen, int | float)]
    return bool(pairs) and all(math.isclose(a, b, rel_tol=1e-9) for a, b in pairs)


def sweep_caption(surface: SweepSurface, winner: ChosenSetting | None) -> str:
    """What the sweep's map shows, and what it leaves out."""
    trials = sum(len(p.values) for p in surface.points)
    setting = ", ".join(
        part
        for part in (
            surface.size and f"size {surface.size}",
            surface.duration and f"pretrained for {surface.duration}",
        )
        if part
    )
    left = f" {surface.left_out} other trials are not comparable and not shown."
    marked = any(is_winner(p, winner) for p in surface.points)
    return (
        f"{surface.protocol}: top-1 of {trials} sweep trials{f' ({setting})' if setting else ''}; "
        "the colour is a mean where a setting was tried more than once."
        + (left if surface.left_out else "")
        + (" The ring marks the chosen setting." if marked else " No shown setting was chosen.")
    )
