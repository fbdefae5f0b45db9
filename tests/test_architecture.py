"""Rules that keep the walls where they are: import arrows, homes of heavy libraries, sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mae_core", "studies", "cluster", "orchestrator")
MAY_IMPORT = {
    "mae_core": set(),
    "cluster": set(),
    "studies": {"mae_core"},
    "orchestrator": {"mae_core", "studies", "cluster"},
}
LIGHT_MAE_CORE = {
    "mae_core.config",
    "mae_core.config.augmentation",
    "mae_core.errors",
    "mae_core.runtime.plugins",
    "mae_core.model.sizes",
    "mae_core.model.flops",
    "mae_core",
}
HOMES = {
    "deepspeed": ("mae_core/train/deepspeed_engine.py", "mae_core/checkpoint/universal.py"),
    "mlflow": (
        "orchestrator/tracking/mlflow_database.py",
        "orchestrator/tracking/mlflow_runs.py",
        "orchestrator/tracking/mlflow_models.py",
    ),
    "optuna": ("orchestrator/sweep/optuna_driver.py",),
    "ray": ("cluster/",),
}
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60


def sources(*packages: str) -> list[Path]:
    return sorted(p for name in packages for p in (ROOT / name).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            folder = ROOT / node.module.replace(".", "/")
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").is_file()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        top = name.partition(".")[0]
        if top in PACKAGES and top != package:
            assert top in MAY_IMPORT[package], f"{path} imports {name}"
            if package == "studies":
                assert name in LIGHT_MAE_CORE, f"{path} imports {name}, which is not light"


@pytest.mark.parametrize("library", HOMES)
def test_heavy_libraries_have_one_home(library: str) -> None:
    for path in sources(*PACKAGES):
        if any(n.partition(".")[0] == library for n in imports(path)):
            where = str(path.relative_to(ROOT))
            assert where.startswith(HOMES[library]), f"{where} imports {library}"


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            lines = node.end_lineno - node.lineno + 1 - len(docstring.splitlines())  # type: ignore[operator]
            assert lines <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {lines} lines"


def test_command_line_and_studies_import_nothing_heavy() -> None:
    program = (
        "import sys, orchestrator.cli.main, orchestrator.plan.plan, studies.load\n"
        "import studies.catalog.quickstart\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'deepspeed', 'pandas', 'pyarrow', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_the_product_speaks_of_itself_alone() -> None:
    files = [p for p in ROOT.rglob("*.md") if ".venv" not in p.parts] + sources(*PACKAGES)
    for path in files:
        assert "shared/" not in path.read_text(), path
