"""Checkpoints, names and studies made to do harm: is anything of them ever run or followed?"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from figures import Section, arguments
from support.checkpoint_cases import HOSTILE_NAMES, Canary, sign
from support.gangs import attempt, train

from cluster.connect import connect
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape
from mae_core.checkpoint.manifest import MANIFEST
from mae_core.errors import MaeCoreError
from orchestrator.errors import UserError
from orchestrator.store.driver import LocalStore
from studies.errors import StudyError
from studies.spec.cell import check_address


def main() -> int:
    """Resume a real 2-rank training from hostile files; ask for hostile names."""
    options = arguments(__doc__)
    section = Section("hostile", "Hostile checkpoints and names", options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder, canary = Path(name), Path(name) / "canary"
        with (
            connect(num_cpus=2) as capacity,
            SlotPool("hostile", 2, capacity, shape=slot_shape(capacity)) as pool,
        ):
            for _ in range(2):
                train(pool, folder / "original", 2, zero=2, stop_at=4)
            cases = checkpoints(pool, folder, canary)
        refused = sum(cases.values())
        section.figure(
            "hostile checkpoints",
            f"{len(cases)}: a pickle with a side effect in each shard, its digest made right or "
            "not; names and links that lead outside",
        )
        section.figure(
            "refused, previous checkpoint used",
            f"{refused} of {len(cases)}",
            "all",
            refused == len(cases),
        )
        names = hostile_names(folder)
        section.figure(
            "hostile names of cells, studies and store keys refused",
            f"{sum(names)} of {len(names)}",
            "all",
            all(names),
        )
        section.figure(
            "canary file",
            "appeared" if canary.exists() else "never appeared",
            "never",
            not canary.exists(),
        )
    return section.finish(options.json)


def checkpoints(pool: SlotPool, folder: Path, canary: Path) -> dict[str, bool]:
    """Case → whether the resume went on from the older checkpoint."""
    original = folder / "original" / "checkpoints"
    newer = sorted(p.name for p in original.iterdir())[1]
    shards = sorted(str(p.relative_to(original / newer)) for p in (original / newer).rglob("*.pt"))
    cases = {}
    for shard in shards:
        for is_signed in (True, False):
            target = copy(folder, original)
            torch.save({"module": Canary(str(canary))}, target / newer / shard)
            if is_signed:
                resign(target / newer)
            kind = "signed" if is_signed else "plain"
            cases[f"{shard} {kind}"] = resumes_from_older(pool, folder)
    for name in HOSTILE_NAMES:
        target = copy(folder, original)
        raw = json.loads((target / newer / MANIFEST).read_text())
        raw["files"][name] = {"size": 1, "sha256": "0" * 64, "rank": 0}
        sign(target / newer / MANIFEST, raw)
        cases[f"name {name[:20]!r}"] = resumes_from_older(pool, folder)
    for what in (Path(newer), Path(newer) / "shards", Path(newer) / shards[0]):
        target = copy(folder, original)
        outside = folder / "outside"
        shutil.rmtree(outside, ignore_errors=True)
        shutil.move(target / what, outside)
        (target / what).symlink_to(outside)
        cases[f"link {what.name}"] = resumes_from_older(pool, folder)
        outside.unlink() if outside.is_file() else None
    return cases


def copy(folder: Path, original: Path) -> Path:
    """A fresh copy of the checkpoints to spoil."""
    target = folder / "run" / "checkpoints"
    shutil.rmtree(folder / "run", ignore_errors=True)
    shutil.copytree(original, target)
    return target


def resumes_from_older(pool: SlotPool, folder: Path) -> bool:
    """True if a real gang goes on from step 4, not from the spoiled step 8."""
    found = attempt(pool, folder / "run", 2, zero=2)
    return found is not None and found["metrics"]["resumed_from"] == 4


def resign(directory: Path) -> None:
    """Make the manifest true again, as an attacker who can write would."""
    raw = json.loads((directory / MANIFEST).read_text())
    for name in raw["files"]:
        content = (directory / name).read_bytes()
        sha = hashlib.sha256(content).hexdigest()
        raw["files"][name] |= {"size": len(content), "sha256": sha}
    sign(directory / MANIFEST, raw)


def hostile_names(folder: Path) -> list[bool]:
    """Whether each name is refused as an address and, if it leads outside, as a store key."""
    found = []
    for name in ("../x", "/abs", "a//b", "", "a\0b", "x" * 300, "..", "a/../../b", "a\nb"):
        found.append(raises(lambda name=name: check_address("cell", name)))
    store = LocalStore(folder / "store")
    for key in ("../x", "/etc/x", "a/../../x"):
        found.append(raises(lambda key=key: store.create(key, b"")))
    return found


def raises(action: object) -> bool:
    """True if it is refused with one of our own errors."""
    try:
        action()  # type: ignore[operator]
    except (UserError, StudyError, MaeCoreError):
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
