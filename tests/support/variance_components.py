"""Where the variance of a result comes from: restricted maximum likelihood over named sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from studies.analysis.curves.paired_tests import F64
from studies.errors import StudyError

_MIN_LEVELS = 2


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
    parts.append(
        Component(
            name=RESIDUAL,
            sd=math.sqrt(residual) if spare else math.nan,
            levels=len(y),
            is_identified=spare > 0,
            why="what no named source explains" if spare else "a single result has no spread",
        )
    )
    mean = float(y.mean())
    if num_examples:
        share = min(max(mean / 100, 0.0), 1.0)
        parts.append(
            Component(
                name=TEST_SAMPLING,
                sd=100 * math.sqrt(share * (1 - share) / num_examples),
                levels=num_examples,
                is_identified=True,
                why="binomial; common to all results on these images",
            )
        )
    return Components(mean=mean, parts=tuple(parts))


def _component(
    name: str,
    group: F64,
    distinct: list[str],
    usable: list[str],
    variances: list[float],
    num_results: int,
) -> Component:
    levels = group.shape[1]
    if name in distinct:
        sd = math.sqrt(variances[distinct.index(name)])
        return Component(
            name=name,
            sd=sd,
            levels=levels,
            is_identified=True,
            why=f"{levels} levels in {num_results} results",
        )
    if levels < _MIN_LEVELS:
        why = "it never varies here: repeat it with another value"
    elif name in usable:
        why = "it varies together with another source: the two cannot be separated"
    else:
        why = "every result has its own: it cannot be distinguished from the residual"
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
    starts = [
        np.full(k, math.log(1 / k)),
        *(np.where(np.arange(k) == i, -0.2, -5.0) for i in range(k)),
    ]
    found = min(
        (optimize.minimize(loss, s, method="L-BFGS-B", bounds=[(-16.0, 4.0)] * k) for s in starts),
        key=lambda r: r.fun,
    )
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
    same = {
        n: [m for m in names if np.array_equal(groups[n] @ groups[n].T, groups[m] @ groups[m].T)]
        for n in names
    }
    return [n for n in names if same[n] == [n]]
