"""Differences between studies that belong together, as a table, sentences and a forest plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studies.analysis.report.style import Drawing, finish, new_figure, point_at, style

LEVEL = 0.95
HEADER = ("compared", "what", "first top-1 %", "second", "difference", "95 % interval", "seeds",
          "verdict")  # fmt: skip
MAX_DRAWN = 40
_COLOURS = {True: "#0072B2", False: "#8c8c8c"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two results that belong together, over their seeds; accuracies in per cent."""

    sides: str
    """`second − first`, as the reader named them."""
    what: str
    """Address without prefix and seed, and stage: `N4/e40#knn`."""
    first: float
    """Mean top-1 of the first side."""
    second: float
    seeds: int
    """Pairs of seeds."""
    low: float | None
    """Interval of second − first: over seeds (Student's t) with two or more, else over images."""
    high: float | None
    by: str
    """What the interval covers: `seeds`, `images`, or nothing."""
    statement: str
    """What the images of the pairs say (McNemar), in words."""
    same: bool = False
    """Both sides are the same results: there is nothing to compare."""

    @property
    def difference(self) -> float:
        """second − first, points."""
        return self.second - self.first

    @property
    def is_clear(self) -> bool:
        """True if the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def verdict(self) -> str:
        """In words."""
        if self.same:
            return "the same results"
        if self.low is None or self.high is None:
            return "one pair, no image-by-image predictions: nothing can be concluded"
        if self.is_clear:
            return "second higher" if self.difference > 0 else "first higher"
        return "no difference beyond chance"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "difference": self.difference, "verdict": self.verdict}


def difference_lines(found: Sequence[Difference]) -> list[list[str]]:
    """Header and a line each."""
    lines = [list(HEADER)]
    for d in found:
        shown = "" if d.low is None else f"{d.low:+.2f} to {d.high:+.2f} (over {d.by})"
        values = [f"{d.first:.2f}", f"{d.second:.2f}", f"{d.difference:+.2f}", shown]
        lines.append([d.sides, d.what, *values, str(d.seeds), d.verdict])
    return lines


def difference_texts(found: Sequence[Difference]) -> list[str]:
    """How many are beyond chance, how many would be by chance, and what images say."""
    judged = [d for d in found if d.low is not None and not d.same]
    texts = []
    if len(judged) > 1:
        clear = sum(d.is_clear for d in judged)
        expected = len(judged) * (1 - LEVEL)
        texts.append(
            f"{clear} of {len(judged)} intervals leave 0 out; where nothing differs, about "
            f"{expected:.1f} of so many would."
        )
    return texts + [f"{d.what}: {d.statement}" for d in found if d.statement and not d.same]


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
    texts = [(d.difference, float(p), f"{d.what}: {d.difference:+.2f}, {d.verdict}")
             for p, d in zip(places, shown, strict=True)]  # fmt: skip
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
