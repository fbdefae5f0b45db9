"""Which rank hangs, and which is slow: pure functions of the heartbeats of a gang.

A collective's timeout would say after half an hour that some rank hangs. Here each section of a
stage has its own limit, learned from what it took so far, and the rank at fault is named.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cluster.ranks.heartbeat import Heartbeat

MIN_STRAGGLER_STEPS = 20
STRAGGLER_RATIO = 1.5
STRAGGLER_EXCESS_S = 0.005
"""Below this a rank's extra time per step is noise, whatever the ratio."""
SILENT_S = 3.0
"""A rank that has not answered for so long is taken for silent; it is asked every second."""

_ORDER = ("", "start", "restore", "save", "load", "step", "evaluate", "finish")


@dataclass(frozen=True, kw_only=True)
class HangLimits:
    """Seconds that a section may take at least, before `learned_factor` times its slowest."""

    learned_factor: float = 10.0
    step: float = 30.0
    """Of `load` and `step`, once a step was finished in this run."""
    first_step: float = 600.0
    """Of `load` and `step` before that: compilers, allocators and connections warm up."""
    other: float = 600.0
    """Of `start`, `restore`, `save`, `finish`, and of sections not named here."""
    evaluate: float = 1800.0

    def limit_s(self, section: str, slowest_s: float, *, is_warm: bool) -> float:
        """Seconds after which a rank in `section` hangs; infinite if no section is known.

        Args:
            slowest_s: the longest that the section took on any rank of the gang so far.
            is_warm: a step was finished in this run.
        """
        if not section:
            return math.inf
        if section in ("load", "step"):
            floor = self.step if is_warm else self.first_step
        else:
            floor = self.evaluate if section == "evaluate" else self.other
        return max(floor, self.learned_factor * slowest_s)


@dataclass(frozen=True)
class Hang:
    """A gang that does not go on, and who keeps it."""

    ranks: tuple[int, ...]
    """Who is at fault, as far as can be seen."""
    section: str
    waited_s: float
    limit_s: float

    def describe(self) -> str:
        """One line for the verdict."""
        names = ", ".join(str(rank) for rank in self.ranks)
        who = f"rank {names} hangs" if len(self.ranks) == 1 else f"ranks {names} hang"
        where = f"in {self.section!r}" if self.section else "before its first section"
        return f"{who} {where} for {self.waited_s:.0f} s (limit {self.limit_s:.0f} s)"


def is_overdue(heartbeats: Mapping[int, Heartbeat], limits: HangLimits, now: float) -> bool:
    """True if a rank of the gang is in its section, or silent, for longer than the limit.

    A rank that does not answer may have gone on since it did: only its silence counts then.

    Args:
        heartbeats: of every rank that is still at work.
        now: Unix seconds, the clock of the heartbeats.
    """
    for beat in heartbeats.values():
        silence = now - beat.answered_at
        waited = silence if silence > SILENT_S else now - beat.since
        if waited > _limit_s(beat, heartbeats, limits):
            return True
    return False


def name_hang(
    heartbeats: Mapping[int, Heartbeat], silent: Collection[int], limits: HangLimits, now: float
) -> Hang:
    """Say who keeps an overdue gang: who does not answer, else who is behind, else all.

    Args:
        heartbeats: of every rank that is still at work; at least one.
        silent: ranks that did not answer when asked just now.
        now: Unix seconds, the clock of the heartbeats.
    """
    behind = min(_progress(beat) for beat in heartbeats.values())
    ranks = sorted(silent) or sorted(r for r, p in heartbeats.items() if _progress(p) == behind)
    first = heartbeats[ranks[0]]
    return Hang(
        ranks=tuple(ranks),
        section=first.section,
        waited_s=now - first.since,
        # A rank that fell silent early told no section: a peer's limit is over then.
        limit_s=min(_limit_s(beat, heartbeats, limits) for beat in heartbeats.values()),
    )


def stragglers(heartbeats: Mapping[int, Heartbeat]) -> list[int]:
    """Ranks whose own time per step is beyond 1.5 times the median of the others'."""
    measured = {r: p.own_s for r, p in heartbeats.items() if p.num_own >= MIN_STRAGGLER_STEPS}
    slow = []
    for rank, own_s in measured.items():
        others = [seconds for other, seconds in measured.items() if other != rank]
        if not others:
            continue
        usual = statistics.median(others)
        if own_s > max(STRAGGLER_RATIO * usual, usual + STRAGGLER_EXCESS_S):
            slow.append(rank)
    return sorted(slow)


def _limit_s(beat: Heartbeat, heartbeats: Mapping[int, Heartbeat], limits: HangLimits) -> float:
    slowest = max(p.slowest.get(beat.section, 0.0) for p in heartbeats.values())
    return limits.limit_s(beat.section, slowest, is_warm=beat.step_at is not None)


def _progress(beat: Heartbeat) -> tuple[int, int]:
    """How far a rank is: steps done, then the order in which sections follow at one step."""
    order = _ORDER.index(beat.section) if beat.section in _ORDER else 0
    return beat.step, order
