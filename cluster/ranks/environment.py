"""The environment of a rank process: allocator and threads at its start, addresses per stage."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from cluster.ranks.stop_request import GRACE_VARIABLE

JEMALLOC_CONF = "thp:always,dirty_decay_ms:60000,muzzy_decay_ms:60000"


def process_environment(threads: int, *, is_local: bool) -> dict[str, str]:
    """Variables that a rank needs before its process starts.

    The allocator is the biggest lever of CPU training (11-13 % at small nets, more at large ones
    over glibc's defaults): Ray's wheel carries jemalloc, glibc's knobs are the second best. Freed
    pages are kept for a minute. Kept for ever, and with `oversize_threshold:0`, they are not
    reused: 600 steps of a 70,000-parameter MAE grew a rank to 6 GB and halved its speed.
    """
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # A process that writes no .pyc pays 10 s of imports on every start.
        "PYTHONDONTWRITEBYTECODE": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if GRACE_VARIABLE in os.environ:  # an embedded Ray's processes inherit it, a cluster's do not
        environment[GRACE_VARIABLE] = os.environ[GRACE_VARIABLE]
    # On another machine the library may lie elsewhere; glibc's knobs work everywhere.
    jemalloc = _ray_jemalloc() if is_local else None
    if jemalloc is not None:
        environment |= {"LD_PRELOAD": str(jemalloc), "MALLOC_CONF": JEMALLOC_CONF}
    else:
        environment |= {
            "MALLOC_TOP_PAD_": str(64 << 20),
            "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
            "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
        }
    return environment


def _ray_jemalloc() -> Path | None:
    spec = importlib.util.find_spec("ray")
    if spec is None or spec.origin is None:
        return None
    library = Path(spec.origin).parent / "core" / "libjemalloc.so"
    return library if library.exists() else None


def stage_environment(
    *,
    rank: int,
    world: int,
    local_rank: int,
    local_world: int,
    store: str = "",
    listener: int | None = None,
) -> dict[str, str]:
    """Variables with which a rank finds its gang: see `mae_core.runtime.rendezvous`.

    Args:
        store: URL of the gang's `MeetingPoint`; a rank that is alone needs none.
        listener: of rank 0, the file of the listening socket there.
    """
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world),
        "GANG_STORE": store,
        "GANG_LISTENER": "" if listener is None else str(listener),
    }


def visible_devices() -> list[str]:
    """CUDA devices this process may see, settled before torch starts."""
    return [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
