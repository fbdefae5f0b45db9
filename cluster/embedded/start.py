"""Start an embedded Ray: on loopback, with a token of its own, in a private directory.

Ray 2.60 binds every service to the node's address, and to loopback only where it believes that
clusters are disabled, which is what `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0` says on any platform.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from cluster.embedded.leftovers import (
    leave_nothing,
    sweep_temp_dirs,
    token_digest,
    with_processes,
)
from cluster.embedded.preflight import check_loopback, check_resources, load_ray
from cluster.embedded.private_directory import Record, make_private_directory
from cluster.embedded.ray_init import init_ray
from cluster.embedded.start_failure import why_not_started
from cluster.errors import ClusterUnreachable
from cluster.process_identity import ProcessIdentity

COMPILED_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
OBJECT_STORE_BYTES = 80 << 20  # results are JSON; tensors never go through Ray


@contextlib.contextmanager
def embedded_ray(num_cpus: int | None) -> Iterator[ModuleType]:
    """An embedded Ray for the length of a `with`; nothing of it is left afterwards.

    Args:
        num_cpus: cores that it may use; None = all that this process may use.

    Raises:
        ClusterUnreachable: it did not start.
    """
    sweep_temp_dirs()
    check_resources()
    check_loopback()
    os.environ |= _variables()
    ray = load_ray()
    directory = make_private_directory()
    record = Record(owner=ProcessIdentity.of_this_process(), token_digest=token_digest(_token()))
    directory.write(record)
    # torch's compiler believes what lies in a folder of /tmp whose name everybody knows.
    compiled = str(directory.path / "compiled")
    is_ours = os.environ.setdefault(COMPILED_VARIABLE, compiled) == compiled
    try:
        _start(ray, directory.for_ray, num_cpus)
        record = with_processes(record)
        directory.write(record)
        yield ray
    finally:
        ray.shutdown()
        if is_ours:
            del os.environ[COMPILED_VARIABLE]
        leave_nothing(directory, record)
        directory.close()


def _start(ray: ModuleType, folder: Path, num_cpus: int | None) -> None:
    try:
        init_ray(
            ray,
            address="local",
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            num_cpus=num_cpus or len(os.sched_getaffinity(0)),
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=str(folder),
        )
    except Exception as error:  # Ray raises plain Exception when its parts are too slow
        reason = why_not_started(error, folder / "session_latest" / "logs", set(_variables()))
        raise ClusterUnreachable(f"Ray did not start on this machine: {reason}") from error


def _variables() -> dict[str, str]:
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token(),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_LOG_TO_STDERR": "0",
    }


@functools.cache
def _token() -> str:
    """A secret of this process: Ray's client reads it once, also where Ray is started again."""
    return secrets.token_hex(32)
