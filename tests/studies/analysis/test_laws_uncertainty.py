"""Intervals: they agree with the exact ones where those exist, and open where data say nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from support.simulated_studies import joint_rise

from studies.analysis.laws import forms
from studies.analysis.laws.bootstrap import bootstrap
from studies.analysis.laws.fit import Method, fit_law
from studies.analysis.laws.intervals import extrapolation, predict, profile, threshold
from studies.analysis.laws.observations import Observations, observe
from studies.errors import StudyError

SIZES = np.geomspace(5e6, 6e8, 5)
IMAGES = np.geomspace(1e8, 1e9, 4)
TARGET = {"N": 1.2e9, "T": 2e9}


def truth(n: np.ndarray | float, t: np.ndarray | float) -> np.ndarray | float:
    return 12 + 3e4 * n**-0.45 + 2e6 * t**-0.6


def study(noise: float, seed: int = 0, clusters: list[str] | None = None) -> Observations:
    n, t = (v.ravel() for v in np.meshgrid(SIZES, IMAGES))
    wiggle = noise * np.random.default_rng(seed).standard_normal(20)
    return observe({"N": n, "T": t}, truth(n, t) + wiggle, clusters=clusters)


def test_product_law_has_the_intervals_of_linear_regression() -> None:
    data = study(0.3)
    fit = fit_law(forms.product(), data)
    y = np.log(data.y)
    design = np.column_stack(
        [np.ones(20), *(-np.log(data.axes[a] / fit.references[a]) for a in ("N", "T"))]
    )
    c, ss = np.linalg.lstsq(design, y, rcond=None)[:2]
    variance = np.linalg.inv(design.T @ design)
    t = stats.t.ppf(0.95, 17)
    sd = math.sqrt(ss[0] / 17)
    half = t * sd * math.sqrt(variance[1, 1])
    found = profile(fit, "alpha")
    assert (found.low, found.high) == pytest.approx((c[1] - half, c[1] + half), rel=2e-3)
    at = np.asarray([1, *(-np.log(TARGET[a] / fit.references[a]) for a in ("N", "T"))])
    prediction = predict(fit, TARGET)
    for extra, low, high in (
        (1.0, prediction.low, prediction.high),
        (0.0, prediction.law_low, prediction.law_high),
    ):
        half = t * sd * math.sqrt(extra + at @ variance @ at)
        ends = np.exp([at @ c - half, at @ c + half])
        assert (low, high) == pytest.approx(tuple(ends), rel=2e-3)


def test_additive_parameters_are_identified_on_a_full_grid() -> None:
    fit = fit_law(forms.additive(), study(0.1))
    expected = {"alpha": 0.45, "beta": 0.6, "E": 12.0}
    for name, value in expected.items():
        interval = profile(fit, name, 0.99)
        assert interval.identifiable and interval.low < value < interval.high
    prediction = predict(fit, TARGET, 0.99)
    measured = float(truth(**{k.lower(): v for k, v in TARGET.items()}))
    assert prediction.low <= measured <= prediction.high
    assert prediction.low < prediction.law_low < prediction.value < prediction.law_high


def test_ends_of_the_interval_are_where_one_more_run_raises_the_objective_enough() -> None:
    fit = fit_law(forms.additive(), study(0.1))
    prediction = predict(fit, TARGET)
    for end in (prediction.low, prediction.high):
        assert joint_rise(fit, TARGET, end) == pytest.approx(threshold(fit), rel=0.05)


def test_a_floor_out_of_sight_is_not_identified() -> None:
    x = np.geomspace(1e6, 3e7, 5)
    y = 4e3 * x**-0.3 * (1 + 0.02 * np.asarray([1, -1, 1, -1, 1]))
    fit = fit_law(forms.power_floor("N"), observe({"N": x}, y))
    floor = profile(fit, "E")
    assert not floor.identifiable and floor.low == 0.0 and "zero" in floor.why


def test_more_seeds_narrow_the_interval() -> None:
    one = study(0.2)
    n = np.tile(one.axes["N"], 4)
    t = np.tile(one.axes["T"], 4)
    y = np.concatenate([study(0.2, seed=s).y for s in range(4)])
    four = observe({"N": n, "T": t}, y)
    widths = []
    for data in (one, four):
        p = predict(fit_law(forms.additive(), data), TARGET)
        widths.append(p.law_high - p.law_low)
    assert widths[1] < 0.7 * widths[0]


def test_given_noise_replaces_residuals_unless_they_contradict_it() -> None:
    data = study(0.1)
    n, t = data.axes["N"], data.axes["T"]
    honest = fit_law(forms.additive(), observe({"N": n, "T": t}, data.y, seed_sd=0.1)).noise
    assert honest.sd == 0.1 and honest.source == "given" and not honest.lacks_fit
    boast = fit_law(forms.additive(), observe({"N": n, "T": t}, data.y, seed_sd=0.01)).noise
    assert boast.lacks_fit and boast.sd is not None and boast.sd > 0.05


def test_extrapolation_counts_from_the_fitted_range() -> None:
    found = extrapolation(fit_law(forms.additive(), study(0.1)), {"N": 6e9, "T": 5e7})
    assert found == pytest.approx({"N": 10.0, "T": 2.0})


def test_without_any_measure_of_noise_there_is_no_interval() -> None:
    fit = fit_law(forms.power_floor("N"), observe({"N": SIZES[:3]}, truth(SIZES[:3], 1e9)))
    with pytest.raises(StudyError, match="3 cells leave nothing to measure noise by"):
        predict(fit, {"N": 1e9})


def test_bootstrap_is_a_function_of_its_seed_and_draws_trunks_whole() -> None:
    fit = fit_law(forms.product(), study(0.3))
    first, again = (bootstrap(fit, [TARGET], num=40, seed=3) for _ in range(2))
    assert np.array_equal(first.predictions, again.predictions)
    assert not np.array_equal(first.predictions, bootstrap(fit, [TARGET], num=40).predictions)
    # All durations of a size branch from one trunk, and a trunk's luck is shared.
    trunks = [f"trunk{i % 5}" for i in range(20)]
    data = study(0.02, clusters=trunks)
    luck = np.asarray([0.6, -0.5, 0.4, -0.6, 0.3])[np.arange(20) % 5]
    shifted = observe(data.axes, data.y + luck, clusters=trunks)
    alone = observe(data.axes, data.y + luck)
    widths = []
    for runs in (shifted, alone):
        low, high = bootstrap(fit_law(forms.product(), runs), num=80).interval("alpha", 0.9)
        widths.append(high - low)
    assert widths[0] > 1.2 * widths[1]


def test_robust_fit_predicts_by_bootstrap() -> None:
    fit = fit_law(forms.product(), study(0.2), Method(huber=1e-3, starts=2))
    prediction = predict(fit, TARGET, resamples=30)
    assert prediction.method == "bootstrap"
    assert prediction.low < prediction.law_low < prediction.law_high < prediction.high


def test_too_few_trunks_to_bootstrap() -> None:
    fit = fit_law(forms.product(), study(0.3, clusters=["a", "b", "c", "c"] * 5))
    with pytest.raises(StudyError, match="3 independent cells"):
        bootstrap(fit)
