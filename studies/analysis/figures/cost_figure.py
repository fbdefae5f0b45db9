"""What the stages of a study cost, as bars."""

from __future__ import annotations

from collections.abc import Mapping

from studies.analysis.figures.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    SKY,
    Drawing,
    finish,
    legend,
    new_figure,
    style,
)

ROLE_COLOURS = {
    "grid": BLUE,
    "untrained": GREY,
    "baseline": ORANGE,
    "sweep": GREEN,
    "repeat": SKY,
}


@style()
def cost_bars(cost: Mapping[tuple[str, str], float], name: str) -> Drawing | None:
    """Rank-seconds by stage kind, stacked by what the cell was for."""
    if not any(seconds > 0 for seconds in cost.values()):
        return None
    kinds = sorted(
        {kind for kind, _ in cost}, key=lambda kind: sum(v for k, v in cost.items() if k[0] == kind)
    )
    unit, scale = ("rank-hours", 3600.0) if sum(cost.values()) > 7200 else ("rank-seconds", 1.0)
    figure = new_figure(5.0, 1.5 + 0.45 * len(kinds))
    axes = figure.add_subplot()
    left = dict.fromkeys(kinds, 0.0)
    for role in [r for r in ROLE_COLOURS if any(key[1] == r for key in cost)]:
        widths = [cost.get((kind, role), 0.0) / scale for kind in kinds]
        axes.barh(kinds, widths, left=list(left.values()), color=ROLE_COLOURS[role], label=role)
        left = {kind: left[kind] + w for kind, w in zip(kinds, widths, strict=True)}
    for i, total in enumerate(left.values()):
        form = ",.0f" if total >= 100 else ".3g"
        axes.annotate(f" {total:{form}}", (total, i), va="center", fontsize=8.5)
    axes.margins(x=0.12)
    axes.grid(axis="x")
    axes.set_xlabel(f"{unit} (wall-clock × ranks)")
    legend(figure, axes)
    caption = "Wall-clock time of the attempts that finished, times ranks; shared stages once."
    return finish(figure, name, caption)
