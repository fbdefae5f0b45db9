"""Comparisons that share their test images.

Two networks scored on the same images are compared image by image: most are easy or hopeless for
both, and cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from studies.errors import StudyError

F64 = npt.NDArray[np.float64]

LEVEL = 0.90


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
        counts = (
            f"{apart} of {self.num_examples} images distinguish them ({self.only_a} for the first, "
            f"{self.only_b} for the second; p = {self.p_value:.2g})"
        )
        if not apart:
            return f"No image of {self.num_examples} distinguishes them: nothing can be concluded."
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
    return McNemar(
        only_a=only_a, only_b=only_b, num_examples=len(first), p_value=min(max(mid, 0.0), 1.0)
    )


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
    return PairedInterval(
        difference=100 * float(difference.mean()),
        low=float(low),
        high=float(high),
        level=level,
        num_examples=images,
        num_runs=runs,
    )


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
