"""The reliability run: sections that can be run alone, and the document made of their figures.

`python tests/reliability/run.py [SECTION ...]` runs them (all without a name) and writes
`docs/reliability.md` from the newest figures of each. Every section prints its seed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
FIGURES = ROOT / "docs" / "reliability"
DOCUMENT = ROOT / "docs" / "reliability.md"
LIMIT_S = 2 * 3600

SECTIONS: dict[str, str] = {
    "kills": "kills.py",
    "parts": "parts.py",
    "failpoints": "failpoints.py",
    "corruption": "corruption.py",
    "damage": "damage.py",
    "disk": "disk.py",
    "elastic": "elastic.py",
    "preemption": "preemption.py",
    "drivers": "drivers.py",
    "sweeps": "sweeps.py",
    "hangs": "hangs.py",
    "calm": "calm.py",
    "numerics": "numerics.py",
    "tracking": "tracking.py",
    "stall": "stall.py",
    "goodput": "goodput.py",
    "hostile": "hostile.py",
}


def main() -> int:
    """Run, then write the document; exit status 1 if any bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=", ".join(SECTIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--render", action="store_true", help="only write the document")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section {unknown.pop()!r}; known: {', '.join(SECTIONS)}")
    missed = []
    if not options.render:
        missed = [n for n in options.sections or SECTIONS if run(n, options.seed) != 0]
    DOCUMENT.write_text(render())
    print(f"figures in {DOCUMENT}" + (f"; not all bars met: {', '.join(missed)}" if missed else ""))
    return 1 if missed else 0


def run(name: str, seed: int) -> int:
    """Run one section in a process of its own."""
    print(f"{name} (seed {seed})", flush=True)
    paths = [str(HERE.parent), str(HERE), str(ROOT), os.environ.get("PYTHONPATH")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    command = [sys.executable, str(HERE / SECTIONS[name]), "--seed", str(seed)]
    command += ["--json", str(FIGURES / f"{name}.json")]
    began = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=ROOT, timeout=LIMIT_S, check=False)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    return done.returncode


def render() -> str:
    """The document: a table per section."""
    parts = [HEAD]
    for name in SECTIONS:
        path = FIGURES / f"{name}.json"
        if path.exists():
            parts.append(table(json.loads(path.read_text())))
        else:
            parts.append(f"## {name}\n\nNot measured yet: `make reliability SECTIONS={name}`.\n")
    return "\n".join(parts)


def table(section: dict[str, Any]) -> str:
    """One section as Markdown."""
    lines = [
        f"## {section['title']}",
        "",
        f"`make reliability SECTIONS={section['name']}` · seed {section['seed']} · "
        f"{section['date']} · {section['seconds']:.0f} s · {section['machine']}",
        "",
        "| figure | measured | bar | |",
        "|---|---|---|---|",
    ]
    marks = {True: "met", False: "**missed**", None: ""}
    for figure in section["figures"]:
        cells = (figure["name"], figure["value"], figure["bar"], marks[figure["met"]])
        lines.append("| " + " | ".join(str(c).replace("|", "/") for c in cells) + " |")
    return "\n".join([*lines, ""])


HEAD = """# Reliability, measured

Each section is a command that causes real failures and counts what was lost. A seed makes them
repeatable. Times are of a shared machine and vary; counts do not.
"""

if __name__ == "__main__":
    sys.exit(main())
