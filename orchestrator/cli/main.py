"""The command `mae-study`. Every verb imports what it needs when it runs: `--help` is instant."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.drill import drill
from orchestrator.cli.fit_table import fit
from orchestrator.cli.laws import advise, compare, laws, predict
from orchestrator.cli.mlflow import mlflow
from orchestrator.cli.options import (
    Group,
    json_option,
    load_plan,
    load_study_as_asked,
    sharing_options,
    stop_on_sigterm,
    study_options,
)
from orchestrator.cli.output import make_console, markup_free, print_json
from orchestrator.cli.streams import text_is_progress
from orchestrator.cli.verify import repair, verify
from orchestrator.cli.weights import adopt, export

if TYPE_CHECKING:
    from mae_core.data.facts import DataFacts

_CODES = """Exit codes: 0 done; 1 a defect of mae-study; 2 bad input; 3 drift; 4 stages failed;
5 study busy; 6 not enough resources or no cluster; 7 tracking; 8 store; 9 preempted;
130 interrupted."""


@click.group(cls=Group, epilog=_CODES, context_settings={"max_content_width": 100})
@click.version_option(package_name="mae-study", message="%(version)s")
def main() -> None:
    """Scaling studies of masked autoencoders: plan, run, resume, compare.

    STUDY is a name of the catalogue (`mae-study list`), the path of a Python file with
    `def study() -> Study`, or a resolved study in JSON.
    """


@main.command("list")
@json_option
def list_command(as_json: bool) -> None:
    """List the studies that ship."""
    from studies.catalog import CATALOG
    from studies.load import load_study

    found = {name: load_study(name) for name in CATALOG}
    if as_json:
        print_json(
            [{"study": n, "question": s.question, "cells": len(s.cells)} for n, s in found.items()]
        )
        return
    for name, study in found.items():
        click.echo(f"{name:26} {len(study.cells):4} cells  {study.question}")


@main.command()
@study_options
@click.option("--all", "show_all", is_flag=True, help="List every stage, not only a summary.")
@json_option
def plan(
    study_ref: str,
    settings: tuple[str, ...],
    data_path: str | None,
    store: str,
    show_all: bool,
    as_json: bool,
) -> None:
    """Show what would run and why: status, parameters, FLOPs, steps, time."""
    from orchestrator.cli.show_plan import plan_json, print_plan

    _, made, _ = load_plan(study_ref, settings, data_path, store)
    if as_json:
        print_json(plan_json(made))
    else:
        print_plan(made, make_console(), show_all=show_all)


@main.command()
@study_options
@click.option(
    "--address",
    metavar="HOST:PORT",
    envvar="MAE_STUDY_RAY_ADDRESS",
    help="Attach to this Ray cluster (RAY_AUTH_TOKEN holds its token) instead of "
    "starting an embedded one on loopback.",
)
@click.option("--cpus", type=click.IntRange(min=1), help="Cores the embedded Ray may use.")
@click.option("--cpus-per-rank", type=click.IntRange(min=1), help="Cores of one rank.")
@click.option("--slots", type=click.IntRange(min=1), help="Warm ranks to hold; default: all fit.")
@click.option(
    "--spares",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Warm ranks beyond the slots, to take the place of one that dies.",
)
@click.option(
    "--grace-s",
    type=click.FloatRange(min=0),
    envvar="MAE_STUDY_GRACE_S",
    metavar="SECONDS",
    help="Time to save after SIGTERM, SIGUSR1, SIGUSR2, SIGHUP or Ctrl-C; "
    "default: execution.grace_s of each stage, 30.",
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    metavar="URI",
    help="MLflow server; default: SQLite in the store.",
)
@click.option(
    "--accept-changes", is_flag=True, help="Run cells whose settings changed; old results stay."
)
@click.option("--no-report", is_flag=True, help="Do not write the report at the end.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors and the result.")
@sharing_options
@json_option
def run(
    study_ref: str,
    settings: tuple[str, ...],
    data_path: str | None,
    store: str,
    address: str | None,
    cpus: int | None,
    cpus_per_rank: int | None,
    slots: int | None,
    spares: int,
    grace_s: float | None,
    tracking_uri: str | None,
    accept_changes: bool,
    no_report: bool,
    quiet: bool,
    private: bool,
    team: str | None,
    as_json: bool,
) -> None:
    """Run what is missing of a study. The same command continues whatever was killed."""
    from orchestrator.cli.live import Display
    from orchestrator.cli.show_plan import print_outcome
    from orchestrator.drive.signals import Notice
    from orchestrator.run import RunOptions, run_study
    from orchestrator.store.sharing import make_store

    options = RunOptions(
        store=Path(store),
        address=address,
        num_cpus=cpus,
        cpus_per_rank=cpus_per_rank,
        slots=slots,
        spares=spares,
        grace_s=grace_s,
        tracking_uri=tracking_uri,
        accept_changes=accept_changes,
        write_report=not no_report,
    )
    if not as_json:
        text_is_progress()
    study = load_study_as_asked(study_ref, settings, data_path)
    make_store(options.store, private=private, team=team)
    notice = Notice()
    with notice.listen():
        view = Display(make_console(), quiet=quiet or as_json)
        outcome = run_study(study, options, view, notice=notice)
    if as_json:
        print_json(
            {
                "study": study.name,
                "started": outcome.num_started,
                "done": sum(not s.status.is_work for s in outcome.plan.stages),
                "report": outcome.report and str(outcome.report),
                "tracking_problem": outcome.tracking_problem,
            }
        )
    else:
        print_outcome(outcome, make_console(), quiet=quiet)


@main.command()
@study_options
@json_option
def status(
    study_ref: str, settings: tuple[str, ...], data_path: str | None, store: str, as_json: bool
) -> None:
    """Show a size × duration matrix of what is done, and what runs or failed."""
    from orchestrator.cli.show_status import print_status, status_json

    _, made, records = load_plan(study_ref, settings, data_path, store)
    if as_json:
        print_json(status_json(made, records))
    else:
        print_status(made, records, make_console())


@main.command()
@study_options
@click.argument("cell")
@click.argument("stage", required=False)
@click.option("--attempt", type=int, help="Number of the attempt; default: the last.")
@click.option("--rank", type=int, default=0, show_default=True, help="Rank whose output to print.")
def logs(
    study_ref: str,
    settings: tuple[str, ...],
    data_path: str | None,
    store: str,
    cell: str,
    stage: str | None,
    attempt: int | None,
    rank: int,
) -> None:
    """Print what an attempt of a stage printed, how it ended, and its last metrics."""
    from orchestrator.cli.show_status import print_logs

    _, made, records = load_plan(study_ref, settings, data_path, store)
    print_logs(made, records, make_console(), cell=cell, stage=stage, attempt=attempt, rank=rank)


@main.command()
@study_options
@click.option("--out", metavar="DIR", help="Where to write; default: reports/ in the store.")
@json_option
def report(
    study_ref: str,
    settings: tuple[str, ...],
    data_path: str | None,
    store: str,
    out: str | None,
    as_json: bool,
) -> None:
    """Write the report of what is finished: HTML, PNG, CSV, Parquet."""
    from orchestrator.report.study_report import report_dir, write_report
    from orchestrator.store.driver import output_dir

    _, made, records = load_plan(study_ref, settings, data_path, store)
    default = report_dir(records, made.study.name)
    page = write_report(made, records, output_dir(Path(out) if out else None, default))
    if as_json:
        print_json({"report": str(page)})
    else:
        click.echo(str(page))


@main.command()
@study_options
@click.argument("cell")
@click.argument("stage")
@click.option("--out", metavar="DIR", help="Where to write; default: debug/ in the store.")
@click.option(
    "--encoder",
    metavar="FILE",
    help="Encoder (safetensors) for an evaluation; default: the parent's, of `run` or `debug`.",
)
@sharing_options
@json_option
def debug(
    study_ref: str,
    settings: tuple[str, ...],
    data_path: str | None,
    store: str,
    cell: str,
    stage: str,
    out: str | None,
    encoder: str | None,
    private: bool,
    team: str | None,
    as_json: bool,
) -> None:
    """Run one stage in this process, without Ray: breakpoints work.

    The result goes to a separate directory and never counts as done. Under torchrun every
    process is one rank: `torchrun --nproc-per-node 2 -m orchestrator.cli.main debug STUDY ...`.
    """
    from orchestrator.rank.in_process import leave_gang, run_one, stdout_to_stderr
    from orchestrator.store.sharing import make_store

    make_store(Path(store), private=private, team=team)
    _, made, records = load_plan(study_ref, settings, data_path, store)
    with stdout_to_stderr() if as_json else contextlib.nullcontext():
        outcome = run_one(
            made,
            records,
            cell=cell,
            stage=stage,
            out=Path(out) if out else None,
            encoder=Path(encoder) if encoder else None,
        )
    if outcome is not None and as_json:  # None on ranks above 0
        print_json(outcome)
    elif outcome is not None:
        for key, value in outcome["metrics"].items():
            if not isinstance(value, dict):
                click.echo(f"{key:18} {value}")
        click.echo(f"outputs in {outcome['directory']}")
    leave_gang()


main.add_command(adopt)
main.add_command(compare)
main.add_command(laws)
main.add_command(predict)
main.add_command(advise)
main.add_command(drill)
main.add_command(fit)
main.add_command(export)
main.add_command(mlflow)
main.add_command(repair)
main.add_command(verify)


@main.group()
def data() -> None:
    """Import and inspect image data sets."""


@data.command("import")
@click.argument("source")
@click.argument("destination")
@json_option
def data_import(source: str, destination: str, as_json: bool) -> None:
    """Write Parquet from an ImageFolder tree or a CIFAR-10/100 python archive."""
    from mae_core.data.importers import import_any

    _written(source, destination, as_json, functools.partial(import_any, source, destination))


@data.command("subset")
@click.argument("source")
@click.argument("names", type=click.Path(exists=True, dir_okay=False))
@click.argument("destination")
@json_option
def data_subset(source: str, names: str, destination: str, as_json: bool) -> None:
    """Write Parquet of the training images that the text file NAMES lists, and all of dev, test."""
    from mae_core.data.subset import write_subset

    write = functools.partial(write_subset, source, names, destination)
    _written(source, destination, as_json, write)


def _written(source: str, destination: str, as_json: bool, write: Callable[..., DataFacts]) -> None:
    from orchestrator.cli.live import Display
    from orchestrator.cli.show_status import import_json, print_import

    with (
        stop_on_sigterm(),
        Display(make_console(), quiet=as_json).progress(
            markup_free(f"importing {source}")
        ) as advance,
    ):
        facts = write(on_progress=advance)
    if as_json:
        print_json(import_json(facts, destination))
    else:
        print_import(facts, destination, make_console())


@data.command("inspect")
@click.argument("path")
@json_option
def data_inspect(path: str, as_json: bool) -> None:
    """Show splits, classes, image sizes, problems and the fingerprint of a data set."""
    from mae_core.data.scan import inspect
    from orchestrator.cli.live import Display

    text = markup_free(f"reading {path}")
    with Display(make_console(), quiet=as_json).progress(text) as advance:
        found = inspect(path, on_progress=advance)
    if as_json:
        print_json(found)
        return
    from orchestrator.cli.show_status import print_mapping

    print_mapping(found, make_console())


if __name__ == "__main__":
    main()
