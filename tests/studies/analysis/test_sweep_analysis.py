"""What a sweep's trials say: noise, optimum, trend with size, transfer, the report's section."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from studies.analysis.figures.sweep_figures import sweep_drawings
from studies.analysis.report.sweep_text import sweep_json, sweep_lines, sweep_texts
from studies.analysis.sweeps.optima import (
    Search,
    Trial,
    noise,
    optimum,
    transfers,
    trend,
    within_noise,
)

RATIO, DEPTH, LR = "pretrain.mask_ratio", "pretrain.decoder.depth", "pretrain.optimizer.base_lr"


def search(
    at: float = 0.7,
    *,
    n: int = 24,
    sd: float = 0.3,
    curve: float = 200.0,
    seed: int = 0,
    **more: Any,
) -> Search:
    """Trials of a parabola over the mask ratio with its top at `at`, and a slope over depth."""
    draw = np.random.default_rng(seed)
    ratios = draw.uniform(0.4, 0.9, n)
    depths = draw.integers(1, 3, n)
    scores = 90 - curve * (ratios - at) ** 2 + depths + draw.normal(0, sd, n)
    trials = tuple(
        Trial(number=i, settings={RATIO: float(r), DEPTH: int(d)}, values=(float(s),))
        for i, (r, d, s) in enumerate(zip(ratios, depths, scores, strict=True))
    )
    return Search(**_fields(trials, n, int(np.argmax(scores))) | more)


def _fields(trials: tuple[Trial, ...], n: int, winner: int) -> dict[str, Any]:
    fixed: dict[str, Any] = {"label": "", "params": 1000, "protocols": ("knn",), "objective": "knn"}
    return fixed | {"trials": trials, "wanted": n, "winner": winner}


def test_noise_is_measured_from_repetitions_and_taken_from_the_dev_set_otherwise() -> None:
    bare = search()
    assert noise(bare) is None and within_noise(bare) == [bare.trial(bare.winner)]
    binomial = noise(replace(bare, num_images=180))
    assert binomial is not None and binomial.source == "binomial"
    p = bare.score(bare.trial(bare.winner)) / 100  # type: ignore[arg-type]
    assert binomial.sd == pytest.approx(100 * math.sqrt(p * (1 - p) / 180), rel=0.05)
    few = noise(replace(bare, num_images=180, repeats={1: 90.0, 2: 91.0}))
    assert few is not None and few.source == "binomial"
    measured = noise(replace(bare, num_images=180, repeats={1: 90.0, 2: 91.0, 3: 92.0}))
    assert measured is not None and measured.source == "repeats"
    assert (measured.centre, measured.sd) == (91.0, 1.0)
    assert measured.margin == pytest.approx(2.9200 * math.sqrt(4 / 3), rel=1e-3)


def test_settings_within_noise_are_those_a_further_run_could_swap() -> None:
    """Of equal settings, 95 % of single runs lie within the margin of the repetitions' mean."""
    draw = np.random.default_rng(1)
    kept = []
    for _ in range(400):
        again = {i: float(v) for i, v in enumerate(draw.normal(80, 1, 5))}
        scores = draw.normal(80, 1, 10)
        trials = tuple(
            Trial(number=i, settings={RATIO: i / 20}, values=(float(s),))
            for i, s in enumerate(scores)
        )
        one = Search(**_fields(trials, 10, int(np.argmax(scores))), repeats=again)
        kept.append(len(within_noise(one)))
    assert 9.3 < np.mean(kept) < 9.8  # 95 % of ten, the winner always among them


def test_no_noise_at_a_hundred_per_cent_would_be_a_lie() -> None:
    trials = (Trial(number=0, settings={RATIO: 0.5}, values=(100.0,)),)
    found = noise(Search(**_fields(trials, 1, 0), num_images=50))
    assert found is not None and found.sd > 0


def test_the_optimum_is_found_with_an_interval_that_covers() -> None:
    """Nominal 90 %: over 300 sweeps of 24 trials between 86 and 94 % cover."""
    found = [optimum(search(0.7, sd=2.0, seed=seed), RATIO) for seed in range(300)]
    inside = [o for o in found if o.status == "inside"]
    assert len(inside) > 250
    covered = [(o.low or 0.4) <= 0.7 <= (o.high or 0.9) for o in inside]
    assert 0.86 <= np.mean(covered) <= 0.945


def test_an_optimum_at_the_edge_or_of_a_flat_response_is_not_quoted() -> None:
    assert optimum(search(1.2), RATIO).status == "edge"
    assert optimum(search(0.7), RATIO).status == "inside"
    assert optimum(search(curve=0.0, sd=1.0, seed=3), RATIO).status == "flat"
    assert optimum(search(curve=-200.0), RATIO).status == "flat"  # a valley has no top
    assert optimum(search(n=5), RATIO).status == "few"
    assert optimum(search(), DEPTH).status == "few"  # two values make no parabola
    assert optimum(search(), "pretrain.norm").status == "few"


def test_a_setting_searched_on_log_scale_has_its_optimum_there() -> None:
    draw = np.random.default_rng(0)
    rates = np.exp(draw.uniform(math.log(1e-4), math.log(1e-2), 30))
    kinds = draw.choice(["a", "b"], 30)
    scores = 80 - 2 * np.log(rates / 1e-3) ** 2 + (kinds == "a") + draw.normal(0, 0.2, 30)
    trials = tuple(
        Trial(number=i, settings={LR: float(r), "pretrain.target": str(k)}, values=(float(s),))
        for i, (r, k, s) in enumerate(zip(rates, kinds, scores, strict=True))
    )
    found = optimum(Search(**_fields(trials, 30, 0), log_axes=(LR,)), LR)
    assert found.at == pytest.approx(1e-3, rel=0.1)
    assert found.low and found.high and found.low < 1e-3 < found.high


def ladder(tops: tuple[float, ...], **more: Any) -> list[Search]:
    """Searches at sizes of 1, 10, 100, … thousand parameters."""
    return [
        search(top, seed=i, label=f"S{i}", params=1000 * 10**i, **more)
        for i, top in enumerate(tops)
    ]


def test_the_trend_of_the_optimum_with_size() -> None:
    rising = trend(ladder((0.55, 0.62, 0.69, 0.76)), RATIO)
    assert rising is not None and rising.slope == pytest.approx(0.07, abs=0.015)
    assert "rises" in rising.verdict
    level = trend(ladder((0.65, 0.65, 0.65, 0.65), sd=1.0), RATIO)
    assert level is not None and "distinguished from none" in level.verdict
    short = trend(ladder((0.6, 0.7)), RATIO)
    assert short is not None and short.slope is None and "no trend is fitted" in short.verdict
    edges = trend(ladder((0.6, 0.7, 1.2)), RATIO)
    assert edges is not None and edges.slope is None and "2 of 3 sizes" in edges.verdict
    assert trend(ladder((0.6,)), RATIO) is None


def test_a_flat_ladder_seldom_shows_a_trend() -> None:
    """False alarms of the 90 % interval over 200 ladders without a trend: at most 16 %."""
    alarms = []
    for i in range(200):
        sizes = [search(0.65, sd=1.0, n=20, seed=4 * i + k, params=10 ** (3 + k)) for k in range(4)]
        found = trend(sizes, RATIO)
        if found is not None and found.slope is not None:
            alarms.append("distinguished from none" not in found.verdict)
    assert len(alarms) > 150 and np.mean(alarms) <= 0.16


def moved(score: float, noise_images: int | None) -> Search:
    trials = (
        Trial(number=0, settings={RATIO: 0.5}, values=(score,), is_transferred=True),
        Trial(number=1, settings={RATIO: 0.75}, values=(80.0,)),
    )
    return Search(**_fields(trials, 2, 1) | {"label": "M"}, num_images=noise_images)


def test_the_assumption_of_transfer_is_tested() -> None:
    (holds,) = transfers([moved(79.0, 400)])
    assert holds.holds and holds.rank == 2 and holds.behind == pytest.approx(1.0)
    (fails,) = transfers([moved(60.0, 400)])
    assert fails.holds is False
    (unknown,) = transfers([moved(79.0, None)])
    assert unknown.holds is None
    assert transfers([search()]) == []
    assert "does not hold" in " ".join(sweep_texts([moved(60.0, 400)]))


def test_the_section_says_what_it_can_at_every_stage_of_a_sweep() -> None:
    empty = Search(**_fields((), 12, 0) | {"winner": None})
    assert sweep_drawings([empty]) == [] and sweep_texts([empty]) == []
    assert sweep_lines([empty])[1][2] == "not decided"
    begun = replace(search(n=1), winner=None)
    assert len(sweep_drawings([begun])) == 1
    two = replace(
        search(label="N1"),
        protocols=("knn", "probe"),
        trials=tuple(replace(t, values=(t.values[0], 50 + t.number / 7)) for t in search().trials),
        front=(3, 5),
        importance={RATIO: 0.9, DEPTH: 0.1},
        num_images=300,
        journal="store/x.log",
    )
    names = [d.name for d in sweep_drawings([two])]
    assert names == ["sweep-trials", "sweep-importance", "sweep-front-N1"]
    texts = " ".join(sweep_texts([two]))
    assert "optuna-dashboard store/x.log" in texts and "2 trials on the Pareto front" in texts
    assert "the best mask ratio is 0.7" in texts
    assert sweep_json([two])[0]["optima"][RATIO]["status"] == "inside"
    many = ladder((0.55, 0.62, 0.69, 1.3), num_images=200)
    assert "sweep-trend-mask-ratio" in [d.name for d in sweep_drawings(many)]
