"""Figures of ranks and frontiers: a dot per cell, so that a reader can point at each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies.analysis.curves.insights import CostFrontier, RankRelation
from studies.analysis.figures.drawing import (
    BLUE,
    VERMILION,
    Drawing,
    finish,
    legend,
    log_ticks,
    new_figure,
    point_at,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@style()
def rank_figure(found: RankRelation, name: str) -> Drawing:
    """A scatter of two measurements of the same cells."""
    figure = new_figure(4.6, 3.6)
    axes = figure.add_subplot()
    drawn = axes.scatter(
        [p[1] for p in found.points],
        [p[2] for p in found.points],
        s=22,
        color=BLUE,
        alpha=0.75,
        linewidths=0,
    )
    texts = [(x, y, f"{cell}: {x:.4g}, {y:.2f}") for cell, x, y in found.points]
    point_at(axes, "cells", [drawn], texts)
    axes.set_xlabel(textwrap.fill(found.x if found.is_loss else f"{found.x}, top-1 (%)", 60))
    axes.set_ylabel(textwrap.fill(f"{found.y}, top-1 (%)", 44))
    axes.grid(True)
    return finish(figure, name, f"{found.y} against {found.x}, one dot per cell. {found.verdict}.")


@style()
def frontier_figure(found: Sequence[CostFrontier], name: str) -> Drawing:
    """Every cell of a protocol over its cost, and the frontier, a panel per kind of cost."""
    figure = new_figure(5.0, 2.9 * len(found))
    panels = figure.subplots(len(found), 1, squeeze=False)[:, 0]
    for axes, one in zip(panels, found, strict=True):
        _frontier(axes, one)
    panels[0].set_title(textwrap.fill(found[0].protocol, 52), loc="left")
    legend(figure, *panels)
    costs = " and ".join(one.measure for one in found)
    caption = (
        f"{found[0].protocol}: top-1 of every cell against what its pretraining cost ({costs}, "
        "logarithmic), and the best of each bin. The best of many noisy cells is a lucky one: the "
        "frontier lies too high by about the seed noise."
    )
    return finish(figure, name, caption)


def _frontier(axes: Axes, one: CostFrontier) -> None:
    dots = axes.scatter(
        [p[1] for p in one.points],
        [p[2] for p in one.points],
        s=18,
        color=BLUE,
        alpha=0.6,
        linewidths=0,
        label="cells",
    )
    texts = [(x, y, f"{cell}: {x:.3g} {one.measure}, {y:.2f} %") for cell, x, y in one.points]
    point_at(axes, "cells", [dots], texts)
    line = axes.plot(
        [p[1] for p in one.best],
        [p[2] for p in one.best],
        drawstyle="steps-post",
        color=VERMILION,
        marker="o",
        ms=4,
        label="best so far",
    )
    point_at(axes, "best so far", line, [])
    axes.set_xscale("log")
    log_ticks(axes)
    axes.set_xlabel(f"pretraining {one.measure}")
    axes.set_ylabel("top-1 (%)")
    axes.grid(True)
