"""Four kinds of hang, found and named by the tests' gangs."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from figures import Section, arguments

HANGS = Path(__file__).resolve().parents[1] / "cluster" / "test_gang_faults.py"


def main() -> int:
    """Run the hang tests and read what they found."""
    options = arguments(__doc__)
    section = Section("hangs", "Hangs", options.seed)
    with tempfile.TemporaryDirectory() as folder:
        hangs(section, Path(folder) / "junit.xml")
    return section.finish(options.json)


def hangs(section: Section, junit: Path) -> None:
    """A stopped process, a held interpreter lock, a stuck loader, a deadlocked collective."""
    run = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        str(HANGS),
        "-k",
        "hang_is_found",
        f"--junitxml={junit}",
        "-p",
        "no:cacheprovider",
    ]
    subprocess.run(run, check=False, timeout=600, stdout=subprocess.DEVNULL)
    cases = list(ElementTree.parse(junit).iter("testcase"))
    passed = [c for c in cases if c.find("failure") is None and c.find("error") is None]
    for case in passed:
        name = re.sub(r".*\[(\w+)-.*", r"\1", case.get("name", ""))
        values = {p.get("name"): p.get("value") for p in case.iter("property")}
        section.figure(name, f"found and named after {values.get('found_after_s')} s")
    section.figure(
        "hangs found within their limit + 10 s and named",
        f"{len(passed)} of {len(cases)}",
        "4 of 4",
        len(passed) == 4,
    )


if __name__ == "__main__":
    sys.exit(main())
