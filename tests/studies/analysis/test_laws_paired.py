"""Paired comparisons and variance components: exact where exact answers exist."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from support.variance_components import variance_components

from studies.analysis.curves.paired_tests import mcnemar, paired_bootstrap
from studies.errors import StudyError

RNG = np.random.default_rng(0)


def runs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = [1] * (both + only_a) + [0] * (only_b + neither)
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)


def test_mcnemar_counts_images_that_tell_them_apart() -> None:
    found = mcnemar(*runs(800, 10, 30, 160))
    assert (found.only_a, found.only_b, found.num_examples) == (10, 30, 1000)
    assert found.difference == pytest.approx(2.0)
    exact = stats.binomtest(10, 40).pvalue
    assert found.p_value == pytest.approx(exact - stats.binom.pmf(10, 40, 0.5))
    assert "second is better" in found.statement()


def test_mcnemar_of_equals_concludes_nothing() -> None:
    same = np.ones(50, dtype=bool)
    assert mcnemar(same, same).p_value == 1.0
    assert "nothing can be concluded" in mcnemar(same, same).statement()
    assert "No difference beyond chance" in mcnemar(*runs(80, 6, 7, 7)).statement()


def test_pairing_narrows_the_interval() -> None:
    """One point better on a hard set: paired it shows, unpaired the images' own spread hides it."""
    a, b = runs(6000, 10, 110, 3880)
    paired = paired_bootstrap(a, b, num=400)
    shuffled = paired_bootstrap(a, RNG.permutation(b), num=400)
    assert paired.difference == pytest.approx(1.0) and paired.low > 0
    assert shuffled.low <= 0 <= shuffled.high
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)
    assert paired == paired_bootstrap(a, b, num=400)


def test_interval_over_images_has_the_width_of_theory() -> None:
    a, b = runs(500, 60, 90, 350)
    found = paired_bootstrap(a, b, num=3000)
    d = b.astype(float) - a.astype(float)
    half = 1.645 * 100 * d.std() / math.sqrt(len(d))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)


def test_runs_that_disagree_widen_the_interval() -> None:
    a, b = runs(500, 20, 60, 420)
    steady = paired_bootstrap([a, a, a, a], [b, b, b, b], num=400)
    unsure = paired_bootstrap([a, b, a, b], [b, a, b, b], num=400)
    assert steady.num_runs == 4 and steady.low > 0
    assert unsure.high - unsure.low > 1.3 * (steady.high - steady.low)


def simulate(pretrain: float, labels: float, rest: float, seed: int) -> tuple[list[float], dict]:
    rng = np.random.default_rng(seed)
    seeds, draws = 12, 10
    up, down = pretrain * rng.standard_normal(seeds), labels * rng.standard_normal(draws)
    table = [(i, j) for i in range(seeds) for j in range(draws)]
    y = [70 + up[i] + down[j] + rest * rng.standard_normal() for i, j in table]
    return y, {"pretraining seed": [i for i, _ in table], "label draw": [j for _, j in table]}


def test_crossed_components_are_the_two_way_analysis_of_variance() -> None:
    y, factors = simulate(0.5, 0.2, 0.1, 4)
    found = variance_components(y, factors, num_examples=10_000)
    table = np.reshape(y, (12, 10))
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns + table.mean()
    noise = float((rest**2).sum()) / (11 * 9)
    expected = {
        "pretraining seed": math.sqrt(rows.var(ddof=1) - noise / 10),
        "label draw": math.sqrt(columns.var(ddof=1) - noise / 12),
        "residual": math.sqrt(noise),
        "test sampling": math.sqrt(table.mean() * (100 - table.mean()) / 1e4),
    }
    assert {p.name: p.sd for p in found.parts} == pytest.approx(expected, rel=1e-3)


def test_balanced_one_way_design_is_the_analysis_of_variance() -> None:
    y = np.asarray([[70.0, 70.4, 70.2], [71.5, 71.1, 71.3], [69.0, 69.3, 69.3], [70.6, 70.2, 70.9]])
    seed = np.repeat(np.arange(4), 3)
    found = variance_components(y.ravel().tolist(), {"pretraining seed": seed.tolist()})
    within = float(np.mean(y.var(axis=1, ddof=1)))
    between = float(y.mean(axis=1).var(ddof=1)) - within / 3
    assert found["residual"].sd == pytest.approx(math.sqrt(within), rel=1e-3)
    assert found["pretraining seed"].sd == pytest.approx(math.sqrt(between), rel=1e-3)


def test_what_cannot_be_told_apart_is_said() -> None:
    y = [70.0, 70.5, 71.0, 70.2]
    one = variance_components(
        y, {"pretraining seed": [0, 0, 0, 0], "evaluation seed": [0, 1, 2, 3]}
    )
    assert "never varies" in one["pretraining seed"].why
    assert "residual" in one["evaluation seed"].why and math.isnan(one["evaluation seed"].sd)
    tied = variance_components(
        y, {"pretraining seed": [0, 0, 1, 1], "label draw": ["a", "a", "b", "b"]}
    )
    assert not tied["label draw"].is_identified and "together" in tied["label draw"].why
    assert not variance_components([70.0], {})["residual"].is_identified
    assert variance_components([70.0] * 4, {"label draw": [0, 0, 1, 1]})["label draw"].sd == 0.0


def test_results_that_cannot_be_paired() -> None:
    with pytest.raises(StudyError, match="same images"):
        mcnemar([True, False], [True])
    with pytest.raises(StudyError, match="0 or 1"):
        paired_bootstrap([0.3, 0.7], [0, 1])
    with pytest.raises(StudyError, match="2 levels for 3 results"):
        variance_components([1.0, 2.0, 3.0], {"label draw": [0, 1]})
    with pytest.raises(StudyError, match="missing"):
        variance_components([1.0, math.nan], {})
