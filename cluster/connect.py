"""Start an embedded Ray, or attach to a running cluster; always authenticated, always left clean.

An embedded Ray listens on loopback only and lives as long as the command.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from cluster.embedded.leftovers import sweep_temp_dirs as sweep_temp_dirs
from cluster.embedded.preflight import load_ray
from cluster.embedded.ray_init import first_line, init_ray
from cluster.embedded.start import embedded_ray
from cluster.errors import ClusterUnreachable

KNOCK_S = 10.0


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
    scope = _attached(address, py_modules) if address else embedded_ray(num_cpus)
    with scope as ray:
        total = ray.cluster_resources()
        yield Capacity(
            cpus=int(total.get("CPU", 0)),
            gpus=int(total.get("GPU", 0)),
            nodes=len(ray.nodes()),
            is_local=address is None,
        )


@contextlib.contextmanager
def _attached(address: str, py_modules: tuple[str, ...]) -> Iterator[ModuleType]:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _knock(address)
    ray = load_ray()
    runtime_env = {"py_modules": list(py_modules)} if py_modules else None
    try:
        init_ray(ray, address=address, runtime_env=runtime_env)
    except Exception as error:  # Ray raises ConnectionError, ValueError, RuntimeError, RpcError
        raise ClusterUnreachable(
            f"no Ray cluster at {address!r} ({first_line(error)}); check the address, that the "
            "cluster runs, and that RAY_AUTH_TOKEN holds its token"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Say at once that nothing listens: Ray's own client tries for many minutes, silently.

    Ray also takes a loopback address for the machine's outer one, where a head that was started
    on loopback does not listen, unless it believes that clusters are disabled.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # `auto`, or what Ray itself will object to
    host = host.strip("[]")
    try:
        with socket.create_connection((host, int(port)), timeout=KNOCK_S) as connection:
            if ipaddress.ip_address(connection.getpeername()[0]).is_loopback:
                os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    except (OSError, OverflowError) as error:
        raise ClusterUnreachable(
            f"nothing answers at {address!r} ({first_line(error)}); check the address, that the "
            "cluster runs, and that this machine may reach it"
        ) from error
