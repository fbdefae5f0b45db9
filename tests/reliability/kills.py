"""Random SIGKILLs of a 2-rank ZeRO-2 pretraining, by the controller's own recovery."""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from figures import Section, arguments

from orchestrator.drill import INTERVAL, Certificate, DrillOptions, run_drill

STOOD_BY_S = 4.5
"""An attempt that begins so soon found a warm process; survivors may take 3 s to end."""
MODES = (
    ("a warm spare stands by, survivors are kept", 1, "blocking", 3.0),
    ("a fresh process each time", 0, "blocking", 15.0),
)


def main() -> int:
    """The same kills by seed, once with a spare and once without."""
    options = arguments(__doc__, kills=50, background=10)
    section = Section("kills", "Random SIGKILLs of ranks", options.seed)
    for title, spares, snapshot, limit in MODES:
        found = drill(options.kills, options.seed, spares, snapshot)
        report(section, title, found)
        ready = [k.recovery_s for k in found.kills if not spares or k.waited_s < STOOD_BY_S]
        median = statistics.median(ready)
        section.figure(
            f"{title}: kill to the next finished step",
            f"{median:.1f} s median of the {len(ready)} kills",
            f"median <= {limit:g} s",
            median <= limit,
        )
        every = found.recovery_s
        section.figure(
            f"{title}: the same of all {len(every)} kills, warm spare or not",
            f"{statistics.median(every):.1f} s median, {max(every):.1f} s longest",
        )
        section.finish(options.json)  # a long section keeps what it has
    found = drill(options.background, options.seed + 1, 1, "background")
    report(section, "written in the background", found, strict=False)
    return section.finish(options.json)


def drill(kills: int, seed: int, spares: int, snapshot: str) -> Certificate:
    """Run one drill in a directory of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return run_drill(
            DrillOptions(
                store=Path(folder), kills=kills, seed=seed, spares=spares, snapshot=snapshot
            ),
        )


def report(section: Section, title: str, found: Certificate, *, strict: bool = True) -> None:
    """Exactness, lost work and metrics."""
    planned = found.options.kills
    points = ", ".join(f"{n} {p}" for p, n in sorted(found.to_json()["by_point"].items()))
    section.figure(
        f"{title}: kills",
        f"{len(found.kills)} of {planned} ({points})",
        "all",
        len(found.kills) == planned,
    )
    section.figure(
        f"{title}: weights, optimizer, RNG, next samples by hash",
        "identical" if found.is_exact else f"DIFFERENT: {found.differences}",
        "identical",
        found.is_exact,
    )
    within = sum(n <= INTERVAL + 1 for n in found.lost_steps)
    section.figure(
        f"{title}: steps lost per kill (interval {INTERVAL})",
        f"at most {max(found.lost_steps)}; {within} of {len(found.kills)} within interval + 1",
        f"<= {INTERVAL + 1}" if strict else "",
        max(found.lost_steps) <= INTERVAL + 1 if strict else None,
    )
    lost, doubled = found.metrics_lost, found.metrics_doubled
    section.figure(
        f"{title}: metrics in MLflow",
        f"{found.num_metrics} points, {lost} lost, "
        f"{doubled} doubled, {found.metrics_changed} changed",
        "0 lost, 0 doubled",
        lost + doubled + found.metrics_changed == 0,
    )
    shares = ", ".join(f"{k} {v:.1f} %" for k, v in found.goodput.items())
    total = sum(found.goodput.values())
    section.figure(
        f"{title}: goodput",
        f"{shares}; sum {total:.2f} %",
        "sum 100 +- 0.1",
        abs(total - 100) <= 0.1,
    )


if __name__ == "__main__":
    sys.exit(main())
