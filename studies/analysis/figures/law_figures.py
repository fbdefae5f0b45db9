"""Figures of laws: measured errors, the fitted law, and how far beyond the data it is drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from studies.analysis.figures.drawing import (
    BLUE,
    Drawing,
    finish,
    legend,
    new_figure,
    point_at,
    style,
)
from studies.analysis.laws.by_protocol import AXIS_NAMES, DURATION, SIZE, ProtocolLaw
from studies.analysis.laws.fit import Fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DRAWN_BEYOND = 4.0
"""A law is drawn up to this many times the largest value that was measured, dashed."""
MAX_LINES = 8
_UNITS = {SIZE: "par.", DURATION: "img."}


@style()
def law_figure(found: ProtocolLaw, name: str) -> Drawing | None:
    """Error over the axis with more values, a line per value of the other; None without a law."""
    done = found.conclusion
    if done is None or done.fit is None:
        return None
    fit = done.fit
    axis, other = _axes_of(fit)
    figure = new_figure(5.4, 3.9)
    axes = figure.subplots()
    axes.set_title(textwrap.fill(found.label, 60))
    for label, chosen, colour in _lines(fit, other):
        x, y = fit.data.axes[axis][chosen], fit.data.y[chosen]
        drawn = axes.plot(x, y, "o", color=colour, ms=4, alpha=0.75, label=label)
        grid = np.geomspace(x.min(), fit.data.axes[axis].max() * DRAWN_BEYOND, 120)
        fixed = {} if other is None else {other: float(fit.data.axes[other][chosen][0])}
        curve = fit.predict({axis: grid, **fixed})
        inside = grid <= fit.data.axes[axis].max()
        drawn += axes.plot(grid[inside], curve[inside], "-", color=colour, linewidth=1.3)
        drawn += axes.plot(grid[~inside], curve[~inside], "--", color=colour, linewidth=1)
        cells = np.asarray(fit.data.cells)[chosen]
        texts = [
            (a, b, f"{c}: error {b:.4g}" + (f", top-1 {100 - b:.2f}" if fit.data.percent else ""))
            for a, b, c in zip(x, y, cells, strict=True)
        ]
        point_at(axes, label, drawn, texts)
    _log_axis(axes, "x")
    _log_axis(axes, "y")
    axes.set_xlabel(AXIS_NAMES.get(axis, axis))
    axes.set_ylabel("error (100 − top-1), points" if fit.data.percent else "error")
    axes.grid(True)
    legend(figure, axes)
    caption = (
        f"{found.label}: {done.law.formula}. Dots are runs, lines the fitted law, dashed beyond "
        f"the data ({DRAWN_BEYOND:g} times at most)."
    )
    return finish(figure, name, caption)


@style()
def residual_figure(found: ProtocolLaw, name: str) -> Drawing | None:
    """Measured minus fitted per cell, in points, over the fitted error."""
    done = found.conclusion
    if done is None or done.fit is None:
        return None
    fit = done.fit
    fitted = fit.predict(fit.table.axes)
    measured = np.exp(fit.table.z) if fit.scale == "log" else fit.table.z
    figure = new_figure(5.4, 2.6)
    axes = figure.subplots()
    axes.set_title(textwrap.fill(f"{found.label}: residuals", 60))
    axes.axhline(0, color="#6b6b6b", linewidth=0.8)
    drawn = axes.plot(fitted, measured - fitted, "o", color=BLUE, ms=4.5)
    rest = measured - fitted
    names = fit.table.cells
    texts = [(a, b, f"{c}: {b:+.2f} points") for a, b, c in zip(fitted, rest, names, strict=True)]
    point_at(axes, "cells", drawn, texts)
    axes.set_xlabel("fitted error, points")
    axes.set_ylabel("measured − fitted")
    axes.grid(True)
    worst = int(np.argmax(np.abs(measured - fitted)))
    caption = (
        f"Residuals of the {len(fitted)} cells; the largest is "
        f"{measured[worst] - fitted[worst]:+.2f} points at {fit.table.cells[worst]}."
    )
    return finish(figure, name, caption)


def law_drawings(found: Sequence[ProtocolLaw]) -> list[Drawing]:
    """Law and residuals of every protocol that has a law."""
    made: list[Drawing] = []
    for i, one in enumerate(found):
        for draw, kind in ((law_figure, "law"), (residual_figure, "residuals")):
            drawing = draw(one, f"{kind}-{i + 1}")
            if drawing is not None:
                made.append(drawing)
    return made


def _log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with a few plain numbers; the report's style parses no formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    for limit, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def _axes_of(fit: Fit) -> tuple[str, str | None]:
    """The axis to draw over, and the one whose values are lines."""
    if len(fit.law.axes) == 1:
        return fit.law.axes[0], None
    most, *others = sorted(reversed(fit.law.axes), key=fit.data.distinct, reverse=True)
    return most, others[0]


def _lines(fit: Fit, other: str | None) -> Iterator[tuple[str, npt.NDArray[np.bool_], str]]:
    """(label, runs, colour) for each value of the other axis, the largest few."""
    from matplotlib import colormaps

    if other is None:
        yield "runs", np.ones(len(fit.data), dtype=bool), BLUE
        return
    values = np.unique(fit.data.axes[other])[-MAX_LINES:]
    for i, value in enumerate(values):
        rgba = colormaps["viridis"](0.85 * i / max(len(values) - 1, 1))
        colour = "#" + "".join(f"{round(255 * c):02x}" for c in rgba[:3])
        yield _short(other, value), fit.data.axes[other] == value, colour


def _short(axis: str, value: float) -> str:
    return f"{_plain(value)} {_UNITS.get(axis, axis)}"
