"""Rules that keep the walls where they are: floors of rooms, homes of heavy libraries, sizes."""

from __future__ import annotations

import subprocess
import sys

from support.house import ROOT, bars, circles, files, modules, repeated_classes, rooms

FLOORS = {
    "orchestrator": (
        "cli",
        "drill.py",
        "run.py",
        "tracking",
        "drive",
        "verify",
        "rank report weights",
        "plan",
        "sweep",
        "store",
        "errors.py",
    ),
    "studies": (
        "load.py",
        "catalog/small",
        "catalog/paper",
        "catalog",
        "analysis/report",
        "analysis/figures",
        "analysis/curves",
        "analysis/laws analysis/sweeps analysis/goodput",
        "analysis",
        "spec",
        "reference",
        "json_text.py result_row.py",
        "errors.py",
    ),
    "mae_core": (
        "pretrain evaluate/probes",
        "evaluate",
        "train weights",
        "checkpoint",
        "model",
        "data corruptions",
        "augment",
        "config runtime",
        "errors.py",
    ),
    "cluster": (".", "embedded", "ranks process_identity.py", "errors.py"),
}
"""Rooms of each package, top floor first. A room imports only from floors below its own."""
MAY_IMPORT = {
    "orchestrator": ("mae_core", "studies", "cluster"),
    "studies": ("mae_core",),
    "mae_core": (),
    "cluster": (),
}
LIGHT = (
    "mae_core/config/",
    "mae_core/errors.py",
    "mae_core/model/flops.py",
    "mae_core/model/sizes.py",
    "mae_core/runtime/plugins.py",
)
"""What studies may import of mae_core: nothing that needs torch."""
HOMES = {
    "deepspeed": ("mae_core/train/deepspeed_engine.py", "mae_core/checkpoint/universal.py"),
    "mlflow": ("orchestrator/tracking/mlflow_",),
    "optuna": ("orchestrator/sweep/optuna_driver.py",),
    "ray": ("cluster/",),
}


def test_rooms_import_only_from_the_floors_below() -> None:
    level = {
        f"{package}/{name}".removesuffix("/."): number
        for package, floors in FLOORS.items()
        for number, floor in enumerate(floors)
        for name in floor.split()
    }
    empty = {package for package in FLOORS if package not in level}  # only a docstring at the top
    up = [
        f"{room} imports {target}"
        for room, targets in rooms().items()
        for target in targets
        if room.split("/")[0] == target.split("/")[0] and level[room] >= level[target]
    ]
    assert up == []
    assert set(rooms()) - empty == set(level), "declare a new room in FLOORS"


def test_packages_import_only_what_is_below_them() -> None:
    for path, targets in files().items():
        package = path.split("/")[0]
        for target in targets:
            other = target.split("/")[0]
            assert other in (package, *MAY_IMPORT[package]), f"{path} imports {target}"
            if package == "studies" and other == "mae_core":
                assert target.startswith(LIGHT), f"{path} imports {target}, which is not light"
    assert circles(files()) == []


def test_heavy_libraries_have_one_home() -> None:
    for module in modules():
        for name, _ in module.imported():
            homes = HOMES.get(name.partition(".")[0])
            assert homes is None or module.path.startswith(homes), f"{module.path} imports {name}"


def test_what_a_stage_left_is_read_through_one_door() -> None:
    """`orchestrator.store.kept_files` compares digests; others may write there or pass them on."""
    free = {
        "orchestrator/store/records.py",  # makes the directory
        "orchestrator/drive/orphans.py",  # compares all with what rank 0 left of them
        "orchestrator/rank/payload.py",  # hands path and digest to the ranks, which compare
        "orchestrator/weights/adopt.py",  # fills it
        "orchestrator/plan/rows.py",  # names it in the results table
    }
    assert {m.path for m in modules() if ".outputs(" in m.text} <= free
    inner = ("orchestrator/store/", "orchestrator/verify/")
    keyed = {m.path for m in modules() if "adopted_key(" in m.text or "stage_key(" in m.text}
    assert {path for path in keyed if not path.startswith(inner)} == {
        "orchestrator/drive/adopted_stages.py",  # only looks whether there is one
        "orchestrator/weights/adopt.py",
    }


def test_the_bars_of_the_house_are_met() -> None:
    missed = [f"{bar.what}: {bar.found:g}, at most {bar.most:g}" for bar in bars() if not bar.holds]
    assert missed == [], f"see `make bars`; classes that share a name: {repeated_classes()}"


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
    texts = [p for p in ROOT.rglob("*.md") if ".venv" not in p.parts]
    assert [str(p) for p in texts if "shared/" in p.read_text()] == []
    assert [m.path for m in modules() if "shared/" in m.text] == []
