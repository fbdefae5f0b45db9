"""Playing other users of the machine, which takes root."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from support.other_user import UID

STRANGER = UID
IS_ROOT = os.getuid() == 0


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder as far as which every user comes; those of pytest are private."""
    folder = Path(tempfile.mkdtemp(prefix="mae-study-test-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
