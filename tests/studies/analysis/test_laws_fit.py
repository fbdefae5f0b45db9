"""Laws recover what generated the data, reproduce published fits, and report every optimum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.effective_data import SinglePass, repetition

from studies.analysis.laws import forms
from studies.analysis.laws.fit import Fit, Method, fit_law
from studies.analysis.laws.observations import Observations, observe, observe_rows
from studies.errors import StudyError
from studies.reference.scaling_tables import MAWS_IG3B, MMPRETRAIN_GRID
from studies.result_row import ResultRow

SIZES = np.asarray([5.5e6, 21.6e6, 85.7e6, 303e6, 630e6])
IMAGES = np.asarray([0.128e9, 0.256e9, 0.512e9, 1.03e9])


def grid(error: forms.Columns) -> Observations:
    """Errors of a formula on every size and duration."""
    n, t = (v.ravel() for v in np.meshgrid(SIZES, IMAGES, indexing="ij"))
    return observe({"N": n, "T": t}, error(n, t))


def line(x: np.ndarray, y: np.ndarray) -> Observations:
    return observe({"N": x}, y)


def test_power_with_floor_recovers_raw_parameters() -> None:
    fit = fit_law(forms.power_floor("N"), line(SIZES, 11.0 + 4e4 * SIZES**-0.5))
    assert fit.raw_values == pytest.approx({"alpha": 0.5, "E": 11.0, "A": 4e4}, rel=1e-4)
    assert len(fit.optima) == 1


def test_additive_recovers_raw_parameters() -> None:
    truth = {"alpha": 0.45, "beta": 0.6, "E": 12.0, "A": 3e4, "B": 2e6}
    data = grid(lambda n, t: 12.0 + 3e4 * n**-0.45 + 2e6 * t**-0.6)
    assert fit_law(forms.additive(), data).raw_values == pytest.approx(truth, rel=1e-4)


def test_product_is_the_plane_of_logarithms() -> None:
    data = grid(lambda n, t: 3e3 * n**-0.2 * t**-0.1)
    fit = fit_law(forms.product(), data)
    assert fit.raw_values == pytest.approx({"alpha": 0.2, "beta": 0.1, "A": 3e3}, rel=1e-5)
    design = np.column_stack([np.ones(20), np.log(data.axes["N"]), np.log(data.axes["T"])])
    noisy = observe(data.axes, data.y * np.exp(0.05 * np.sin(np.arange(20.0) * 7)))
    plane = np.linalg.lstsq(design, np.log(noisy.y), rcond=None)[0]
    values = fit_law(forms.product(), noisy).raw_values
    assert [-values["alpha"], -values["beta"]] == pytest.approx(plane[1:], rel=1e-6)


def test_bounded_recovers_and_stays_between_floor_and_chance() -> None:
    def error(n: np.ndarray, t: np.ndarray) -> np.ndarray:
        h = 2e3 * n**-0.5 + 1e5 * t**-0.6
        return 9.0 + (99.9 - 9.0) * h / (1 + h)

    fit = fit_law(forms.bounded(99.9), grid(error))
    assert fit.raw_values["E"] == pytest.approx(9.0, rel=1e-3)
    assert fit.values["alpha"] == pytest.approx(0.5, rel=1e-3)
    ends = fit.predict({"N": np.asarray([1.0, 1e30]), "T": np.asarray([1.0, 1e30])})
    assert 9.0 <= ends[1] < ends[0] <= 99.9


def test_over_fitting_term_turns_the_curve_up() -> None:
    n, t, d = (v.ravel() for v in np.meshgrid(SIZES, IMAGES, [1e5, 4e5, 1.3e6], indexing="ij"))
    h = 500 * n**-0.4 + 2e4 * t**-0.5 + 0.3 * n**0.3 * d**-0.5
    y = 9.0 + 90.9 * h / (1 + h)
    fit = fit_law(forms.bounded(99.9, samples="D"), observe({"N": n, "T": t, "D": d}, y))
    assert fit.predict({"N": n, "T": t, "D": d}) == pytest.approx(y, rel=2e-3)
    few = fit.predict({"N": SIZES, "T": 1e9, "D": 1e4})
    assert few[-1] > few[1]


def test_broken_law_predicts_both_slopes() -> None:
    x = np.geomspace(1e6, 1e9, 14)
    y = 5.0 + 20 * (x / 3e7) ** -0.15 * (1 + (x / 3e7) ** 4) ** (-0.25 * 0.45)
    fit = fit_law(forms.broken("N"), line(x, y))
    assert fit.predict({"N": x}) == pytest.approx(y, rel=2e-3)


def test_repetition_recovers_both_decays() -> None:
    base = SinglePass(E=1.87, A=521.0, alpha=0.353, B=1488.0, beta=0.353)
    n, t, u = (
        v.ravel()
        for v in np.meshgrid(
            [1.5e8, 6e8, 2.8e9, 8.7e9],
            [4e9, 2e10, 1e11, 3e11],
            [4e8, 4e9],
            indexing="ij",
        )
    )
    law = repetition(base)
    axes = {"N": n, "T": t, "U": u}
    y = law.evaluate(np.asarray([15.4, 5.3]), np.empty(0), axes)
    found = fit_law(law, observe(axes, y), Method(huber=1e-3)).values
    assert found == pytest.approx({"R_D*": 15.4, "R_N*": 5.3}, rel=0.01)


def test_saturating_error_from_loss() -> None:
    loss = np.asarray([5.4, 4.6, 3.8, 3.3, 2.8, 2.5])
    fit = fit_law(forms.saturating(), observe({"loss": loss}, 0.86 - 2.1 * np.exp(-0.75 * loss)))
    assert fit.values["E"] == pytest.approx(0.86, rel=1e-4)
    assert fit.values["gamma"] / fit.references["loss"] == pytest.approx(0.75, rel=1e-3)


def test_huber_keeps_an_outlier_from_bending_the_law() -> None:
    y = 11.0 + 4e4 * SIZES**-0.5
    x = np.concatenate([SIZES, SIZES * 2])
    y = 11.0 + 4e4 * x**-0.5
    y[3] *= 1.3
    target = {"N": 6.5e9}
    truth = 11.0 + 4e4 * 6.5e9**-0.5
    errors = {
        huber: abs(
            fit_law(forms.power_floor("N"), line(x, y), Method(scale="log", huber=huber)).predict(
                target
            )[0]
            - truth
        )
        for huber in (None, 1e-3)
    }
    assert errors[1e-3] < 0.01 < errors[None]


def mmpretrain(metric: str, *, without: tuple[int, ...]) -> Fit:
    kept = [p for i, p in enumerate(MMPRETRAIN_GRID) if i not in without and getattr(p, metric)]
    return fit_law(
        forms.product(),
        observe(
            {"N": [p.encoder_params for p in kept], "T": [p.images_seen for p in kept]},
            [100 - getattr(p, metric) for p in kept],
        ),
    )


def test_published_masked_autoencoder_tables() -> None:
    ladder = MAWS_IG3B[:4]
    sizes = np.asarray([p.encoder_params for p in ladder])
    fit = fit_law(forms.power_floor("N"), line(sizes, np.asarray([100 - p.top1 for p in ladder])))
    assert round(100 - fit.predict({"N": 6.5e9})[0], 2) == 88.31
    large, huge = MMPRETRAIN_GRID[6:]
    probe = mmpretrain("linear", without=(6,))
    tuned = mmpretrain("finetune", without=(6, 7))
    at = {"N": large.encoder_params, "T": large.images_seen}
    assert round(100 - probe.predict(at)[0], 2) == 75.23
    at = {"N": huge.encoder_params, "T": huge.images_seen}
    assert round(100 - tuned.predict(at)[0], 2) == 86.54


def test_seeds_of_a_cell_are_pooled_and_measure_noise() -> None:
    x = np.repeat(SIZES, 2)
    wiggle = np.tile([0.1, -0.1], 5)
    fit = fit_law(forms.power_floor("N"), line(x, 11.0 + 4e4 * x**-0.5 + wiggle))
    assert fit.num_cells == 5
    assert fit.noise.source == "seeds and residuals"
    # Five pairs 0.2 apart: sum of squares 0.1 over 5, and 2 spare cells without misfit.
    assert fit.noise.sd == pytest.approx(np.sqrt(0.1 / 7), rel=1e-3)


def test_misfit_beyond_seed_noise_is_seen() -> None:
    x = np.repeat(SIZES, 2)
    bump = np.where(x == SIZES[2], 1.0, 0.0)
    wiggle = np.tile([0.01, -0.01], 5)
    noise = fit_law(forms.power_floor("N"), line(x, 11 + 4e4 * x**-0.5 + bump + wiggle)).noise
    assert noise.lacks_fit and noise.source == "residuals"


def test_rows_become_observations_and_unknown_names_are_named() -> None:
    rows = [
        ResultRow(
            study="s",
            cell=f"B/e{e}/s{s}",
            stage="knn",
            kind="knn",
            protocol="k-NN",
            role=role,
            science_hash=f"{e}{s}{role}",
            size="B",
            encoder_params=86_000_000,
            duration=f"{e}ep",
            images_seen=e * 1000,
            seed=s,
            top1=60.0 + e / 100,
        )
        for e in (100, 200)
        for s in (0, 1)
        for role in ("grid", "sweep")
    ]
    data = observe_rows(rows, protocol="k-NN")
    assert len(data) == 4 and data.num_cells == 2
    assert data.y.tolist() == pytest.approx([39.0, 39.0, 38.0, 38.0])
    shared = [replace(r, cell=f"{r.cell}/other_stage") for r in rows]
    assert len(observe_rows([*rows, *shared], protocol="k-NN")) == 4
    with pytest.raises(StudyError, match="unknown protocol 'knn'"):
        observe_rows(rows, protocol="knn")
    with pytest.raises(StudyError, match="encoder_parms"):
        observe_rows(rows, protocol="k-NN", axes=("encoder_parms",))


@pytest.mark.parametrize(
    ("axes", "y", "message"),
    [
        ({"N": [1.0, 2.0]}, [1.0], "2 values for 1"),
        ({}, [1.0], "without an axis"),
    ],
)
def test_observations_that_cannot_be_meant(
    axes: dict[str, list[float]], y: list[float], message: str
) -> None:
    with pytest.raises(StudyError, match=message):
        observe(axes, y)


def test_a_fit_refuses_what_it_cannot_compute() -> None:
    with pytest.raises(StudyError, match="needs axis 'T'"):
        fit_law(forms.additive(), observe({"N": SIZES}, SIZES))
    with pytest.raises(StudyError, match="missing"):
        fit_law(forms.power("N"), observe({"N": SIZES}, SIZES * np.nan))
    with pytest.raises(StudyError, match="without axis 'N'"):
        fit_law(forms.power("N"), line(SIZES, 1e3 / SIZES)).predict({"T": 1.0})
