"""Start an embedded Ray, or attach to a running cluster; always authenticated, always left clean.

An embedded Ray listens on loopback only and lives as long as the command. Ray 2.60 binds every
service to the node's address, and to loopback only where it believes that clusters are disabled,
which is what `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0` says on any platform.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from cluster.errors import ClusterUnreachable

TEMP_PREFIX = "mae-study-ray-"
TOKEN_FILE = "token"
EXIT_GRACE_S = 3.0
OBJECT_STORE_BYTES = 80 << 20  # results are JSON; tensors never go through Ray


@dataclass(frozen=True)
class Capacity:
    """What the whole cluster has."""

    cpus: int
    gpus: int
    nodes: int
    is_local: bool
    """An embedded Ray on this machine."""


@contextlib.contextmanager
def connect(
    address: str | None = None, *, num_cpus: int | None = None, py_modules: tuple[str, ...] = ()
) -> Iterator[Capacity]:
    """Connect to `address`, or start an embedded Ray; disconnects (and stops it) at the end.

    Args:
        address: `host:port`, `auto`, or None for an embedded Ray on loopback.
        num_cpus: cores that the embedded Ray may use; None = all this process may use.
        py_modules: package directories to ship to a cluster that does not have them installed.

    Raises:
        ClusterUnreachable: nothing answers at `address`, or it refuses the token.
    """
    scope = _attached(address, py_modules) if address else _embedded(num_cpus)
    with scope as ray:
        total = ray.cluster_resources()
        yield Capacity(
            cpus=int(total.get("CPU", 0)),
            gpus=int(total.get("GPU", 0)),
            nodes=len(ray.nodes()),
            is_local=address is None,
        )


@contextlib.contextmanager
def _embedded(num_cpus: int | None) -> Iterator[Any]:
    sweep_temp_dirs()
    temp_dir = tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{os.getpid()}-")
    token = secrets.token_hex(32)
    (Path(temp_dir) / TOKEN_FILE).write_text(token)  # mkdtemp's folder is ours alone
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_LOG_TO_STDERR": "0",
    }
    import ray

    try:
        _init(
            ray,
            address="local",
            _node_ip_address="127.0.0.1",
            include_dashboard=False,
            num_cpus=num_cpus or len(os.sched_getaffinity(0)),
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=temp_dir,
        )
        yield ray
    finally:
        ray.shutdown()
        _end_processes(token)
        shutil.rmtree(temp_dir, ignore_errors=True)


@contextlib.contextmanager
def _attached(address: str | None, py_modules: tuple[str, ...]) -> Iterator[Any]:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    runtime_env = {"py_modules": list(py_modules)} if py_modules else None
    try:
        _init(
            ray,
            address=address,
            runtime_env=runtime_env,
        )
    except Exception as error:  # Ray raises ConnectionError, ValueError, RuntimeError, RpcError
        first_line = (str(error).strip().splitlines() or [repr(error)])[0].split(". ")[0]
        raise ClusterUnreachable(
            f"no Ray cluster at {address!r} ({first_line}); check the address, that the cluster "
            "runs, and that RAY_AUTH_TOKEN holds its token"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _init(ray: Any, **options: Any) -> None:
    """`ray.init`, keeping this process's own SIGTERM handler: Ray's would end it on the spot."""
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(logging_level="error", log_to_driver=False, **options)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _end_processes(token: str) -> None:
    """End what is left of an embedded Ray: its agents may outlive it by a minute.

    Its processes are known by the token that was made for it alone; those that rewrite their
    environment with their title are not seen, and end by themselves.
    """
    left = [p for p in psutil.process_iter(["name", "pid"]) if _belongs(p, token)]
    _, alive = psutil.wait_procs(left, timeout=EXIT_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=EXIT_GRACE_S)


def _belongs(process: psutil.Process, token: str) -> bool:
    try:
        is_ray = process.info["name"].startswith(("ray::", "raylet", "gcs_server"))
        return bool(is_ray and process.environ().get("RAY_AUTH_TOKEN") == token)
    except psutil.Error:
        return False


def sweep_temp_dirs() -> None:
    """Remove what embedded Rays have left whose command was killed: processes, directories."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMP_PREFIX}*"):
        owner = path.name.removeprefix(TEMP_PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            with contextlib.suppress(OSError):
                _end_processes((path / TOKEN_FILE).read_text())
            shutil.rmtree(path, ignore_errors=True)
