"""`mae-study verify` and `repair`: what is damaged in a store, and how it is made again."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from orchestrator.cli.options import json_option, open_records, store_option
from orchestrator.cli.output import make_console, print_json
from orchestrator.errors import StoreError

if TYPE_CHECKING:
    from orchestrator.store.records import Records
    from orchestrator.verify.damage import Damage, Verification

SHOWN_STAGES = 20


@click.command()
@click.argument("study", required=False, default="")
@store_option
@json_option
def verify(study: str, store: str, as_json: bool) -> None:
    """Compare every digest in the store, or in STUDY's part of it; nothing is written.

    Exit code 8 if anything is damaged.
    """
    _, found = _verified(study, store, quiet=as_json)
    if as_json:
        print_json(_to_json(found))
    else:
        click.echo("\n".join(_text(found, f" {study}" if study else "")))
    if found.damages:
        sys.exit(StoreError.exit_code)


@click.command()
@click.argument("study", required=False, default="")
@store_option
@json_option
def repair(study: str, store: str, as_json: bool) -> None:
    """Move what is damaged below damaged/ in the store, so that `run` makes it again.

    Nothing is deleted. A stage whose record or output is damaged counts as not done from then on.
    """
    from orchestrator.verify.repair import repair as set_apart

    records, found = _verified(study, store, quiet=as_json)
    moved = set_apart(records, found.damages)
    if as_json:
        print_json(_to_json(found) | {"moved_to": moved})
        return
    lines = [*(f"moved to {place}" for place in moved), *_again(found)]
    click.echo("\n".join(lines or ["nothing to repair"]))


def _verified(study: str, store: str, *, quiet: bool) -> tuple[Records, Verification]:
    from orchestrator.cli.live import Display
    from orchestrator.verify.compare import verify as compare

    records = open_records(store)
    with Display(make_console(), quiet=quiet).progress("comparing bytes") as advance:
        return records, compare(records, _name(study, records), advance)


def _name(study: str, records: Records) -> str:
    """Name of a study that was run here; a file or a name of the catalogue stands for its own."""
    from orchestrator.plan.history import kept_studies
    from studies.load import load_study

    is_known = not study or study in kept_studies(records)
    return study if is_known else load_study(study).name


def _to_json(found: Verification) -> dict[str, object]:
    return asdict(found) | {
        "damages": [damage.to_json() for damage in found.damages],
        "computed_again": list(found.computed_again),
    }


def _text(found: Verification, scope: str) -> list[str]:
    lines = [_damage_text(damage) for damage in found.damages]
    gigabytes = f"{found.num_bytes / 1e9:.3g} GB"
    lines.append(
        f"{found.num_records} records and {found.num_files} files ({gigabytes}) compared: "
        f"{len(found.damages) or 'none'} damaged"
    )
    if found.not_verifiable:
        lines.append(
            f"{len(found.not_verifiable)} records are of an older version and bear no digest: only "
            "their form could be checked (--json lists them)"
        )
    lines += _again(found)
    if found.stale:
        lines.append(f"stale, and computed again by `run`: {_some(found.stale)}")
    if found.damages:
        lines.append(f"`mae-study repair{scope}` moves it below damaged/ in the store")
    return lines


def _damage_text(damage: Damage) -> str:
    whose = f" of {_some(damage.addresses)}" if damage.addresses else ""
    return f"{damage.kind.text}{whose}: {damage.problem}\n  {damage.kind.follows}"


def _again(found: Verification) -> list[str]:
    if not found.computed_again:
        return []
    return [f"computed again by `run` after that: {_some(found.computed_again)}"]


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - SHOWN_STAGES} more" if len(names) > SHOWN_STAGES else ""
    return ", ".join(names[:SHOWN_STAGES]) + more
