"""`ray.init` as the product calls it, for an embedded Ray and for a cluster."""

from __future__ import annotations

import signal
import threading
from types import ModuleType

from cluster.ranks.stop_request import deaf_children


def init_ray(ray: ModuleType, **options: object) -> None:
    """`ray.init`, keeping this process's own SIGTERM handler: Ray's would end it on the spot."""
    handler = signal.getsignal(signal.SIGTERM)
    _silence(ray)
    with deaf_children():
        ray.init(logging_level="error", log_to_driver=False, **options)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _silence(ray: ModuleType) -> None:
    """Keep Ray's own reports of dead workers off the terminal: a verdict says it better.

    They come beside `log_to_driver`, and on stdout, where `--json` has one value.
    """
    if hasattr(ray._private.worker, "print_to_stdstream"):
        ray._private.worker.print_to_stdstream = lambda *_, **__: None


def first_line(error: Exception) -> str:
    """The first sentence of what an error says."""
    return (str(error).strip().splitlines() or [repr(error)])[0].split(". ")[0]
