"""Print how long the report of a 200-cell study takes, and how large its page is.

Run: make bench-report
The study is made up: 5 sizes x 5 durations x 4 seeds, and 100 cells of a mask-ratio ablation, each
with k-NN, linear probe, fine-tune and reconstruction loss. Bars: 15 s on one core, 10 MB.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from support.made_up_study import rows

from studies.analysis.laws.by_protocol import study_laws
from studies.analysis.report.meta import ReportMeta
from studies.analysis.report.page import write_report


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="write the report here and leave it")
    keep = parser.parse_args().keep
    results = rows()
    began, cpu = time.perf_counter(), time.process_time()
    meta = ReportMeta(
        study="made-up",
        question="How fast is a report?",
        command="make bench-report",
        created_at="2026-01-01T00:00:00Z",
        laws=study_laws(results, top=99.9),
    )
    with tempfile.TemporaryDirectory() as scratch:
        files = write_report(results, meta=meta, gallery=(), directory=keep or Path(scratch))
        size = files.html.stat().st_size / 1e6
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    cells = len({row.cell for row in results})
    print(f"report of {cells} cells, {len(results)} rows, {len(files.figures)} figures")
    print(f"  {wall:.1f} s wall, {cpu:.1f} s of CPU (bar: 15)  {'ok' if cpu <= 15 else 'MISS'}")
    print(f"  page {size:.2f} MB (bar: 10)  {'ok' if size <= 10 else 'MISS'}")


if __name__ == "__main__":
    main()
