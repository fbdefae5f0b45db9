"""Variable projection: what is linear by non-negative least squares, exponents by grid and search.

For each trial of the nonlinear parameters the linear ones are solved exactly (scipy's `nnls`, in
Gauss-Newton steps where the law is bounded, the residuals logarithmic or the loss robust), so that
the search runs over two or three exponents only (Golub & Pereyra 1973). All in float64.
Legend: m cells, k linear coefficients, u search coordinates of the nonlinear parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import optimize
from scipy.stats import qmc

from studies.analysis.laws.forms import Law
from studies.analysis.laws.observations import CellTable

F64 = npt.NDArray[np.float64]

_GRID_SIZE = {0: 1, 1: 32, 2: 9}
"""Points per nonlinear parameter on the first grid; with more parameters, a Sobol sequence."""
_SOBOL_POINTS = 256
_MAX_INNER_STEPS = 60
_ROUGH_STEPS = 4
"""Inner steps on the first grid, where only the order of the points matters."""
_TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class LocalMinimum:
    """A local minimum of the objective."""

    u: tuple[float, ...]
    """Nonlinear parameters, search coordinates."""
    coefficients: tuple[float, ...]
    """Linear parameters, at normalised axes."""
    objective: float
    """Sum over cells of count x squared residual, or of count x Huber's loss."""


class Problem:
    """One law on one table of cells: objective and residuals as functions of u alone."""

    def __init__(
        self,
        law: Law,
        table: CellTable,
        references: Mapping[str, float],
        *,
        scale: str,
        huber: float | None,
    ) -> None:
        self.law = law
        self.z = table.z
        self.weights = np.sqrt(table.counts)
        self.x = {a: table.axes[a] / references[a] for a in law.axes}
        self.log = scale == "log"
        self.huber = huber
        # Gauss-Newton doubles its digits per step; reweighting for Huber's loss gains few.
        self.inner_tolerance = 1e-9 if huber is None else 1e-12
        self.spans = np.asarray([p.bounds for p in law.nonlinear]).reshape(-1, 2)

    def theta(self, u: Sequence[float] | F64) -> F64:
        """Nonlinear parameters at search coordinates."""
        pairs = zip(self.law.nonlinear, u, strict=True)
        return np.asarray([p.from_search(float(v)) for p, v in pairs], dtype=np.float64)

    def loss(self, residuals: F64) -> float:
        """Objective of weighted residuals, shape (m,)."""
        if self.huber is None:
            return float(residuals @ residuals)
        plain = np.abs(residuals) / self.weights
        inside = plain <= self.huber
        rho = np.where(inside, 0.5 * plain**2, self.huber * (plain - 0.5 * self.huber))
        return float(np.sum(self.weights**2 * rho))

    def solve(
        self,
        u: F64,
        fixed: Mapping[int, float],
        start: F64 | None = None,
        steps: int = _MAX_INNER_STEPS,
    ) -> tuple[F64, F64]:
        """Best coefficients (shape (k,)) at u, some held fixed, and weighted residuals (m,).

        `start` is where the inner steps begin, if they are needed.
        """
        theta = self.theta(u)
        columns, base = self.law.columns(theta, self.x), self.law.base(theta, self.x)
        free = [i for i in range(len(self.law.linear)) if i not in fixed]
        exact = self.law.top is None and not self.log and self.huber is None
        c = self._start(columns, base, fixed) if exact or start is None else start
        if not free or (exact and not fixed):
            # Linear and least squares: the start is already the solution.
            return c, self._residuals(self.law.apply(columns, c, base)[0])
        error, jacobian = self.law.apply(columns, c, base)
        residuals = self._residuals(error)
        best = self.loss(residuals)
        for _ in range(1 if exact else steps):
            step = self._gauss_newton(c, error, jacobian, residuals, free) - c
            gain, size = 0.0, 1.0
            while size > 1e-4:
                trial = self.law.apply(columns, c + size * step, base)
                trial_residuals = self._residuals(trial[0])
                gain = best - self.loss(trial_residuals)
                if gain > 0:
                    c = c + size * step
                    (error, jacobian), residuals, best = trial, trial_residuals, best - gain
                    break
                size /= 4
            if gain <= self.inner_tolerance * best:
                break
        return c, residuals

    def _start(self, columns: F64, base: F64 | float, fixed: Mapping[int, float]) -> F64:
        """Coefficients to start from: exact where the law is linear, else close."""
        law, target = self.law, np.exp(self.z) if self.log else self.z
        # On a logarithmic scale an absolute residual of 1 weighs as much as its share of y.
        weights = self.weights / target if self.log else self.weights
        c = np.zeros(len(law.linear))
        if law.top is not None:
            floor = fixed.get(0, 0.5 * float(np.min(target)))
            c[0] = floor
            share = np.clip((target - floor) / (law.top - floor), 1e-3, 1 - 1e-3)
            c[1:] = _nnls(columns * weights[:, None], share / (1 - share) * weights)
        elif len(c):
            matrix = np.column_stack([np.ones(len(target)), columns]) if law.floor else columns
            c = _nnls(matrix * weights[:, None], (target - base) * weights)
        for i, value in fixed.items():
            c[i] = value
        return c

    def _gauss_newton(
        self, c: F64, error: F64, jacobian: F64, residuals: F64, free: list[int]
    ) -> F64:
        """One step: the law linearised at c, solved without negative coefficients."""
        slope = 1 / np.maximum(error, _TINY) if self.log else 1.0
        matrix = (jacobian.T * slope * self.weights).T
        if self.huber is not None:
            plain = np.maximum(np.abs(residuals) / self.weights, _TINY)
            robust = np.sqrt(np.minimum(1.0, self.huber / plain))
            matrix, residuals = matrix * robust[:, None], residuals * robust
        found = c.copy()
        found[free] = _nnls(matrix[:, free], residuals + matrix[:, free] @ c[free])
        return found

    def _residuals(self, error: F64) -> F64:
        model = np.log(np.maximum(error, _TINY)) if self.log else error
        return np.asarray(self.weights * (self.z - model))

    def descend(self, u: F64, free: list[int], fixed: Mapping[int, float]) -> LocalMinimum:
        """The local minimum that a search over the free coordinates finds from u."""
        u = u.copy()
        if free:
            low, high = self.spans[free].T

            def place(v: F64) -> F64:
                u[free] = v
                return u

            if self.huber is None:
                state: list[F64 | None] = [None]

                def residuals_at(v: F64) -> F64:
                    state[0], residuals = self.solve(place(v), fixed, state[0])
                    return residuals

                found = optimize.least_squares(
                    residuals_at,
                    np.clip(u[free], low + 1e-9, high - 1e-9),
                    jac=lambda v: self._projected_jacobian(place(v), free, fixed, state[0]),
                    bounds=(low, high),
                    x_scale=high - low,
                    ftol=1e-10,
                    xtol=1e-9,
                    gtol=1e-15,
                    max_nfev=60,
                )
                u[free] = found.x
            else:
                # Residuals beyond Huber's corner make ridges that gradients stall on.
                found = optimize.minimize(
                    lambda v: self.loss(self.solve(place(v), fixed)[1]),
                    u[free],
                    method="Nelder-Mead",
                    bounds=list(zip(low, high, strict=True)),
                    options={"xatol": 1e-5, "fatol": 1e-12, "maxfev": 400 * len(free)},
                )
                u[free] = found.x
        c, residuals = self.solve(u, fixed)
        return LocalMinimum(
            u=tuple(float(v) for v in u),
            coefficients=tuple(float(v) for v in c),
            objective=self.loss(residuals),
        )

    def _projected_jacobian(
        self, u: F64, free: list[int], fixed: Mapping[int, float], start: F64 | None
    ) -> F64:
        """Derivative of the weighted residuals by the free coordinates, shape (m, len(free)).

        What the linear parameters can absorb is projected out (Kaufman 1975).
        """
        c = self.solve(u, fixed, start)[0]
        theta = self.theta(u)
        error, jacobian = self.law.apply(
            self.law.columns(theta, self.x), c, self.law.base(theta, self.x)
        )
        scale = self.weights / np.maximum(error, _TINY) if self.log else self.weights
        slopes = np.empty((len(error), len(free)))
        for place, i in enumerate(free):
            low, high = self.spans[i]
            step = 1e-6 * (high - low) * (1 if u[i] < 0.5 * (low + high) else -1)
            moved = u.copy()
            moved[i] += step
            slopes[:, place] = (self.law.evaluate(self.theta(moved), c, self.x) - error) / step
        slopes *= -scale[:, None]
        active = [i for i in range(len(c)) if i not in fixed and c[i] > 0]
        if active:
            basis = np.linalg.qr(jacobian[:, active] * scale[:, None])[0]
            slopes -= basis @ (basis.T @ slopes)
        return slopes

    def search(
        self, *, starts: int, fixed_u: Mapping[int, float], fixed: Mapping[int, float]
    ) -> list[LocalMinimum]:
        """Local minima from the best distinct points of a grid, best first."""
        free = [i for i in range(len(self.spans)) if i not in fixed_u]
        points = []
        for v in _first_points(self.spans[free]):
            u = np.empty(len(self.spans))
            u[free] = v
            for i, value in fixed_u.items():
                u[i] = value
            points.append((self.loss(self.solve(u, fixed, steps=_ROUGH_STEPS)[1]), u))
        points.sort(key=lambda p: p[0])
        chosen: list[F64] = []
        for _, u in points:
            if len(chosen) < starts and all(self.distance(u, v) > 0.12 for v in chosen):
                chosen.append(u)
        found = [self.descend(u, free, fixed) for u in chosen]
        return sorted(found, key=lambda o: o.objective)

    def distance(self, u: npt.ArrayLike, v: npt.ArrayLike) -> float:
        """Largest difference of two points, as a share of each parameter's range."""
        if not len(self.spans):
            return 0.0
        width = self.spans[:, 1] - self.spans[:, 0]
        return float(np.max(np.abs(np.asarray(u) - np.asarray(v)) / width))

    def separate(self, a: LocalMinimum, b: LocalMinimum) -> bool:
        """Whether two minima are two: apart, and with a ridge between them."""
        if self.distance(a.u, b.u) < 0.03:
            return False
        higher = max(a.objective, b.objective)
        for share in (0.25, 0.5, 0.75):
            u = (1 - share) * np.asarray(a.u) + share * np.asarray(b.u)
            if self.loss(self.solve(u, {})[1]) > higher * (1 + 1e-7):
                return True
        return False


def _first_points(spans: F64) -> list[F64]:
    """A grid for up to two parameters, a Sobol sequence for more."""
    dims = len(spans)
    if dims in _GRID_SIZE:
        if not dims:
            return [np.empty(0)]
        # Powers of two of the exponents matter more than their ends: squeeze towards the low end.
        unit = ((np.arange(_GRID_SIZE[dims]) + 0.5) / _GRID_SIZE[dims]) ** 1.5
        shares = np.asarray(list(product(unit, repeat=dims)))
    else:
        shares = qmc.Sobol(dims, scramble=False).random(_SOBOL_POINTS) ** 1.5
    return list(spans[:, 0] + shares * (spans[:, 1] - spans[:, 0]))


def _nnls(matrix: F64, target: F64) -> F64:
    """Non-negative least squares, after a QR step where there are many rows."""
    if len(target) > 40:
        q, matrix = np.linalg.qr(matrix)
        target = q.T @ target
    norms = np.sqrt(np.sum(matrix * matrix, axis=0))
    norms[norms < _TINY] = 1.0
    try:
        found = optimize.nnls(matrix / norms, target)[0]
    except RuntimeError:  # More iterations than nnls allows itself: the bounded solver is slower.
        found = optimize.lsq_linear(matrix / norms, target, bounds=(0, np.inf)).x
    return np.asarray(found / norms)
