"""Small checkpoints made by code, and ways to damage them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mae_core.checkpoint import manifest
from mae_core.checkpoint.commit import Checkpoints, Found, Saved
from mae_core.checkpoint.manifest import GangLayout, Manifest
from mae_core.runtime.storage import LocalStorage, Storage

LAYOUT = GangLayout(1, 2, 8, 1, "fp32", 1, "cpu", {"torch": "2"})


def open_checkpoints(
    storage: Storage,
    *,
    attempt: int = 1,
    keep: int = 2,
    is_over: Callable[[], bool] = lambda: False,
) -> Checkpoints:
    """Checkpoints of one run in one process."""
    return Checkpoints(
        storage, science_hash="run", attempt=attempt, keep=keep, types=(), is_over=is_over
    )


def facts_of(checkpoints: Checkpoints, step: int) -> Manifest:
    """What a checkpoint says of itself."""
    position = {"images_seen": step}
    return Manifest(step, "run", checkpoints.attempt, LAYOUT, position, "0" * 32, 1.0)


def state(step: int, size: int = 2000) -> dict[str, Any]:
    """Four files with tensors that depend on the step."""
    generator = torch.Generator().manual_seed(step)
    return {
        f"shards/part-{i}.pt": {"weights": torch.randn(size, generator=generator), "step": step}
        for i in range(4)
    }


def save(checkpoints: Checkpoints, step: int, files: dict[str, Any] | None = None) -> Saved | str:
    """Save one checkpoint; return why not, if there was no room."""
    problem = checkpoints.begin(facts_of(checkpoints, step), checkpoints.copy(files or state(step)))
    return problem or checkpoints.commit()


def loaded(checkpoints: Checkpoints, found: Found) -> dict[str, Any]:
    """Read all of a checkpoint back."""
    from mae_core.checkpoint.shards import read_shard

    return {n: read_shard(checkpoints.verified(found, n), n) for n in found.manifest.files}


def is_whole(storage: Storage) -> int | None:
    """Step of the checkpoint that a reader finds, whose content is what was saved; else None."""
    checkpoints = open_checkpoints(storage, attempt=99)
    found = checkpoints.find()
    checkpoints.close()
    if found is None:
        return None
    expected = state(found.manifest.step)
    for name, tree in loaded(checkpoints, found).items():
        assert torch.equal(tree["weights"], expected[name]["weights"]), name
    return found.manifest.step


def make(root: Path, steps: tuple[int, ...] = (1, 2)) -> LocalStorage:
    """A directory with a checkpoint per step."""
    storage = LocalStorage(root)
    checkpoints = open_checkpoints(storage)
    for step in steps:
        saved = save(checkpoints, step)
        assert isinstance(saved, Saved) and saved.problem is None
    checkpoints.close()
    return storage


def flip(directory: Path, draw: random.Random) -> str:
    """Flip one bit of one file."""
    path = _any(directory, draw)
    content = bytearray(path.read_bytes())
    position = draw.randrange(len(content))
    content[position] ^= 1 << draw.randrange(8)
    path.write_bytes(bytes(content))
    return f"flip {path.name}:{position}"


def truncate(directory: Path, draw: random.Random) -> str:
    """Cut a file off, or leave nothing of it."""
    path = _any(directory, draw)
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])
    return f"truncate {path.name}"


def remove(directory: Path, draw: random.Random) -> str:
    """Remove a file."""
    path = _any(directory, draw)
    path.unlink()
    return f"remove {path.name}"


def swap(directory: Path, draw: random.Random) -> str:
    """Exchange the contents of two files."""
    files = sorted(p for p in directory.rglob("*") if p.is_file())
    first, second = draw.sample(files, 2)
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    return f"swap {first.name} and {second.name}" if a != b else ""


def stale(directory: Path, draw: random.Random) -> str:
    """Put in a file of the checkpoint before."""
    older = sorted(directory.parent.glob("step-*"))[0]
    path = _any(directory, draw)
    content = (older / path.relative_to(directory)).read_bytes()
    changed = content != path.read_bytes()
    path.write_bytes(content)
    return f"stale {path.name}" if changed else ""


DAMAGES: tuple[Callable[[Path, random.Random], str], ...] = (flip, truncate, remove, swap, stale)


def _any(directory: Path, draw: random.Random) -> Path:
    return draw.choice(sorted(p for p in directory.rglob("*") if p.is_file()))


class Canary:
    """Unpickling it writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (open, (self.path, "w"))


def count_points(root: Path) -> list[str]:
    """Fault points of a third save, which drops the first."""
    points: list[str] = []
    storage = LocalStorage(root, points.append)
    assert isinstance(save(open_checkpoints(storage), 3), Saved)
    return points


def crash_at(root: Path, number: int, attempt: int = 1) -> None:
    """Save a third checkpoint in a child process that dies at the fault point `number`."""
    child = os.fork()
    if child == 0:
        passed: list[str] = []

        def die(name: str) -> None:
            passed.append(name)
            if len(passed) > number:
                os._exit(42)

        checkpoints = open_checkpoints(LocalStorage(root, die), attempt=attempt)
        save(checkpoints, 3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 42


HOSTILE_NAMES = ["../../outside", "/etc/hostname", "a\0b", "x" * 300, "", ".", "a//b", "..", "a\\b"]


def sign(path: Path, raw: dict[str, Any]) -> None:
    """Write a manifest whose own digest is right, whatever it says."""
    raw.pop("digest", None)
    path.write_bytes(manifest._encode(raw | {"digest": manifest._digest(raw)}))
