"""A training that diverges: the configured policy, recorded, and nothing poisoned kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from figures import Section, arguments

from mae_core.checkpoint.commit import Checkpoints
from mae_core.runtime.storage import LocalStorage
from mae_core.train.deepspeed_engine import safe_types

STUDY = """
from dataclasses import replace
from mae_core.config import Execution
from studies.catalog import quickstart as base
from studies.spec import Cell, Study


def study():
    stage = base.pretrain("N1", 12, 0)
    recipe = replace(stage.recipe, optimizer=replace(stage.recipe.optimizer, base_lr=LR))
    execution = Execution(world_size=2, loader_threads=0, checkpoint_every_steps=5,
                          snapshot="blocking", EXECUTION)
    cell = Cell(address="wild", stages=(replace(stage, recipe=recipe, execution=execution),))
    return Study(name="wild", question="what if it diverges?", cells=(cell,))
"""
CASES = [
    ("NaN, policy stop", "1e30", 'on_numerics="stop"', 1),
    ("NaN, policy rollback, twice at most", "1e30", "numerics_retries=2", 3),
    ("spike, policy rollback, once at most", "4e-3", "spike_factor=1.0001, numerics_retries=1", 2),
]


def main() -> int:
    """One study per case, by the command line."""
    options = arguments(__doc__)
    section = Section("numerics", "Divergence", options.seed)
    for title, lr, execution, attempts in CASES:
        with tempfile.TemporaryDirectory() as name:
            found = case(Path(name), lr, execution)
        section.figure(f"{title}: exit code", found["code"], "4", found["code"] == 4)
        ends, wanted = found["ends"], ["numerics"] * attempts
        section.figure(f"{title}: ends of the attempts", ends, f"{wanted}", ends == wanted)
        section.figure(f"{title}: decisions recorded", "; ".join(found["decisions"]))
        poisoned = f"0 of {found['whole']}" if found["finite"] else "some"
        name = f"{title}: checkpoints with a loss that is not finite"
        section.figure(name, poisoned, "0", found["finite"])
    return section.finish(options.json)


def case(folder: Path, lr: str, execution: str) -> dict[str, Any]:
    """Run it; read the records."""
    text = STUDY.replace("LR))", f"{lr}))").replace("EXECUTION", execution)
    (folder / "wild.py").write_text(text)
    run = [
        sys.executable,
        "-m",
        "orchestrator.cli.main",
        "run",
        str(folder / "wild.py"),
        "--store",
        str(folder / "store"),
        "--no-report",
        "--quiet",
    ]
    done = subprocess.run(run, check=False, timeout=300, env=dict(os.environ))
    store = folder / "store"
    ends = [json.loads(p.read_text()) for p in sorted(store.glob("stages/*/*/ends/*.json"))]
    decided = [json.loads(p.read_text()) for p in sorted(store.glob("stages/*/*/decisions/*"))]
    manifests = list(store.glob("stages/*/*/checkpoints/*/manifest.json"))
    losses = [json.loads(p.read_text())["probe_loss"] for p in manifests]
    for path in manifests[:1]:
        checkpoints = Checkpoints(
            LocalStorage(path.parent.parent),
            keep=2,
            attempt=9,
            science_hash=path.parts[-4],
            types=safe_types(),
        )
        assert checkpoints.find() is not None
        checkpoints.close()
    return {
        "code": done.returncode,
        "ends": [e["cause"] for e in ends],
        "decisions": [f"{d['decision']} ({d['reason']})" for d in decided],
        "whole": len(manifests),
        "finite": all(abs(x) < float("inf") for x in losses),
    }


if __name__ == "__main__":
    sys.exit(main())
