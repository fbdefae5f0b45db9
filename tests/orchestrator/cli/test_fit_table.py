"""`mae-study fit`: a table of somebody else's runs, by its own column names."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import main
from studies.reference.scaling_tables import MAWS_IG3B

ROWS = [
    {
        "model": f"{n:.0e}",
        "N": n,
        "D": d,
        "seed": s,
        "family": f,
        "loss": 1.7 + 400 * n**-0.34 + scale * d**-0.28 + 0.002 * s,
    }
    for f, scale in (("a", 410), ("b", 600))
    for n in np.geomspace(1e8, 1e10, 5).tolist()
    for d in np.geomspace(1e9, 1e11, 4).tolist()
    for s in (-1, 1)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def fit(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["fit", *arguments])


def test_a_published_ladder_is_fitted_from_four_sizes_and_refused_from_three(
    tmp_path: Path,
) -> None:
    """Singh et al. 2023: 6.5B predicted from the four sizes below it, measured 88.3."""
    ladder = [{"params": p.encoder_params, "top1": p.top1} for p in MAWS_IG3B]
    largest = ladder[-1]["params"]
    table = write(tmp_path / "maws.csv", ladder[:-1])
    question = ("--y", "top1", "--as", "accuracy", "--x", "params", "--law", "power-floor")
    done = fit(table, *question, "--at", f"params={largest}", "--json")
    assert done.exit_code == 0, done.output
    (prediction,) = json.loads(done.stdout)["predictions"]
    assert float(prediction["predicted accuracy"]) == pytest.approx(88.31, abs=0.01)
    few = fit(write(tmp_path / "few.csv", ladder[:3]), *question)
    assert few.exit_code == 0 and "cannot show a floor" in " ".join(few.output.split())


@pytest.mark.slow
def test_a_law_for_each_group_with_its_exponents(tmp_path: Path) -> None:
    table = write(tmp_path / "runs.csv", ROWS)
    arguments = ("--y", "loss", "--x", "N", "--x", "D", "--by", "family", "--law", "additive")
    out = tmp_path / "drawn"
    done = fit(table, *arguments, "--at", "N=2e10,D=2e11", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert [law["protocol"] for law in said["laws"]] == ["family a", "family b"]
    for law in said["laws"]:
        assert law["parameters"]["alpha"]["value"] == pytest.approx(0.34, abs=0.02)
        assert law["parameters"]["beta"]["value"] == pytest.approx(0.28, abs=0.02)
    truth = [1.7 + 400 * 2e10**-0.34 + scale * 2e11**-0.28 for scale in (410, 600)]
    predicted = [float(p["predicted loss"]) for p in said["predictions"]]
    assert predicted == pytest.approx(truth, abs=0.01)
    assert len(list(out.glob("*.png"))) == len(list(out.glob("*.pdf"))) == 4
    shown = fit(table, *arguments)
    assert "family a" in shown.output and "law (error in points)" not in shown.output


def test_laws_compete_where_none_is_named_and_rows_are_chosen(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    done = fit(str(path), "--y", "loss", "--x", "N", "--x", "D", "--where", "family=a", "--json")
    (law,) = json.loads(done.stdout)["laws"]
    assert law["law"] == "additive" and law["formula"] == "E + A / N^alpha + B / D^beta"
    assert set(law["hold_out_rmse"]) == {"product", "additive, one exponent", "additive"}


def test_a_result_that_cells_share_is_one_run(tmp_path: Path) -> None:
    """The results table has a row for each of the cells, with one science hash."""
    named = [{**row, "science_hash": f"h{i}"} for i, row in enumerate(ROWS)]
    asked = ("--y", "loss", "--x", "N", "--x", "D", "--where", "family=a", "--json")
    once, twice = (
        json.loads(fit(write(tmp_path / f"{len(rows)}.csv", rows), *asked).stdout)
        for rows in (named, [*named, *named])
    )
    assert twice == once


def test_a_frontier_is_of_the_best_of_each_bin(tmp_path: Path) -> None:
    """Runs that waste their compute lie above it and do not move the law."""
    compute = np.geomspace(1e18, 1e22, 17)
    best = [{"C": c, "loss": 1.5 + 300 * c**-0.14} for c in compute.tolist()]
    wasted = [
        {"C": 1.2 * row["C"], "loss": row["loss"] + 0.3 + i / 100} for i, row in enumerate(best)
    ]
    table = write(tmp_path / "runs.csv", [*wasted, *best])
    done = fit(table, "--y", "loss", "--x", "C", "--law", "frontier", "--json")
    (law,) = json.loads(done.stdout)["laws"]
    assert law["parameters"]["alpha"]["value"] == pytest.approx(0.14, abs=0.005)
    assert law["formula"].startswith("best error =")
    assert any("biased towards lucky runs" in s["text"] for s in law["statements"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--y", "loss", "--x", "N", "--law", "frontier", "--law", "power"), "do not name it with"),
        (("--y", "loss", "--x", "N", "--x", "D", "--law", "frontier"), "has 1 axes, and 2 are"),
        (("--y", "los", "--x", "N"), "unknown column 'los' in the table; did you mean 'loss'"),
        (("--y", "loss", "--x", "model_"), "did you mean 'model'"),
        (("--y", "loss", "--x", "family"), "column 'family' holds 'a', which is no number"),
        (("--y", "loss", "--x", "N", "--law", "additiv"), "did you mean 'additive'"),
        (("--y", "loss", "--x", "N", "--law", "additive"), "has 2 axes, and 1 are named"),
        (("--y", "loss", "--x", "N", "--law", "bounded"), "needs the error of chance"),
        (("--y", "loss", "--x", "N", "--x", "D", "--x", "seed"), "3 axes"),
        (("--y", "loss", "--x", "N", "--where", "family=c"), "no row has family=c"),
        (("--y", "loss", "--x", "N", "--where", "family"), "write COLUMN=VALUE"),
        (("--y", "loss", "--x", "N", "--at", "N=big"), "'big' is not a number"),
        (("--y", "loss", "--x", "N", "--at", "D=3"), "N is missing"),
        (("--y", "loss", "--x", "N", "--at", "N=0"), "'0' is no size: use a number above 0"),
        (("--y", "loss", "--x", "N", "--at", "N=nan"), "'nan' is no size"),
        (("--y", "loss", "--x", "N", "--at", "N=1e400"), "'1e400' is no size"),
        (("--y", "loss", "--x", "N", "--by", "group"), "unknown column 'group'"),
        (("--y", "loss", "--x", "N", "--huber", "0"), "huber = 0"),
    ],
)
def test_what_does_not_fit_the_table_is_said(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = fit(write(tmp_path / "runs.csv", ROWS), *arguments)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.split())


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"no")
    for place in (path, tmp_path / "absent.csv", tmp_path):
        done = fit(str(place), "--y", "loss", "--x", "N")
        assert done.exit_code == 2 and "is no CSV or Parquet table" in done.output


def test_results_without_a_trend_end_in_statements(tmp_path: Path) -> None:
    flat = [row | {"loss": 3.0} for row in ROWS]
    holes = [row | {"loss": "" if i % 3 else row["loss"]} for i, row in enumerate(ROWS)]
    for i, rows in enumerate((flat, holes, ROWS[:1])):
        done = fit(write(tmp_path / f"{i}.csv", rows), "--y", "loss", "--x", "N", "--x", "D")
        assert done.exit_code == 0 and "Traceback" not in done.output, done.output
        said = " ".join(done.output.split())
        assert ("no law" if i != 1 else "of 80 results lack a positive number") in said
