"""The first-curves report: numbers, figures, the page, and partial results."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from support.report_cases import CHOSEN, PROTOCOLS, check_page, evaluated, grid_rows, meta

from studies.analysis.curves.curves import (
    COMPUTE,
    DURATION,
    PARAMETERS,
    UNTRAINED,
    Change,
    Curve,
    trends,
)
from studies.analysis.curves.from_rows import scaling_curves
from studies.analysis.figures.gallery_figure import GalleryEntry, gallery
from studies.analysis.report.curve_page import summary_text
from studies.analysis.report.meta import ReportFiles
from studies.analysis.report.page import write_report
from studies.analysis.report.tables import write_json
from studies.analysis.results import cost, unmeasured
from studies.analysis.sweeps.settings import ChosenSetting
from studies.analysis.sweeps.surface import sweep_surface
from studies.result_row import COLUMNS, ResultRow

NASTY = '<script>alert("x")</script> & $p_0$'


def other_rows() -> list[ResultRow]:
    baseline = [
        evaluated(f"pixels/s{s}", kind, 26.0 + s + 8 * i, role="baseline", seed=s)
        for s in (0, 1)
        for i, kind in enumerate(("knn", "linear_probe"))
    ]
    sweep = [
        evaluated(
            f"sweep/{mask}-{depth}-{width}",
            "knn",
            50 - 60 * (mask - 0.75) ** 2 - abs(depth - 4),
            role="sweep",
            mask_ratio=mask,
            decoder_depth=depth,
            decoder_width=width,
            size="S",
            duration="25ep",
            eval_split="dev",
            seed=9,
        )
        for mask in (0.5, 0.6, 0.75, 0.9)
        for depth in (1, 2, 4, 8)
        for width in (128, 256)
    ]
    return baseline + sweep


def over(axis: str, rows: list[ResultRow]) -> list[Curve]:
    return [curve for curve in scaling_curves(rows) if curve.axis.name == axis]


def gallery_entries(directory: Path, cells: int = 3) -> list[GalleryEntry]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:32, 0:32] / 31
    images = np.stack([np.stack([x * a, y, 1 - x * y], -1) for a in rng.random(6)])
    mask = np.stack([rng.permutation(64) < 48 for _ in range(6)]).astype(np.float32)
    entries = []
    for i in range(cells):
        blur = images + rng.normal(0, 0.3 / (i + 1), images.shape)
        path = directory / f"g{i}.npz"
        note = np.array("patch mean and variance taken from the true image (norm-pixel model)")
        np.savez(path, images=images, mask=mask, reconstruction=blur.clip(0, 1), note=note)
        entries.append(GalleryEntry(cell=f"M/{i}", label=f"M {25 * 4**i} epochs", path=path))
    return entries


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> ReportFiles:
    directory = tmp_path_factory.mktemp("report")
    entries = gallery_entries(directory)
    rows = grid_rows() + other_rows()
    return write_report(rows, meta=meta(), gallery=entries, directory=directory / "out")


@pytest.mark.slow
def test_a_complete_study_gives_every_figure_and_a_self_contained_page(
    written: ReportFiles,
) -> None:
    page, text = check_page(written)
    names = [path.stem for path in written.figures]
    for kind in PROTOCOLS:
        assert sum(name.endswith(kind) for name in names) == 3  # duration, parameters, FLOPs
    assert {"sweep", "gallery", "cost"} <= set(names)
    assert {"ranks-1", "ranks-2", "frontier-1", "frontier-2", "frontier-3"} <= set(names)
    assert page.seen.count("svg") == len(names) == 17
    for path in written.figures:
        assert path.with_suffix(".pdf").read_bytes()[:5] == b"%PDF-"
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written.figures)
    assert "in 9 of 9 (protocol, size) pairs" in text
    assert "Patch mean and variance taken from the true image (norm-pixel model)." in text
    assert "preempted, not yet resumed" in text
    assert "The ring marks the chosen setting." in text


@pytest.mark.slow
def test_tables_have_the_result_columns_and_typed_values(written: ReportFiles) -> None:
    rows = grid_rows() + other_rows()
    with written.csv.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == COLUMNS
    table = parquet.read_table(written.parquet)
    assert tuple(table.column_names) == COLUMNS
    assert table.to_pylist() == [row.to_dict() for row in rows]
    assert len(lines) == len(rows)
    types = {name: str(table.schema.field(name).type) for name in COLUMNS}
    assert (types["seed"], types["top5"], types["role"]) == ("int64", "double", "string")


def test_points_and_paired_differences() -> None:
    def row(seed: int, epochs: float, top1: float) -> ResultRow:
        role = "grid" if epochs else "untrained"
        where: dict[str, Any] = {"size": "S", "seed": seed, "epochs": epochs, "role": role}
        return evaluated(f"S/{epochs}/{seed}", "knn", top1, duration=f"{epochs:g}ep", **where)

    start = [row(0, 0, 20.0), row(1, 0, 21.0), row(2, 0, 22.0), row(3, 0, 30.0)]
    end = [row(0, 8, 30.0), row(1, 8, 32.0), row(2, 8, 34.0)]
    (curve,) = over(DURATION, [*start, *end])
    point, untrained = curve.point("S", 8.0), curve.point("S", UNTRAINED)
    assert point is not None and untrained is not None
    assert point.mean == pytest.approx(32.0)
    assert point.sd == pytest.approx(2.0)
    assert (point.label, untrained.label, untrained.n) == ("8ep", "untrained", 4)
    (trend,) = trends(curve)
    assert dict(trend.differences) == {0: 10.0, 1: 11.0, 2: 12.0}
    assert trend.mean == pytest.approx(11.0) and trend.sd == pytest.approx(1.0)
    assert trend.n == 3
    assert trend.every_seed_rises and trend.change is Change.RISES


@pytest.mark.parametrize(
    ("gains", "change", "every", "verdict"),
    [
        ((5.0, 5.5, 6.0), Change.RISES, True, "rises by more"),
        ((0.1, 3.0, 6.0), Change.NONE, True, "no change beyond"),
        ((-5.0, -5.5, -6.0), Change.FALLS, False, "falls by more"),
        ((5.0, 5.5), Change.UNKNOWN, True, "too few"),
        ((0.0, 0.0, 0.0), Change.NONE, False, "no change beyond"),
    ],
)
def test_a_rise_counts_only_above_the_seed_spread(
    gains: tuple[float, ...], change: Change, every: bool, verdict: str
) -> None:
    rows = []
    for seed, gain in enumerate(gains):
        for role, epochs, top1 in (("untrained", 0.0, 20.0), ("grid", 4.0, 20.0 + gain)):
            where: dict[str, Any] = {"size": "S", "seed": seed, "epochs": epochs, "role": role}
            rows.append(evaluated(f"{role}/{seed}", "knn", top1, duration="x", **where))
    (trend,) = trends(over(DURATION, rows)[0])
    assert (trend.change, trend.every_seed_rises) == (change, every)
    assert verdict in trend.verdict


def test_order_sizes_and_shared_protocols() -> None:
    rows = grid_rows(sizes=("M", "Ti", "S"), epochs=(400, 0, 25))
    found = over(DURATION, rows)
    assert [c.kind for c in found] == list(PROTOCOLS)
    assert [s.label for s in found[0].series] == ["Ti", "S", "M"]
    assert [found[0].labels[at] for at in found[0].places] == ["untrained", "25ep", "400ep"]
    by_size = trends(over(PARAMETERS, rows)[0])
    assert [t.start.series for t in by_size] == ["untrained", "25ep", "400ep"]
    assert {(t.start.label, t.end.label) for t in by_size} == {("Ti", "M")}
    few = [replace(r, num_labels=500, science_hash=r.science_hash + "few") for r in rows]
    many = [replace(r, num_labels=5000) for r in rows]
    labels = [c.title for c in over(DURATION, few + many)]
    assert len(set(labels)) == 6 and "k-NN k=20 mean tokens · test · 500 labels" in labels


def test_results_belong_together_by_their_recipe_whatever_its_description() -> None:
    rows = [replace(r, protocol_key=r.kind) for r in grid_rows(epochs=(25,), seeds=(0,))]
    knn = [r for r in rows if r.kind == "knn"]
    other = [
        replace(r, protocol_key="other", stage="knn_5", science_hash=r.science_hash + "5")
        for r in knn
    ]
    first, second = over(DURATION, [*knn, *other])
    assert {first.title, second.title} == {
        f"{PROTOCOLS['knn']} · test · {s}" for s in ("knn", "knn_5")
    }
    assert first.averaged == second.averaged == 0
    renamed = [replace(r, protocol=f"called after {r.size}") for r in knn]
    (curve,) = over(DURATION, renamed)
    assert len(curve.series) == 3


def test_evaluations_inherit_the_columns_of_their_cell() -> None:
    rows = grid_rows(sizes=("S",), epochs=(25,), seeds=(0,))
    bare = [r if r.kind == "pretrain" else replace(r, size=None, pretrain_flops=None) for r in rows]
    (series,) = over(COMPUTE, bare)[0].series
    assert series.label == "S" and series.points[0].at == rows[0].pretrain_flops


def test_the_sweep_ranks_only_comparable_trials() -> None:
    rows = other_rows()
    odd = evaluated(
        "sweep/long",
        "knn",
        99.0,
        role="sweep",
        mask_ratio=0.1,
        decoder_depth=1,
        size="S",
        duration="50ep",
        eval_split="dev",
    )
    surface = sweep_surface([*rows, odd], "knn")
    assert surface is not None and surface.left_out == 1
    best = max(surface.points, key=lambda p: p.mean)
    assert (best.mask_ratio, best.decoder_depth) == (0.75, 4)
    assert sweep_surface(grid_rows()) is None


def test_a_shared_stage_is_paid_once() -> None:
    row = evaluated("a", "pretrain", None, seconds=10.0, world_size=4)
    twice = [row, replace(row, cell="b")]
    assert cost(twice, lambda r: (r.kind, r.role)) == {("pretrain", "grid"): 40.0}


def _nan(rows: list[ResultRow]) -> list[ResultRow]:
    return [replace(r, top1=math.nan, seconds=math.nan) for r in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(list, id="empty"),
        pytest.param(lambda: grid_rows(("S",), (25,), (0,)), id="one cell"),
        pytest.param(lambda: grid_rows(("S",), (0,), (0,)), id="only untrained"),
        pytest.param(lambda: _nan(grid_rows(("S",), (0, 25), (0,))), id="all NaN"),
        pytest.param(lambda: grid_rows(("S",), (0, 25), (0,))[:3], id="no evaluation yet"),
        pytest.param(
            lambda: [
                replace(r, epochs=None, encoder_params=None, pretrain_flops=None, seed=None)
                for r in grid_rows(("S", "M"), (25, 100), (0,))
            ],
            id="columns missing",
        ),
    ],
)
def test_partial_results_are_reported_not_fatal(
    rows: Callable[[], list[ResultRow]], tmp_path: Path
) -> None:
    bare = meta(sweep_winner=None, objective=None, missing=[], notes=(), provenance={})
    files = write_report(rows(), meta=bare, gallery=[], directory=tmp_path)
    _, text = check_page(files)
    assert "Nothing to draw yet" in text
    assert "rises by more than the seed spread in" not in text
    assert summary_text(rows())


def test_a_summary_keeps_its_keys(tmp_path: Path) -> None:
    """Readers know them; a byte of a path that is no character is escaped."""
    chosen = ChosenSetting(
        settings=CHOSEN, objective="knn", rule="mean_rank", values={"knn": 50.0}, score=50.0
    )
    said = meta(sweep_winner=chosen)
    files = write_report(grid_rows(), meta=said, gallery=[], directory=tmp_path)
    write_json({"note": "bad\udcff.png: 5 − 4"}, tmp_path / "other.json")
    assert "bad\\udcff.png: 5 − 4" in (tmp_path / "other.json").read_text(encoding="utf-8")
    summary = json.loads(files.summary.read_text(encoding="utf-8"))
    winner = summary["sweep"]["winner"]
    assert (winner["objective"], winner["rule"]) == ("knn", "mean_rank")
    assert winner["values"] == {"knn": 50.0}
    told = {"rises": True, "none": False, "falls": False, "unknown": None}
    assert summary["evidence"]
    for line in summary["evidence"]:
        assert line["exceeds"] is told[Change(line["change"]).name.lower()]


@pytest.mark.slow
def test_strings_are_escaped_everywhere(tmp_path: Path) -> None:
    rows = [
        replace(r, protocol=NASTY, cell=NASTY + r.cell, size=NASTY, duration=NASTY)
        for r in grid_rows(("S",), (0, 25), (0,)) + other_rows()
    ]
    evil = meta(
        study=NASTY,
        question=NASTY,
        command=NASTY,
        notes=(NASTY,),
        provenance={NASTY: NASTY},
        missing=[(NASTY, NASTY, NASTY)],
        sweep_winner=ChosenSetting(settings={NASTY: NASTY}),
        created_at=NASTY,
    )
    gone = GalleryEntry(cell=NASTY, label=NASTY, path=tmp_path / "absent.npz")
    files = write_report(rows, meta=evil, gallery=[gone], directory=tmp_path / "out")
    page, text = check_page(files)
    assert page.seen.count("script") == 1
    assert "alert(&#34;x&#34;)" in text and 'alert("x")' not in text
    assert "Not shown" in text


def test_a_damaged_gallery_file_is_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    entries = gallery_entries(tmp_path, cells=2)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04 cut off")
    grey = np.full((2, 8, 8, 1), 0.5)
    wrong = tmp_path / "wrong.npz"
    np.savez(wrong, images=grey, mask=np.ones((2, 5)), reconstruction=grey)
    for path in (broken, wrong):
        entries.append(GalleryEntry(cell="X", label=path.stem, path=path))
    drawing, problems = gallery(entries, "g")
    assert drawing is not None and len(problems) == 2
    assert "5 patches do not tile an image of 8 x 8" in problems[1]


def test_summary_text_is_a_table() -> None:
    text = summary_text(grid_rows() + other_rows())
    assert unmeasured(grid_rows()) == 0
    blocks = text.split("\n\n")
    assert len(blocks) == 3 and blocks[0].splitlines()[0] == PROTOCOLS["knn"]
    assert "untrained" in blocks[0] and "400ep" in blocks[0] and "± " in blocks[0]
    assert "raw pixels: 26.5" in blocks[0] and "(3)" in blocks[0]


def test_importing_the_report_is_light() -> None:
    heavy = "matplotlib pyarrow jinja2 numpy torch ray mlflow".split()
    code = f"import sys, studies.analysis.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
