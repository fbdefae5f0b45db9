"""The house as a graph and in figures: what imports what, and how large and how typed it is."""

from __future__ import annotations

import ast
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "studies", "mae_core", "cluster")
ROOMED = ("orchestrator", "studies", "mae_core")
"""Packages whose files lie in folders, but for a few at the top."""
OWN_ROOMS = ("cluster/errors.py", "cluster/process_identity.py")
"""Files of `cluster` that its folders import."""
Graph = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Module:
    """One file of the product."""

    path: str
    """Relative to the repository: `studies/spec/cell.py`."""
    text: str
    tree: ast.Module

    @property
    def name(self) -> str:
        """Dotted name; a package is named without `__init__`."""
        return self.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    @property
    def room(self) -> str:
        """Folder of the file; a file beside the folders of a package is a room of its own."""
        folder, _, file = self.path.rpartition("/")
        is_room = folder in ROOMED and file != "__init__.py"
        return self.path if is_room or self.path in OWN_ROOMS else folder

    @property
    def num_lines(self) -> int:
        """Lines of text."""
        return self.text.count("\n")

    def imported(self) -> Iterator[tuple[str, str]]:
        """(module, name) of every import, wherever it stands; name "" for a whole module."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield from ((node.module, alias.name) for alias in node.names)

    def functions(self) -> Iterator[tuple[str, int]]:
        """(name, lines without the docstring) of every function and method."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                last = node.end_lineno or node.lineno
                yield node.name, last - node.lineno + 1 - len(docstring.splitlines())


@cache
def modules() -> tuple[Module, ...]:
    """Every file of the product."""
    paths = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))
    return tuple(_read(path) for path in paths)


def _read(path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    return Module(path.relative_to(ROOT).as_posix(), text, ast.parse(text))


@cache
def files() -> Graph:
    """Each file and the files of ours that it imports."""
    by_name = {module.name: module.path for module in modules()}
    return {
        module.path: frozenset(
            found
            for name, part in module.imported()
            if (found := by_name.get(f"{name}.{part}") or by_name.get(name)) is not None
        )
        - {module.path}
        for module in modules()
    }


def rooms() -> Graph:
    """Each folder and the other folders that its files import."""
    room = {module.path: module.room for module in modules()}
    found: dict[str, set[str]] = defaultdict(set)
    for path, targets in files().items():
        found[room[path]] |= {room[target] for target in targets} - {room[path]}
    return {name: frozenset(targets) for name, targets in found.items()}


def circles(graph: Graph) -> list[str]:
    """Nodes from which a way leads back to themselves."""
    return sorted(node for node in graph if node in reachable(graph, node))


def reachable(graph: Graph, start: str) -> set[str]:
    """All that can be reached from a node by one arrow or more."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def private_imports() -> list[str]:
    """`file imports _name of module`, for each name that is private to another file."""
    ours = tuple(f"{package}." for package in PACKAGES)
    return [
        f"{module.path} imports {part} of {name}"
        for module in modules()
        for name, part in module.imported()
        if name.startswith(ours) and part.startswith("_") and not part.startswith("__")
    ]


def repeated_classes() -> list[str]:
    """Names that stand for a class in more than one file."""
    names = Counter(
        node.name
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef)
    )
    return sorted(name for name, count in names.items() if count > 1)


def repeated_modules() -> list[str]:
    """File names that occur twice in a package.

    Not counted: small and large studies of the catalogue, verbs named after what they call.
    """
    names = Counter(
        (module.path.split("/")[0], Path(module.path).stem)
        for module in modules()
        if not any(part in module.path for part in ("catalog/", "/cli/", "__init__.py"))
    )
    return sorted(f"{package}: {name}" for (package, name), count in names.items() if count > 1)


@dataclass(frozen=True)
class Bar:
    """A figure of the house and the most that it may be."""

    what: str
    found: float
    most: float

    @property
    def holds(self) -> bool:
        """Whether it is met."""
        return self.found <= self.most


def bars() -> tuple[Bar, ...]:
    """The figures that are kept."""
    lines = [module.num_lines for module in modules()]
    functions = sorted(size for module in modules() for _, size in module.functions())
    folders = Counter(
        module.room
        for module in modules()
        if not module.path.endswith("__init__.py") and not module.room.startswith("studies/catalog")
    )
    text = "".join(module.text for module in modules())
    tests = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py"))
    switch = "# fmt: " + "skip"
    return (
        Bar("files in import circles", len(circles(files())), 0),
        Bar("folders in import circles", len(circles(rooms())), 0),
        Bar("private names imported across files", len(private_imports()), 0),
        Bar("classes that share a name", len(repeated_classes()), 0),
        Bar("file names that occur twice in a package", len(repeated_modules()), 0),
        Bar("files in the fullest folder", max(folders.values()), 14),
        Bar("lines of a file, median", statistics.median(lines), 150),
        Bar("lines of a file, most", max(lines), 500),
        Bar("lines of a function, nine in ten", functions[int(0.9 * len(functions))], 20),
        Bar("lines of a function, most", functions[-1], 60),
        Bar(f"`{switch}` in the product", text.count(switch), 0),
        Bar(f"`{switch}` in the tests", tests.count(switch), 0),
        Bar("`dict[str, Any]` in the product", text.count("dict[str, Any]"), 99),
        Bar("`Any` in the product", len(re.findall(r"\bAny\b", text)), 349),
    )


def aims() -> tuple[Bar, ...]:
    """Figures that are to be reached, and are not kept yet."""
    return (Bar("lines of the product", sum(module.num_lines for module in modules()), 37_000),)
