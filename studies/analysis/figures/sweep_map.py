"""A sweep's scores over mask ratio and decoder, as a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from studies.analysis.figures.drawing import VERMILION, Drawing, finish, new_figure, style
from studies.analysis.sweeps.settings import ChosenSetting
from studies.analysis.sweeps.surface import SweepPoint, SweepSurface, is_winner, sweep_caption

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection


@style()
def sweep_map(surface: SweepSurface, winner: ChosenSetting | None, name: str) -> Drawing | None:
    """The sweep's objective over mask ratio and decoder depth, one panel per decoder width."""
    widths = sorted({p.decoder_width for p in surface.points}, key=lambda w: w or 0)
    columns = min(2, len(widths))
    rows = math.ceil(len(widths) / columns)
    figure = new_figure(4.0 + 1.4 * (columns - 1), 2.6 * rows + 0.6)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    depths = sorted({p.decoder_depth for p in surface.points})
    means = [p.mean for p in surface.points]
    limits = (min(means), max(means) if max(means) > min(means) else min(means) + 1e-6)
    for axes, width in zip(grid.flat, widths, strict=False):
        chosen = [p for p in surface.points if p.decoder_width == width]
        mappable = _sweep_panel(axes, chosen, depths, limits)
        axes.set_title("" if width is None else f"decoder width {width}", fontsize=9.5)
        _mark_winner(axes, [p for p in chosen if is_winner(p, winner)], depths)
    for axes in grid.flat[len(widths) :]:
        axes.set_visible(False)
    figure.supxlabel("mask ratio", fontsize=9.5)
    figure.supylabel("decoder depth (blocks)", fontsize=9.5)
    bar = figure.colorbar(mappable, ax=list(grid.flat), shrink=0.85, aspect=30)
    bar.set_label("top-1 accuracy (%)")
    return finish(figure, name, sweep_caption(surface, winner))


def _sweep_panel(
    axes: Axes, points: Sequence[SweepPoint], depths: Sequence[int], limits: tuple[float, float]
) -> PathCollection:
    x = [p.mask_ratio for p in points]
    y = [depths.index(p.decoder_depth) for p in points]
    means = [p.mean for p in points]
    drawn = axes.scatter(
        x, y, c=means, s=230, cmap="viridis", vmin=limits[0], vmax=limits[1], edgecolors="white"
    )
    for at_x, at_y, mean in zip(x, y, means, strict=True) if len(points) <= 16 else ():
        axes.annotate(
            f"{mean:.1f}",
            (at_x, at_y),
            (0, -14),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
        )
    if len(set(x)) <= 6:
        axes.set_xticks(sorted(set(x)), [f"{ratio:g}" for ratio in sorted(set(x))])
    axes.set_yticks(range(len(depths)), [str(d) for d in depths])
    axes.margins(x=0.16)
    axes.set_ylim(-0.65, len(depths) - 0.5)
    axes.grid(True)
    return drawn


def _mark_winner(axes: Axes, points: Sequence[SweepPoint], depths: Sequence[int]) -> None:
    for p in points:
        at = depths.index(p.decoder_depth)
        axes.plot([p.mask_ratio], [at], "o", ms=19, mfc="none", mec=VERMILION, mew=2.2, zorder=5)
        axes.annotate(
            "chosen",
            (p.mask_ratio, at),
            (0, 12),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=VERMILION,
            fontweight="bold",
        )
