"""Comparisons that share their test images, and where the variance of a result comes from.

Two networks scored on the same images are compared image by image: most are easy or hopeless for
both, and cancel. Pretraining seed, evaluation seed, label draw and test sampling are separate
components of variance; repeating one says nothing about the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from studies.errors import StudyError

F64 = npt.NDArray[np.float64]

LEVEL = 0.90
_MIN_LEVELS = 2


@dataclass(frozen=True, kw_only=True)
class McNemar:
    """Exact test of whether two classifiers err on equally many images (McNemar 1947)."""

    only_a: int
    """Images that a alone gets right."""
    only_b: int
    num_examples: int
    p_value: float
    """Two-sided, exact binomial, mid-p: half of the observed table's probability is left out,
    since the plain exact test is too cautious (Fagerland et al. 2013)."""

    @property
    def difference(self) -> float:
        """Accuracy of b minus a, points."""
        return 100.0 * (self.only_b - self.only_a) / self.num_examples

    def statement(self, alpha: float = 0.05) -> str:
        """What it shows, in words."""
        apart = self.only_a + self.only_b
        counts = f"{apart} of {self.num_examples} images tell them apart ({self.only_a} for the " \
                 f"first, {self.only_b} for the second; p = {self.p_value:.2g})"  # fmt: skip
        if not apart:
            return f"No image of {self.num_examples} tells them apart: nothing can be concluded."
        if self.p_value >= alpha:
            return f"No difference beyond chance: {counts}."
        better = "second" if self.only_b > self.only_a else "first"
        return f"The {better} is better on these images: {counts}."


@dataclass(frozen=True, kw_only=True)
class PairedInterval:
    """Difference of two accuracies with a bootstrap interval over images."""

    difference: float
    """b minus a, points."""
    low: float
    high: float
    level: float
    num_examples: int
    num_runs: int
    """Pairs of runs that were averaged; 1 says nothing about seeds."""

    @property
    def excludes_zero(self) -> bool:
        """Whether chance in the choice of images (and runs, if several) explains it away."""
        return self.low > 0 or self.high < 0


def mcnemar(a: Sequence[bool] | F64, b: Sequence[bool] | F64) -> McNemar:
    """Compare two runs by which images each gets right, in the same order, shape (images,).

    Raises:
        StudyError: if lengths differ, are zero, or values are not 0 or 1.
    """
    first, second = _right(a), _right(b)
    _same_images(first, second)
    only_a = int(np.sum(first & ~second))
    only_b = int(np.sum(~first & second))
    n, fewer = only_a + only_b, min(only_a, only_b)
    exact = float(stats.binomtest(fewer, n).pvalue) if n else 1.0
    mid = exact - float(stats.binom.pmf(fewer, n, 0.5)) if n else 1.0
    return McNemar(only_a=only_a, only_b=only_b, num_examples=len(first),
                   p_value=min(max(mid, 0.0), 1.0))  # fmt: skip


def paired_bootstrap(
    a: npt.ArrayLike, b: npt.ArrayLike, *, num: int = 2000, level: float = LEVEL, seed: int = 0
) -> PairedInterval:
    """Interval of the accuracy difference; a and b have shape (images,) or (runs, images).

    Images are drawn with replacement, the same for a and b. With several runs their pairs (equal
    row: equal seed) are drawn as well, so that the interval covers seeds too. A pure function of
    `seed`.

    Raises:
        StudyError: if shapes differ, there is no image, or values are not 0 or 1.
    """
    first, second = (np.atleast_2d(_right(v)) for v in (a, b))
    _same_images(first, second)
    difference = second.astype(np.float64) - first.astype(np.float64)
    runs, images = difference.shape
    rng = np.random.default_rng((seed, 21))
    found = np.empty(num)
    for i in range(num):
        weights = np.bincount(rng.integers(0, images, images), minlength=images) / images
        per_run = difference @ weights
        found[i] = per_run[rng.integers(0, runs, runs)].mean() if runs > 1 else per_run[0]
    low, high = 100 * np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return PairedInterval(difference=100 * float(difference.mean()), low=float(low),
                          high=float(high), level=level, num_examples=images,
                          num_runs=runs)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Component:
    """One source of variance."""

    name: str
    sd: float
    """Standard deviation it adds to one result, points; NaN where it cannot be told."""
    levels: int
    """How many different seeds (or draws) were seen."""
    is_identified: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class Components:
    """Variance of one result, by source."""

    mean: float
    parts: tuple[Component, ...]
    """In the order given, then residual and test sampling."""

    def __getitem__(self, name: str) -> Component:
        for part in self.parts:
            if part.name == name:
                return part
        raise StudyError(f"no component {name!r}; known: {', '.join(p.name for p in self.parts)}")


RESIDUAL = "residual"
TEST_SAMPLING = "test sampling"


def variance_components(
    top1: Sequence[float],
    factors: Mapping[str, Sequence[object]],
    *,
    num_examples: int | None = None,
) -> Components:
    """Split the variance of results of one cell by restricted maximum likelihood.

    `top1` in per cent, one per evaluation; `factors` names each source ("pretraining seed",
    "evaluation seed", "label draw") with its level per evaluation. A factor that is nested in
    another is made unique by the pair: an evaluation seed 0 of two pretrainings is two levels
    unless the very same draw was used. What varies with every result is the residual. Test
    sampling, sqrt(p (1 - p) / images), is common to all results on one test set: it is computed,
    not estimated, and matters when the claim is about images at large.

    Raises:
        StudyError: if lengths differ or a result is not finite.
    """
    y = np.asarray(top1, dtype=np.float64)
    if not len(y) or not np.isfinite(y).all():
        raise StudyError(f"{len(y)} results, some missing or none: drop what has no result first")
    groups = {name: _group_matrix(name, levels, len(y)) for name, levels in factors.items()}
    usable = [n for n, z in groups.items() if _MIN_LEVELS <= z.shape[1] < len(y)]
    distinct = _separable(usable, groups)
    variances, residual = _reml(y, [groups[n] for n in distinct])
    parts = [_component(n, groups[n], distinct, usable, variances, len(y)) for n in groups]
    spare = len(y) - 1
    parts.append(Component(
        name=RESIDUAL, sd=math.sqrt(residual) if spare else math.nan, levels=len(y),
        is_identified=spare > 0,
        why="what no named source explains" if spare else "a single result has no spread",
    ))  # fmt: skip
    mean = float(y.mean())
    if num_examples:
        share = min(max(mean / 100, 0.0), 1.0)
        parts.append(Component(
            name=TEST_SAMPLING, sd=100 * math.sqrt(share * (1 - share) / num_examples),
            levels=num_examples, is_identified=True,
            why="binomial; common to all results on these images",
        ))  # fmt: skip
    return Components(mean=mean, parts=tuple(parts))


def _component(
    name: str, group: F64, distinct: list[str], usable: list[str], variances: list[float],
    num_results: int,
) -> Component:  # fmt: skip
    levels = group.shape[1]
    if name in distinct:
        sd = math.sqrt(variances[distinct.index(name)])
        return Component(name=name, sd=sd, levels=levels, is_identified=True,
                         why=f"{levels} levels in {num_results} results")  # fmt: skip
    if levels < _MIN_LEVELS:
        why = "it never varies here: repeat it with another value"
    elif name in usable:
        why = "it varies together with another source: the two cannot be told apart"
    else:
        why = "every result has its own: it cannot be told from the residual"
    return Component(name=name, sd=math.nan, levels=levels, is_identified=False, why=why)


def _reml(y: F64, groups: Sequence[F64]) -> tuple[list[float], float]:
    """Variances of each group and of the residual that maximise the restricted likelihood."""
    n = len(y)
    if n < 2 or np.ptp(y) == 0:
        return [0.0] * len(groups), 0.0
    total = float(np.var(y, ddof=1))
    products = [z @ z.T for z in groups]

    def loss(log_shares: F64) -> float:
        shares = np.exp(log_shares)
        v = shares[-1] * np.eye(n)
        for share, p in zip(shares[:-1], products, strict=True):
            v += share * p
        factor = np.linalg.cholesky(v)
        white = np.linalg.solve(factor, np.column_stack([np.ones(n), y / math.sqrt(total)]))
        information = white[:, 0] @ white[:, 0]
        rest = white[:, 1] - white[:, 0] * (white[:, 0] @ white[:, 1]) / information
        return float(2 * np.sum(np.log(np.diag(factor))) + math.log(information) + rest @ rest)

    k = len(groups) + 1
    starts = [np.full(k, math.log(1 / k)), *(np.where(np.arange(k) == i, -0.2, -5.0)
                                              for i in range(k))]  # fmt: skip
    found = min((optimize.minimize(loss, s, method="L-BFGS-B", bounds=[(-16.0, 4.0)] * k)
                 for s in starts), key=lambda r: r.fun)  # fmt: skip
    variances = [total * float(v) if v > 1e-6 else 0.0 for v in np.exp(found.x)]
    return variances[:-1], variances[-1]


def _group_matrix(name: str, levels: Sequence[object], expected: int) -> F64:
    """Which result has which level, shape (results, levels)."""
    if len(levels) != expected:
        raise StudyError(f"factor {name!r} has {len(levels)} levels for {expected} results")
    names = list(dict.fromkeys(levels))
    return np.asarray([[float(v == n) for n in names] for v in levels])


def _separable(names: list[str], groups: Mapping[str, F64]) -> list[str]:
    """Without factors that group the results just as another one does: neither is identified."""
    same = {n: [m for m in names if np.array_equal(groups[n] @ groups[n].T,
                                                   groups[m] @ groups[m].T)]
            for n in names}  # fmt: skip
    return [n for n in names if same[n] == [n]]


def _right(values: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    found = np.asarray(values)
    if found.dtype != np.bool_ and not np.isin(found, (0, 1)).all():
        raise StudyError("per-image results must be 0 or 1 (right or wrong)")
    return found.astype(bool)


def _same_images(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> None:
    if a.shape != b.shape or not a.size:
        raise StudyError(
            f"results of shape {a.shape} and {b.shape} cannot be paired: both must be of the same "
            "images, in the same order, and at least one"
        )
