"""What a study's cells say besides their curves: noise, doublings, ranks, frontiers, influence.

Rows or curves in, numbers and statements out; where the numbers do not carry a conclusion, the
statement says so. Accuracies are top-1 in per cent, differences in points.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from mae_core.config import EncoderUse, kinds_that
from studies.analysis.curves.curves import DURATION, Curve, paired, signed, spread
from studies.analysis.laws.conclusions import Conclusion
from studies.analysis.laws.fit import Fit, Method, fit_law
from studies.analysis.laws.frontier import GridOptimum, best_per_bin, grid_optimum
from studies.analysis.laws.observations import observe
from studies.analysis.laws.refusals import Statement, note
from studies.analysis.results import by_protocol, filled, is_number
from studies.errors import StudyError
from studies.result_row import EVALUATIONS, ResultRow
from studies.spec.axes import AXES

F64 = npt.NDArray[np.float64]
LEVEL = 0.90
MIN_CELLS_FOR_RANKS = 5
RESAMPLES = 2000
MAX_CELLS_FOR_INFLUENCE = 40
"""A refit for each cell: more would take longer than the rest of a report."""
TRAINS = kinds_that(EncoderUse.TRAINS)


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """Spread of one run over seeds, pooled over the points of a protocol."""

    protocol: str
    sd: float
    low: float
    high: float
    """90 % interval of the standard deviation (chi-square)."""
    dof: int
    points: int
    sampling_sd: float | None
    """Of another test set of this size, at the mean accuracy (binomial); None = unknown."""


def seed_noise(rows: Sequence[ResultRow]) -> list[SeedNoise]:
    """Pooled standard deviation over seeds of each protocol that has a repeated point.

    A point is what differs in nothing but the seed: the same settings at the same place.
    """
    from scipy.stats import chi2

    found = []
    for protocol, members in _by_protocol(rows).items():
        points: dict[tuple[object, ...], dict[str, float]] = defaultdict(dict)
        for r in members:
            points[_place(r)][r.science_hash] = r.top1 or 0.0
        # Cells that differ in another stage alone share these results: a point is counted once.
        distinct = {tuple(sorted(v.items())) for v in points.values() if len(v) > 1}
        groups = [[top1 for _, top1 in group] for group in sorted(distinct)]
        dof = sum(len(g) - 1 for g in groups)
        if not dof:
            continue
        squares = sum((len(g) - 1) * statistics.variance(g) for g in groups)
        tail = (1 - LEVEL) / 2
        found.append(
            SeedNoise(
                protocol=protocol,
                sd=math.sqrt(squares / dof),
                low=math.sqrt(squares / chi2.ppf(1 - tail, dof)),
                high=math.sqrt(squares / chi2.ppf(tail, dof)),
                dof=dof,
                points=len(groups),
                sampling_sd=_sampling_sd(members),
            )
        )
    return found


def _by_protocol(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """Measured grid results on test, by protocol."""
    return by_protocol(
        r
        for r in filled(rows)
        if r.kind in EVALUATIONS
        and is_number(r.top1)
        and r.eval_split != "dev"
        and r.role in ("grid", "untrained")
    )


def _place(row: ResultRow) -> tuple[object, ...]:
    """The cell but for its seeds, and the stage with its conditions."""
    settings = (row.family, row.size, row.duration, row.mask_ratio, row.objective)
    return (*settings, row.stage, *row.places.items())


def _sampling_sd(rows: Sequence[ResultRow]) -> float | None:
    sizes = [r.num_eval_images for r in rows if r.num_eval_images]
    if not sizes:
        return None
    share = statistics.fmean((r.top1 or 0.0) / 100 for r in rows)
    return 100 * math.sqrt(max(share * (1 - share), 0.0) / statistics.fmean(sizes))


@dataclass(frozen=True, kw_only=True)
class Doubling:
    """Gain per doubling of the duration between two neighbouring durations of a size."""

    protocol: str
    size: str
    start: str
    end: str
    gain: float
    sd: float | None
    """Over paired seeds."""
    n: int

    @property
    def text(self) -> str:
        """Signed mean ± sd."""
        return signed(self.gain, self.sd, 2)


def doublings(curve: Curve) -> list[Doubling]:
    """Paired differences of neighbouring durations over log2 of their ratio."""
    found = []
    for series in curve.series if curve.axis.name == DURATION else ():
        line = [(float(p.at), p) for p in series.trained if not isinstance(p.at, str)]
        for (short, start), (long, end) in pairwise(line):
            steps = math.log2(long / short)
            pairs = list(paired(start, end, series.label).differences.values())
            if pairs and steps > 0:
                sd = spread(pairs)
                found.append(
                    Doubling(
                        protocol=curve.title,
                        size=series.label,
                        start=start.label,
                        end=end.label,
                        gain=statistics.fmean(pairs) / steps,
                        sd=None if sd is None else sd / steps,
                        n=len(pairs),
                    )
                )
    return found


def optima(curve: Curve) -> list[tuple[str, GridOptimum | Statement]]:
    """Fitted optimum of each series over a numeric axis of settings, or why there is none."""
    known = AXES.get(curve.axis.name)
    if known is None or known.scale not in ("linear", "log") or curve.measure != "top1":
        return []
    if curve.is_scaling or curve.axis.name in ("train_fraction", "num_labels", "severity"):
        return []  # more is better: an end, not an optimum
    found = []
    for s in curve.series:
        numeric = [(p.at, p) for p in s.points if isinstance(p.at, float)]
        x, y = [at for at, _ in numeric], [100 - p.mean for _, p in numeric]
        sds = [p.sd / math.sqrt(p.n) for p in s.points if p.sd is not None and p.sd > 0]
        if len(x) >= 2:
            noise = math.sqrt(statistics.fmean(v * v for v in sds)) if sds else None
            log = curve.axis.scale == "log"
            found.append((s.label, grid_optimum(curve.axis.label, x, y, sd=noise, log=log)))
    return found


@dataclass(frozen=True, kw_only=True)
class RankRelation:
    """How two measurements of the same cells agree in order."""

    x: str
    y: str
    points: tuple[tuple[str, float, float], ...]
    """(cell, x, y)."""
    spearman: float | None
    low: float | None
    high: float | None
    """90 % bootstrap interval over cells."""
    kendall: float | None
    is_loss: bool = False
    """Whether x is a loss; else it is an accuracy."""

    @property
    def verdict(self) -> str:
        """What may be said."""
        n = len(self.points)
        if self.spearman is None or self.low is None or self.high is None:
            return f"{n} cells with both: too few, or all equal; no correlation is quoted"
        text = (
            f"Spearman {self.spearman:+.2f} (90 % {self.low:+.2f} to {self.high:+.2f}), Kendall "
            f"{self.kendall:+.2f}, {n} cells"
        )
        if self.low > 0:
            return f"{text}: they order the cells alike"
        if self.high < 0:
            return f"{text}: they order the cells against each other"
        return f"{text}: no order beyond chance"


def rank_relation(x: str, y: str, points: Sequence[tuple[str, float, float]]) -> RankRelation:
    """Spearman's and Kendall's rank correlation with a bootstrap interval over cells."""
    from scipy.stats import kendalltau, rankdata, spearmanr

    a, b = (np.asarray([p[i] for p in points], dtype=np.float64) for i in (1, 2))
    if len(points) < MIN_CELLS_FOR_RANKS or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return RankRelation(
            x=x, y=y, points=tuple(points), spearman=None, low=None, high=None, kendall=None
        )
    rng = np.random.default_rng(0)
    resamples = max(200, min(RESAMPLES, 400_000 // len(points)))  # a fraction of a second
    index = rng.integers(0, len(points), (resamples, len(points)))
    ranks = [rankdata(v[index], axis=1) for v in (a, b)]
    left, right = (r - r.mean(axis=1, keepdims=True) for r in ranks)
    spreads = np.sqrt((left**2).sum(axis=1) * (right**2).sum(axis=1))
    drawn = (left * right).sum(axis=1)[spreads > 0] / spreads[spreads > 0]
    low, high = (float(np.quantile(drawn, q)) for q in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return RankRelation(
        x=x,
        y=y,
        points=tuple(points),
        spearman=float(spearmanr(a, b).statistic),
        low=low,
        high=high,
        kendall=float(kendalltau(a, b).statistic),
    )


PROBES = kinds_that(EncoderUse.FROZEN)
TUNES = kinds_that(EncoderUse.TUNES)


def probe_against_tune(rows: Sequence[ResultRow]) -> list[RankRelation]:
    """Each protocol of frozen features against each fine-tune, over the cells that have both."""
    found = _by_protocol(rows)
    frozen, tuned = (
        {name: _mean_by_cell(m) for name, m in found.items() if m[0].kind in kinds}
        for kinds in (PROBES, TUNES)
    )
    return _relations(frozen, tuned)


def loss_against_accuracy(rows: Sequence[ResultRow]) -> list[RankRelation]:
    """Held-out reconstruction loss, one reference for all cells, against each accuracy.

    The loss of training is never used: it is not comparable across mask ratios or targets.
    """
    held_out = by_protocol(
        r
        for r in filled(rows)
        if r.kind == "reconstruction" and is_number(r.loss) and r.role in ("grid", "untrained")
    )
    losses = {name: _mean_by_cell(members, "loss") for name, members in held_out.items()}
    accuracies = {name: _mean_by_cell(m) for name, m in _by_protocol(rows).items()}
    return [replace(found, is_loss=True) for found in _relations(losses, accuracies)]


def _relations(
    xs: Mapping[str, Mapping[str, CellMean]], ys: Mapping[str, Mapping[str, CellMean]]
) -> list[RankRelation]:
    """Of every two measurements that at least two cells have; cells that share both are one."""
    found = []
    for (x, at_x), (y, at_y) in product(xs.items(), ys.items()):
        first: dict[tuple[frozenset[str], frozenset[str]], str] = {}
        for cell in (c for c in at_x if c in at_y):
            first.setdefault((at_x[cell].of, at_y[cell].of), cell)
        points = [(c, at_x[c].value, at_y[c].value) for c in first.values()]
        if len(points) > 1:
            found.append(rank_relation(x, y, points))
    return found


class CellMean(NamedTuple):
    """What a cell measured by one protocol."""

    of: frozenset[str]
    """Science hashes of its results."""
    value: float


def _mean_by_cell(
    rows: Iterable[ResultRow], measure: Literal["top1", "loss"] = "top1"
) -> dict[str, CellMean]:
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for r in rows:
        values[r.cell][r.science_hash] = getattr(r, measure) or 0.0
    return {c: CellMean(frozenset(v), statistics.fmean(v.values())) for c, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class CostFrontier:
    """Cells of a protocol over what their pretraining cost, and the best that a budget bought."""

    protocol: str
    measure: str
    """`FLOPs` or `rank-hours`."""
    points: tuple[tuple[str, float, float], ...]
    """(cell, cost, top-1)."""
    best: tuple[tuple[str, float, float], ...]
    """Of each bin of cost, where no cheaper cell is as good."""


def cost_frontiers(rows: Sequence[ResultRow]) -> list[CostFrontier]:
    """Frontiers on counted FLOPs and on paid rank-hours, for each protocol with two costs.

    Untrained networks cost next to nothing and are on no frontier.
    """
    paid: dict[str, float] = defaultdict(float)
    for r in rows:
        if r.kind in TRAINS:
            paid[r.cell] += r.rank_seconds / 3600
    found = []
    for protocol, members in _by_protocol(rows).items():
        top1 = _mean_by_cell(members)
        flops = {r.cell: r.pretrain_flops for r in members if r.pretrain_flops}
        for measure, costs in (("FLOPs", flops), ("rank-hours", paid)):
            points = [
                (cell, float(costs.get(cell) or 0.0), top1[cell].value)
                for cell in top1
                if cell in flops and is_number(costs.get(cell)) and (costs.get(cell) or 0.0) > 0
            ]
            if len({round(math.log(cost), 3) for _, cost, _ in points}) > 1:
                found.append(_frontier(protocol, measure, points))
    return found


def _frontier(
    protocol: str, measure: str, points: Sequence[tuple[str, float, float]]
) -> CostFrontier:
    data = observe(
        {"cost": np.asarray([c for _, c, _ in points])},
        np.asarray([100 - v for *_, v in points]),
        cells=[cell for cell, *_ in points],
        percent=True,
    )
    kept = best_per_bin(data, "cost").data
    best = zip(kept.cells, kept.axes["cost"], kept.y, strict=True)
    return CostFrontier(
        protocol=protocol,
        measure=measure,
        points=tuple(points),
        best=tuple((cell, float(c), 100 - float(e)) for cell, c, e in best),
    )


@dataclass(frozen=True, kw_only=True)
class Influence:
    """What a law's prediction at the largest cell would be without one of the cells."""

    cell: str
    residual: float
    """Measured minus fitted error, points."""
    change: float
    """Of the predicted error at the largest cell, points; NaN where no law could be fitted."""


def influences(done: Conclusion) -> list[Influence] | Statement:
    """Leave each cell out, fit again, predict the largest; the most influential first."""
    fit = done.fit
    if fit is None:
        return note("There is no law, and so nothing that a cell could influence.")
    if fit.num_cells > MAX_CELLS_FOR_INFLUENCE:
        return note(
            f"{fit.num_cells} cells: leaving each out in turn is done up to "
            f"{MAX_CELLS_FOR_INFLUENCE}."
        )
    target = {a: float(fit.data.axes[a].max()) for a in fit.law.axes}
    whole = float(fit.predict(target)[0])
    measured = np.exp(fit.table.z) if fit.scale == "log" else fit.table.z
    rest = measured - fit.predict(fit.table.axes)
    found = [
        Influence(cell=cell, residual=float(v), change=_without(fit, cell, target) - whole)
        for cell, v in zip(fit.table.cells, rest, strict=True)
    ]
    return sorted(found, key=lambda one: -abs(one.change) if math.isfinite(one.change) else 0.0)


def _without(fit: Fit, cell: str, target: Mapping[str, float]) -> float:
    kept = fit.data.take([i for i, name in enumerate(fit.data.cells) if name != cell])
    try:
        again = fit_law(fit.law, kept, Method(scale=fit.scale, huber=fit.method.huber, starts=1))
    except StudyError:
        return math.nan
    return float(again.predict(target)[0])


@dataclass(frozen=True, kw_only=True)
class Insights:
    """What a study's cells say besides curves and laws."""

    noise: list[SeedNoise]
    doublings: list[Doubling]
    optima: list[tuple[Curve, str, GridOptimum | Statement]]
    ranks: list[RankRelation]
    losses: list[RankRelation]
    frontiers: list[CostFrontier]


def gather(rows: Sequence[ResultRow], curves: Sequence[Curve]) -> Insights:
    """Everything but the laws, computed once for page and files."""
    return Insights(
        noise=seed_noise(rows),
        doublings=[d for curve in curves for d in doublings(curve)],
        optima=[(c, label, found) for c in curves for label, found in optima(c)],
        ranks=probe_against_tune(rows),
        losses=loss_against_accuracy(rows),
        frontiers=cost_frontiers(rows),
    )
