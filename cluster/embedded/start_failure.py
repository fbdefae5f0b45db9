"""Why an embedded Ray did not start: what is short, else what Ray itself says."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from cluster.embedded.preflight import ray_variables, resources

SCARCE = 3
"""Less than so many times what Ray needs may be too little while others start."""
LOG_BYTES = 64 << 10
LOG_LINES = 2
_SERIOUS = re.compile(r" [EC] \d+ \d+\] |terminate called|what\(\):|^\w*Error: ")
"""An error or worse in the logs of Ray's daemons, or the last line of a traceback."""


def why_not_started(error: Exception, logs: Path, ours: set[str]) -> str:
    """What keeps Ray from starting, for a person.

    Args:
        error: what Ray raised.
        logs: folder of Ray's logs.
        ours: variables of Ray that this program has set.
    """
    said = " ".join(str(error).split()) or repr(error)
    parts = [f"Ray says: {said[:600]}"]
    scarce = [str(found) for found in resources() if found.left < SCARCE * found.needed]
    if scarce:
        parts.insert(0, f"little is left of what it needs ({'; '.join(scarce)})")
    parts += [f"its log says: {line}" for line in _serious_lines(logs)]
    foreign = sorted(set(ray_variables()) - ours)
    if foreign:
        parts.append(f"the environment sets {', '.join(foreign)}; try without")
    return "; ".join(parts)


def _serious_lines(logs: Path) -> list[str]:
    found: list[str] = []
    for log in sorted(logs.glob("gcs_server*")) + sorted(logs.glob("raylet*")):
        with contextlib.suppress(OSError), log.open("rb") as file:
            text = file.read(LOG_BYTES).decode(errors="replace")
            found += [line[:300] for line in text.splitlines() if _SERIOUS.search(line)]
    return list(dict.fromkeys(found))[-LOG_LINES:]
