"""Start an embedded Ray, or attach to a running cluster; always authenticated, always left clean.

An embedded Ray listens on loopback only and lives as long as the command. Ray 2.60 binds every
service to the node's address, and to loopback only where it believes that clusters are disabled,
which is what `RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0` says on any platform.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil

from cluster.errors import ClusterUnreachable

TEMP_PREFIX = "mae-study-ray-"
TOKEN_FILE = "token"
PROCESSES_FILE = "processes.json"
EXIT_GRACE_S = 3.0
KNOCK_S = 10.0
REMOVALS = 5
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
def _embedded(num_cpus: int | None) -> Iterator[ModuleType]:
    sweep_temp_dirs()
    temp_dir = tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{os.getpid()}-")
    token = _token()
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
        except Exception as error:  # Ray raises plain Exception when its parts are too slow
            raise ClusterUnreachable(
                f"Ray did not start on this machine ({_first_line(error)}): it may be overloaded "
                "or out of memory; run the same command again"
            ) from error
        _record_processes(Path(temp_dir))
        yield ray
    finally:
        ray.shutdown()
        _leave_nothing(Path(temp_dir))


@contextlib.contextmanager
def _attached(address: str | None, py_modules: tuple[str, ...]) -> Iterator[ModuleType]:
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    assert address is not None
    _knock(address)
    import ray

    runtime_env = {"py_modules": list(py_modules)} if py_modules else None
    try:
        _init(
            ray,
            address=address,
            runtime_env=runtime_env,
        )
    except Exception as error:  # Ray raises ConnectionError, ValueError, RuntimeError, RpcError
        raise ClusterUnreachable(
            f"no Ray cluster at {address!r} ({_first_line(error)}); check the address, that the "
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
            f"nothing answers at {address!r} ({_first_line(error)}); check the address, that the "
            "cluster runs, and that this machine may reach it"
        ) from error


def _silence(ray: ModuleType) -> None:
    """Keep Ray's own reports of dead workers off the terminal: a verdict says it better.

    They come beside `log_to_driver`, and on stdout, where `--json` has one value.
    """
    if hasattr(ray._private.worker, "print_to_stdstream"):
        ray._private.worker.print_to_stdstream = lambda *_, **__: None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0].split(". ")[0]


def _init(ray: ModuleType, **options: object) -> None:
    """`ray.init`, keeping this process's own SIGTERM handler: Ray's would end it on the spot."""
    handler = signal.getsignal(signal.SIGTERM)
    _silence(ray)
    ray.init(logging_level="error", log_to_driver=False, **options)
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@functools.cache
def _token() -> str:
    """A secret of this process: Ray's client reads it once, also where Ray is started again."""
    return secrets.token_hex(32)


def _record_processes(temp_dir: Path) -> None:
    """Write down the daemons of an embedded Ray, for whoever must end them in our place.

    Some rewrite their environment with their title, and close their logs when Ray's node ends:
    nothing else would tell them from those of another Ray then.
    """
    seen = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if _is_ray(process):
                seen.append([process.pid, process.create_time()])
    (temp_dir / PROCESSES_FILE).write_text(json.dumps(seen))


def _leave_nothing(temp_dir: Path) -> None:
    """End what is left of an embedded Ray, by itself where it does so quickly; remove its files.

    Ours is what was written down at the start, what descends from it, and what carries the token
    or writes below the temporary directory, both of which were made for this Ray alone. More than
    once where need be: a worker that was being started when the others were listed goes on to
    write its logs.
    """
    token, recorded = "", set()
    with contextlib.suppress(OSError):
        token = (temp_dir / TOKEN_FILE).read_text()
    with contextlib.suppress(OSError, ValueError):
        listed = (temp_dir / PROCESSES_FILE).read_text()
        recorded = {(int(pid), float(made)) for pid, made in json.loads(listed)}
    for _ in range(REMOVALS):
        _end([p for p in psutil.process_iter() if _belongs(p, token, recorded, str(temp_dir))])
        shutil.rmtree(temp_dir, ignore_errors=True)
        if not temp_dir.exists():
            return


def _end(left: list[psutil.Process]) -> None:
    for process in list(left):
        with contextlib.suppress(psutil.Error):
            left += [child for child in process.children(recursive=True) if child not in left]
    _, alive = psutil.wait_procs(left, timeout=EXIT_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=EXIT_GRACE_S)


def _belongs(
    process: psutil.Process, token: str, recorded: set[tuple[int, float]], temp_dir: str
) -> bool:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if (process.pid, process.create_time()) in recorded:
            return True
        if not _is_ray(process):
            return False
        return bool(token and process.environ().get("RAY_AUTH_TOKEN") == token) or any(
            file.path.startswith(f"{temp_dir}{os.sep}") and file.mode != "r"
            for file in process.open_files()
        )
    except (psutil.Error, OSError):
        return False


def _is_ray(process: psutil.Process) -> bool:
    """By name, or by a Python program that is part of Ray."""
    name = process.name()
    if name.startswith(("ray::", "raylet", "gcs_server")):
        return True
    return name.startswith("python") and any(
        f"{os.sep}ray{os.sep}" in argument for argument in process.cmdline()[1:4]
    )


def sweep_temp_dirs() -> None:
    """Remove what embedded Rays have left whose command was killed: processes, directories."""
    for path in Path(tempfile.gettempdir()).glob(f"{TEMP_PREFIX}*"):
        owner = path.name.removeprefix(TEMP_PREFIX).split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            _leave_nothing(path)
