"""What the page's template takes: sections, and the pieces of its tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from studies.analysis.figures.drawing import Drawing


@dataclass(frozen=True, kw_only=True)
class Section:
    """A titled group of drawings, sentences and one table."""

    title: str
    drawings: tuple[Drawing, ...] = ()
    lines: Sequence[Sequence[str]] = ()
    """A table, its header first; none is shown where there is no line below the header."""
    text: Sequence[str] = ()
    is_wide: bool = False
    is_quiet: bool = False
    """Whether nothing is said where nothing is drawn."""
    problems: Sequence[str] = ()
    """What could not be shown, and why."""


def section(
    title: str,
    drawings: Iterable[Drawing | None] = (),
    *,
    lines: Sequence[Sequence[str]] = (),
    text: Sequence[str] = (),
    is_wide: bool = False,
    is_quiet: bool = False,
    problems: Sequence[str] = (),
) -> Section:
    """A section of the drawings that there are."""
    return Section(
        title=title,
        drawings=tuple(d for d in drawings if d is not None),
        lines=lines if len(lines) > 1 else (),
        text=text,
        is_wide=is_wide,
        is_quiet=is_quiet,
        problems=problems,
    )
