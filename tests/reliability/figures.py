"""What a section of the reliability run measures: figures with bars, printed and kept as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


@dataclass
class Figure:
    """One measured value, with its denominator in words."""

    name: str
    value: str
    bar: str = ""
    met: bool | None = None
    """None = a figure without a bar."""


@dataclass
class Section:
    """Collects the figures of one script."""

    name: str
    title: str
    seed: int = 0
    figures: list[Figure] = field(default_factory=list)
    began: float = field(default_factory=time.time)

    def figure(self, name: str, value: Any, bar: str = "", met: bool | None = None) -> None:
        """Print and keep a figure."""
        self.figures.append(Figure(name, str(value), bar, met))
        state = "" if met is None else "ok" if met else "MISSED"
        print(f"  {name}: {value}{f'  (bar: {bar})' if bar else ''}  {state}", flush=True)

    def finish(self, path: Path | None) -> int:
        """Write the JSON; exit status 1 if a bar is missed."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = asdict(self) | {
                "seconds": round(time.time() - self.began, 1),
                "date": time.strftime("%Y-%m-%d", time.gmtime(self.began)),
                "machine": machine(),
            }
            path.write_text(json.dumps(content, indent=1) + "\n")
        return 1 if any(f.met is False for f in self.figures) else 0


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or "CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{len(os.sched_getaffinity(0))} cores of {model}"


def arguments(description: str | None, **extra: Any) -> argparse.Namespace:
    """Options of every section: a seed, where the JSON goes, and the section's own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures there")
    for name, default in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()
