"""What the report says beyond its curves, and what it refuses to say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.made_up_study import rows
from support.report_cases import check_page, evaluated, grid_rows, meta

from studies.analysis.curves.curves import Change
from studies.analysis.curves.from_rows import axis_curves, scaling_curves
from studies.analysis.curves.insights import (
    doublings,
    influences,
    loss_against_accuracy,
    optima,
    probe_against_tune,
    rank_relation,
    seed_noise,
)
from studies.analysis.laws.by_protocol import protocol_law, study_laws
from studies.analysis.laws.frontier import GridOptimum
from studies.analysis.laws.refusals import Statement
from studies.analysis.report.claims import claims
from studies.analysis.report.evidence import EvidenceLine, coverage
from studies.analysis.report.meta import ReportFiles
from studies.analysis.report.page import write_report
from studies.errors import StudyError
from studies.result_row import ResultRow


def report(folder: Path, found: list[ResultRow], **more: object) -> ReportFiles:
    laws = study_laws(found, top=99.9)
    return write_report(found, meta=meta(laws=laws, **more), gallery=(), directory=folder)


def test_seed_noise_is_pooled_over_points_and_has_an_interval() -> None:
    noise = {n.protocol: n for n in seed_noise(rows(sizes=5, durations=5, seeds=8))}
    found = noise["linear probe"]
    assert found.points == 25 and found.dof == 175
    assert found.low < found.sd < found.high
    assert found.sd == pytest.approx(0.2, rel=0.15)  # what the rows were made with
    assert found.sampling_sd == pytest.approx(0.2, abs=0.05)
    assert seed_noise(rows(seeds=1)) == []


def test_a_result_that_cells_share_is_one_measurement() -> None:
    """Cells that differ in another stage alone share what they measured before it."""
    found = rows(sizes=5, durations=5, seeds=2)
    shared = [*found, *(replace(r, cell=f"{r.cell}/other", family="other") for r in found)]
    assert seed_noise(shared) == seed_noise(found)
    ranks = [len(r.points) for r in probe_against_tune(found)]
    assert [len(r.points) for r in probe_against_tune(shared)] == ranks
    losses = [len(r.points) for r in loss_against_accuracy(found)]
    assert [len(r.points) for r in loss_against_accuracy(shared)] == losses and losses


def test_doublings_are_paired_and_per_doubling() -> None:
    found = doublings(scaling_curves(grid_rows(epochs=(25, 100)))[0])
    assert [d.size for d in found] == ["Ti", "S", "M"]
    gains = 5 * (math.log2(5) - 1) / 2  # two doublings; sizes gain 15 % more each
    for rank, d in enumerate(found):
        assert d.gain == pytest.approx(gains * (1 + 0.15 * rank), abs=0.4)
        assert d.n == 3 and d.sd is not None


def test_ranks_say_when_two_protocols_agree_and_when_nothing_is_known() -> None:
    alike = [(f"c{i}", float(i), i + 0.1 * (-1) ** i) for i in range(20)]
    found = rank_relation("a", "b", alike)
    assert found.spearman is not None and found.spearman > 0.95 and "alike" in found.verdict
    against = rank_relation("a", "b", [(c, x, -y) for c, x, y in alike])
    assert "against" in against.verdict
    chance = rank_relation("a", "b", [(f"c{i}", float(i), (i * 7) % 11) for i in range(11)])
    assert "chance" in chance.verdict
    for few in (alike[:4], [(c, 1.0, y) for c, _, y in alike]):
        assert rank_relation("a", "b", few).spearman is None


def test_losses_are_read_at_one_reference_only() -> None:
    found = loss_against_accuracy(rows(seeds=1))
    assert {r.x for r in found} == {"held-out loss at 75 %"}
    assert all(r.spearman is not None and r.spearman < 0 for r in found)
    assert {(r.x, r.y) for r in probe_against_tune(rows(seeds=1))} == {
        ("knn", "finetune"),
        ("linear probe", "finetune"),
    }


def over_mask_ratio(value: dict[float, float]) -> list[ResultRow]:
    return [
        evaluated(f"m{m}/s{s}", "knn", v + 0.1 * s, size="S", seed=s, places={"mask_ratio": m})
        for m, v in value.items()
        for s in range(3)
    ]


def test_an_optimum_is_fitted_inside_and_refused_at_the_edge() -> None:
    ratios = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    inside = {m: 70 - 100 * (m - 0.68) ** 2 for m in ratios}
    (curve,) = axis_curves(over_mask_ratio(inside), axes=("mask_ratio",))
    ((_, found),) = optima(curve)
    assert isinstance(found, GridOptimum)
    assert found.x == pytest.approx(0.68, abs=0.01) and found.low < 0.68 < found.high
    (curve,) = axis_curves(over_mask_ratio({m: 50 + m for m in ratios}), axes=("mask_ratio",))
    ((_, refused),) = optima(curve)
    assert isinstance(refused, Statement) and "edge" in refused.text


@pytest.mark.slow
def test_influence_names_the_cell_that_a_law_hangs_on() -> None:
    found = rows(seeds=1)
    spoilt = [replace(r, top1=r.top1 - 3) if r.cell == "H/e800/s0" and r.top1 else r for r in found]
    (law,) = [one for one in study_laws(spoilt, top=99.9) if one.protocol == "linear probe"]
    assert law.conclusion is not None
    listed = influences(law.conclusion)
    assert isinstance(listed, list) and listed[0].cell == "H, 800ep"
    assert listed[0].change < 0 < listed[0].residual


@pytest.mark.slow
def test_objectives_have_laws_of_their_own() -> None:
    """Encoders of two objectives lie on two curves; one law for both would be neither's."""
    mae = [replace(r, objective="MAE") for r in rows(seeds=1)]
    moco = [
        replace(r, objective="MoCo v3", cell=f"moco/{r.cell}", top1=r.top1 and r.top1 - 5)
        for r in mae
    ]
    alone = next(law for law in study_laws(mae, top=99.9) if law.protocol == "linear probe")
    both = {law.label: law for law in study_laws([*mae, *moco], top=99.9)}
    assert {"linear probe, MAE", "linear probe, MoCo v3"} <= set(both)
    again = both["linear probe, MAE"].conclusion
    assert again is not None and again.fit is not None
    assert alone.conclusion is not None and alone.conclusion.fit is not None
    assert again.fit.values == alone.conclusion.fit.values
    with pytest.raises(StudyError, match="several objectives"):
        protocol_law([*mae, *moco], "linear probe", top=99.9)


def test_a_recipe_has_a_law_of_its_own_whatever_it_is_called() -> None:
    found = [replace(r, protocol_key=r.kind) for r in rows(seeds=1) if r.kind == "knn"]
    other = [
        replace(r, protocol_key="other", stage="knn_5", cell=f"5/{r.cell}", top1=r.top1 - 5)
        for r in found
        if r.top1 is not None
    ]
    alone, *_ = study_laws(found, top=99.9)
    both = {law.label: law for law in study_laws([*found, *other], top=99.9)}
    assert list(both) == ["knn · test · knn", "knn · test · knn_5"]
    again = both["knn · test · knn"].conclusion
    assert alone.conclusion is not None and alone.conclusion.fit is not None
    assert again is not None and again.fit is not None
    assert again.fit.values == alone.conclusion.fit.values
    with pytest.raises(StudyError, match="recipes that differ"):
        protocol_law([*found, *other], "knn", top=99.9)


@pytest.mark.slow
def test_the_page_has_every_section_and_files_beside_it(tmp_path: Path) -> None:
    found = rows(seeds=2)
    odd = {"L/e400/s0": "another resolution (256, the others 224)"}
    files = report(tmp_path, found, odd=odd, advice=("run S/e1600/s0",), reference="study.json")
    _, text = check_page(files)
    for title in (
        "Claims",
        "Gain per doubling of the duration",
        "Probe against fine-tune",
        "Reconstruction loss against accuracy",
        "What a budget bought",
        "Scaling laws",
        "Influence of single cells",
        "Seed noise",
        "What to run next",
    ):
        assert f">{title}</h2>" in text, title
    assert "mae-study debug study.json L/e400/s0 pretrain" in text
    assert "Not a point of this curve: another resolution" in text
    assert text.count('class="tip"') > 100 and 'aria-pressed="true"' in text
    assert len(json.loads(files.json.read_text())) == len(found)
    summary = json.loads(files.summary.read_text())
    assert {"claims", "insights", "laws", "advice"} <= set(summary)
    assert {c["level"] for c in summary["claims"]} == {"fitted", "suggested"}


def line(**more: Any) -> EvidenceLine:
    base: dict[str, Any] = {
        "protocol": "probe",
        "compares": "size B",
        "primary": True,
        "start": "B untrained",
        "start_top1": "",
        "end": "B 800ep",
        "end_top1": "",
        "difference": "+9.0 ± 1.0",
        "pairs": 3,
        "every_seed_rises": True,
        "exceeds": True,
        "change": Change.RISES,
        "verdict": "rises",
        "sentence": "alone",
    }
    return EvidenceLine(**base | more)


def test_claims_carry_the_level_of_their_evidence() -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "shown"),
        ({"change": Change.NONE, "every_seed_rises": False}, "not shown"),
        ({"change": Change.FALLS, "every_seed_rises": False}, "shown"),
        ({"change": Change.UNKNOWN, "pairs": 2}, "suggested"),
        ({"change": Change.UNKNOWN, "pairs": 1}, "open"),
        ({"change": Change.UNKNOWN, "pairs": 0, "every_seed_rises": False}, "open"),
    )
    for change, level in cases:
        (claim,) = claims([line(**change)], ())
        assert claim.level.value == level


def test_differences_that_are_judged_alike_are_one_claim() -> None:
    other = {"start": "L untrained", "end": "L 800ep", "difference": "+12.0 ± 2.0"}
    (both,) = claims([line(), line(**other)], ())
    told = "B untrained to B 800ep +9.0 ± 1.0; L untrained to L 800ep +12.0 ± 2.0 points"
    assert both.text == f"probe: {told}: rises."
    assert [c.text for c in claims([line(), line(protocol="k-NN")], ())] == ["alone"] * 2


@pytest.mark.slow
def test_a_protocol_that_a_size_is_not_asked_for_leaves_its_coverage_full(tmp_path: Path) -> None:
    found = [r for r in rows(seeds=2) if r.kind != "finetune" or r.size == "H"]
    files = report(tmp_path, found)
    text = files.html.read_text()
    start = text.index("<h2>Coverage</h2>")
    covered = text[start : text.index("</section>", start)]
    assert "2/2" in covered and "0/2" not in covered


def test_sides_of_a_comparison_are_series_of_their_own_names_and_covered() -> None:
    """Size and objective of a row name its side: a series says it once."""
    found = [
        replace(r, size=f"{r.size} {side}", objective=f"MAE {side}", cell=f"{side}/{r.cell}")
        for side in "ab"
        for r in grid_rows(sizes=("Ti", "S"))
    ]
    curves = scaling_curves(found)
    over = [c for c in curves if c.axis.name == "duration"]
    assert [s.label for s in over[0].series] == ["Ti a", "Ti b", "S a", "S b"]
    (table,) = coverage(found, curves, (), None)
    assert [name for name, _ in table.rows] == ["Ti a", "Ti b", "S a", "S b"]
    assert all(cell.is_full for _, cells in table.rows for cell in cells)


def test_objectives_of_one_size_stay_apart_and_are_covered_together() -> None:
    found = [
        replace(r, objective=name, cell=f"{name}/{r.cell}")
        for name in ("MAE", "MoCo v3")
        for r in grid_rows(sizes=("Ti",))
    ]
    curves = scaling_curves(found)
    over = [c for c in curves if c.axis.name == "duration"]
    assert len(over[0].series) == 2 and all("Ti" in s.label for s in over[0].series)
    (table,) = coverage(found, curves, (), None)
    assert all(cell.is_full for _, cells in table.rows for cell in cells)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    ["missing", "nan", "single", "equal", "waves", "zero", "perfect", "unknown protocol"],
)
def test_results_that_carry_no_law_end_in_statements(tmp_path: Path, spoil: str) -> None:
    found = rows(sizes=4, durations=4, seeds=1)
    if spoil == "single":
        found = [r for r in found if r.cell == "S/e100/s0"]
    change = {
        "missing": lambda r, i: None,
        "nan": lambda r, i: math.nan,
        "single": lambda r, i: r.top1,
        "equal": lambda r, i: 50.0,
        "waves": lambda r, i: 50 + 10 * math.sin(2.1 * i),
        "zero": lambda r, i: 0.0,
        "perfect": lambda r, i: 100.0,
        "unknown protocol": lambda r, i: r.top1,
    }[spoil]
    found = [
        replace(r, top1=change(r, i), kind="magic" if spoil.startswith("unknown") else r.kind)
        if r.top1 is not None
        else r
        for i, r in enumerate(found)
    ]
    files = report(tmp_path, found)
    check_page(files)
    summary = json.loads(files.summary.read_text())
    assert all(c["level"] not in ("shown", "suggested") for c in summary["claims"])
    assert all(law["law"] is None for law in summary["laws"]) or spoil == "waves"


@pytest.mark.slow
def test_thousands_of_points(tmp_path: Path) -> None:
    found = [r for r in rows(sizes=2, durations=4, seeds=250) if r.kind != "reconstruction"]
    assert len({r.cell for r in found}) == 2000
    files = write_report(found, meta=meta(), gallery=(), directory=tmp_path)
    check_page(files)
    assert files.html.stat().st_size < 10e6
