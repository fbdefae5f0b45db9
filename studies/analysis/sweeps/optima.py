"""What the trials of a sweep say: the settings within noise of the winner, the optimum along each
axis with its interval, how that moves with size, and whether a transferred setting holds.

A winner's own score is the best of many noisy ones and therefore too high; nothing here trusts it
where the winner was run again at other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

LEVEL = 0.90
"""Of every interval; a setting is within noise unless it is below with 95 % confidence."""
MIN_REPEATS = 3
"""Runs of the winner at other seeds from which their spread is a noise model."""
MIN_DOF = 3
"""Trials beyond the terms of the response surface that a fit needs."""
MIN_SIZES_FOR_TREND = 3
"""Two sizes give a line through everything."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A finished trial."""

    number: int
    settings: Mapping[str, object]
    values: tuple[float, ...]
    """Per cent, by each of the search's protocols."""
    is_transferred: bool = False
    """Its settings won at the size before."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """The trials at one size, and what was decided."""

    label: str
    """The size; empty for the only search."""
    params: int | None
    """Encoder parameters."""
    protocols: tuple[str, ...]
    objective: str
    """The protocol that names the winner."""
    trials: tuple[Trial, ...]
    wanted: int
    winner: int | None = None
    """Number of the trial that won, None before the decision."""
    front: tuple[int, ...] = ()
    """Numbers of the trials on the Pareto front, of several protocols."""
    rule: str = "objective"
    num_images: int | None = None
    """Images of the dev set that scored it."""
    repeats: Mapping[int, float] = field(default_factory=dict)
    """The winner's score at other seeds, on the same dev set."""
    importance: Mapping[str, float] = field(default_factory=dict)
    """Share of the variance that each setting explains (functional ANOVA)."""
    log_axes: tuple[str, ...] = ()
    """Settings that are searched on a logarithmic scale."""
    journal: str = ""
    """Where Optuna's journal of it lies."""

    def score(self, trial: Trial) -> float:
        """By the protocol that names the winner."""
        return trial.values[self.protocols.index(self.objective)]

    def trial(self, number: int | None) -> Trial | None:
        """The finished trial of that number."""
        return next((t for t in self.trials if t.number == number), None)

    @property
    def keys(self) -> tuple[str, ...]:
        """Settings that were varied."""
        return tuple(dict.fromkeys(key for t in self.trials for key in t.settings))


@dataclass(frozen=True, kw_only=True)
class ScoreNoise:
    """By how much a score may differ by chance."""

    centre: float
    """What a winner's score is compared with: the mean of its repetitions, else its own."""
    sd: float
    """Of one run, in points."""
    margin: float
    """A score this far below the centre is lower with 95 % confidence."""
    source: Literal["repeats", "binomial"]
    n: int
    """Repetitions, or images of the dev set."""


def noise(search: Search) -> ScoreNoise | None:
    """Seed noise from at least three repetitions of the winner, else the dev set's binomial noise.

    The binomial one leaves the seed out and is a lower bound; None without either.
    """
    from scipy import stats

    best = search.trial(search.winner)
    if best is None:
        return None
    again = np.array([v for v in search.repeats.values() if math.isfinite(v)])
    if len(again) >= MIN_REPEATS:
        sd = float(again.std(ddof=1))
        quantile = float(stats.t.ppf((1 + LEVEL) / 2, len(again) - 1))
        margin = quantile * sd * math.sqrt(1 + 1 / len(again))
        centre = float(again.mean())
        return ScoreNoise(centre=centre, sd=sd, margin=margin, source="repeats", n=len(again))
    if not search.num_images:
        return None
    share = min(max(search.score(best) / 100, 0.0), 1.0)
    # Add-one, so that 100 % right is not taken for no noise at all.
    share = (share * search.num_images + 1) / (search.num_images + 2)
    sd = 100 * math.sqrt(share * (1 - share) / search.num_images)
    margin = float(stats.norm.ppf((1 + LEVEL) / 2)) * sd * math.sqrt(2)
    return ScoreNoise(
        centre=search.score(best), sd=sd, margin=margin, source="binomial", n=search.num_images
    )


def within_noise(search: Search) -> list[Trial]:
    """Trials, best first, that are within noise of the winner; the winner alone without noise.

    Of several trials with the same settings the first.
    """
    found = noise(search)
    best = search.trial(search.winner)
    if best is None:
        return []
    if found is None:
        return [best]
    ordered = sorted(search.trials, key=lambda t: (t is not best, -search.score(t), t.number))
    kept: list[Trial] = []
    for trial in ordered:
        is_close = search.score(trial) >= found.centre - found.margin
        if (trial is best or is_close) and all(t.settings != trial.settings for t in kept):
            kept.append(trial)
    return kept


@dataclass(frozen=True, kw_only=True)
class SweepOptimum:
    """Where a search's response surface is highest along one setting."""

    key: str
    status: Literal["inside", "edge", "flat", "few"]
    """`inside` the tried values; at their `edge` or beyond: not quoted; `flat`: the curvature
    cannot be distinguished from none; `few` trials or values."""
    at: float | None = None
    low: float | None = None
    """End of the 90 % interval; None where it reaches the lowest value tried."""
    high: float | None = None
    tried: tuple[float, float] | None = None
    """Lowest and highest value."""


def optimum(search: Search, key: str) -> SweepOptimum:
    """Vertex of a quadratic in one setting, the others accounted for, with Fieller's interval.

    The surface is additive: a constant, a line and a parabola per numeric setting of three or more
    values (on log scale where it was searched so), a level per choice. Least squares; the interval
    is where the slope cannot be distinguished from zero (Fieller 1954), exact for normal noise.
    """
    from scipy import stats

    values = _numbers(search, key)
    if values is None or len(set(values)) < 3:
        return SweepOptimum(key=key, status="few")
    design_NP, at = _surface(search, key)
    scores_N = np.array([search.score(t) for t in search.trials])
    dof = len(scores_N) - np.linalg.matrix_rank(design_NP)
    tried = (min(values), max(values))
    if dof < MIN_DOF:
        return SweepOptimum(key=key, status="few", tried=tried)
    beta_P, *_ = np.linalg.lstsq(design_NP, scores_N, rcond=None)
    residual_N = scores_N - design_NP @ beta_P
    variance = max(float(residual_N @ residual_N) / dof, 1e-12)
    cov_PP = variance * np.linalg.pinv(design_NP.T @ design_NP)
    quantile = float(stats.t.ppf((1 + LEVEL) / 2, dof))
    b, c = beta_P[at], beta_P[at + 1]
    v_b, v_c, v_bc = cov_PP[at, at], cov_PP[at + 1, at + 1], cov_PP[at, at + 1]
    ends = _fieller(b, c, v_b, v_c, v_bc, quantile)
    if c >= 0 or ends is None:
        return SweepOptimum(key=key, status="flat", tried=tried)
    back = _back(search, key, values)
    vertex, low, high = back(-b / (2 * c)), back(ends[0]), back(ends[1])
    span = 1e-9 * (tried[1] - tried[0])
    if not tried[0] + span < vertex < tried[1] - span:
        return SweepOptimum(key=key, status="edge", tried=tried)
    return SweepOptimum(
        key=key,
        status="inside",
        at=vertex,
        low=low if low > tried[0] else None,
        high=high if high < tried[1] else None,
        tried=tried,
    )


def _fieller(
    b: float, c: float, v_b: float, v_c: float, v_bc: float, quantile: float
) -> tuple[float, float] | None:
    """Ends of {z: |b + 2cz| <= q se(b + 2cz)}; None where it is not an interval."""
    q = quantile**2
    square, line, constant = 4 * (c * c - q * v_c), 4 * (b * c - q * v_bc), b * b - q * v_b
    inner = line * line - 4 * square * constant
    if square <= 0 or inner < 0:
        return None
    root = math.sqrt(inner)
    return (-line - root) / (2 * square), (-line + root) / (2 * square)


def _numbers(search: Search, key: str) -> list[float] | None:
    """Values of a setting in every trial; None if some are no numbers."""
    found = [t.settings.get(key) for t in search.trials]
    numbers = [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    return numbers if found and len(numbers) == len(found) else None


def _scaled(search: Search, key: str, values: Sequence[float]) -> Array:
    x = np.log(values) if key in search.log_axes else np.asarray(values, dtype=np.float64)
    spread = float(np.ptp(x)) or 1.0
    return np.asarray((x - x.mean()) / spread, dtype=np.float64)


def _back(search: Search, key: str, values: Sequence[float]) -> Callable[[float], float]:
    """From the scale of the fit to the setting's own."""
    is_log = key in search.log_axes
    x = np.log(values) if is_log else np.asarray(values, dtype=np.float64)
    mean, spread = float(x.mean()), float(np.ptp(x)) or 1.0
    return lambda z: math.exp(mean + spread * z) if is_log else float(mean + spread * z)


def _surface(search: Search, key: str) -> tuple[Array, int]:
    """Design matrix of the additive surface, and the column of `key`'s line."""
    columns = [np.ones(len(search.trials))]
    at = 0
    for name in search.keys:
        values = _numbers(search, name)
        if values is None:
            found = [str(t.settings.get(name)) for t in search.trials]
            columns += [np.array([v == level for v in found], float) for level in set(found)]
            continue
        z_N = _scaled(search, name, values)
        at = len(columns) if name == key else at
        columns += [z_N, z_N**2] if len(set(values)) > 2 else [z_N]
    return np.stack(columns, axis=1), at


@dataclass(frozen=True, kw_only=True)
class Trend:
    """How an optimum moves with size: value (or its log10) = a + b log10(parameters)."""

    key: str
    points: tuple[tuple[int, SweepOptimum], ...]
    """(encoder parameters, optimum) of every search, quoted or not."""
    is_log: bool
    slope: float | None = None
    """Per decade of parameters; None where fewer than three optima are quoted."""
    slope_low: float | None = None
    slope_high: float | None = None
    intercept: float | None = None

    @property
    def verdict(self) -> str:
        """In words."""
        quoted = sum(o.status == "inside" for _, o in self.points)
        if self.slope is None or self.slope_low is None or self.slope_high is None:
            return (
                f"{quoted} of {len(self.points)} sizes have an optimum inside the values tried: no "
                f"trend is fitted (it needs {MIN_SIZES_FOR_TREND})"
            )
        if self.slope_low <= 0 <= self.slope_high:
            return "no trend with size can be distinguished from none"
        return f"the optimum {'rises' if self.slope > 0 else 'falls'} with size"


def trend(searches: Sequence[Search], key: str) -> Trend | None:
    """The optimum of a setting over sizes, weighted by its intervals; None below two sizes.

    The slope's interval is that of the weighted fit, widened where the optima scatter by more than
    their own intervals say (Birge ratio).
    """
    from scipy import optimize, stats

    sized = [(s.params, optimum(s, key)) for s in searches if s.params]
    points = tuple((params, found) for params, found in sized if params)
    if len(points) < 2:
        return None
    is_log = any(key in s.log_axes for s in searches)
    scale = math.log10 if is_log else float
    quoted = [(math.log10(n), o) for n, o in points if o.status == "inside"]
    if len(quoted) < MIN_SIZES_FOR_TREND:
        return Trend(key=key, points=points, is_log=is_log)
    x = np.array([n for n, _ in quoted])
    y = np.array([scale(o.at or 0.0) for _, o in quoted])
    sigma = np.array([_half_width(o, scale) for _, o in quoted]) / stats.norm.ppf((1 + LEVEL) / 2)
    (slope, intercept), cov = optimize.curve_fit(
        lambda n, b, a: a + b * n, x, y, p0=(0.0, float(y.mean())), sigma=sigma, absolute_sigma=True
    )
    dof = len(x) - 2
    chi2 = float((((y - intercept - slope * x) / sigma) ** 2).sum())
    error = math.sqrt(float(cov[0, 0]) * max(1.0, chi2 / dof))
    half = float(stats.norm.ppf((1 + LEVEL) / 2) if chi2 <= dof else stats.t.ppf(0.95, dof)) * error
    return Trend(
        key=key,
        points=points,
        is_log=is_log,
        slope=float(slope),
        slope_low=float(slope) - half,
        slope_high=float(slope) + half,
        intercept=float(intercept),
    )


def _half_width(found: SweepOptimum, scale: Callable[[float], float]) -> float:
    """Half of an interval on the trend's scale; an open end counts as far as was tried."""
    tried = found.tried or (0.0, 1.0)
    low = found.low if found.low is not None else tried[0]
    high = found.high if found.high is not None else tried[1]
    return max(float(scale(high) - scale(low)) / 2, 1e-9)


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Whether the winner of a size is as good as any at the next."""

    label: str
    rank: int
    """Of the transferred setting among the trials, 1 = best."""
    num_trials: int
    behind: float
    """Points below the best trial, 0 if it won."""
    holds: bool | None
    """True if it is within noise of the best; None where no noise is known."""
    margin: float | None
    """What a score must be below the winner's centre to be lower with 95 % confidence."""


def transfers(searches: Sequence[Search]) -> list[Transfer]:
    """The test of the assumption at every decided size that began with a transferred setting."""
    found = []
    for search in searches:
        moved = next((t for t in search.trials if t.is_transferred), None)
        best = search.trial(search.winner)
        if moved is None or best is None:
            continue
        score = search.score(moved)
        spread = noise(search)
        holds = None
        if spread is not None:
            holds = moved is best or score >= spread.centre - spread.margin
        found.append(
            Transfer(
                label=search.label,
                rank=1 + sum(search.score(t) > score for t in search.trials),
                num_trials=len(search.trials),
                margin=None if spread is None else spread.margin,
                behind=max(0.0, max(search.score(t) for t in search.trials) - score),
                holds=holds,
            )
        )
    return found


def trends(searches: Sequence[Search]) -> list[Trend]:
    """Trends of all settings with an optimum inside the values tried at some size."""
    keys = dict.fromkeys(key for s in searches for key in s.keys)
    found = [trend(searches, key) for key in keys]
    return [t for t in found if t is not None and any(o.status == "inside" for _, o in t.points)]
