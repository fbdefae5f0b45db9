"""From the shards of one world size to what any other can read: DeepSpeed's universal checkpoint.

DeepSpeed's converter and loader call `torch.load` without restriction; inside `restricted` every
such call reads through our verified reader, or at least builds nothing but plain types.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from mae_core.checkpoint.shards import read_shard

ShardReader = Callable[[Path], bytes | None]
"""Verified content of a shard by its path; None for a file that is not one."""


@contextlib.contextmanager
def restricted(read: ShardReader, types: Iterable[type]) -> Iterator[None]:
    """Make every `torch.load` in the block safe, whatever it was asked to do."""
    original = torch.load
    allowed = list(types)

    def load(file: Any, *_: object, **__: object) -> Any:
        if not isinstance(file, str | os.PathLike):
            return original(file, map_location="cpu", weights_only=True)
        path = Path(file)
        content = read(path)
        return read_shard(path.read_bytes() if content is None else content, path.name, allowed)

    torch.load = load  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load = original


def convert(shards: Path, universal: Path, read: ShardReader, types: Iterable[type]) -> None:
    """Convert the shards in one directory; alone, in this process.

    Raises:
        CheckpointError: a shard is not what it was.
        Exception: whatever DeepSpeed's converter raises.
    """
    from deepspeed.checkpoint import ds_to_universal

    arguments = argparse.Namespace(
        input_folder=str(shards),
        output_folder=str(universal),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # ZeRO-1 and 2 are refused without it: the shards then carry no such information.
        inject_missing_state=True,
    )
    with restricted(read, types), contextlib.redirect_stdout(io.StringIO()), _quiet_bars():
        ds_to_universal.main(arguments)


@contextlib.contextmanager
def _quiet_bars() -> Iterator[None]:
    """Keep the converter's progress bars out of the log."""
    from deepspeed.checkpoint import ds_to_universal

    original = ds_to_universal.tqdm.tqdm
    ds_to_universal.tqdm.tqdm = lambda items, *_, **__: items
    try:
        yield
    finally:
        ds_to_universal.tqdm.tqdm = original
