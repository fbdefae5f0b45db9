"""Print how long the command takes to answer: --help, a plan, a plan of 10,000 cells.

Run: make bench-cli
Bars: --help <= 0.3 s, plan quickstart <= 0.8 s, plan of 10,000 cells <= 5 s.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LARGE = """
from dataclasses import replace
from studies.catalog.paper_size_by_duration import cell
from studies.spec import Study

def study():
    cells = tuple(replace(cell(size, 100 + e, seed=s), address=f"{size}/e{e}/s{s}")
                  for size in "BL" for e in range(50) for s in range(100))
    return Study(name="large", question="how fast is plan?", cells=cells)
"""


def median_s(*arguments: str, runs: int = 5) -> float:
    """Wall seconds of the whole process, median."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])  # the first one warms the file cache


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        study, store = Path(folder) / "large.py", str(Path(folder) / "store")
        study.write_text(LARGE)
        figures = {
            "--help, s (bar 0.3)": median_s("--help"),
            "plan quickstart, s (bar 0.8)": median_s("plan", "quickstart", "--store", store),
            "plan of 10,000 cells, 40,000 stages, s (bar 5)": median_s(
                "plan", str(study), "--store", store, runs=3
            ),
        }
    print(json.dumps({k: round(v, 2) for k, v in figures.items()}, indent=1))


if __name__ == "__main__":
    main()
