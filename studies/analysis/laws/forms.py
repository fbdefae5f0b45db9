"""Scaling laws as data: what is linear in them, what is not, and how many points each asks for.

A law predicts an error (points, or a loss) from named axes. Inputs are divided by a reference (the
geometric mean of the fitted axis) before they enter, so a coefficient is what its term adds to the
error there, in units of the error. Legend: n points, k linear coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from studies.errors import StudyError

F64 = npt.NDArray[np.float64]
Axes = Mapping[str, F64]

FLOOR = "E"
"""Name of the irreducible error in every law that has one."""
MIN_SIZES_FOR_FLOOR = 4
"""A floor from fewer is a guess: three points fit E, A and alpha exactly, whatever they are."""
MIN_POINTS_FOR_BREAK = 10
EXPONENT_RANGE = (0.01, 3.0)
"""Of a power law's exponent. Below, a term looks like the floor; above, like a step."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter the error is not linear in."""

    name: str
    low: float
    high: float
    """Ends of the search."""
    log: bool = False
    """Searched on a logarithmic scale."""

    def to_search(self, value: float) -> float:
        """The search's coordinate of a value."""
        return float(np.log(value)) if self.log else value

    def from_search(self, u: float) -> float:
        """The value at a search coordinate."""
        return float(np.exp(u)) if self.log else u

    @property
    def bounds(self) -> tuple[float, float]:
        """Ends of the search, in its coordinate."""
        return self.to_search(self.low), self.to_search(self.high)


Columns = Callable[[F64, Axes], F64]
"""(values of the nonlinear parameters, normalised axes) -> shape (n, k)."""
Offset = Callable[[F64, Axes], F64]


@dataclass(frozen=True, kw_only=True)
class Law:
    """error = offset + [E] + columns · coefficients, the coefficients and E not negative.

    With `top` (the error of chance, L0) it is bounded: E + (L0 - E) h / (1 + h), h = columns ·
    coefficients, which stays between E and L0 whatever the axes.
    """

    name: str
    formula: str
    """As a reader writes it."""
    axes: tuple[str, ...]
    nonlinear: tuple[Parameter, ...]
    linear: tuple[str, ...]
    """Names of E (first, where there is one) and of the coefficients of the columns."""
    columns: Columns
    floor: bool = False
    top: float | None = None
    """L0: error at chance, for a bounded law."""
    offset: Offset | None = None
    normalised: bool = True
    """Whether axes are divided by their reference; a law with absolute constants says no."""
    min_distinct: Mapping[str, int]
    """How many different values each axis must take before the law may be fitted."""
    scale: Literal["absolute", "log"] = "absolute"
    """Scale of the residuals that suits the law."""
    powers: Mapping[str, Mapping[str, tuple[str, float]]] | None = None
    """Coefficient -> axis -> (exponent's name, sign): turns coefficients into raw units."""

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters: nonlinear first."""
        return (*(p.name for p in self.nonlinear), *self.linear)

    @property
    def falling(self) -> tuple[str, ...]:
        """Axes along which the law can only fall."""
        signs: dict[str, set[float]] = {}
        for powers in (self.powers or {}).values():
            for axis, (_, sign) in powers.items():
                signs.setdefault(axis, set()).add(sign)
        return tuple(axis for axis, found in signs.items() if found == {-1.0})

    @property
    def num_parameters(self) -> int:
        """As counted for degrees of freedom."""
        return len(self.nonlinear) + len(self.linear)

    def evaluate(self, theta: F64, coefficients: F64, x: Axes) -> F64:
        """Error at normalised axes, shape (n,)."""
        return self.apply(self.columns(theta, x), coefficients, self.base(theta, x))[0]

    def base(self, theta: F64, x: Axes) -> F64 | float:
        """The part without linear coefficients."""
        return self.offset(theta, x) if self.offset else 0.0

    def apply(self, columns: F64, coefficients: F64, base: F64 | float) -> tuple[F64, F64]:
        """Error, shape (n,), and its derivative by each coefficient, shape (n, k)."""
        if not self.floor:
            return base + columns @ coefficients, columns
        floor, h = coefficients[0], columns @ coefficients[1:]
        if self.top is None:
            return base + floor + h, np.column_stack([np.ones(len(h)), columns])
        share = h / (1 + h)
        slope = (self.top - floor) / (1 + h) ** 2
        error = base + floor + (self.top - floor) * share
        return error, np.column_stack([1 - share, slope[:, None] * columns])


def power(axis: str) -> Law:
    """A · x^-alpha: no floor, a straight line on two logarithmic axes."""
    return _terms(
        "power",
        f"A / {axis}^alpha",
        {"A": {axis: ("alpha", -1.0)}},
        floor=False,
        distinct={axis: 3},
    )


def power_floor(axis: str) -> Law:
    """E + A · x^-alpha."""
    return _terms(
        "power with floor",
        f"E + A / {axis}^alpha",
        {"A": {axis: ("alpha", -1.0)}},
        floor=True,
        distinct={axis: MIN_SIZES_FOR_FLOOR},
    )


def frontier(axis: str = "compute") -> Law:
    """The law of the best error per compute bin (`frontier.best_per_bin` makes the points)."""
    law = power_floor(axis)
    return replace(law, name="frontier", formula=f"best error = {law.formula}")


def product(size: str = "N", duration: str = "T") -> Law:
    """A · N^-alpha · T^-beta: log(error) linear in both logarithms; fitted on log residuals."""
    return _terms(
        "product",
        f"A / ({size}^alpha {duration}^beta)",
        {"A": {size: ("alpha", -1.0), duration: ("beta", -1.0)}},
        floor=False,
        distinct={size: 2, duration: 2},
        scale="log",
    )


def additive(size: str = "N", duration: str = "T") -> Law:
    """E + A / N^alpha + B / T^beta (Hoffmann et al. 2022, equation 2)."""
    return _terms(
        "additive",
        f"E + A / {size}^alpha + B / {duration}^beta",
        {"A": {size: ("alpha", -1.0)}, "B": {duration: ("beta", -1.0)}},
        floor=True,
        distinct={size: MIN_SIZES_FOR_FLOOR, duration: 3},
    )


def additive_shared(size: str = "N", duration: str = "D") -> Law:
    """E + A / N^b + B / D^b, one exponent (Gadre et al. 2024, equation 4).

    Their E + (a M^eta + b M^-eta) C^-eta with C = 6 N D and M = D / N is this with b = 2 eta.
    """
    return _terms(
        "additive, one exponent",
        f"E + A / {size}^b + B / {duration}^b",
        {"A": {size: ("b", -1.0)}, "B": {duration: ("b", -1.0)}},
        floor=True,
        distinct={size: MIN_SIZES_FOR_FLOOR, duration: 3},
    )


def bounded(top: float, size: str = "N", duration: str = "T", *, samples: str | None = None) -> Law:
    """E + (L0 - E) h / (1 + h), h = a / N^alpha + b / T^beta (+ c N^gamma / D^delta).

    Never predicts less than E or more than L0 = `top`, the error of chance: 100 - 100 / classes.
    With `samples` (the axis of distinct training images) the third term is over-fitting.

    Raises:
        StudyError: if `top` is not positive.
    """
    if not top > 0:
        raise StudyError(f"top = {top}: give the error of chance, such as 99.9 for 1,000 classes")
    terms = {"a": {size: ("alpha", -1.0)}, "b": {duration: ("beta", -1.0)}}
    distinct = {size: MIN_SIZES_FOR_FLOOR, duration: 3}
    over = ""
    if samples:
        terms["c"] = {size: ("gamma", 1.0), samples: ("delta", -1.0)}
        distinct[samples] = 3
        over = f" + c {size}^gamma / {samples}^delta"
    h = f"a / {size}^alpha + b / {duration}^beta{over}"
    formula = f"E + ({top:g} - E) h / (1 + h), h = {h}"
    name = "bounded with over-fitting" if samples else "bounded"
    return _terms(name, formula, terms, floor=True, distinct=distinct, top=top)


def bounded_power(top: float, axis: str) -> Law:
    """E + (L0 - E) h / (1 + h), h = a / x^alpha: the bounded law in one variable."""
    return _terms(
        "bounded power",
        f"E + ({top:g} - E) h / (1 + h), h = a / {axis}^alpha",
        {"a": {axis: ("alpha", -1.0)}},
        floor=True,
        distinct={axis: MIN_SIZES_FOR_FLOOR},
        top=top,
    )


def saturating(loss: str = "loss") -> Law:
    """E - k exp(-gamma L): error of a downstream task from a loss (Gadre et al. 2024, equation 5).

    E is the error of a hopeless model; it is a ceiling, not a floor.
    """

    def columns(theta: F64, x: Axes) -> F64:
        return np.asarray(-np.exp(-theta[0] * (x[loss] - 1.0)))[:, None]

    return Law(
        name="saturating",
        formula=f"E - k exp(-gamma {loss})",
        axes=(loss,),
        nonlinear=(Parameter(name="gamma", low=0.01, high=50.0, log=True),),
        linear=(FLOOR, "k"),
        columns=columns,
        floor=True,
        min_distinct={loss: MIN_SIZES_FOR_FLOOR},
    )


def broken(axis: str) -> Law:
    """E + A x^-alpha (1 + (x/x0)^(1/f))^(-f (beta - alpha)): one break (Caballero et al. 2023).

    Asks for ten points on the axis: with fewer, a break is noise.
    """

    def columns(theta: F64, x: Axes) -> F64:
        before, after, log_break, width = theta
        log_x = np.log(x[axis])
        bend = np.logaddexp(0.0, (log_x - log_break) / width)
        return np.asarray(np.exp(-before * log_x - width * (after - before) * bend))[:, None]

    low, high = EXPONENT_RANGE
    return Law(
        name="broken",
        formula=f"E + A {axis}^-alpha (1 + ({axis}/x0)^(1/f))^(-f (beta - alpha))",
        axes=(axis,),
        nonlinear=(
            Parameter(name="alpha", low=low, high=high),
            Parameter(name="beta", low=low, high=high),
            Parameter(name="log_x0", low=-4.0, high=4.0),
            Parameter(name="f", low=0.1, high=1.0, log=True),
        ),
        linear=(FLOOR, "A"),
        columns=columns,
        floor=True,
        min_distinct={axis: MIN_POINTS_FOR_BREAK},
    )


def _terms(
    name: str,
    formula: str,
    terms: Mapping[str, Mapping[str, tuple[str, float]]],
    *,
    floor: bool,
    distinct: Mapping[str, int],
    top: float | None = None,
    scale: Literal["absolute", "log"] = "absolute",
) -> Law:
    """A law whose columns are products of powers of axes."""
    exponents = tuple(dict.fromkeys(e for term in terms.values() for e, _ in term.values()))
    place = {e: i for i, e in enumerate(exponents)}

    def columns(theta: F64, x: Axes) -> F64:
        found = []
        for term in terms.values():
            logs = [sign * theta[place[e]] * np.log(x[axis]) for axis, (e, sign) in term.items()]
            found.append(np.exp(sum(logs)))
        return np.column_stack(found)

    low, high = EXPONENT_RANGE
    return Law(
        name=name,
        formula=formula,
        axes=tuple(dict.fromkeys(axis for term in terms.values() for axis in term)),
        nonlinear=tuple(
            # A pure product has no floor to be confused with: its exponents may vanish.
            Parameter(name=e, low=low if floor else 0.0, high=high)
            for e in exponents
        ),
        linear=((FLOOR,) if floor else ()) + tuple(terms),
        columns=columns,
        floor=floor,
        top=top,
        min_distinct=distinct,
        scale=scale,
        powers=terms,
    )
