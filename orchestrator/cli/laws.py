"""`mae-study laws`, `predict` and `advise`: what the results say, and what to pay for next."""

from __future__ import annotations

from pathlib import Path

import click

from orchestrator.cli.options import (
    json_option,
    load_plan,
    open_records,
    store_option,
    study_options,
)
from orchestrator.cli.output import make_console, print_json, print_table


@click.command()
@study_options
@json_option
def laws(
    study_ref: str, settings: tuple[str, ...], data_path: str | None, store: str, as_json: bool
) -> None:
    """Fit a law per protocol to what is finished, and say how sure it is."""
    from orchestrator.plan.rows import make_rows
    from orchestrator.report.predictions import chance_of
    from studies.analysis.laws.by_protocol import law_json, law_lines, law_texts, study_laws

    _, plan, records = load_plan(study_ref, settings, data_path, store)
    found = study_laws(make_rows(plan, records), top=chance_of(plan))
    if as_json:
        print_json({"study": plan.study.name, "laws": law_json(found)})
        return
    console = make_console()
    if not found:
        console.print("No finished evaluation of a grid cell yet: nothing can be fitted.")
        return
    lines = law_lines(found)
    if len(lines) > 1:
        print_table(lines)
    for text in law_texts(found):
        console.print(text, highlight=False, markup=False)


@click.command()
@study_options
@click.argument("cell", metavar="CELL")
@click.option("--dry-run", is_flag=True, help="Show it, do not register it.")
@json_option
def predict(
    study_ref: str,
    settings: tuple[str, ...],
    data_path: str | None,
    store: str,
    cell: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Predict a cell before it runs, and register the prediction; the report scores it later."""
    from orchestrator.plan.rows import make_rows
    from orchestrator.report.predictions import forecast_cell, register

    _, plan, records = load_plan(study_ref, settings, data_path, store)
    found = forecast_cell(plan, make_rows(plan, records), cell)
    numbers = [] if dry_run else register(plan, records, found)
    if as_json:
        print_json({"cell": cell, "registered": numbers, "predictions": found})
        return
    console = make_console()
    for one in found:
        if one.top1 is None or one.low is None or one.high is None:
            text = f"{one.protocol}: no prediction"
        else:
            text = (
                f"{one.protocol}: top-1 {one.top1:.2f} % ({one.level:.0%} interval "
                f"{one.low:.2f} to {one.high:.2f})"
            )
        console.print(text, highlight=False, markup=False)
        for said in one.statements:
            console.print(f"  {said}", highlight=False, markup=False)
    console.print(
        f"registered {len(numbers)} predictions; `report` scores them when {cell} has run"
        if numbers
        else "nothing was registered",
        highlight=False,
        markup=False,
    )


@click.command()
@study_options
@click.option("--target", required=True, metavar="CELL", help="The cell to predict.")
@click.option("--budget", required=True, type=float, metavar="HOURS", help="GPU-hours to spend.")
@click.option("--stage", default=None, help="Evaluation of the target; needed if it has several.")
@json_option
def advise(
    study_ref: str,
    settings: tuple[str, ...],
    data_path: str | None,
    store: str,
    target: str,
    budget: float,
    stage: str | None,
    as_json: bool,
) -> None:
    """Name the cells or repeated seeds that narrow the target's interval most per GPU-hour."""
    from orchestrator.plan.rows import make_rows
    from orchestrator.report.predictions import advise_cells
    from studies.analysis.laws.next_runs import go_or_no_go

    _, plan, records = load_plan(study_ref, settings, data_path, store)
    found, protocol, cost = advise_cells(plan, make_rows(plan, records), target, budget, stage)
    decision = go_or_no_go(found.prediction, cost) if found.prediction else None
    if as_json:
        print_json(
            {
                "target": target,
                "protocol": protocol,
                "width_now": found.width_now,
                "decision": decision,
                "gpu_hours": found.gpu_hours,
                "steps": [
                    {
                        "cell": s.option.cell,
                        "repeat": s.is_repeat,
                        "gpu_hours": s.option.gpu_hours,
                        "width_after": s.width_after,
                    }
                    for s in found.steps
                ],
                "statements": [s.text for s in found.statements],
            }
        )
        return
    console = make_console()
    console.print(
        decision or f"{target}, {protocol}: no law yet; it costs {cost:.3g} GPU-hours",
        highlight=False,
        markup=False,
    )
    lines = [["run", "what", "GPU-hours", "interval after (points)"]]
    lines += [
        [
            s.option.cell,
            "another seed" if s.is_repeat else "new",
            f"{s.option.gpu_hours:.3g}",
            f"{s.width_after:.2f}",
        ]
        for s in found.steps
    ]
    if found.steps:
        console.print(f"interval now: {found.width_now:.2f} points", highlight=False)
        print_table(lines)
    for said in found.statements:
        console.print(said.text, highlight=False, markup=False)


@click.command()
@click.argument("sides", metavar="SIDE SIDE...", nargs=-1, required=True)
@click.option("--stage", default=None, help="Only this stage of every cell.")
@click.option("--out", metavar="DIR", help="Write a report of all sides with their differences.")
@click.option("--data", "data_path", metavar="PATH", help="Images that all sides read.")
@store_option
@json_option
def compare(
    sides: tuple[str, ...],
    stage: str | None,
    out: str | None,
    data_path: str | None,
    store: str,
    as_json: bool,
) -> None:
    """Compare studies with the first of them, and say which differences may be chance.

    A SIDE is STUDY, STUDY@N (its Nth state in the store), or either with :PREFIX for a family of
    cells. Cells are paired by what follows PREFIX in their address, stages by name, and images by
    image; pairs that differ only in seeds are averaged.
    """
    from orchestrator.report.compare_page import write_comparison
    from orchestrator.report.compare_sides import compare as compare_sides
    from orchestrator.report.compare_sides import read_sides
    from orchestrator.store.driver import output_dir
    from studies.analysis.curves.differences import difference_lines, difference_texts

    if len(sides) < 2:
        raise click.UsageError("name at least two sides")
    records = open_records(store)
    read = read_sides(sides, records, lambda name: load_plan(name, (), data_path, store)[1])
    compared = [compare_sides(read[0], other, records, stage) for other in read[1:]]
    found = [difference for differences in compared for difference in differences]
    page = None
    if out:
        page = write_comparison(read, found, records, output_dir(Path(out), Path(out)))
    if as_json:
        named = zip(sides[1:], compared, strict=True)
        comparisons = [{"second": n, "differences": [d.to_json() for d in ds]} for n, ds in named]
        print_json({"first": sides[0], "comparisons": comparisons, "page": page and str(page)})
        return
    print_table(difference_lines(found))
    for text in difference_texts(found):
        make_console().print(text, highlight=False, markup=False)
    if page:
        click.echo(str(page))
