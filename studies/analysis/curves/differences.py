"""Differences between studies that belong together, as a table, sentences and a forest plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
HEADER = (
    "compared",
    "what",
    "first top-1 %",
    "second",
    "difference",
    "95 % interval",
    "seeds",
    "verdict",
)


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

    def to_json(self) -> dict[str, object]:
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
