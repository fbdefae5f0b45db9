"""A forest plot of differences between studies that belong together."""

from __future__ import annotations

from collections.abc import Sequence

from studies.analysis.curves.differences import Difference
from studies.analysis.figures.drawing import BLUE, Drawing, finish, new_figure, point_at, style

MAX_DRAWN = 40


_COLOURS = {True: BLUE, False: "#8c8c8c"}


@style()
def forest_figure(found: Sequence[Difference], name: str) -> Drawing | None:
    """A line per comparison: difference, interval and 0."""
    shown = [d for d in found if not d.same][:MAX_DRAWN]
    if not shown:
        return None
    figure = new_figure(7.2, 1.1 + 0.24 * len(shown))
    axes = figure.add_subplot()
    axes.axvline(0, color="#6b6b6b", linewidth=0.8)
    has_several = len({d.sides for d in shown}) > 1
    places = range(len(shown), 0, -1)
    for place, d in zip(places, shown, strict=True):
        colour = _COLOURS[d.is_clear]
        if d.low is not None and d.high is not None:
            axes.plot([d.low, d.high], [place, place], color=colour, linewidth=1.6)
        axes.plot([d.difference], [place], "o", color=colour, ms=5)
    texts = [
        (d.difference, float(p), f"{d.what}: {d.difference:+.2f}, {d.verdict}")
        for p, d in zip(places, shown, strict=True)
    ]
    point_at(axes, "differences", [], texts)
    axes.set_yticks(
        list(places), [f"{d.what}  ({d.sides})" if has_several else d.what for d in shown]
    )
    axes.set_xlabel("difference in top-1, points" if has_several else f"{shown[0].sides}, points")
    axes.grid(True, axis="x")
    more = f" The first {MAX_DRAWN} of {len(found)}." if len(found) > len(shown) > 0 else ""
    caption = (
        "Second minus first with its 95 % interval over seeds (over images, with one seed); blue "
        f"where it leaves 0 out.{more}"
    )
    return finish(figure, name, caption)
