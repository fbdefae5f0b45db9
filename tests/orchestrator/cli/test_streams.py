"""Output that nobody can read, and output that finds no room."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.streams import ERRORS, Outlet, secure_streams

RUN = f"{sys.executable} -m orchestrator.cli.main"
ROOM = "mae-study: standard output cannot be written (no space left on device)"


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (f"{RUN} list >&-", 0, ""),
        (f"{RUN} list <&- >&- 2>&-", 0, ""),
        (f"{RUN} list | true", 0, ""),
        (f"{RUN} plan quickstart --all | head -1", 0, ""),
        (f"{RUN} list 2>/dev/full >/dev/full", 2, ""),
        (f"{RUN} --help >/dev/full", 2, ROOM),
        (f"{RUN} plan quickstart --json >/dev/full", 2, ROOM),
        (f"PYTHONUNBUFFERED=1 {RUN} list >/dev/full", 2, ROOM),
        (f"{RUN} plan nothing 2>&- >&-", 2, ""),
        (f"{RUN} nothing 2>/dev/full", 2, ""),
    ],
)
def test_no_stream_fails_a_verb(tmp_path: Path, line: str, code: int, said: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MAE_STUDY_STORE": str(tmp_path / "store")},
    )
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if "note: no store" not in line]
    assert "".join(lines).startswith(said) and bool(lines) == bool(said)


def test_a_reader_that_left_is_no_loss_and_a_full_disk_is_one() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    outlet = Outlet(writing)
    assert outlet.write(b"text") == 4 and outlet.lost is None
    os.close(writing)
    with open("/dev/full", "wb") as full:
        outlet = Outlet(full.fileno())
        assert outlet.write(b"text") == 4
        assert outlet.lost is not None and outlet.lost.strerror == "No space left on device"


def test_a_stream_that_does_not_wait_gets_all(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    content = os.urandom(1 << 20)
    (tmp_path / "got").touch()
    reader = subprocess.Popen(["cat"], stdin=reading, stdout=(tmp_path / "got").open("wb"))
    assert Outlet(writing).write(content) == len(content)
    os.close(writing)
    os.close(reading)
    assert reader.wait() == 0 and (tmp_path / "got").read_bytes() == content


def test_narrow_consoles_show_plain_characters() -> None:
    secure_streams()
    stream = io.BytesIO()
    text = io.TextIOWrapper(stream, encoding="ascii", errors=ERRORS, write_through=True)
    text.write("1 − 2 ± 3 → 4 ≤ 5, 6×7, é 漢 \udcff")
    assert stream.getvalue() == b"1 - 2 +- 3 -> 4 <= 5, 6*7, \\xe9 \\u6f22 \\udcff"
