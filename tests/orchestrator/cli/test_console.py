"""What the command prints where the console or a name has other characters than UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ASCII = {"PYTHONIOENCODING": "ascii"}
POSIX = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LATIN = {"PYTHONIOENCODING": "latin-1"}
STRICT = {"PYTHONIOENCODING": "utf-8:strict"}


def printed(extra: dict[str, str], *arguments: str) -> bytes:
    """What the command prints; it must not fail."""
    command = [sys.executable, "-m", "orchestrator.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **extra})
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def tree(folder: Path) -> Path:
    """An image tree with a name that is no UTF-8."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            place = folder / split / name
            place.mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (40 * i, 10, 10)).save(place / f"{i}.png")
            Path(os.fsdecode(os.fsencode(place) + b"/bad\xff.png")).write_bytes(b"no image")
    return folder


@pytest.mark.parametrize("extra", [STRICT, ASCII, POSIX])
def test_a_name_that_is_no_utf8_is_escaped(tmp_path: Path, extra: dict[str, str]) -> None:
    source, out = tree(tmp_path / "images"), tmp_path / "out"
    text = printed(extra, "data", "import", str(source), str(out), "--json")
    assert text.isascii() and "bad\\udcff.png" in text.decode()
    assert any("bad\udcff.png" in one for one in _texts(json.loads(text)))
    assert "bad" in printed(extra, "data", "import", str(source), str(tmp_path / "two")).decode()


def _texts(value: object) -> list[str]:
    if isinstance(value, dict):
        return [t for below in value.values() for t in _texts(below)]
    if isinstance(value, list):
        return [t for below in value for t in _texts(below)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("extra", [ASCII, POSIX, LATIN])
def test_words_beyond_the_console_are_escaped(tmp_path: Path, extra: dict[str, str]) -> None:
    path = tmp_path / "odd.py"
    path.write_text(ODD, encoding="utf-8")
    text = printed(extra, "plan", str(path), "--store", str(tmp_path / "store"))
    assert b"second - first" in text and b"(\\u6f22)" in text
    printed(extra, "status", "--help")


ODD = """
from studies.catalog import quickstart as base
from studies.spec import Study
def study():
    return Study(name="odd", question="second − first (漢) ± 0.1?", cells=(base.pixels(0),))
"""
