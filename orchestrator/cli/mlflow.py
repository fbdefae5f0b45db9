"""`mae-study mlflow`: the UI on a store's runs, a rebuilt database, encoders as models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from orchestrator.cli.options import Group, json_option, store_option
from orchestrator.cli.output import print_json

if TYPE_CHECKING:
    from orchestrator.store.driver import LocalStore


@click.group(cls=Group, invoke_without_command=True)
@store_option
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.pass_context
def mlflow(context: click.Context, store: str, port: int) -> None:
    """Start the MLflow UI on the store's runs, on loopback; or see the commands below."""
    if context.invoked_subcommand is None:
        _serve(_readable(store), port)
    elif context.get_parameter_source("port") is not click.core.ParameterSource.DEFAULT:
        raise click.UsageError("--port is only for the UI; remove it")


@mlflow.command()
@click.pass_context
@store_option
@json_option
def rebuild(context: click.Context, store: str, as_json: bool) -> None:
    """Rebuild the store's MLflow database from its records.

    Runs, curves, tables, data sets and registered models are equal but for ids and addresses. The
    old database is kept.
    """
    from orchestrator.store.records import Records
    from orchestrator.tracking.rebuild import rebuild as rebuild_database

    local = _open(context, store)
    local.check_writable()
    found = rebuild_database(Records(local), lambda text: click.echo(text, err=True))
    if as_json:
        print_json(asdict(found) | {"archived_to": found.archived_to and str(found.archived_to)})
        return
    click.echo(f"rebuilt {len(found.studies)} studies and {found.models} models in MLflow")
    if found.archived_to:
        click.echo(f"the old database is in {found.archived_to}; restart an open MLflow UI")


@mlflow.command()
@click.argument("reference", metavar="STUDY/CELL[#STAGE]")
@click.option("--name", default="", help="The model's name; default: STUDY-CELL.")
@click.option(
    "--features",
    type=click.Choice(["cls", "mean"]),
    default="cls",
    show_default=True,
    help="What an encoder's model returns: class token, or mean of the patch tokens.",
)
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    metavar="URI",
    default="",
    help="MLflow server that the study was tracked into; default: the store's own database.",
)
@click.pass_context
@store_option
@json_option
def register(
    context: click.Context,
    reference: str,
    name: str,
    features: Literal["cls", "mean"],
    tracking_uri: str,
    store: str,
    as_json: bool,
) -> None:
    """Register a cell's encoder, or with #STAGE a fine-tuned classifier, as a model of MLflow.

    The model takes pixels (N, C, S, S), float32 in 0..1, and returns features or class scores;
    `mlflow.pytorch.load_model` and `mlflow.pyfunc.load_model` load it without mae-study.
    """
    from orchestrator.store.records import Records
    from orchestrator.tracking.registered_models import register as register_model
    from orchestrator.tracking.uri import require_answer

    local = _open(context, store)
    if tracking_uri:
        require_answer(tracking_uri)
    else:
        _check_database(local)
    model, version = register_model(
        Records(local), reference, name=name, features=features, uri=tracking_uri
    )
    uri = model.uri(version)
    if as_json:
        print_json(asdict(model) | {"version": version, "uri": uri})
        return
    click.echo(f"{reference} is {uri} ({model.features})")
    click.echo(f'  mlflow.pytorch.load_model("{uri}")')


def _open(context: click.Context, store: str) -> LocalStore:
    """The store of a subcommand: its own `--store`, or that of `mlflow` before it."""
    default = context.get_parameter_source("store") is click.core.ParameterSource.DEFAULT
    above = context.parent.params.get("store") if context.parent else None
    return _readable(above if default and above else store)


def _readable(store: str) -> LocalStore:
    from orchestrator.store.driver import LocalStore

    local = LocalStore(Path(store))
    local.check_readable()
    return local


def _check_database(local: LocalStore) -> None:
    from orchestrator.errors import StoreError
    from orchestrator.tracking.mlflow_database import database_exists

    if not database_exists(local):
        raise StoreError(f"no MLflow runs in {local.root}: run a study first, or name its --store")


def _serve(local: LocalStore, port: int) -> None:
    from orchestrator.tracking.mlflow_ui import new_key, serve

    _check_database(local)
    key = new_key()
    click.echo(f"MLflow on http://127.0.0.1:{port}/?key={key} (Ctrl-C stops it)")
    serve(local, port, key)
