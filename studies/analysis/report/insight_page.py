"""Sections of the report that go beyond the curves, each with what it does not show."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING

from studies.analysis.curves.curves import Curve
from studies.analysis.curves.insights import (
    TRAINS,
    CostFrontier,
    Doubling,
    Influence,
    Insights,
    RankRelation,
    SeedNoise,
    influences,
)
from studies.analysis.figures.insight_figures import frontier_figure, rank_figure
from studies.analysis.laws.frontier import GridOptimum
from studies.analysis.laws.refusals import Statement
from studies.analysis.report.section import Section, section
from studies.analysis.results import cost, filled, is_number
from studies.result_row import ResultRow
from studies.spec.axes import tick

if TYPE_CHECKING:
    from studies.analysis.report.meta import ReportMeta

MAX_FIGURES = 4
"""Of one section; the table has the rest."""
MAX_INFLUENCES = 6
"""Cells of a law that are listed."""


RANKS = (
    "Frozen features and fine-tuned networks are ranked over the cells that have both: a low "
    "correlation means that one cannot replace the other. Seeds of one setting count as separate "
    "cells."
)
LOSSES = (
    "The loss on held-out images at one reference mask ratio and target, the same for all cells. "
    "A correlation here does not allow choosing settings by loss: it holds for the settings that "
    "were varied."
)


def insight_sections(
    rows: Sequence[ResultRow], curves: Sequence[Curve], found: Insights
) -> list[Section]:
    """Every section that does not need a law."""
    return [
        *doubling_section(found.doublings),
        *optimum_section(found.optima),
        *cost_table_section(rows, curves),
        *relation_section("Probe against fine-tune", "ranks", found.ranks, RANKS),
        *relation_section("Reconstruction loss against accuracy", "losses", found.losses, LOSSES),
        *frontier_section(found.frontiers),
    ]


def doubling_section(found: Sequence[Doubling]) -> list[Section]:
    """Gain per doubling of the duration, size by size."""
    if not found:
        return []
    lines = [["protocol", "size", "from", "to", "points per doubling", "paired seeds"]]
    lines += [[d.protocol, d.size, d.start, d.end, d.text, str(d.n)] for d in found]
    text = (
        "Paired over seeds. A gain that has fallen below its spread has not been shown to be "
        "over: it has become smaller than this many seeds can see.",
    )
    return [section("Gain per doubling of the duration", is_quiet=True, lines=lines, text=text)]


def optimum_section(optima: Sequence[tuple[Curve, str, GridOptimum | Statement]]) -> list[Section]:
    """Fitted optima over the study's numeric settings, or why none is quoted."""
    lines = [["figure", "series", "optimum", "not worse beyond noise", "points used"]]
    refused = []
    for curve, label, found in optima:
        if isinstance(found, GridOptimum):
            at = [float(f"{v:.3g}") for v in (found.x, found.low, found.high)]
            x, low, high = (tick(curve.axis.name, v) for v in at)
            lines.append([curve.subject, label, x, f"{low} to {high}", str(found.num_points)])
        else:
            refused.append(f"{curve.title}, {label}: {found.text}")
    if len(lines) == 1 and not refused:
        return []
    text = (
        "The vertex of a parabola through the (up to five) points around the best; the range is "
        "where it stays within the noise of a mean.",
        *dict.fromkeys(refused),
    )
    return [section("Fitted optima", is_quiet=True, text=text, lines=lines)]


def cost_table_section(rows: Sequence[ResultRow], curves: Sequence[Curve]) -> list[Section]:
    """Accuracy and cost at every place of an axis: the paper's decoder tables."""
    text = (
        "FLOPs are counted, for the whole pretraining; rank-hours are what was paid here. Cost is "
        "the mean over the cells at a place.",
    )
    found = []
    for axis in dict.fromkeys(c.axis for c in curves if c.measure == "top1"):
        table = _cost_table(rows, [c for c in curves if c.axis == axis])
        title = f"Accuracy and cost against {axis.label}"
        found += [section(title, is_quiet=True, lines=table, text=text)] if table else []
    return found


def _cost_table(rows: Sequence[ResultRow], curves: Sequence[Curve]) -> list[list[str]]:
    name = curves[0].axis.name
    flops: dict[object, list[float]] = defaultdict(list)
    hours: dict[object, list[float]] = defaultdict(list)
    for r in filled(rows):
        at = r.places.get(name)
        if at is None or r.role != "grid" or r.kind not in TRAINS:
            continue
        if is_number(r.pretrain_flops):
            flops[at].append(r.pretrain_flops or 0.0)
        if is_number(r.rank_seconds):
            hours[at].append(r.rank_seconds / 3600)
    if not flops:
        return []
    series = [(c, s) for c in curves if c.measure == "top1" for s in c.series][:MAX_FIGURES]
    head = [curves[0].axis.label]
    for c, s in series:
        head.append(f"top-1 %: {c.title}" + (f", {s.label}" if len(c.series) > 1 else ""))
    lines = [[*head, "FLOPs", "× the cheapest", "rank-hours"]]
    least = min(map(fmean, flops.values())) or math.nan
    for at in dict.fromkeys(a for c in curves for a in c.places if a in flops):
        points = [s.point(at) for _, s in series]
        line = [tick(name, at), *("–" if p is None else p.text for p in points)]
        mean, paid = fmean(flops[at]), fmean(hours[at]) if hours[at] else math.nan
        lines.append([*line, f"{mean:.3g}", f"{mean / least:.2f}", f"{paid:.3g}"])
    return lines


def relation_section(
    title: str, name: str, relations: Sequence[RankRelation], text: str
) -> list[Section]:
    """How two measurements of the same cells agree in order, pair by pair."""
    if not relations:
        return []
    drawn = [rank_figure(r, f"{name}-{i}") for i, r in enumerate(relations[:MAX_FIGURES], 1)]
    lines = [["first", "second", "what it says"]]
    lines += [[r.x, r.y, r.verdict] for r in relations]
    return [section(title, drawn, text=[text], lines=lines)]


def frontier_section(frontiers: Sequence[CostFrontier]) -> list[Section]:
    """The best that FLOPs and rank-hours bought, protocol by protocol."""
    groups: dict[str, list[CostFrontier]] = defaultdict(list)
    for one in frontiers:
        groups[one.protocol].append(one)
    if not groups:
        return []
    shown = list(groups.values())[:MAX_FIGURES]
    lines = [["protocol", "cost", "cell", "spent", "top-1 %"]]
    lines += [
        [one.protocol, one.measure, cell, f"{spent:.3g}", f"{top1:.2f}"]
        for group in groups.values()
        for one in group
        for cell, spent, top1 in one.best
    ]
    drawn = [frontier_figure(group, f"frontier-{i}") for i, group in enumerate(shown, 1)]
    return [section("What a budget bought", drawn, lines=lines)]


def noise_section(found: Sequence[SeedNoise]) -> list[Section]:
    """Seed noise of every protocol, and the noise of drawing the test images."""
    lines = [["protocol", "sd of one run, points", "90 % interval", "repeated points"]]
    lines[0] += ["degrees of freedom", "sd of the test images, points"]
    for n in found:
        sampling = "–" if n.sampling_sd is None else f"{n.sampling_sd:.2f}"
        counts = [str(n.points), str(n.dof)]
        line = [n.protocol, f"{n.sd:.2f}", f"{n.low:.2f} to {n.high:.2f}", *counts, sampling]
        lines.append(line)
    text = (
        "Pooled over settings that differ in the seed alone. Other test images would move all "
        "cells together, and mostly not their differences."
    )
    if not found:
        text = "No setting was run at two seeds: how much of a difference is chance is unknown."
    return [section("Seed noise", is_quiet=True, lines=lines, text=[text])]


def influence_section(meta: ReportMeta) -> list[Section]:
    """Which cells a law hangs on."""
    lines = [["protocol", "without cell", "its residual, points"]]
    lines[0].append("prediction at the largest moves")
    text = []
    for one in meta.laws:
        if one.law is None or one.conclusion is None:
            continue
        found = influences(one.conclusion)
        if isinstance(found, list):
            lines += [[one.label, *_influence(i)] for i in found[:MAX_INFLUENCES]]
        else:
            text.append(f"{one.label}: {found.text}")
    if len(lines) == 1 and not text:
        return []
    text.append("The law fitted again without a cell: what moves much depends on that cell alone.")
    return [section("Influence of single cells", is_quiet=True, text=text, lines=lines)]


def _influence(one: Influence) -> tuple[str, str, str]:
    moved = f"{one.change:+.2f} points" if math.isfinite(one.change) else "no law without it"
    return one.cell, f"{one.residual:+.2f}", moved


def insights_json(rows: Sequence[ResultRow], found: Insights) -> dict[str, object]:
    """All of it as plain values."""
    hours: dict[str, float] = defaultdict(float)
    for (_, role), seconds in sorted(cost(rows, lambda row: (row.kind, row.role)).items()):
        hours[role] += seconds / 3600
    return {
        "seed_noise": found.noise,
        "doublings": found.doublings,
        "optima": [
            {"figure": curve.title, "axis": curve.axis.name, "series": label}
            | (asdict(at) if isinstance(at, GridOptimum) else {"statement": at.text})
            for curve, label, at in found.optima
        ],
        "relations": [asdict(r) | {"verdict": r.verdict} for r in (*found.ranks, *found.losses)],
        "frontiers": [
            {"protocol": f.protocol, "measure": f.measure, "best": f.best} for f in found.frontiers
        ],
        "rank_hours_by_role": dict(sorted(hours.items())),
    }
