"""`mae-study fit`: laws of a table of results from elsewhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from orchestrator.cli.options import json_option
from orchestrator.cli.output import make_console, print_json, print_table

if TYPE_CHECKING:
    from studies.analysis.laws.any_table import Measure, Question
    from studies.analysis.laws.by_protocol import ProtocolLaw


@click.command()
@click.argument("table", metavar="TABLE", type=click.Path(path_type=Path))
@click.option("--y", required=True, metavar="COLUMN", help="Results.")
@click.option(
    "--x",
    "axes",
    multiple=True,
    required=True,
    metavar="COLUMN",
    help="What was varied: parameters, tokens, compute ...; once or twice.",
)
@click.option(
    "--as",
    "measure",
    type=click.Choice(["loss", "error", "accuracy"]),
    default="loss",
    show_default=True,
    help="What --y is; error and accuracy in per cent.",
)
@click.option(
    "--law",
    "laws",
    multiple=True,
    metavar="NAME",
    help="power, power-floor, broken, saturating, frontier, product, additive, "
    "additive-shared or bounded; default: all that fit the axes compete.",
)
@click.option(
    "--top", type=float, help="Error of guessing, in per cent; lets the bounded law compete."
)
@click.option("--by", metavar="COLUMN", help="Fit one law for each value of this column.")
@click.option("--where", multiple=True, metavar="COLUMN=VALUE", help="Only these rows.")
@click.option("--at", multiple=True, metavar="COLUMN=NUMBER,...", help="Predict at this point.")
@click.option(
    "--huber", type=float, help="Use Huber's loss with this corner; default: least squares."
)
@click.option("--scale", type=click.Choice(["absolute", "log"]), help="Scale of the residuals.")
@click.option("--out", metavar="DIR", help="Draw laws and residuals there, as PNG and PDF.")
@json_option
def fit(
    table: Path,
    y: str,
    axes: tuple[str, ...],
    measure: Measure,
    laws: tuple[str, ...],
    top: float | None,
    by: str | None,
    where: tuple[str, ...],
    at: tuple[str, ...],
    huber: float | None,
    scale: Literal["absolute", "log"] | None,
    out: str | None,
    as_json: bool,
) -> None:
    """Fit laws to any CSV or Parquet table of results: one row per run.

    Laws are chosen as by `laws`: by what they predict of the largest runs, with intervals and
    refusals.
    """
    from studies.analysis.laws.any_table import Question, fit_table, read_table
    from studies.analysis.laws.fit import Method

    question = Question(
        y=y,
        axes=axes,
        measure=measure,
        by=by,
        laws=laws,
        top=top,
        where=tuple(_pair(text, "--where") for text in where),
    )
    targets = [_target(text) for text in at]
    method = Method(starts=4, huber=huber, scale=scale)
    found = fit_table(read_table(table), question, targets, method)
    drawn = _draw(found, out) if out else []
    _show(found, question, drawn, as_json=as_json)


def _show(
    found: list[ProtocolLaw], question: Question, drawn: list[Path], *, as_json: bool
) -> None:
    from studies.analysis.laws.any_table import prediction_lines
    from studies.analysis.laws.by_protocol import law_json, law_lines, law_texts

    predictions = prediction_lines(found, question.measure)
    if as_json:
        head, *rest = predictions
        named = [dict(zip(head, line, strict=True)) for line in rest]
        print_json(
            {"laws": law_json(found), "predictions": named, "figures": list(map(str, drawn))}
        )
        return
    for lines in (law_lines(found), predictions):
        if len(lines) > 1:
            print_table(lines)
    for text in law_texts(found):
        make_console().print(text, highlight=False, markup=False)
    for path in drawn:
        click.echo(str(path))


def _draw(found: list[ProtocolLaw], out: str) -> list[Path]:
    from orchestrator.store.driver import output_dir
    from studies.analysis.figures.law_figures import law_drawings

    directory = output_dir(Path(out), Path(out))
    made = []
    for drawing in law_drawings(found):
        path = directory / f"{drawing.name}.png"
        path.write_bytes(drawing.png)
        path.with_suffix(".pdf").write_bytes(drawing.pdf)
        made.append(path)
    return made


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"{option} {text}: write COLUMN=VALUE")
    return name, value


def _target(text: str) -> dict[str, float]:
    found = {}
    for part in text.split(","):
        name, value = _pair(part.strip(), "--at")
        try:
            found[name] = float(value)
        except ValueError:
            raise click.UsageError(f"--at {text}: {value!r} is not a number") from None
        if not 0 < found[name] < math.inf:
            raise click.UsageError(f"--at {text}: {value!r} is no size: use a number above 0")
    return found
