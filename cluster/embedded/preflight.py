"""What would keep Ray from starting: looked at before, since Ray waits half a minute and says less.

Ray's daemons end silently where a limit stops them, and Ray's library ends the whole process where
a variable `RAY_…` holds what is no number.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import psutil

from cluster.errors import ClusterUnreachable

OPEN_FILES, PROCESSES, FILE_MIB, MEMORY_MIB = 256, 200, 64, 400
"""What Ray itself needs on two cores, without ranks."""
CACHES = frozenset({"active_file", "inactive_file", "slab_reclaimable"})
PROGRAMS = ("gcs/gcs_server", "raylet/raylet")
PROGRAM_S = 10.0
LOOPBACK_S = 5.0
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Resource:
    """Something that Ray's processes need of this machine."""

    name: str
    left: float
    needed: int
    remedy: str

    def __str__(self) -> str:
        return f"{self.left:.0f} {self.name} are left, Ray needs {self.needed}: {self.remedy}"


def resources() -> list[Resource]:
    """What is limited, and how much of it is left."""
    files = _limit(resource.RLIMIT_NOFILE, 1)  # Ray raises its own to this
    size_mib = _limit(resource.RLIMIT_FSIZE) / 2**20
    return [
        Resource(
            name="open files", left=files, needed=OPEN_FILES, remedy="raise the limit (ulimit -n)"
        ),
        Resource(
            name="processes and threads",
            left=_processes_left(),
            needed=PROCESSES,
            remedy="end some, or raise the limit (ulimit -u, or pids.max of the container)",
        ),
        Resource(
            name="MiB in a file",
            left=size_mib,
            needed=FILE_MIB,
            remedy="raise the limit (ulimit -f)",
        ),
        Resource(
            name="MiB of memory",
            left=memory_left() / 2**20,
            needed=MEMORY_MIB,
            remedy="end other programs, or ask for more memory",
        ),
    ]


def check_resources() -> None:
    """Raise `ClusterUnreachable` where Ray cannot start for want of something."""
    missing = [str(found) for found in resources() if found.left < found.needed]
    if missing:
        raise ClusterUnreachable(f"Ray cannot start on this machine: {'; '.join(missing)}")


def check_loopback() -> None:
    """Raise `ClusterUnreachable` where nothing can be reached at 127.0.0.1, where Ray listens.

    In a sandbox or a container without a network the interface may be down; Ray then waits for
    many minutes.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=LOOPBACK_S).close()
    except OSError as error:
        raise ClusterUnreachable(
            f"Ray cannot start on this machine: 127.0.0.1 cannot be reached ({error}); bring the "
            "loopback interface up (ip link set lo up), or start the container with a network"
        ) from error


def load_ray() -> ModuleType:
    """Ray, imported, with its programs looked at.

    Raises:
        ClusterUnreachable: a variable in the environment would end this process, or Ray is not
            installed as it should be.
    """
    if "ray" not in sys.modules:
        _check_variables()
    try:
        ray = importlib.import_module("ray")
    except (ImportError, ValueError) as error:
        names = ", ".join(sorted(ray_variables())) or "no variable RAY_"
        raise ClusterUnreachable(
            f"Ray cannot be imported ({error}); install it again, or correct the environment, "
            f"which sets {names}"
        ) from error
    for program in PROGRAMS:
        _check_program(Path(str(ray.__file__)).parent / "core" / "src" / "ray" / program)
    return ray


def ray_variables() -> dict[str, str]:
    """Settings of Ray's in the environment."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


def _check_variables() -> None:
    # Those that Ray's C++ reads; where Python reads one, it says so.
    variables = {name: value for name, value in ray_variables().items() if name[4:5].islower()}
    if not variables or _can_import(variables):
        return
    bad = [name for name, value in variables.items() if not _can_import({name: value})]
    shown = ", ".join(f"{name}={variables[name]!r}" for name in bad or variables)
    raise ClusterUnreachable(f"Ray cannot be imported with {shown}: correct or unset it")


def _can_import(variables: dict[str, str]) -> bool:
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", "import ray"], env=others | variables, capture_output=True
    )
    return done.returncode == 0


def _check_program(path: Path) -> None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=PROGRAM_S)
        if done.returncode == 0:
            return
        problem = done.stderr.decode(errors="replace").strip()[-300:]
    except OSError as error:
        problem = error.strerror or str(error)
    except subprocess.TimeoutExpired:
        problem = f"no answer within {PROGRAM_S:.0f} s"
    raise ClusterUnreachable(
        f"Ray's program {path} does not run ({problem}); install Ray again, on a file system "
        "that programs may run from"
    )


def _limit(kind: int, which: int = 0) -> float:
    found = resource.getrlimit(kind)[which]
    return float("inf") if found == resource.RLIM_INFINITY else float(found)


def _processes_left() -> float:
    left = [_cgroup("pids.max") - _cgroup("pids.current", 0)]
    limit = _limit(resource.RLIMIT_NPROC)
    if os.geteuid() and limit < float("inf"):  # root's processes are not counted
        left.append(limit - _threads_of_this_user())
    return min(left)


def _threads_of_this_user() -> int:
    count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == os.getuid():
                count += process.num_threads()
    return count


def memory_left() -> float:
    """Bytes that processes started here can have: of the machine, and of its control group."""
    # What files were read into counts as used there, and is given up as soon as it is needed.
    entries = [line.split() for line in _cgroup_text("memory.stat").splitlines()]
    cached = sum(float(entry[1]) for entry in entries if entry[0] in CACHES)
    used = _cgroup("memory.current", 0) - cached
    return float(min(psutil.virtual_memory().available, _cgroup("memory.max") - used))


def _cgroup(file: str, missing: float = float("inf")) -> float:
    """A number of the control group that this process is in; `missing` where there is none."""
    text = _cgroup_text(file).strip()
    return missing if text in ("", "max") else float(text)


def _cgroup_text(file: str) -> str:
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2]
        return (CGROUPS / own.lstrip("/") / file).read_text()
    except (OSError, IndexError):
        return ""
