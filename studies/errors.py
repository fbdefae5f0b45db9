"""What can be wrong with a study; every message says what, which value, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StudyError(Exception):
    """A study that cannot be meant: unknown name or key, wrong value, broken chain of stages."""


def unknown(what: str, name: str, known: Iterable[str], *, where: str = "") -> StudyError:
    """Build the error for an unknown name, with the nearest known one and the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    place = f" in {where}" if where else ""
    listed = ", ".join(names) or "none"
    return StudyError(f"unknown {what} {name!r}{place}{hint} Known: {listed}")
