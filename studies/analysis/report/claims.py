"""The report's headline claims: what the cells show, each with the level of its evidence."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from studies.analysis.curves.curves import Change
from studies.analysis.report.evidence import EvidenceLine

if TYPE_CHECKING:
    from studies.analysis.laws.by_protocol import ProtocolLaw

MAX_CLAIMS = 12
"""Of differences; every law is listed."""


class ClaimLevel(enum.Enum):
    """How well a claim is founded, the best first; the value is what a reader sees."""

    SHOWN = "shown"
    SUGGESTED = "suggested"
    FITTED = "fitted"
    NOT_SHOWN = "not shown"
    OPEN = "open"

    @property
    def meaning(self) -> str:
        """What it takes."""
        return _MEANINGS[self]


_MEANINGS = {
    ClaimLevel.SHOWN: "three or more paired seeds, and beyond twice their spread",
    ClaimLevel.SUGGESTED: "two or more paired seeds, all of which agree, but too few or within "
    "their spread",
    ClaimLevel.FITTED: "a law that was chosen by what it predicts at the large end",
    ClaimLevel.NOT_SHOWN: "three or more paired seeds, and no difference beyond their spread",
    ClaimLevel.OPEN: "too few seeds, or no law can be fitted",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence and how far it may be trusted."""

    level: ClaimLevel
    text: str


def claims(lines: Sequence[EvidenceLine], laws: Sequence[ProtocolLaw]) -> list[Claim]:
    """Claims from the primary paired differences and the laws, the best founded first."""
    chosen = [line for line in lines if line.primary] or lines
    alike: dict[tuple[ClaimLevel, str, str], list[EvidenceLine]] = {}
    for line in chosen:
        alike.setdefault((_level(line), line.protocol, line.verdict), []).append(line)
    found = [Claim(level=level, text=_told(same)) for (level, *_), same in alike.items()]
    return _by_level([*_by_level(found)[:MAX_CLAIMS], *map(_of_law, laws)])


def _by_level(found: Sequence[Claim]) -> list[Claim]:
    order = list(ClaimLevel)
    return sorted(found, key=lambda claim: order.index(claim.level))


def _told(lines: Sequence[EvidenceLine]) -> str:
    """One sentence for differences of a protocol that are judged alike."""
    first = lines[0]
    if len(lines) == 1:
        return first.sentence
    differences = "; ".join(f"{e.start} to {e.end} {e.difference}" for e in lines)
    return f"{first.protocol}: {differences} points: {first.verdict}."


def _level(line: EvidenceLine) -> ClaimLevel:
    if line.change in (Change.RISES, Change.FALLS):
        return ClaimLevel.SHOWN
    if line.pairs >= 2 and line.every_seed_rises:
        return ClaimLevel.SUGGESTED
    return ClaimLevel.OPEN if line.change is Change.UNKNOWN else ClaimLevel.NOT_SHOWN


def _of_law(one: ProtocolLaw) -> Claim:
    from studies.analysis.laws.refusals import StatementKind

    refusals = [s.text for s in one.statements if s.kind is StatementKind.REFUSED]
    if one.law is None or one.choice is None or one.choice.best is None:
        why = refusals[0] if refusals else "the results have none"
        return Claim(level=ClaimLevel.OPEN, text=f"{one.label}: no law: {why}")
    score = one.choice.score(one.choice.best)
    text = f"{one.label}: the error follows {one.law.formula}"
    if not math.isfinite(score):
        why = "too few cells to leave any out at the large end: nothing tests how it extrapolates"
        return Claim(level=ClaimLevel.OPEN, text=f"{text}; {why}.")
    missed = f"left out at the large end it missed by {score:.2f} points"
    return Claim(level=ClaimLevel.FITTED, text=f"{text}; {missed}.")
