"""What a study imports of augmentations and corruptions costs it nothing."""

from __future__ import annotations

import subprocess
import sys


def test_recipes_and_strengths_import_nothing_heavy() -> None:
    program = (
        "import sys, mae_core.config.augmentation\n"
        "import mae_core.corruptions.error, mae_core.corruptions.severity\n"
        "print(sorted({'torch', 'numpy', 'scipy', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
