"""Advice: what narrows the target most per hour, within the budget, before any fit too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.simulated_studies import Truth, full_grid, generate

from studies.analysis.laws import forms
from studies.analysis.laws.fit import Method, fit_law
from studies.analysis.laws.intervals import predict
from studies.analysis.laws.next_runs import PossibleRun, advise, go_or_no_go
from studies.analysis.laws.refusals import StatementKind
from studies.errors import StudyError

SIZES = (5.5e6, 21.6e6, 85.7e6, 303e6, 630e6)
IMAGES = (1.28e8, 2.56e8, 5.12e8, 1.02e9)
TARGET = {"N": SIZES[-1], "T": IMAGES[-1]}
DESIGN = full_grid(SIZES, IMAGES).without(TARGET)
TRUTH = Truth(
    law=forms.additive(),
    theta=(0.4, 0.5),
    coefficients=(12.0, 9.0, 8.0),
    references={"N": 6e7, "T": 3e8},
)
LAW = forms.additive()
METHOD = Method(starts=2)


def options(times: int = 1) -> list[PossibleRun]:
    """Every cell of the grid; cost as sizes and durations have it."""
    n, t = DESIGN.axes["N"], DESIGN.axes["T"]
    return [
        PossibleRun(cell=c, axes={"N": a, "T": b}, gpu_hours=(a + 5e7) * b / 1e16, times=times)
        for c, a, b in zip(DESIGN.cells, n, t, strict=True)
    ]


def test_before_any_result_the_first_cells_spread_over_sizes_and_durations() -> None:
    found = advise(LAW, None, TARGET, options(), 30.0)
    assert found.prediction is None and 0 < found.gpu_hours <= 30.0
    assert len({s.option.axes["N"] for s in found.steps}) >= 4
    assert len({s.option.axes["T"] for s in found.steps}) >= 3
    assert any("No law can be fitted yet" in s.text for s in found.statements)


def test_each_step_narrows_and_the_whole_stays_within_the_budget() -> None:
    cheap = DESIGN.without({"N": SIZES[-1]})
    data = generate(TRUTH, cheap, 0.2, (1,))
    left = [o for o in options() if o.cell not in data.cells]
    found = advise(LAW, data, TARGET, left, 40.0, method=METHOD)
    widths = [found.width_now, *(s.width_after for s in found.steps)]
    assert found.steps and found.gpu_hours <= 40.0
    assert all(b < a for a, b in zip(widths, widths[1:], strict=False))
    assert all(not s.is_repeat for s in found.steps)


def test_advised_cell_narrows_more_than_the_worst_one_of_like_cost() -> None:
    """The promise is about real refits, not about the advice's own arithmetic."""
    cheap = DESIGN.without({"N": SIZES[-1]})
    data = generate(TRUTH, cheap, 0.2, (2,))
    near = PossibleRun(cell="near", axes={"N": SIZES[-1], "T": IMAGES[0]}, gpu_hours=5.0)
    useless = PossibleRun(cell="far", axes={"N": SIZES[0], "T": IMAGES[-1] * 0.9}, gpu_hours=5.0)
    found = advise(LAW, data, TARGET, [useless, near], 5.0, method=METHOD)
    assert [s.option.cell for s in found.steps] == ["near"]
    widths = {}
    for option in (near, useless):
        axes = {a: np.append(v, option.axes[a]) for a, v in data.axes.items()}
        at = {a: np.asarray([v]) for a, v in option.axes.items()}
        more = generate(TRUTH, cheap, 0.2, (2,))
        y = np.append(more.y, TRUTH.error(at))
        ends = predict(
            fit_law(
                LAW,
                type(data)(
                    axes=axes,
                    y=y,
                    cells=(*data.cells, option.cell),
                    clusters=(*data.cells, option.cell),
                ),
                METHOD,
            ),
            TARGET,
        )
        widths[option.cell] = ends.high - ends.low
    assert widths["near"] < widths["far"]


def test_repeats_are_offered_as_seeds_of_known_cells() -> None:
    data = generate(TRUTH, DESIGN, 0.2, (3,))
    found = advise(LAW, data, TARGET, options(times=2), 60.0, method=METHOD)
    assert found.steps and all(s.is_repeat for s in found.steps)
    assert max(sum(s.option.cell == o.cell for s in found.steps) for o in options()) <= 2


def test_a_repeat_is_told_whatever_the_data_call_its_cell() -> None:
    data = generate(TRUTH, DESIGN, 0.2, (3,))
    offered = [replace(o, cell=f"address of {o.cell}") for o in options(times=2)]
    found = advise(LAW, data, TARGET, offered, 60.0, method=METHOD)
    assert found.steps and not found.steps[0].is_repeat
    measured = [replace(o, is_measured=True) for o in offered]
    found = advise(LAW, data, TARGET, measured, 60.0, method=METHOD)
    assert found.steps and all(s.is_repeat for s in found.steps)


def test_a_dear_cell_that_tells_more_is_not_lost_to_cheap_ones() -> None:
    data = generate(TRUTH, DESIGN.without({"N": SIZES[-1]}), 0.2, (4,))
    dear = PossibleRun(cell="dear", axes={"N": SIZES[-1], "T": IMAGES[2]}, gpu_hours=10.0)
    # A trifle that narrows a little at next to no cost, and leaves too little for the dear one.
    cheap = PossibleRun(cell="cheap", axes={"N": SIZES[0], "T": IMAGES[0]}, gpu_hours=0.9, times=1)
    found = advise(LAW, data, TARGET, [dear, cheap], 10.0, method=METHOD)
    assert [s.option.cell for s in found.steps] == ["dear"]


def test_the_target_is_never_advised_and_a_small_budget_says_so() -> None:
    here = PossibleRun(cell="target", axes=TARGET, gpu_hours=0.1)
    found = advise(LAW, generate(TRUTH, DESIGN, 0.2, (5,)), TARGET, [here], 10.0, method=METHOD)
    assert not found.steps
    assert found.statements[-1].kind is StatementKind.NOTE


def test_go_or_no_go_names_prediction_interval_and_cost() -> None:
    fit = fit_law(LAW, generate(TRUTH, DESIGN, 0.2, (6,)), METHOD)
    said = go_or_no_go(predict(fit, TARGET), 1234.0)
    assert "Predicted top-1 8" in said and "90%" in said and "1,234 GPU-hours" in said


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan"), float("inf")])
def test_costs_that_cannot_be_meant(hours: float) -> None:
    with pytest.raises(StudyError, match="GPU-hours"):
        PossibleRun(cell="c", axes=TARGET, gpu_hours=hours)
    with pytest.raises(StudyError, match="lacks axis 'T'"):
        advise(LAW, None, TARGET, [PossibleRun(cell="c", axes={"N": 1.0}, gpu_hours=1.0)], 1.0)
