"""Bad data end in a statement: never a crash, never a confident line."""

from __future__ import annotations

import math

import numpy as np
import pytest

from studies.analysis.laws import forms
from studies.analysis.laws.conclusions import Conclusion, conclude
from studies.analysis.laws.frontier import GridOptimum, best_per_bin, grid_optimum
from studies.analysis.laws.observations import Observations, observe
from studies.analysis.laws.refusals import Statement, StatementKind
from studies.reference.scaling_tables import MAWS_IG3B

SIZES = np.geomspace(5e6, 6e8, 5)
IMAGES = np.geomspace(1e8, 1e9, 4)
N, T = (v.ravel() for v in np.meshgrid(SIZES, IMAGES))
WIGGLE = 0.1 * np.random.default_rng(1).standard_normal(20)
Y = 12 + 3e4 * N**-0.45 + 2e6 * T**-0.6 + WIGGLE
NEXT = {"N": 1.2e9, "T": 2e9}


def grid(y: np.ndarray = Y, n: np.ndarray = N, t: np.ndarray = T) -> Observations:
    return observe({"N": n, "T": t}, y, percent=True)


def refusal(conclusion: Conclusion) -> str:
    assert conclusion.is_refused and not conclusion.predictions
    return " ".join(conclusion.texts(StatementKind.REFUSED))


def test_a_good_grid_is_concluded_from() -> None:
    done = conclude(forms.additive(), grid(), [NEXT])
    assert not done.is_refused and not done.texts(StatementKind.CAUTION)
    assert done.predictions[0].high - done.predictions[0].low < 1.0
    assert all(i.identifiable for i in done.intervals.values())


def test_no_floor_from_three_sizes() -> None:
    ladder = MAWS_IG3B[:3]
    sizes, errors = [p.encoder_params for p in ladder], [100 - p.top1 for p in ladder]
    said = refusal(conclude(forms.power_floor("N"), observe({"N": sizes}, errors), [NEXT]))
    assert "3 values of N cannot show a floor: at least 4 are needed" in said
    keep = N < SIZES[3] * 0.9
    said = refusal(conclude(forms.additive(), grid().take(keep)))
    assert "cannot show a floor" in said


def test_four_sizes_show_a_floor_with_its_width() -> None:
    ladder = MAWS_IG3B[:4]
    data = observe({"N": [p.encoder_params for p in ladder]}, [100 - p.top1 for p in ladder])
    done = conclude(forms.power_floor("N"), data, [{"N": 6.5e9}])
    prediction = done.predictions[0]
    assert round(100 - prediction.value, 2) == 88.31
    assert prediction.low <= 100 - 88.3 <= prediction.high
    assert any("alpha is not identified" in t for t in done.texts(StatementKind.CAUTION))


def test_a_break_asks_for_ten_points() -> None:
    x = np.geomspace(1e6, 1e9, 9)
    said = refusal(conclude(forms.broken("N"), observe({"N": x}, 5 + 1e3 * x**-0.3)))
    assert "9 values of N are too few" in said and "10 are needed" in said


def test_extrapolation_is_marked_beyond_four_and_far_beyond_eight() -> None:
    done = conclude(
        forms.additive(),
        grid(),
        [{"N": 6e8 * f, "T": 1e9} for f in (3.9, 5.0, 9.0)],
        parameters=False,
    )
    marks = [t for t in done.texts(StatementKind.CAUTION) if "times beyond" in t]
    assert ["5 times" in m for m in marks] == [True, False]
    assert "9 times" in marks[1] and "far more" in marks[1]


def test_missing_results_are_left_out_and_named() -> None:
    y = Y.copy()
    y[[3, 7]] = math.nan
    done = conclude(forms.additive(), grid(y), [NEXT])
    assert not done.is_refused and len(done.data) == 18
    assert any("2 of 20 runs have no result" in t for t in done.texts(StatementKind.NOTE))
    assert "No usable result" in refusal(conclude(forms.additive(), grid(Y * math.nan)))


def test_a_single_cell_and_too_few_cells() -> None:
    one = observe({"N": [1e8] * 3, "T": [1e9] * 3}, [20.0, 20.1, 19.9])
    assert "too few" in refusal(conclude(forms.additive(), one))
    few = observe({"N": SIZES, "T": [1e9, 2e9, 3e9, 1e9, 2e9]}, [30.0, 25.0, 20.0, 18.0, 17.0])
    assert "5 cells for 5 parameters" in refusal(conclude(forms.additive(), few))


def test_nothing_to_explain() -> None:
    said = refusal(conclude(forms.additive(), grid(np.full(20, 30.0))))
    assert "All 20 cells are equal" in said
    rng = np.random.default_rng(0)
    noise = observe({"N": np.repeat(SIZES, 3)}, 30 + rng.standard_normal(15))
    said = refusal(conclude(forms.power_floor("N"), noise))
    assert "no more than seeds of one cell" in said


def test_errors_that_rise_are_not_a_falling_law() -> None:
    said = refusal(conclude(forms.power_floor("N"), observe({"N": SIZES}, 10 + np.arange(5.0))))
    assert "does not fall along N: it rises in 10 of 10 pairs" in said


def equal_compute(exponent: float) -> Observations:
    """Runs of equal compute, and one pair that differs in size alone, where the larger is worse."""
    budgets = np.geomspace(1e16, 1e18, 5)
    n, c = (v.ravel() for v in np.meshgrid(np.geomspace(5e6, 6e7, 6), budgets))
    t = c / (6 * n)
    y = 12 + 30 * (n / 5e6) ** exponent + 2e6 * t**-0.6
    return observe({"N": [*n, 1.2 * n[0]], "T": [*t, t[0]]}, [*y, y[0] + 0.5], percent=True)


def test_a_chance_pair_among_runs_of_equal_compute_refuses_no_law() -> None:
    """One pair of 31 cells differs in size alone; all cells together judge the trend."""
    assert not conclude(forms.additive(), equal_compute(-0.45), parameters=False).is_refused
    said = refusal(conclude(forms.additive(), equal_compute(0.2), parameters=False))
    assert "does not fall along N: over all" in said


def test_a_bump_is_marked() -> None:
    y = Y.copy()
    y[-1] += 8
    done = conclude(forms.additive(), grid(y), [NEXT], parameters=False)
    assert any("Not monotone" in t for t in done.texts(StatementKind.CAUTION))


def test_accuracies_at_the_ends() -> None:
    y = Y.copy()
    y[0], y[1], y[2], y[3] = 0.0, 100.0, -3.0, 130.0
    done = conclude(forms.bounded(99.9), grid(y), [NEXT], parameters=False)
    notes = " ".join(done.texts(StatementKind.NOTE))
    for words in ("at 100 %", "at 0 %", "more than 100 %", "less than 0 %"):
        assert words in notes
    assert len(done.data) == 16 and not done.is_refused
    everything = conclude(forms.bounded(99.9), grid(np.zeros(20)))
    assert "No usable result" in refusal(everything)


def test_axes_that_rise_together() -> None:
    x = np.geomspace(1e6, 1e9, 8)
    data = observe({"N": x, "T": x * 20}, 10 + 1e3 * x**-0.4)
    assert "rise together" in refusal(conclude(forms.product(), data))


def test_an_axis_that_is_missing_or_zero() -> None:
    data = observe({"N": SIZES}, 10 + 1e3 * SIZES**-0.4)
    assert "no axis 'T'" in refusal(conclude(forms.additive(), data))
    zero = conclude(forms.power_floor("N"), observe({"N": [0.0, *SIZES]}, [90.0, *Y[:5]]))
    assert any("no N above 0" in t for t in zero.texts(StatementKind.NOTE)) and not zero.is_refused


def test_thousands_of_points() -> None:
    rng = np.random.default_rng(0)
    n, t = rng.uniform(5e6, 6e8, 3000), rng.uniform(1e8, 1e9, 3000)
    y = 12 + 3e4 * n**-0.45 + 2e6 * t**-0.6 + 0.2 * rng.standard_normal(3000)
    done = conclude(forms.additive(), observe({"N": n, "T": t}, y), parameters=False)
    assert done.fit is not None and done.fit.values["E"] == pytest.approx(12, abs=0.5)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize(
    "law",
    [forms.power("N"), forms.additive(), forms.bounded(90), forms.product()],
    ids=lambda v: v.name,
)
def test_hardly_any_runs_never_crash(law: forms.Law, count: int) -> None:
    data = observe({"N": N[:count], "T": T[:count]}, Y[:count])
    assert conclude(law, data, [NEXT]).is_refused


def test_optimum_inside_the_grid_is_placed_and_at_the_edge_refused() -> None:
    ratios = np.asarray([0.3, 0.45, 0.6, 0.75, 0.9])
    dip = 15 + 40 * (ratios - 0.68) ** 2
    found = grid_optimum("mask ratio", ratios.tolist(), dip.tolist(), sd=0.1)
    assert isinstance(found, GridOptimum)
    assert found.x == pytest.approx(0.68) and found.low < 0.68 < found.high
    for y in (dip[::-1] * 0 + ratios, dip * 0 - ratios):
        edge = grid_optimum("mask ratio", ratios.tolist(), y.tolist())
        assert isinstance(edge, Statement) and "edge of the grid" in edge.text
    few = grid_optimum("mask ratio", [0.5, 0.6, 0.7], [2.0, 1.0, 2.0])
    assert isinstance(few, Statement) and "too few" in few.text


def test_frontier_keeps_the_best_and_drops_what_a_cheaper_bin_beats() -> None:
    flops = [1e18, 1.1e18, 1e19, 1e20, 1e21]
    found = best_per_bin(observe({"compute": flops}, [40.0, 38.0, 30.0, 31.0, 25.0]), "compute")
    assert found.data.y.tolist() == [38.0, 30.0, 25.0]
    said = " ".join(s.text for s in found.statements)
    assert "lucky" in said and "1 bins are worse" in said
