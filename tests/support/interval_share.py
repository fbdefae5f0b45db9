"""The share of useful time that the law of checkpoint intervals predicts."""

from __future__ import annotations

import math

from studies.analysis.goodput.interval_law import Costs, expected_s


def expected_share(work_s: float, interval_s: float, mtbf_s: float, costs: Costs) -> float:
    """Useful per cent of the wall-clock time that `work_s` of training takes on average."""
    taken = expected_s(work_s, interval_s, mtbf_s, costs)
    return 100 * work_s / taken if 0 < taken < math.inf else 0.0
