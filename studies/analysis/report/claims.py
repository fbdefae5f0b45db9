"""The report's headline claims: what the cells show, each with the level of its evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from studies.analysis.laws.by_protocol import ProtocolLaw

Evidence = Literal["shown", "suggested", "fitted", "not shown", "open"]
LEVELS: Mapping[Evidence, str] = {
    "shown": "three or more paired seeds, and beyond twice their spread",
    "suggested": "two or more paired seeds, all of which agree, but too few or within their spread",
    "fitted": "a law that was chosen by what it predicts at the large end",
    "not shown": "three or more paired seeds, and no difference beyond their spread",
    "open": "too few seeds, or no law can be fitted",
}
MAX_CLAIMS = 12
"""Of differences; every law is told."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence and how far it may be trusted."""

    level: Evidence
    text: str


def claims(evidence: Sequence[Mapping[str, Any]], laws: Sequence[ProtocolLaw]) -> list[Claim]:
    """Claims from the primary paired differences and the laws, the best founded first."""
    chosen = [line for line in evidence if line["primary"]] or evidence
    order = list(LEVELS)
    alike: dict[tuple[Evidence, str, str], list[Mapping[str, Any]]] = {}
    for line in chosen:
        key = (_level(line), str(line["protocol"]), str(line["verdict"]))
        alike.setdefault(key, []).append(line)
    found = [Claim(level=level, text=_told(lines)) for (level, *_), lines in alike.items()]
    found = sorted(found, key=lambda claim: order.index(claim.level))[:MAX_CLAIMS]
    return sorted([*found, *map(_of_law, laws)], key=lambda claim: order.index(claim.level))


def _told(lines: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for differences of a protocol that are judged alike."""
    first = lines[0]
    if len(lines) == 1:
        return str(first["sentence"])
    differences = "; ".join(f"{e['start']} to {e['end']} {e['difference']}" for e in lines)
    return f"{first['protocol']}: {differences} points: {first['verdict']}."


def _level(line: Mapping[str, Any]) -> Evidence:
    if line["exceeds"] or line["verdict"].startswith("falls"):
        return "shown"
    if line["pairs"] >= 2 and line["every_seed_rises"]:
        return "suggested"
    return "open" if line["exceeds"] is None else "not shown"


def _of_law(one: ProtocolLaw) -> Claim:
    from studies.analysis.laws.refusals import StatementKind

    refusals = [s.text for s in one.statements if s.kind is StatementKind.REFUSED]
    if one.law is None or one.choice is None or one.choice.best is None:
        why = refusals[0] if refusals else "the results carry none"
        return Claim(level="open", text=f"{one.protocol}: no law: {why}")
    score = one.choice.score(one.choice.best)
    text = f"{one.protocol}: the error follows {one.law.formula}"
    if not math.isfinite(score):
        why = "too few cells to leave any out at the large end: nothing tests how it extrapolates"
        return Claim(level="open", text=f"{text}; {why}.")
    return Claim(
        level="fitted", text=f"{text}; left out at the large end it missed by {score:.2f} points."
    )
