"""From runs to what may be said: clean, refuse or fit, intervals, predictions, all with reasons.

The one entry of the report and the command line. Bad data end in a statement, never in a crash and
never in a confident line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from studies.analysis.laws.fit import Fit, Method, fit_law, residual_scale
from studies.analysis.laws.forms import Law
from studies.analysis.laws.intervals import LEVEL, Interval, Prediction, predict, profile
from studies.analysis.laws.observations import Observations
from studies.analysis.laws.refusals import (
    Statement,
    StatementKind,
    about_prediction,
    after_fit,
    before_fit,
    clean,
    refused,
)
from studies.errors import StudyError


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """What can and cannot be said from these runs with this law."""

    law: Law
    data: Observations
    """The runs that were used."""
    fit: Fit | None
    """None where the law was refused."""
    intervals: Mapping[str, Interval]
    predictions: tuple[Prediction, ...]
    statements: tuple[Statement, ...]

    @property
    def is_refused(self) -> bool:
        """Whether there is no law to draw."""
        return self.fit is None

    def texts(self, kind: StatementKind) -> tuple[str, ...]:
        """Sentences of one kind."""
        return tuple(s.text for s in self.statements if s.kind is kind)


def conclude(
    law: Law,
    data: Observations,
    targets: Sequence[Mapping[str, float]] = (),
    *,
    method: Method | None = None,
    level: float = LEVEL,
    parameters: bool = True,
) -> Conclusion:
    """Clean, check, fit, and say how sure it is.

    `parameters=False` skips the parameters' intervals, for callers that only predict. Raises
    `StudyError` only for a target without an axis of the law: data never raise.
    """
    method = method or Method()
    used, statements = clean(law, data, residual_scale(law, data, method))
    statements += before_fit(law, used)
    if any(s.kind is StatementKind.REFUSED for s in statements):
        return _nothing(law, used, statements)
    fit = fit_law(law, used, method)
    for target in targets:
        fit.predict(target)
    if fit.noise.sd is None and fit.method.huber is None:
        text = "Nothing measures the noise: repeat a cell with another seed."
        return _nothing(law, used, (*statements, refused(text)))
    intervals = {n: profile(fit, n, level) for n in law.names} if parameters else {}
    statements += tuple(after_fit(fit, intervals))
    spread = float(np.ptp(used.y))
    predictions = []
    for target in targets:
        try:
            predictions.append(predict(fit, target, level))
        except StudyError as error:
            statements += (refused(f"No prediction: {error}."),)
            continue
        statements += tuple(about_prediction(predictions[-1], spread))
    return Conclusion(
        law=law,
        data=used,
        fit=fit,
        intervals=intervals,
        predictions=tuple(predictions),
        statements=statements,
    )


def _nothing(law: Law, data: Observations, statements: tuple[Statement, ...]) -> Conclusion:
    return Conclusion(
        law=law, data=data, fit=None, intervals={}, predictions=(), statements=statements
    )
