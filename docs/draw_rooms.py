"""Draw `docs/rooms.svg`: the packages, their folders, and which folder imports which.

`make docs-picture` writes it; a test asserts that the committed file is what this draws. The same
imports give the same bytes. An arrow that follows from two others is left out, and so is
`errors.py`, which every room may import, and so is the identity of a process.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "rooms.svg"
COLOURS = {
    "orchestrator": "#e8f0fb",
    "studies": "#eaf6ea",
    "mae_core": "#fdf3e1",
    "cluster": "#f6eaf4",
}
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, BEND_WIDTH = 132, 32, 16, 40, 8
MARGIN, HEADING, BETWEEN = 16, 32, 36

Graph = dict[str, set[str]]
Arrow = tuple[str, str]
Point = tuple[float, float]


class Frame(NamedTuple):
    """The rectangle of a package."""

    left: float
    top: float
    width: float
    height: float


def room_of(module: str) -> str | None:
    """The room of a dotted module, such as `studies/analysis/laws`; None where it is not drawn."""
    package, *rest = module.split(".")
    folder = ROOT.joinpath(*module.split("."))
    parts = rest if folder.is_dir() else rest[:-1]
    if package not in COLOURS or rest[-1:] in (["errors"], ["process_identity"]):
        return None
    depth = 2 if parts[:1] == ["analysis"] else 1
    if parts:
        return "/".join([package, *parts[:depth]])
    if package == "cluster":
        return package
    return f"{package}/{rest[0]}.py" if rest else None


def imported_by(path: Path) -> set[str]:
    """Dotted modules of ours that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = ROOT.joinpath(*node.module.split("."))
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").exists() or (folder / alias.name).is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def read_rooms() -> Graph:
    """Every room, with the rooms that it imports."""
    rooms: Graph = {}
    for package in COLOURS:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            source = room_of(name.removesuffix(".__init__"))
            modules = imported_by(path)
            if source is not None and (modules or path.name != "__init__.py"):
                targets = {room_of(module) for module in modules}
                rooms.setdefault(source, set()).update(targets - {source, None})  # type: ignore[arg-type]
    return rooms


def reachable(graph: Graph, start: str) -> set[str]:
    """All that can be reached from a room by one arrow or more."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def without_shortcuts(graph: Graph) -> Graph:
    """The arrows that do not follow from others."""
    return {
        a: {b for b in targets if not any(b in reachable(graph, c) for c in targets - {b})}
        for a, targets in graph.items()
    }


def split_circles(graph: Graph) -> tuple[Graph, set[Arrow]]:
    """The graph without circles, and the arrows that close one: none, while the tests pass."""
    straight: Graph = {name: set() for name in graph}
    closing = set()
    for a in sorted(graph):
        for b in sorted(graph[a]):
            if a == b or a in reachable(straight, b):
                closing.add((a, b))
            else:
                straight[a].add(b)
    return straight, closing


def levels_of(graph: Graph) -> dict[str, int]:
    """How many floors below the top a room lies: under every room that imports it."""
    level = dict.fromkeys(graph, 0)
    for _ in graph:
        for a in sorted(graph):
            for b in graph[a]:
                level[b] = max(level[b], level[a] + 1)
    return level


class Layers:
    """Rooms of one package in rows, ordered so that few arrows cross; long arrows get bends."""

    def __init__(self, arrows: Graph) -> None:
        straight, self.closing = split_circles(arrows)
        graph = without_shortcuts(straight)
        level = levels_of(graph)
        self.rows: list[list[str]] = [[] for _ in range(max(level.values()) + 1)]
        self.paths: list[list[str]] = []
        for a in sorted(graph):
            self.rows[level[a]].append(a)
            for b in sorted(graph[a]):
                bends = [f"{a}>{b}>{k}" for k in range(level[a] + 1, level[b])]
                for k, bend in enumerate(bends, level[a] + 1):
                    self.rows[k].append(bend)
                self.paths.append([a, *bends, b])
        self._order()

    def _order(self) -> None:
        links: Graph = defaultdict(set)
        for path in self.paths:
            for a, b in zip(path, path[1:], strict=False):
                links[a].add(b)
                links[b].add(a)
        for turn in range(8):
            rows = range(1, len(self.rows)) if turn % 2 == 0 else range(len(self.rows) - 2, -1, -1)
            for k in rows:
                near = self._middles(self.rows[k - 1 if turn % 2 == 0 else k + 1])
                self.rows[k].sort(key=lambda n: self._mean(n, links, near))

    def _mean(self, name: str, links: Graph, near: dict[str, float]) -> tuple[float, str]:
        places = [near[other] for other in sorted(links[name]) if other in near]
        return (sum(places) / len(places) if places else self.width / 2, name)

    def _row_width(self, row: list[str]) -> float:
        return sum(BEND_WIDTH if ">" in n else BOX_WIDTH for n in row) + GAP_X * (len(row) - 1)

    @property
    def width(self) -> float:
        """Width of the widest row."""
        return max(self._row_width(row) for row in self.rows)

    @property
    def height(self) -> float:
        """Height of all rows."""
        return len(self.rows) * (BOX_HEIGHT + GAP_Y) - GAP_Y

    def _middles(self, row: list[str]) -> dict[str, float]:
        x = (self.width - self._row_width(row)) / 2
        found = {}
        for name in row:
            wide = BEND_WIDTH if ">" in name else BOX_WIDTH
            found[name] = x + wide / 2
            x += wide + GAP_X
        return found

    def places(self) -> dict[str, Point]:
        """The middle of every room and bend."""
        return {
            name: (x, k * (BOX_HEIGHT + GAP_Y) + BOX_HEIGHT / 2)
            for k, row in enumerate(self.rows)
            for name, x in self._middles(row).items()
        }


def curve(points: list[Point]) -> str:
    """A path that leaves the first box at its foot and reaches the last at its head."""
    (x, y), *rest = points
    y += BOX_HEIGHT / 2
    text = f"M{x:.0f} {y:.0f}"
    for k, (to_x, middle) in enumerate(rest):
        to_y = middle - BOX_HEIGHT / 2
        bow = (to_y - y) / 2
        text += f" C{x:.0f} {y + bow:.0f} {to_x:.0f} {to_y - bow:.0f} {to_x:.0f} {to_y:.0f}"
        if k < len(rest) - 1:
            text += f" L{to_x:.0f} {middle + BOX_HEIGHT / 2:.0f}"
        x, y = to_x, middle + BOX_HEIGHT / 2
    return f'<path d="{text}"/>'


def closing_arrow(start: Point, end: Point) -> str:
    """A red arrow back up, which closes a circle."""
    (x, y), (to_x, to_y) = start, end
    return f'<path class="circle" d="M{x:.0f} {y:.0f} L{to_x:.0f} {to_y + BOX_HEIGHT / 2:.0f}"/>'


def draw_package(package: str, layers: Layers, frame: Frame) -> list[str]:
    """One package: its frame, its arrows, its rooms."""
    left = frame.left + (frame.width - layers.width) / 2
    top = frame.top + HEADING
    at = {name: (x + left, y + top) for name, (x, y) in layers.places().items()}
    lines = [
        f'<rect x="{frame.left:.0f}" y="{frame.top:.0f}" width="{frame.width:.0f}" '
        f'height="{frame.height:.0f}" rx="10" fill="{COLOURS[package]}" stroke="#999"/>',
        f'<text class="package" x="{frame.left + 12:.0f}" y="{frame.top + 20:.0f}">'
        f"{package}/</text>",
        *(curve([at[name] for name in path]) for path in layers.paths),
        *(closing_arrow(at[a], at[b]) for a, b in sorted(layers.closing)),
    ]
    for name in sorted(n for n in at if ">" not in n):
        x, y = at[name]
        label = name.removeprefix(f"{package}/")
        label = "*.py" if label == package else label if label.endswith(".py") else f"{label}/"
        lines.append(
            f'<rect class="room" x="{x - BOX_WIDTH / 2:.0f}" y="{y - BOX_HEIGHT / 2:.0f}" '
            f'width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle">{escape(label)}</text>'
        )
    return lines


STYLE = """<style>
text { font: 13px sans-serif; fill: #222 } .package { font-weight: bold }
.room { fill: #fff; stroke: #777 } path { fill: none; stroke: #567; marker-end: url(#head) }
.circle { stroke: #c00; stroke-width: 2 }
.wall { stroke: #222; stroke-width: 2.5; marker-end: url(#wall-head) }
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7"
markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z" style="fill:#567;stroke:none"/>
</marker><marker id="wall-head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="12"
markerHeight="12" markerUnits="userSpaceOnUse" orient="auto">
<path d="M0 0L8 4L0 8z" style="fill:#222;stroke:none"/></marker></defs>"""


def layers_of(rooms: Graph, package: str) -> Layers:
    """The rooms of one package, laid out by the arrows between them."""
    inside = {a: targets for a, targets in rooms.items() if a.split("/")[0] == package}
    return Layers({a: targets & set(inside) for a, targets in inside.items()})


def frames_of(layers: dict[str, Layers]) -> dict[str, Frame]:
    """Where each package stands: the orchestrator, then studies above cluster, then mae_core."""
    size = {
        package: (made.width + 2 * MARGIN, made.height + HEADING + MARGIN)
        for package, made in layers.items()
    }
    second = MARGIN + size["orchestrator"][0] + BETWEEN
    middle = max(size["studies"][0], size["cluster"][0])
    lower = MARGIN + size["studies"][1] + 2 * BETWEEN
    return {
        "orchestrator": Frame(MARGIN, MARGIN, *size["orchestrator"]),
        "studies": Frame(second, MARGIN, middle, size["studies"][1]),
        "cluster": Frame(second, lower, middle, size["cluster"][1]),
        "mae_core": Frame(second + middle + BETWEEN, MARGIN, *size["mae_core"]),
    }


def walls(rooms: Graph, frames: dict[str, Frame]) -> list[str]:
    """Thick arrows from package to package."""
    pairs = {(a.split("/")[0], b.split("/")[0]) for a, targets in rooms.items() for b in targets}
    lines = []
    for a, b in sorted(pair for pair in pairs if pair[0] != pair[1]):
        start, end = sorted((frames[a], frames[b]), key=lambda frame: frame.left)
        y = max(start.top, end.top) + HEADING
        if {a, b} == {"orchestrator", "mae_core"}:
            y = frames["cluster"].top - BETWEEN
        way = [start.left + start.width, end.left]
        x, to_x = way if start is frames[a] else way[::-1]
        lines.append(f'<path class="wall" d="M{x:.0f} {y:.0f} L{to_x:.0f} {y:.0f}"/>')
    return lines


def draw() -> str:
    """The whole picture."""
    rooms = read_rooms()
    layers = {package: layers_of(rooms, package) for package in COLOURS}
    frames = frames_of(layers)
    lines = [line for p in COLOURS for line in draw_package(p, layers[p], frames[p])]
    width = max(frame.left + frame.width for frame in frames.values()) + MARGIN
    height = max(frame.top + frame.height for frame in frames.values()) + MARGIN
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{STYLE}'
    paper = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, paper, *lines, *walls(rooms, frames), "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(draw())
