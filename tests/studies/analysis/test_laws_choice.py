"""Simulated studies cover what they promise, and laws are chosen by what they predict."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.simulated_studies import (
    Coverage,
    Truth,
    coverage,
    full_grid,
    generate,
    holds,
    self_test,
    truth_of,
)

from studies.analysis.laws import forms
from studies.analysis.laws.fit import Method, fit_law
from studies.analysis.laws.intervals import predict
from studies.analysis.laws.observations import observe
from studies.analysis.laws.refusals import StatementKind
from studies.analysis.laws.selection import (
    choose,
    default_candidates,
    hold_out_error,
    hold_outs,
    one_axis_candidates,
)

SIZES = (5.5e6, 21.6e6, 85.7e6, 303e6, 630e6)
IMAGES = (1.28e8, 2.56e8, 5.12e8, 1.02e9)
DESIGN = full_grid(SIZES, IMAGES, seeds_of_smallest=3)
LARGEST = {"N": SIZES[-1], "T": IMAGES[-1]}
ADDITIVE = Truth(
    law=forms.additive(),
    theta=(0.4, 0.5),
    coefficients=(12.0, 9.0, 8.0),
    references={"N": 6e7, "T": 3e8},
)
PRODUCT = Truth(
    law=forms.product(), theta=(0.2, 0.1), coefficients=(30.0,), references={"N": 6e7, "T": 3e8}
)


def test_a_design_repeats_the_smallest_size_and_leaves_the_target_out() -> None:
    assert len(DESIGN.cells) == 4 * 3 + 16 and len(set(DESIGN.cells)) == 20
    assert len(DESIGN.without(LARGEST).cells) == 27
    data = generate(ADDITIVE, DESIGN, 0.1, (1, 2))
    assert np.array_equal(data.y, generate(ADDITIVE, DESIGN, 0.1, (1, 2)).y)
    assert not np.array_equal(data.y, generate(ADDITIVE, DESIGN, 0.1, (1, 3)).y)


def test_well_specified_intervals_cover() -> None:
    found = coverage(
        ADDITIVE,
        DESIGN.without(LARGEST),
        LARGEST,
        forms.additive(),
        noise_sd=0.2,
        studies=30,
        method=Method(starts=2),
    )
    assert found.fitted == 30
    assert found.interval[0] < 0.9 < found.interval[1]


def test_an_interval_that_misses_is_never_called_trustworthy() -> None:
    # A tenfold extrapolation with a law that has no floor, of data that have one.
    kept = full_grid(SIZES[:4], IMAGES, seeds=2)
    far = {"N": 6e10, "T": 1e11}
    found = coverage(
        ADDITIVE, kept, far, forms.product(), noise_sd=0.05, studies=12, method=Method(starts=2)
    )
    assert found.share < 0.75 and not found.is_trusted
    assert "not to be trusted" in found.statement().text


@pytest.mark.parametrize(
    ("covered", "verdict", "words"),
    [
        (90, StatementKind.NOTE, "90%"),
        (80, StatementKind.CAUTION, "held 80%"),
        (70, StatementKind.CAUTION, "not to"),
    ],
)
def test_statement_of_coverage(covered: int, verdict: StatementKind, words: str) -> None:
    found = Coverage(covered=covered, fitted=100, studies=100, level=0.9, truth="a", law="b")
    assert found.statement().kind is verdict and words in found.statement().text


def test_refused_studies_do_not_count_as_covered() -> None:
    two = full_grid(SIZES[:2], IMAGES)
    found = coverage(ADDITIVE, two, LARGEST, forms.additive(), noise_sd=0.1, studies=3)
    assert found.fitted == 0 and math.isnan(found.share) and not found.is_trusted
    assert found.statement().kind is StatementKind.REFUSED


def test_what_the_interval_holds_is_what_its_ends_say() -> None:
    data = generate(ADDITIVE, DESIGN.without(LARGEST), 0.2, (5,))
    method = Method(starts=2)
    ends = predict(fit_law(forms.additive(), data, method), LARGEST)
    for error, inside in (
        (ends.low + 0.01, True),
        (ends.low - 0.01, False),
        (ends.high - 0.01, True),
        (ends.high + 0.01, False),
    ):
        assert holds(forms.additive(), data, LARGEST, error, 0.9, method) is inside


def test_self_test_generates_from_the_fit_and_from_other_laws() -> None:
    fit = fit_law(forms.additive(), generate(ADDITIVE, DESIGN, 0.2, (6,)), Method(starts=2))
    assert truth_of(fit).error(fit.table.axes) == pytest.approx(fit.predict(fit.table.axes))
    found = self_test(fit, LARGEST, [forms.product(), forms.broken("N")], studies=6)
    assert [c.truth for c in found] == ["additive", "product"]
    assert all(c.fitted == 6 for c in found)


def test_the_law_that_generated_predicts_what_was_left_out() -> None:
    candidates = default_candidates()
    additive = choose(candidates, generate(ADDITIVE, DESIGN, 0.05, (1,)))
    assert additive.best is not None and additive.best.law.name.startswith("additive")
    product = choose(candidates, generate(PRODUCT, DESIGN, 0.05, (1,)))
    assert product.best is not None and product.best.law.name == "product"
    assert product.hold_outs == ("largest N", "largest T", "highest compute")


def test_more_parameters_fit_better_and_predict_worse() -> None:
    """R^2 prefers the law with a floor here; the left-out end does not."""
    rng = np.random.default_rng(2)
    x = np.geomspace(5e6, 1e9, 7)
    data = observe({"N": x}, 300 * x**-0.15 * np.exp(0.01 * rng.standard_normal(7)))
    law, floored = forms.power("N"), forms.power_floor("N")
    assert fit_law(floored, data).best.objective <= fit_law(law, data).best.objective
    chosen = choose([law, floored], data)
    assert chosen.best is not None and chosen.best.law.name == "power"


def test_hold_outs_are_the_large_end() -> None:
    data = generate(ADDITIVE, full_grid(SIZES, IMAGES), 0.1, (1,))
    ways = {h.name: h.held for h in hold_outs(data, ("N", "T"))}
    assert (data.axes["N"][ways["largest N"]] == SIZES[-1]).all() and ways["largest N"].sum() == 4
    assert (data.axes["T"][ways["largest T"]] == IMAGES[-1]).all() and ways["largest T"].sum() == 5
    assert ways["highest compute"].sum() == 1
    four = full_grid(SIZES[:4], IMAGES)
    small = generate(ADDITIVE, four, 0.1, (1,))
    way = hold_outs(small, ("N", "T"))[0]
    assert math.isnan(hold_out_error(forms.additive(), small, way))
    assert hold_out_error(forms.product(), small, way) > 0


def test_refused_laws_come_last_with_their_reason() -> None:
    x = np.geomspace(5e6, 1e9, 6)
    found = choose(one_axis_candidates("N", top=99.9), observe({"N": x}, 5 + 2e3 * x**-0.35))
    assert found.candidates[-1].law.name == "broken" and found.candidates[-1].is_refused
    few = choose(one_axis_candidates("N"), observe({"N": x[:2]}, [20.0, 15.0]))
    assert few.best is None and few.statements[0].kind is StatementKind.REFUSED


def test_with_too_few_cells_to_leave_any_out_the_choice_says_so() -> None:
    x = np.geomspace(5e6, 1e9, 3)
    found = choose(one_axis_candidates("N"), observe({"N": x}, 2e3 * x**-0.35))
    assert found.best is not None
    assert "AICc alone" in found.statements[0].text
