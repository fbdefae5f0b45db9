"""Reports over a study's own axes: places, series, published numbers beside the measured."""

from __future__ import annotations

import copy
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from studies.analysis.curves.curves import Change, Curve, in_order, trends
from studies.analysis.curves.from_rows import axis_curves
from studies.analysis.report.curve_page import summary_text
from studies.analysis.report.meta import ReportMeta
from studies.analysis.report.page import write_report
from studies.analysis.report.tables import write_csv, write_parquet
from studies.errors import StudyError
from studies.load import load_study
from studies.result_row import ResultRow
from studies.spec.axes import AXES, axis, joined, place, places
from studies.spec.cell import Cell
from studies.spec.overrides import override_cell


def row(cell: str, top1: float | None, at: dict[str, Any], seed: int = 0, **more: Any) -> ResultRow:
    base: dict[str, Any] = {
        "study": "s",
        "cell": f"{cell}/s{seed}",
        "stage": "linear_probe",
        "kind": "linear_probe",
        "protocol": "linear probe",
        "role": "grid",
        "science_hash": f"{cell}{seed}{more}",
        "size": "L",
        "objective": "MAE",
        "places": at,
        "seed": seed,
        "top1": top1,
        "eval_split": "test",
        "seconds": 10.0,
        "world_size": 2,
        "duration": "800ep",
    }
    return ResultRow(**{**base, **more})


def over_mask_ratio(lift: float = 0.0) -> list[ResultRow]:
    return [
        row(f"m{at}", lift + 70 - 60 * (at - 0.75) ** 2 + 0.2 * seed, {"mask_ratio": at}, seed)
        for at in (0.25, 0.5, 0.75, 0.9)
        for seed in (0, 1, 2)
    ]


def only(rows: list[ResultRow], **settings: Any) -> Curve:
    (curve,) = axis_curves(rows, **settings)
    return curve


def cell() -> Cell:
    return load_study("small/images").cell("w64/e10/s0")


def test_places_are_read_off_the_recipes() -> None:
    names = ("mask_ratio", "target", "augmentation", "mask_sampling+mask_ratio", "objective")
    probe = cell().stage("linear_probe")
    assert places(names, cell(), probe) == {
        "mask_ratio": 0.75,
        "target": "normalised pixels",
        "augmentation": "random-size crop",
        "mask_sampling+mask_ratio": "random, 75 %",
        "objective": "MAE",
    }
    changed = override_cell(
        cell(),
        {"pretrain.norm_pix_loss": False, "pretrain.augmentation.color_jitter": 0.4},
    )
    at = places(names, changed, changed.stage("linear_probe"))
    assert (at["target"], at["augmentation"]) == ("pixels", "crop + colour jitter")


def test_an_axis_may_be_any_key_of_a_recipe() -> None:
    knn = cell().stage("knn")
    assert place("pretrain.decoder.num_heads", cell(), knn) == 2.0
    assert place("knn.metric", cell(), knn) == "cosine"
    assert place("linear_probe.global_batch", cell(), knn) is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"axes": ("mask_ration",)}, "did you mean 'mask_ratio'"),
        ({"axes": ("pretrain.mask_ration",)}, "did you mean 'pretrain.mask_ratio'"),
        ({"measures": ("top2",)}, "did you mean 'top1'"),
        ({"published": ("MAE paper, Fig. 7",)}, "did you mean 'MAE paper, Fig 7'"),
    ],
)
def test_what_a_report_cannot_draw_is_refused_with_the_study(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(StudyError, match=expected):
        replace(load_study("small/images"), **changes)


def test_points_are_seeds_of_a_place_and_published_numbers_stand_beside() -> None:
    curve = only(over_mask_ratio(), axes=("mask_ratio",), published=("MAE paper, Fig 5",))
    (series,) = curve.series
    assert [p.at for p in series.points] == [0.25, 0.5, 0.75, 0.9]
    point = series.point(0.75)
    assert point is not None
    assert (point.n, point.mean, point.sd) == (3, pytest.approx(70.2), pytest.approx(0.2))
    (reference,) = curve.published
    assert reference.label == "MAE paper, Fig 5: ViT-L/16"
    assert dict(reference.points)[0.1] == 54.6 and len(reference.points) == 10
    assert reference.links == ("https://arxiv.org/abs/2111.06377",)


def test_one_axis_varied_at_a_time_gives_one_curve_each() -> None:
    shapes = [(1, 512), (2, 512), (8, 512), (8, 128), (8, 1024)]
    rows = [
        row(f"{d}x{w}", 60.0 + d, {"decoder_depth": float(d), "decoder_width": float(w)})
        for d, w in shapes
    ]
    depth, width = axis_curves(rows, axes=("decoder_depth", "decoder_width"))
    assert [[p.at for p in s.points] for s in depth.series] == [[1.0, 2.0, 8.0]]
    assert [[p.at for p in s.points] for s in width.series] == [[128.0, 512.0, 1024.0]]


def test_objectives_are_series_of_one_figure_whatever_their_kind() -> None:
    rows = []
    for size, top1 in (("B", 83.0), ("L", 85.0)):
        mae = {"kind": "finetune", "protocol": f"fine-tune of {size}"}
        scratch = {"kind": "scratch", "protocol": "from scratch", "objective": "from scratch"}
        rows.append(row(f"mae{size}", top1, {"size": size}, size=size, **mae))
        rows.append(row(f"own{size}", top1 - 1, {"size": size}, size=size, **scratch))
    curve = only(rows, axes=("size",), published=("MAE paper, Table 3 / Fig 8",))
    assert [s.label for s in curve.series] == ["from scratch", "MAE"]
    assert [p.at for p in curve.series[1].points] == ["B", "L"]
    published = {s.label.split(": ")[1]: dict(s.points) for s in curve.published}
    assert published["MAE"]["H@448"] == 87.8
    assert published["scratch (MAE authors impl)"]["B"] == 82.3


def test_protocols_at_one_place_are_kept_apart() -> None:
    rows = over_mask_ratio()
    other = [replace(r, protocol="linear probe, pooled", science_hash=r.cell + "p") for r in rows]
    curve = only([*rows, *other], axes=("mask_ratio",))
    assert [s.label for s in curve.series] == ["linear probe", "linear probe, pooled"]
    assert all(p.n == 3 for s in curve.series for p in s.points)


def test_nothing_tuned_to_all_tuned_is_one_curve() -> None:
    rows = [
        row("a", 70.0, {"tuned_blocks": 0.0}),
        row("b", 80.0, {"tuned_blocks": 12.0}, kind="finetune", protocol="fine-tune"),
    ]
    curve = only(rows, axes=("tuned_blocks",), published=("MAE paper, Fig 9",))
    assert [p.at for p in curve.series[0].points] == [0.0, 12.0]
    assert {s.objective for s in curve.published} == {"MAE", "MoCo v3"}


def test_costs_are_relative_within_a_series() -> None:
    name = "mask_tokens+decoder_depth"
    variants = {
        joined(name, {"mask_tokens": where, "decoder_depth": 8.0}): costs
        for where, costs in (
            ("encoder and decoder", (40.0, 3.2e20)),
            ("decoder only", (16.0, 1e20)),
        )
    }
    rows = [
        row(str(at), None, {name: at}, kind="pretrain", protocol="MAE", seconds=s, pretrain_flops=f)
        for at, (s, f) in variants.items()
    ]
    both = ("speedup", "relative_flops")
    speed, flops = axis_curves(rows, axes=(name,), measures=both, published=("MAE paper, Table 2",))
    assert [p.mean for p in speed.series[0].points] == pytest.approx([2.5, 1.0])
    assert [p.mean for p in flops.series[0].points] == pytest.approx([1.0, 3.2])
    assert dict(speed.published[0].points)["decoder only, 8 decoder blocks"] == 2.8


def test_categories_come_in_their_usual_order() -> None:
    found = in_order(AXES["target"], ["tokens", "mine:target", "pixels"])
    assert found == ("pixels", "tokens", "mine:target")
    name = "pretrain.augmentation.crop_scale+mask_sampling"
    crop = "pretrain.augmentation.crop_scale"
    places = [joined(name, {crop: "(0.2, 1.0)", "mask_sampling": s}) for s in ("grid", "random")]
    assert in_order(axis(name), [at for at in places if at is not None]) == (
        "(0.2, 1.0), random",
        "(0.2, 1.0), grid",
    )


def test_a_joined_place_is_text_in_files_and_survives_a_copy(tmp_path: Path) -> None:
    name = "mask_sampling+mask_ratio"
    at = joined(name, {"mask_sampling": "grid", "mask_ratio": 0.75})
    assert at is not None and copy.deepcopy(at).parts == at.parts == ("grid", 0.75)
    write_parquet([row("a", 1.0, {name: at})], tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet").to_pydict()
    assert table[f"axis.{name}"] == ["grid, 75 %"]


def test_a_result_that_seeds_share_is_one_measurement() -> None:
    rows = [replace(r, science_hash=r.cell.split("/")[0], top1=50.0) for r in over_mask_ratio()]
    curve = only(rows, axes=("mask_ratio",))
    assert [(p.n, p.sd) for p in curve.series[0].points] == [(1, None)] * 4


def test_an_untrained_network_has_a_place_among_durations() -> None:
    rows = [
        row(
            f"e{at:g}",
            40 + at / 100,
            {"duration": at},
            seed,
            duration=f"{at:g}ep",
            epochs=at,
            role="grid" if at else "untrained",
        )
        for at in (0.0, 100.0, 800.0)
        for seed in (0, 1, 2)
    ]
    curve = only(rows, axes=("duration",))
    assert [(p.at, p.label) for p in curve.series[0].points] == [
        (0.0, "untrained"),
        (100.0, "100ep"),
        (800.0, "800ep"),
    ]
    assert not curve.lines
    first, second = trends(curve)
    assert (first.start.label, first.end.label, first.is_primary) == ("untrained", "800ep", True)
    assert (second.start.label, second.is_primary) == ("100ep", False)


def test_differences_are_paired_from_the_lowest_to_the_highest() -> None:
    first, *others = trends(only(over_mask_ratio(), axes=("mask_ratio",)))
    assert (first.start.label, first.end.label) == ("25 %", "75 %")
    assert first.mean == pytest.approx(15.0) and first.change is Change.RISES
    assert len(others) == 2


@pytest.mark.parametrize("lift", [0.0, -40.0])
def test_a_page_over_an_axis_names_its_sources(tmp_path: Path, lift: float) -> None:
    """Published numbers share the panel, or have one of their own where they lie far apart."""
    meta = ReportMeta(
        study="s",
        question="?",
        command="c",
        created_at="2030",
        axes=("mask_ratio",),
        published=("MAE paper, Fig 5",),
    )
    untrained = replace(row("u", 12.0, {}), role="untrained")
    rows = [*over_mask_ratio(lift), untrained]
    files = write_report(rows, meta=meta, gallery=[], directory=tmp_path)
    text = files.html.read_text()
    assert "Accuracy against mask ratio" in text
    assert "https://arxiv.org/abs/2111.06377" in text
    assert ("far apart" in text) == (lift < 0)
    assert "highest at 75 %" in text
    assert "Accuracy against pretraining duration" not in text
    summary = json.loads(files.summary.read_text())
    assert summary["curves"][0]["published"][0]["points"][0] == [0.1, 54.6]
    assert [p.stem for p in files.figures] == ["mask-ratio-top1-1", "cost"]


def test_an_unfinished_study_has_a_page_too(tmp_path: Path) -> None:
    meta = ReportMeta(study="s", question="?", command="c", created_at="2030", axes=("mask_ratio",))
    for rows in ([], [row("a", 50.0, {"mask_ratio": 0.5})]):
        text = write_report(rows, meta=meta, gallery=[], directory=tmp_path).html.read_text()
        assert "nothing can be said" in text


def test_the_terminal_shows_published_numbers_below_the_measured() -> None:
    text = summary_text(over_mask_ratio(), axes=("mask_ratio",), published=("MAE paper, Fig 5",))
    lines = text.splitlines()
    assert lines[0] == "linear probe, over mask ratio"
    assert lines[3].split()[0] == "published" and "73.5" in lines[3]


def test_a_table_has_a_column_per_axis(tmp_path: Path) -> None:
    found = [row("a", 60.0, {"mask_ratio": 0.75}), row("b", 61.0, {"target": "pixels"})]
    write_parquet(found, tmp_path / "rows.parquet")
    write_csv(found, tmp_path / "rows.csv")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names[-2:] == ["axis.mask_ratio", "axis.target"]
    assert [str(table.schema.field(n).type) for n in table.column_names[-2:]] == [
        "double",
        "string",
    ]
    assert table["axis.mask_ratio"].to_pylist() == [0.75, None]
    assert table["axis.target"].to_pylist() == [None, "pixels"]
    with (tmp_path / "rows.csv").open(newline="") as stream:
        assert [line["axis.mask_ratio"] for line in csv.DictReader(stream)] == ["0.75", ""]
