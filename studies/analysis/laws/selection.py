"""Which law: by its error on what was left out at the large end, with AICc for comparison.

A law is for extrapolation, so it is judged by extrapolating: the largest size, the longest duration
and the highest compute are left out in turn, the rest is fitted, and the left-out cells predicted.
In-sample R^2 is never looked at: it prefers whatever has most parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from studies.analysis.laws import forms
from studies.analysis.laws.fit import Method, fit_law
from studies.analysis.laws.forms import Law
from studies.analysis.laws.observations import Observations, cell_table
from studies.analysis.laws.refusals import (
    Statement,
    StatementKind,
    before_fit,
    caution,
    note,
    refused,
)
from studies.errors import StudyError

Mask = npt.NDArray[np.bool_]

_SAME_RATIO = 1.001
PLAINER_WITHIN = 1.1
"""Of laws whose hold-out errors are within this factor of the best, the one with fewest parameters
is taken: the difference is noise."""


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """One way to leave out the large end."""

    name: str
    """largest N, longest T, highest compute ..."""
    held: Mask
    """Over runs, shape (n,)."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A law's standing."""

    law: Law
    errors: dict[str, float]
    """Hold-out -> root mean square error over its cells, in units of the error; NaN where the
    rest cannot carry the law."""
    aicc: float
    """Over all cells; infinite with too few."""
    statements: tuple[Statement, ...]
    """Why the law was refused, if it was."""

    @property
    def is_refused(self) -> bool:
        """Whether the law cannot be fitted to all runs."""
        return any(s.kind is StatementKind.REFUSED for s in self.statements)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """All candidates, best first, and how the best was chosen."""

    candidates: tuple[Candidate, ...]
    hold_outs: tuple[str, ...]
    """Those that count: the ones every ranked law could be judged by."""
    statements: tuple[Statement, ...]

    @property
    def best(self) -> Candidate | None:
        """None where every law was refused."""
        return next((c for c in self.candidates if not c.is_refused), None)

    def score(self, candidate: Candidate) -> float:
        """Root mean square of its errors over the hold-outs that count."""
        found = [candidate.errors[name] for name in self.hold_outs]
        return math.sqrt(float(np.mean(np.square(found)))) if found else math.nan


def default_candidates(
    *, top: float | None = None, size: str = "N", duration: str = "T"
) -> tuple[Law, ...]:
    """The two-variable laws; the bounded one needs the error of chance."""
    found = (
        forms.product(size, duration),
        forms.additive_shared(size, duration),
        forms.additive(size, duration),
    )
    return (*found, forms.bounded(top, size, duration)) if top else found


def one_axis_candidates(axis: str, *, top: float | None = None) -> tuple[Law, ...]:
    """The laws in one variable; the broken one is refused below ten points."""
    found = (forms.power(axis), forms.power_floor(axis), forms.broken(axis))
    return (*found, forms.bounded_power(top, axis)) if top else found


def hold_outs(data: Observations, axes: Sequence[str], compute: str | None = None) -> list[HoldOut]:
    """The largest value of each axis left out, and the highest compute.

    Compute is the axis of that name, or else the product of the axes. A way that leaves nothing, or
    the same runs as another, is not listed twice.
    """
    ways = [(f"largest {axis}", data.axes[axis]) for axis in axes]
    if compute and compute in data.axes:
        ways.append((f"highest {compute}", data.axes[compute]))
    elif len(axes) > 1:
        ways.append(("highest compute", np.prod([data.axes[a] for a in axes], axis=0)))
    found: list[HoldOut] = []
    for name, values in ways:
        held = np.asarray(values * _SAME_RATIO >= np.max(values))
        if not held.all() and not any(np.array_equal(held, h.held) for h in found):
            found.append(HoldOut(name=name, held=held))
    return found


def choose(
    candidates: Sequence[Law],
    data: Observations,
    *,
    compute: str | None = None,
    method: Method | None = None,
) -> Choice:
    """Rank laws by hold-out error at the large end; clean data (`refusals.clean`) expected.

    Laws are compared on the hold-outs that all of them could be judged by; where a law can be
    judged by none, AICc ranks it after those that can.

    Raises:
        StudyError: without candidates.
    """
    if not candidates:
        raise StudyError("no candidate laws to choose from; give at least one")
    axes = tuple(dict.fromkeys(a for law in candidates for a in law.axes if a in data.axes))
    ways = hold_outs(data, axes, compute) if len(data) else []
    judged = [_judge(law, data, ways, method) for law in candidates]
    usable = [c for c in judged if not c.is_refused]
    # A way that some laws cannot be judged by would compare unlike with unlike.
    common = [
        w.name for w in ways if usable and all(math.isfinite(c.errors[w.name]) for c in usable)
    ]
    if not common:
        tested = [c for c in usable if any(math.isfinite(e) for e in c.errors.values())]
        common = [
            w.name for w in ways if tested and all(math.isfinite(c.errors[w.name]) for c in tested)
        ]
    unranked = Choice(candidates=tuple(judged), hold_outs=tuple(common), statements=())
    ranked = sorted(judged, key=lambda c: _rank(unranked, c))
    ranked = _plainer_first(unranked, ranked)
    return Choice(
        candidates=tuple(ranked), hold_outs=tuple(common), statements=_statements(unranked, ranked)
    )


def _judge(
    law: Law, data: Observations, ways: Sequence[HoldOut], method: Method | None
) -> Candidate:
    statements = before_fit(law, data)
    if any(s.kind is StatementKind.REFUSED for s in statements):
        errors = {w.name: math.nan for w in ways}
        return Candidate(law=law, errors=errors, aicc=math.inf, statements=statements)
    errors = {w.name: hold_out_error(law, data, w, method) for w in ways}
    return Candidate(
        law=law, errors=errors, aicc=fit_law(law, data, method).aicc, statements=statements
    )


def hold_out_error(
    law: Law, data: Observations, way: HoldOut, method: Method | None = None
) -> float:
    """Root mean square error over the held-out cells of the law fitted to the rest.

    NaN where the rest cannot carry the law.
    """
    rest = data.take(~way.held)
    if any(s.kind is StatementKind.REFUSED for s in before_fit(law, rest)):
        return math.nan
    table = cell_table(data.take(way.held), "absolute")
    found = fit_law(law, rest, method).predict(table.axes)
    return float(np.sqrt(np.mean((found - table.z) ** 2)))


def _rank(choice: Choice, candidate: Candidate) -> tuple[int, float, float]:
    """Refused last; judged by hold-out first; AICc only breaks what hold-outs cannot."""
    if candidate.is_refused:
        return 2, math.inf, 0.0
    score = choice.score(candidate)
    return (1, candidate.aicc, 0.0) if math.isnan(score) else (0, score, candidate.aicc)


def _plainer_first(choice: Choice, ranked: list[Candidate]) -> list[Candidate]:
    """Among laws within noise of the best, the one with fewest parameters goes first."""
    score = choice.score(ranked[0])
    if ranked[0].is_refused or math.isnan(score):
        return ranked
    close = [c for c in ranked if not c.is_refused and choice.score(c) <= score * PLAINER_WITHIN]
    plainest = min(close, key=lambda c: c.law.num_parameters)
    return [plainest, *(c for c in ranked if c is not plainest)]


def _statements(choice: Choice, ranked: list[Candidate]) -> tuple[Statement, ...]:
    best = ranked[0]
    if best.is_refused:
        return (refused("No law can be fitted: " + best.statements[-1].text),)
    if not choice.hold_outs:
        return (
            caution(
                f"{best.law.name} is taken by AICc alone: too few cells to leave any out at the "
                "large end, so nothing here tests how it extrapolates."
            ),
        )
    found = [
        note(
            f"{best.law.name} predicts what was left out ({', '.join(choice.hold_outs)}) to "
            f"{choice.score(best):.3g}."
        )
    ]
    usable = [c for c in ranked if not c.is_refused]
    by_aicc = min(usable, key=lambda c: c.aicc)
    if by_aicc is not best and math.isfinite(by_aicc.aicc):
        found.append(
            note(f"AICc would take {by_aicc.law.name}, which left out {choice.score(by_aicc):.3g}.")
        )
    return tuple(found)
