"""Published numbers as series of a curve."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from studies.analysis.curves.curves import PublishedSeries, in_order
from studies.reference import Published
from studies.result_row import Place
from studies.spec.axes import axis, joined, shown


def published_series(
    name: str, measure: str, kinds: set[str], rows: Sequence[Published]
) -> tuple[PublishedSeries, ...]:
    """Rows of these kinds and of a measure over an axis, a series per source, method and model."""
    metric = {"speedup": "speedup", "relative_flops": "relative FLOPs"}.get(measure, measure)
    groups: dict[tuple[str, str, str], dict[Place, Published]] = defaultdict(dict)
    for row in rows:
        at = joined(name, row.at) if "+" in name else row.at.get(name)
        if row.kind in kinds and row.metric == metric and at is not None:
            own = {*name.split("+"), "size", "objective", "duration"}
            rest = [shown(a, p) for a, p in row.at.items() if a not in own]
            model = () if name == "size" else (row.model,)
            # The first of a set at a place: repeats of it (seeds) are further down the table.
            groups[row.set, row.method, ", ".join((*model, *rest))].setdefault(at, row)
    alone = len({method for _, method, _ in groups}) == 1
    found = []
    for (source, method, model_text), points in groups.items():
        named = "" if alone and model_text else method
        parts = [part for part in (named, model_text) if part]
        published = PublishedSeries(
            label=f"{source}: {', '.join(parts)}",
            objective=str(next(iter(points.values())).at.get("objective", "")),
            points=tuple((at, points[at].value) for at in in_order(axis(name), points)),
            links=tuple(dict.fromkeys(p.link for p in points.values() if p.link)),
        )
        found.append(published)
    return tuple(found)
