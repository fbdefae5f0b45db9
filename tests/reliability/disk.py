"""A full disk, a read-only one, one with errors, at every point of a save: is a run lost?"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import Section, arguments
from support.checkpoint_cases import count_points, is_whole, make, open_checkpoints, save, state

from mae_core.runtime.storage import LocalStorage

ERRORS = {"full": errno.ENOSPC, "I/O error": errno.EIO, "read-only": errno.EROFS}
TMPFS_MIB = 2


def main() -> int:
    """Errors injected at each point; then a real small file system that really fills up."""
    options = arguments(__doc__)
    section = Section("disk", "Disks that fail", options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, code in ERRORS.items():
            kept, total = injected(folder / title.replace("/", ""), code)
            what = f"{title} at each write, fsync, rename, delete: training goes on, a whole one is"
            section.figure(f"{what} there", f"{kept} of {total}", "all", kept == total)
        real(section, folder / "mount")
    return section.finish(options.json)


def injected(folder: Path, code: int) -> tuple[int, int]:
    """Fail once at each point; the save may fail, nothing may raise, the next save must work."""
    make(folder / "counted")
    total = len(count_points(folder / "counted"))
    kept = 0
    for number in range(total):
        root = folder / str(number)
        make(root)
        passed: list[str] = []

        def fail(name: str, passed: list[str] = passed, number: int = number) -> None:
            passed.append(name)
            if len(passed) == number + 1:
                raise OSError(code, os.strerror(code))

        storage = LocalStorage(root, fail)
        save(open_checkpoints(storage), 3)
        stands = is_whole(LocalStorage(root)) in (2, 3)
        save(open_checkpoints(storage), 4)
        kept += stands and is_whole(LocalStorage(root)) == 4
    return kept, total


def real(section: Section, mount: Path) -> None:
    """Fill a tmpfs so that the save stops at each of its files in turn."""
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_MIB}m", "tmpfs", str(mount)]
    if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode != 0:
        section.figure("real full disk", "not measured: mounting a tmpfs needs root")
        return
    try:
        whole = 0
        fills = [1.7, 1.6, 1.5, 1.4, 1.3, 1.2]
        for fill in fills:
            for old in mount.iterdir():
                subprocess.run(["rm", "-rf", str(old)], check=True)
            storage = make(mount / "run")
            (mount / "ballast").write_bytes(b"x" * int(fill * (1 << 20)))
            save(open_checkpoints(storage), 3, state(3, size=60_000))
            found = is_whole_large(storage)
            whole += found in (2, 3)
        what = f"really full ({TMPFS_MIB} MiB tmpfs, {len(fills)} fills): a checkpoint stands"
        section.figure(what, f"{whole} of {len(fills)}", "all", whole == len(fills))
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def is_whole_large(storage: LocalStorage) -> int | None:
    """Step that a reader finds."""
    checkpoints = open_checkpoints(storage, attempt=99)
    found = checkpoints.find()
    checkpoints.close()
    return found.manifest.step if found else None


if __name__ == "__main__":
    sys.exit(main())
