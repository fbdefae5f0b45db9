"""What a study's results say as laws: one per protocol, with intervals, reasons and a figure.

Each protocol (linear probe, fine-tune, …) has a law of its own, over what the study varies: encoder
parameters, images seen, or both. Results in, statements out; nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from studies.analysis.laws.conclusions import Conclusion, conclude
from studies.analysis.laws.fit import Fit, Method
from studies.analysis.laws.forms import Law
from studies.analysis.laws.observations import Observations, observe_rows
from studies.analysis.laws.refusals import Statement, StatementKind, note, refused
from studies.analysis.laws.selection import Choice, choose, default_candidates, one_axis_candidates
from studies.analysis.results import by_protocol, protocol_key
from studies.errors import StudyError
from studies.result_row import EVALUATIONS, ResultRow

CHOOSING = Method(starts=4)
"""Each law is fitted once for each part that is left out; the chosen one with more starts."""
SIZE, DURATION = "encoder_params", "images_seen"
AXIS_NAMES = {SIZE: "encoder parameters", DURATION: "images seen"}


@dataclass(frozen=True, kw_only=True)
class ProtocolLaw:
    """What can and cannot be said of one protocol."""

    protocol: str
    objective: str | None = None
    """Of the encoders, where those of several objectives have a law each."""
    side: str | None = None
    """Of the study, where several are compared."""
    data: Observations | None
    choice: Choice | None
    """How the law was chosen; None where nothing could be fitted."""
    conclusion: Conclusion | None
    """Of the chosen law."""
    statements: tuple[Statement, ...]
    """Everything that a reader must know, refusals first."""

    @property
    def label(self) -> str:
        """What tells it from the other laws of a report."""
        told = ", ".join(filter(None, (self.protocol, self.objective)))
        return f"{self.side}: {told}" if self.side else told

    @property
    def law(self) -> Law | None:
        """The chosen law, None where every one was refused."""
        done = self.conclusion
        return None if done is None or done.is_refused else done.law


def _points(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Results of grid cells on the test split with a place on the axes."""
    return [
        r
        for r in rows
        if r.kind in EVALUATIONS
        and r.eval_split != "dev"
        and r.top1 is not None
        and r.role == "grid"
        and r.encoder_params
        and r.images_seen
    ]


def study_laws(
    rows: Sequence[ResultRow],
    *,
    top: float | None = None,
    targets: Sequence[Mapping[str, float]] = (),
) -> list[ProtocolLaw]:
    """A law for each protocol, chosen by what it predicts at the large end.

    `top` is the error of chance in points (100 − 100 / classes); without it no bounded law is
    tried. `targets` give encoder parameters and images seen of runs to predict.
    """
    found = []
    for name, points in by_protocol(_points(rows)).items():
        objectives = list(dict.fromkeys(r.objective for r in points))
        for objective in objectives:
            key = (protocol_key(points[0]), objective)
            alike = [r for r in rows if (protocol_key(r), r.objective) == key]
            law = _protocol_law(alike, name, top, targets)
            found.append(replace(law, objective=objective) if len(objectives) > 1 else law)
    return found


def protocol_law(
    rows: Sequence[ResultRow],
    protocol: str,
    *,
    top: float | None = None,
    targets: Sequence[Mapping[str, float]] = (),
) -> ProtocolLaw:
    """The law of one protocol.

    Raises:
        StudyError: the rows have none of it, or encoders of several objectives: one law for both
            would be neither's.
    """
    points = _points(rows)
    of_it = [r for r in points if r.protocol == protocol]
    if not of_it:
        known = ", ".join(dict.fromkeys(r.protocol for r in points)) or "none"
        raise StudyError(f"no result of protocol {protocol!r} yet; there are: {known}")
    if len({protocol_key(r) for r in of_it}) > 1:
        raise StudyError(f"{protocol}: recipes that differ go by this name; give one's rows")
    objectives = dict.fromkeys(r.objective for r in of_it)
    if len(objectives) > 1:
        named = ", ".join(map(str, objectives))
        raise StudyError(f"{protocol}: encoders of several objectives ({named}); give one's rows")
    key = protocol_key(of_it[0])
    return _protocol_law([r for r in rows if protocol_key(r) == key], protocol, top, targets)


def candidates(data: Observations, top: float | None) -> tuple[Law, ...]:
    """Laws over what varies: size and duration, or the one of them that does."""
    varies = [axis for axis in (SIZE, DURATION) if data.distinct(axis) > 1]
    if len(varies) == 2:
        return default_candidates(top=top, size=SIZE, duration=DURATION)
    return one_axis_candidates(varies[0], top=top) if varies else ()


def _protocol_law(
    rows: Sequence[ResultRow],
    protocol: str,
    top: float | None,
    targets: Sequence[Mapping[str, float]],
) -> ProtocolLaw:
    data = usable(observe_rows(rows, protocol=rows[0].protocol, axes=(SIZE, DURATION)))
    return law_of(protocol, data, candidates(data, top) if len(data) else (), targets)


def usable(data: Observations) -> Observations:
    """Runs with a positive result and a place on every axis."""
    kept = np.isfinite(data.y) & (data.y > 0)
    for values in data.axes.values():
        kept &= np.isfinite(values) & (values > 0)
    return data.take(kept)


def law_of(
    protocol: str,
    data: Observations,
    tried: Sequence[Law],
    targets: Sequence[Mapping[str, float]] = (),
    method: Method = CHOOSING,
) -> ProtocolLaw:
    """Choose among laws and conclude from the best; without any there is no curve to speak of.

    Runs without a positive number are left out and said.
    """
    given, data = len(data), usable(data)
    dropped: tuple[Statement, ...] = ()
    if len(data) < given:
        lost = f"{given - len(data)} of {given} results lack a positive number and are left out."
        dropped = (note(lost),)
    if not tried or not len(data):
        why = "all results are of one size and one duration" if len(data) else "no usable result"
        reason = refused(f"{protocol}: {why}, so there is no curve.")
        return ProtocolLaw(
            protocol=protocol,
            data=data,
            choice=None,
            conclusion=None,
            statements=(reason, *dropped),
        )
    choice = choose(tried, data, method=method)
    best = choice.best or choice.candidates[0]
    fits = [t for t in targets if all(axis in t for axis in best.law.axes)]
    done = conclude(best.law, data, fits, method=replace(method, starts=Method().starts))
    # Where the best is refused, the choice only repeats why.
    is_said = best.is_refused and best.statements[-1] in done.statements
    more = () if is_said else choice.statements
    statements = sorted(
        dict.fromkeys((*done.statements, *more, *dropped)),
        key=lambda s: list(StatementKind).index(s.kind),
    )
    return ProtocolLaw(
        protocol=protocol, data=data, choice=choice, conclusion=done, statements=tuple(statements)
    )


def law_lines(found: Sequence[ProtocolLaw]) -> list[list[str]]:
    """Header and one line per parameter of each law: value, interval, identified or not."""
    in_points = all(one.data is None or one.data.percent for one in found)
    law = "law (error in points)" if in_points else "law"
    lines = [["protocol", law, "parameter", "value", "90 % interval", "known?"]]
    for one in found:
        if one.law is None or one.conclusion is None or one.conclusion.fit is None:
            continue
        fit = one.conclusion.fit
        values = fit.values
        for i, name in enumerate(one.law.names):
            interval = one.conclusion.intervals.get(name)
            shown = "" if interval is None else _ends(interval.low, interval.high)
            known = "" if interval is None else ("yes" if interval.identifiable else interval.why)
            start = [one.label, one.law.formula] if i == 0 else ["", ""]
            what = f"{name} (at the reference)" if name in (one.law.powers or {}) else name
            lines.append([*start, what, f"{values[name]:.4g}", shown, known])
    return lines


def _ends(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if np.isfinite(high) else f"above {low:.3g}"


def law_texts(found: Sequence[ProtocolLaw]) -> list[str]:
    """What can and cannot be concluded, protocol by protocol."""
    marks = {
        StatementKind.REFUSED: "no law",
        StatementKind.CAUTION: "with care",
        StatementKind.NOTE: "note",
    }
    said = []
    for one in found:
        said += [f"{one.label}: {marks[s.kind]}: {s.text}" for s in one.statements]
        if one.conclusion is not None and one.conclusion.fit is not None:
            said.append(f"{one.label}: {_reference(one.conclusion.fit)}")
    return said


def _reference(fit: Fit) -> str:
    """Where the coefficients of a law are given."""
    shown = ", ".join(f"{AXIS_NAMES.get(a, a)} {v:.3g}" for a, v in fit.references.items())
    return f"coefficients are what a term adds at the reference, {shown}."


def law_json(found: Sequence[ProtocolLaw]) -> list[dict[str, object]]:
    """Everything of it as plain values."""
    return [
        {
            "protocol": one.label,
            "law": one.law.name if one.law else None,
            "formula": one.law.formula if one.law else None,
            "parameters": _parameters(one),
            "hold_out_rmse": _scores(one),
            "statements": [{"verdict": s.kind.value, "text": s.text} for s in one.statements],
        }
        for one in found
    ]


def _parameters(one: ProtocolLaw) -> dict[str, dict[str, object]]:
    if one.law is None or one.conclusion is None or one.conclusion.fit is None:
        return {}
    fit = one.conclusion.fit
    return {
        name: {
            "value": fit.values[name],
            "in_axis_units": fit.raw_values[name],
            "low": one.conclusion.intervals[name].low,
            "high": one.conclusion.intervals[name].high,
            "identifiable": one.conclusion.intervals[name].identifiable,
        }
        for name in one.law.names
    }


def _scores(one: ProtocolLaw) -> dict[str, float]:
    if one.choice is None:
        return {}
    return {c.law.name: one.choice.score(c) for c in one.choice.candidates if not c.is_refused}
