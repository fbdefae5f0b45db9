"""What every figure of a report shares: its style, its canvas, and how it is written.

Matplotlib is imported when a figure is made; no pyplot, no display, no global state.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from matplotlib.artist import Artist
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
    pdf: bytes
    series: tuple[str, ...] = ()
    """What a reader may switch on and off, where there are several."""


# Okabe and Ito's palette, safe for colour-blind readers.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, INK, GREY = "#E69F00", "#56B4E9", "#222222", "#999999"

BITMAP_DPI = 130
MAX_HOT_SPOTS = 800
"""Of a figure; with more of them no one could point at one."""


@dataclass
class _Marks:
    """What a figure's readers may point at: series, and points with a text."""

    series: dict[str, int] = field(default_factory=dict)
    parts: int = 0
    points: list[tuple[Axes, float, float, str, int]] = field(default_factory=list)


_MARKS: WeakKeyDictionary[object, _Marks] = WeakKeyDictionary()
"""Until a figure is finished."""


def point_at(
    axes: Axes, label: str, artists: Iterable[Artist], points: Iterable[tuple[float, float, str]]
) -> None:
    """Let the page name points (x, y, text) and switch the artists of a series off and on."""
    marks = _MARKS.setdefault(axes.figure, _Marks())
    number = marks.series.setdefault(label, len(marks.series))
    for artist in artists:
        artist.set_gid(f"series-{number}-{marks.parts}")
        marks.parts += 1
    marks.points += [(axes, x, y, text, number) for x, y, text in points]


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
    named: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        labels, handles = list(named), list(named.values())
        columns = math.ceil(len(handles) / math.ceil(len(handles) / 4))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def log_ticks(axes: Axes) -> None:
    """Labels such as `3e15`; a range under two decades gets 1, 2 and 5 of each."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 100 * low else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.2g}".replace("e+", "e")))
    axes.xaxis.set_minor_formatter(NullFormatter())


def finish(figure: Figure, name: str, caption: str) -> Drawing:
    """Write a figure as vector and bitmap; the same figure gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    marks = _MARKS.pop(figure, _Marks())
    vector, bitmap, paper = io.StringIO(), io.BytesIO(), io.BytesIO()
    with rc_context({"svg.hashsalt": name}):
        # The canvases themselves: `savefig` draws everything twice for each file.
        canvases: Any = (FigureCanvasSVG(figure), FigureCanvasPdf(figure), FigureCanvasAgg(figure))
        canvases[0].print_svg(vector, metadata={"Date": None})
        figure.set_layout_engine("none")  # laying out anew for each file would take longest
        canvases[1].print_pdf(paper, metadata={"CreationDate": None})
        figure.dpi = BITMAP_DPI
        canvases[2].print_png(bitmap)
    svg = _inline(vector.getvalue(), name).replace("</svg>", f"{_hot_spots(figure, marks)}</svg>")
    return Drawing(
        name=name,
        caption=caption,
        svg=svg,
        png=bitmap.getvalue(),
        pdf=paper.getvalue(),
        series=tuple(marks.series) if len(marks.series) > 1 else (),
    )


def _hot_spots(figure: Figure, marks: _Marks) -> str:
    """A transparent circle over each point, with its text as the title."""
    width, height = (72 * side for side in figure.get_size_inches())
    to_page = figure.transFigure.inverted()
    circles: list[str] = []
    if len(marks.points) > MAX_HOT_SPOTS:
        return ""
    panels = dict.fromkeys(axes for axes, *_ in marks.points)
    for axes in panels:
        mine = [point[1:] for point in marks.points if point[0] is axes]
        places = to_page.transform(axes.transData.transform([(x, y) for x, y, *_ in mine]))
        circles += _circles(places, mine, width, height)
    return f'<g class="tips">{"".join(circles)}</g>' if circles else ""


def _circles(
    places: Iterable[tuple[float, float]],
    points: list[tuple[float, float, str, int]],
    width: float,
    height: float,
) -> Iterator[str]:
    for (across, up), (_, _, text, series) in zip(places, points, strict=True):
        if math.isfinite(across) and math.isfinite(up):
            yield (
                f'<circle class="tip" cx="{across * width:.1f}" cy="{(1 - up) * height:.1f}" r="6" '
                f'data-s="{series}"><title>{escape(text)}</title></circle>'
            )


def _inline(svg: str, name: str) -> str:
    """The svg element alone, its ids made unique within a page of several figures."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    return re.sub(r"url\(#", f"url(#{name}-", svg)
