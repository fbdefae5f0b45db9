"""Documentation says what is true: names, paths, links, verbs and options in it exist."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import click
import pytest

from orchestrator.cli.main import main
from studies.spec import Study

ROOT = Path(__file__).resolve().parent.parent
PAGES = (*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
CHANGELOG = ROOT / "CHANGELOG.md"
PACKAGES = "mae_core|studies|cluster|orchestrator"


def page(path: Path) -> str:
    return path.read_text()


def code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def top_level_names(module: str) -> set[str]:
    path = ROOT.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


def exists(dotted: str) -> bool:
    """A module of ours, or a name at the top of one."""
    module, _, name = dotted.rpartition(".")
    return is_module(dotted) or (is_module(module) and name in top_level_names(module))


def heading_anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", (*PAGES, CHANGELOG), ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page(path)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / name if name else path
        assert linked.exists(), target
        if anchor:
            assert anchor in heading_anchors(page(linked)), target


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_modules_and_files_exist(path: Path) -> None:
    text = page(path)
    dotted = re.findall(rf"(?<![\w./-])((?:{PACKAGES})(?:\.[A-Za-z_]\w*)+)(?![\w/])", text)
    missing = {name for name in dotted if not name.endswith((".py", ".md")) and not exists(name)}
    files = re.findall(rf"(?<![\w./-])((?:{PACKAGES}|tests|docs)/[\w./-]*\w)", text)
    missing |= {
        name for name in files if not re.search("[A-Z]{3}", name) and not (ROOT / name).exists()
    }
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_examples_import_what_there_is(path: Path) -> None:
    for block in code_blocks(page(path), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and re.match(PACKAGES, node.module or ""):
                for alias in node.names:
                    assert exists(f"{node.module}.{alias.name}"), ast.unparse(node)


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_example_studies_are_studies(path: Path, tmp_path: Path) -> None:
    for number, block in enumerate(code_blocks(page(path), "python")):
        if "def study()" in block:
            file = tmp_path / f"study{number}.py"
            file.write_text(block)
            assert isinstance(runpy.run_path(str(file))["study"](), Study)


def verbs(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= verbs(command, f"{prefix}{name} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found[f"{prefix}{name}"] = command
    return found


def test_every_verb_is_documented_and_exists() -> None:
    named = set()
    for row in re.findall(r"^\| `([^`]+)` \|", page(ROOT / "docs" / "cli.md"), re.MULTILINE):
        named.add(" ".join(re.findall(r"(?<![\w/.\[-])[a-z]+\b(?![./])", row)))
    assert named == set(verbs(main))


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_options_and_commands_exist(path: Path) -> None:
    known = verbs(main)
    options = {o for command in [main, *known.values()] for p in command.params for o in p.opts} | {
        "--help"
    }
    text = page(path)
    ours = re.sub(r"(?<=`)(?:torchrun|python|pip|ruff|mypy)[^`]*", "", text)
    named = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", ours))
    assert named <= options | {"--app-name"}
    for verb in re.findall(r"(?:`|^|\$ )mae-study ([a-z]+(?: [a-z]+)?)", text, re.MULTILINE):
        assert verb in known or verb.split()[0] in known, verb


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", page(ROOT / "Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z][\w-]*[a-z])", page(path), re.MULTILINE))
    assert named - {"bench"} <= targets


def test_the_picture_of_the_rooms_is_current() -> None:
    """`make docs-picture` draws it from the imports."""
    drawn = runpy.run_path(str(ROOT / "docs" / "draw_rooms.py"))["draw"]()
    assert (ROOT / "docs" / "rooms.svg").read_text() == drawn


def test_every_room_has_its_line() -> None:
    rooms = runpy.run_path(str(ROOT / "docs" / "draw_rooms.py"))["read_rooms"]()
    text = page(ROOT / "docs" / "architecture.md")
    for room in rooms:
        top = "studies/analysis" if room.startswith("studies/analysis") else room
        assert f"`{top}`" in text, room
