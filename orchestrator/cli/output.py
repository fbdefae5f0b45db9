"""What a verb prints: text on the console, tables, and the one form of JSON."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from studies.json_text import json_text

if TYPE_CHECKING:
    from rich.console import Console


def print_table(lines: list[list[str]]) -> None:
    """Header and lines, on the console."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    for heading in lines[0]:
        table.add_column(heading, overflow="fold")
    for line in lines[1:]:
        table.add_row(*map(escape, line))
    make_console().print(table)


def make_console() -> Console:
    """The console of standard output."""
    from rich.console import Console

    # Piped output is read by programs and people's pagers: wide enough not to fold tables.
    # No emoji: `:x:` in a path or a message is what it is.
    return Console(width=None if sys.stdout.isatty() else 140, emoji=False)


def markup_free(text: str) -> str:
    """Text whose square brackets are no markup."""
    from rich.markup import escape

    return escape(text)


def print_json(value: object) -> None:
    """Print strict JSON in ASCII: a number that is not finite becomes null."""
    click.echo(json_text(value, is_ascii=True))
