"""A parent's output is compared before it is read, whatever stands in its place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mae_core.errors import CheckpointError
from mae_core.runtime.inputs import verify


def test_an_output_is_what_its_stage_wrote_or_refused(tmp_path: Path) -> None:
    output = tmp_path / "encoder.safetensors"
    output.write_bytes(b"weights")
    sha256 = hashlib.sha256(b"weights").hexdigest()
    verify(output, sha256)
    output.write_bytes(b"weighty")
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        verify(output, sha256)


def test_a_pipe_or_a_folder_in_its_place_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for place in (pipe, folder, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            verify(place, "0" * 64)
