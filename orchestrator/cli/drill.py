"""`mae-study drill`: rehearse failures where the studies will run, and print a certificate."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import DEFAULT_STORE, json_option
from orchestrator.cli.streams import text_is_progress

if TYPE_CHECKING:
    from orchestrator.drill import Certificate

EXIT_FAILED = 4


@click.command()
@click.option(
    "--store",
    envvar="MAE_STUDY_STORE",
    default=DEFAULT_STORE,
    show_default=True,
    metavar="DIR",
    help="The drill works in a directory below it, which is removed at the end.",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    envvar="MAE_STUDY_RAY_ADDRESS",
    help="Rehearse on this Ray cluster instead of an embedded one.",
)
@click.option(
    "--kills",
    type=click.IntRange(1, 500),
    default=3,
    show_default=True,
    help="How many times to kill a rank.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="The same seed gives the same kills."
)
@click.option(
    "--world-size",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Ranks of the run.",
)
@click.option(
    "--zero",
    "zero_stage",
    type=click.IntRange(0, 3),
    default=2,
    show_default=True,
    help="DeepSpeed ZeRO stage.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16-mixed", "bf16"]),
    default="fp32",
    show_default=True,
    help="Number format of the training.",
)
@click.option(
    "--spares",
    type=click.IntRange(0, 8),
    default=1,
    show_default=True,
    help="Warm ranks kept as replacements; 0 = a fresh process after each kill.",
)
@click.option("--keep", is_flag=True, help="Keep the directory of the drill.")
@json_option
def drill(
    store: str,
    address: str | None,
    kills: int,
    seed: int,
    world_size: int,
    zero_stage: int,
    precision: str,
    spares: int,
    keep: bool,
    as_json: bool,
) -> None:
    """Kill ranks of a tiny run at random points and show that nothing is lost.

    Exit code 0 if weights, optimizer, generators and metrics equal those of an undisturbed run,
    4 if not.
    """
    from orchestrator.cli.live import Display
    from orchestrator.cli.output import make_console, print_json
    from orchestrator.drill import DrillOptions, run_drill
    from orchestrator.store.driver import LocalStore

    if not as_json:
        text_is_progress()
    LocalStore(Path(store)).check_writable()
    folder = Path(store) / f"drill-{uuid.uuid4().hex[:8]}"
    folder.mkdir()  # as the store is shared; `mkdtemp` makes it private
    options = DrillOptions(
        store=folder,
        kills=kills,
        seed=seed,
        world_size=world_size,
        zero_stage=zero_stage,
        precision=precision,  # type: ignore[arg-type]
        spares=spares,
        address=address,
    )
    try:
        found = run_drill(options, Display(make_console(), quiet=as_json))
    finally:
        if not keep:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(text_of(found))
        if keep:
            click.echo(f"kept in {folder}")
    if not found.is_passed:
        raise click.exceptions.Exit(EXIT_FAILED)


def text_of(found: Certificate) -> str:
    """The certificate as people read it."""
    values = found.to_json()
    options = values["options"]
    points = ", ".join(f"{n} at {p}" for p, n in sorted(values["by_point"].items()))
    recovery = sorted(found.recovery_s)
    exact = "yes" if found.is_exact else f"NO: {', '.join(found.differences[:5])}"
    shares = ", ".join(f"{k} {v:.1f} %" for k, v in found.goodput.items() if v >= 0.05)
    median = values["median_recovery_s"]
    lines = [
        f"certificate: {options['world_size']} ranks, ZeRO-{options['zero_stage']}, "
        f"{options['precision']}, seed {options['seed']}",
        f"  kills             {len(found.kills)} of {options['kills']} ({points})",
        f"  bit-exact         {exact}",
        f"  repeated steps    at most {values['max_lost_steps']} per kill "
        f"(checkpoints every {values['interval']})",
        f"  recovery          median {median:.1f} s, longest {recovery[-1]:.1f} s"
        if recovery
        else "  recovery          nothing was killed",
        f"  metrics           {found.num_metrics} points: {found.metrics_lost} lost, "
        f"{found.metrics_doubled} doubled, {found.metrics_changed} changed",
        f"  time              {shares}",
        "PASSED" if found.is_passed else "FAILED",
    ]
    return "\n".join(lines)
