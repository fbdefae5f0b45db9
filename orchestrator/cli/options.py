"""What the verbs of `mae-study` share: options, and errors as messages with exit codes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.streams import lost_output, secure_streams
from orchestrator.errors import DamagedRecord, exit_code, explain_os_error

if TYPE_CHECKING:
    from orchestrator.plan.plan import Plan
    from orchestrator.store.records import Records
    from studies.spec.study import Study

DEFAULT_STORE = "mae-store"
EXIT_INTERRUPTED = 130
EXIT_NOT_PRINTED = 2
"""The result found no room where it was to go; as for `--out`."""
DAMAGE_ADVICE = "; `mae-study verify` lists all damage, and how to compute it again"


class Group(click.Group):
    """Suggests the nearest command for a mistyped one, and turns errors into messages."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Look a command up; an unknown one names the nearest."""
        command = super().get_command(ctx, cmd_name)
        if command is None and not ctx.resilient_parsing:
            from studies.errors import unknown

            raise click.UsageError(str(unknown("command", cmd_name, self.commands)), ctx)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; refuses an empty argument, which would mean a default to some."""
        for before, argument in zip([ctx.info_name, *args], args, strict=False):
            option, _, value = argument.partition("=")
            if not argument or (option.startswith("--") and "=" in argument and not value):
                raise click.UsageError(
                    f"the value of {option or before} is empty: a variable may not be set", ctx
                )
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command on streams that never fail; say it if its result found no room."""
        secure_streams()
        try:
            return super().main(*args, **extra)
        except SystemExit as end:
            if (outlet := lost_output()) is None or outlet.lost is None:
                raise
            why = (outlet.lost.strerror or str(outlet.lost)).lower()
            _say(f"standard output cannot be written ({why}): what was printed is incomplete")
            if outlet.is_vital and not end.code:
                sys.exit(EXIT_NOT_PRINTED)
            raise

    def invoke(self, ctx: click.Context) -> object:
        """Run it."""
        with plain_errors():
            return super().invoke(ctx)


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """One message and a documented exit code for what a user can act on; no traceback."""
    try:
        yield
    except KeyboardInterrupt:
        _fail("interrupted; run the same command to continue", EXIT_INTERRUPTED)
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        shown = explain_os_error(error) if isinstance(error, OSError) else None
        advice = DAMAGE_ADVICE if isinstance(error, DamagedRecord) else ""
        _fail((shown or str(error)) + advice, code)


def _fail(message: str, code: int) -> None:
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    click.echo(f"mae-study: {message}", err=True)


Decorator = Callable[[Callable[..., object]], Callable[..., object]]


def combined(*options: Decorator) -> Decorator:
    """One decorator that applies several options, the first on top."""

    def apply(function: Callable[..., object]) -> Callable[..., object]:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


def _obeyed(context: click.Context, parameter: click.Parameter, store: str) -> str:
    """Make what this process writes as private as the store is, from the first file on."""
    if not context.resilient_parsing:
        from orchestrator.store.sharing import obey

        obey(Path(store))
    return store


store_option = click.option(
    "--store",
    envvar="MAE_STUDY_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    metavar="DIR",
    callback=_obeyed,
    help="Directory that holds all results.",
)
sharing_options = combined(
    click.option(
        "--private", is_flag=True, help="Make a new store that nobody else can read (0700/0600)."
    ),
    click.option(
        "--team",
        metavar="GROUP",
        help="Make a new store that all of a group can read and continue (2770/0660).",
    ),
)
json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")
study_options = combined(
    click.argument("study_ref", metavar="STUDY"),
    click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a setting, such as pretrain.global_batch=512; repeatable.",
    ),
    click.option(
        "--data",
        "data_path",
        metavar="PATH",
        help="Read images from here (short for --set data.path=PATH).",
    ),
    store_option,
)


def load_study_as_asked(reference: str, settings: tuple[str, ...], data_path: str | None) -> Study:
    """Read the study that the command names, with its `--set` and `--data`."""
    from studies.load import load_study
    from studies.spec.overrides import parse
    from studies.spec.study import override_study

    overrides = parse(settings)
    study = load_study(reference, data_path)
    return override_study(study, overrides) if overrides else study


def load_plan(
    reference: str, settings: tuple[str, ...], data_path: str | None, store: str
) -> tuple[Study, Plan, Records]:
    """Read the study and plan it on what the store has."""
    from orchestrator.plan.plan import make_plan
    from orchestrator.store.data_facts import Datasets

    study = load_study_as_asked(reference, settings, data_path)
    records = open_records(store)
    return study, make_plan(study, records, Datasets(records.store)), records


def open_records(store: str) -> Records:
    """Open a store to read it; says once if there is none, whose name may be misspelt."""
    from orchestrator.store.driver import LocalStore
    from orchestrator.store.records import Records

    local = LocalStore(Path(store))
    local.check_readable()
    known = click.get_current_context().find_root().meta
    if local.is_empty and store not in known:
        known[store] = True
        _say(f"note: no store at {local.root} yet; if there should be one, correct --store")
    return Records(local)


def stop_on_sigterm() -> contextlib.AbstractContextManager[None]:
    """Treat SIGTERM and SIGHUP as Ctrl-C: half-written files are removed."""
    from cluster.ranks.stop_request import hearing

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    return hearing(interrupt)
