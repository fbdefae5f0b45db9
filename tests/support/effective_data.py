"""The law of repeated data (Muennighoff et al. 2023): a law with absolute constants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from studies.analysis.laws.forms import F64, Axes, Law, Parameter


@dataclass(frozen=True, kw_only=True)
class SinglePass:
    """E + A / N^alpha + B / D^beta of data seen once, in raw units: what repetition starts from."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def best_params(self, unique: F64) -> F64:
        """Parameters that suit `unique` samples seen once: (U G)^(beta/alpha) G."""
        balance = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return np.asarray((unique * balance) ** (self.beta / self.alpha) * balance)


def repetition(base: SinglePass, size: str = "N", duration: str = "T", unique: str = "U") -> Law:
    """Effective data (Muennighoff et al. 2023, section 3.1): repeats are worth less and less.

    D' = U + U R_D* (1 - exp(-R_D / R_D*)), R_D = T / U - 1, and parameters beyond what U samples
    can feed decay likewise with R_N*. `base` is fitted on runs without repetition and held fixed.
    """

    def nothing(theta: F64, x: Axes) -> F64:
        return np.empty((len(x[size]), 0))

    def error(theta: F64, x: Axes) -> F64:
        data_decay, size_decay = theta
        samples = x[unique]
        repeats = np.maximum(x[duration] / samples - 1, 0.0)
        fed = np.minimum(x[size], base.best_params(samples))
        excess = np.maximum(x[size] / fed - 1, 0.0)
        data = samples * (1 - data_decay * np.expm1(-repeats / data_decay))
        params = fed * (1 - size_decay * np.expm1(-excess / size_decay))
        return np.asarray(base.E + base.A / params**base.alpha + base.B / data**base.beta)

    return Law(
        name="effective data",
        formula="E + A / N'^alpha + B / D'^beta, repeats decaying with R_D*, parameters with R_N*",
        axes=(size, duration, unique),
        nonlinear=(
            Parameter(name="R_D*", low=0.1, high=1e5, log=True),
            Parameter(name="R_N*", low=0.1, high=1e5, log=True),
        ),
        linear=(),
        columns=nothing,
        offset=error,
        normalised=False,
        min_distinct={size: 3, duration: 3},
        scale="log",
    )
