"""What every figure of a report shares: its style, its canvas, and how it is written.

Matplotlib is imported when a figure is made; no pyplot, no display, no global state.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: Any = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "path",
    # Names come from users: a dollar sign in a protocol is no formula.
    "text.parse_math": False,
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A finished figure, as vector for the page and as bitmap for slides."""

    name: str
    caption: str
    svg: str
    png: bytes


@contextmanager
def style() -> Iterator[None]:
    """The report's style while a figure is made; the caller's settings come back afterwards."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


def new_figure(width: float, height: float) -> Figure:
    """A figure (inches) with an Agg canvas, so that no display or global state is used."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend(figure: Figure, *panels: Axes) -> None:
    """One legend of all panels below them, each label once, at most four entries a line."""
    named: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        labels, handles = list(named), list(named.values())
        columns = math.ceil(len(handles) / math.ceil(len(handles) / 4))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def finish(figure: Figure, name: str, caption: str) -> Drawing:
    """Write a figure as vector and bitmap; the same figure gives the same bytes."""
    from matplotlib import rc_context

    vector, bitmap = io.StringIO(), io.BytesIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(vector, format="svg", metadata={"Date": None})
        figure.savefig(bitmap, format="png", dpi=160)
    return Drawing(
        name=name, caption=caption, svg=_inline(vector.getvalue(), name), png=bitmap.getvalue()
    )


def _inline(svg: str, name: str) -> str:
    """The svg element alone, its ids made unique within a page of several figures."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    return re.sub(r"url\(#", f"url(#{name}-", svg)
