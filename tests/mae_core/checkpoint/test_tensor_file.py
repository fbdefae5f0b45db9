"""Files of tensors: who may read them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from support.largest_file import largest_file

from mae_core.checkpoint.tensor_file import write_tensors


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_weights_have_the_mode_of_other_files(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "encoder.safetensors", {"w": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "encoder.safetensors").stat().st_mode) == mode


def test_no_room_is_said_with_the_systems_number_and_leaves_nothing(tmp_path: Path) -> None:
    """safetensors says it in words only, torch in none."""
    out, state = tmp_path / "encoder.safetensors", {"w": torch.zeros(100_000)}
    with largest_file(4096), pytest.raises(OSError) as refusal:
        write_tensors(out, state, {})
    assert refusal.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
