"""Die at every write, fsync, rename and delete of a save and its clean-up: what is found then?"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections import Counter
from pathlib import Path

from figures import Section, arguments
from support.checkpoint_cases import count_points, crash_at, is_whole, make


def main() -> int:
    """One process per fault point, which ends itself there."""
    options = arguments(__doc__)
    section = Section("failpoints", "A crash at every fault point of a save", options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root / "counted")
        points = count_points(root / "counted")
        whole = 0
        for number in range(len(points)):
            place = make(root / str(number))
            crash_at(root / str(number), number)
            with contextlib.redirect_stderr(io.StringIO()):  # it names what it passes over
                whole += is_whole(place) in (2, 3)
    kinds = ", ".join(f"{n} {k}" for k, n in Counter(points).items())
    section.figure("fault points of a save with clean-up", f"{len(points)}: {kinds}")
    section.figure(
        "a whole checkpoint found after the crash",
        f"{whole} of {len(points)}",
        "all",
        whole == len(points),
    )
    return section.finish(options.json)


if __name__ == "__main__":
    sys.exit(main())
