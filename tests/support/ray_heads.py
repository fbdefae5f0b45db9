"""A Ray cluster as users start one: a head of its own, with a token, that studies attach to."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from support.mlflow_servers import free_port

STATE = """
import json, sys
from cluster.connect import connect
with connect(sys.argv[1]):
    import ray
    from ray.util import placement_group_table
    groups = [g["state"] for g in placement_group_table().values()]
    free = ray.available_resources().get("CPU", 0)
print(json.dumps({"groups": [g for g in groups if g != "REMOVED"], "free_cpus": free}))
"""


@dataclass(frozen=True)
class Head:
    """A running head, and what a driver's environment must say to be let in."""

    address: str
    environment: dict[str, str]

    def state(self) -> dict[str, Any]:
        """Placement groups that are not removed, and cores that nobody holds."""
        command = [sys.executable, "-c", STATE, self.address]
        done = subprocess.run(
            command,
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    def state_after(self, seconds: float, num_cpus: int) -> dict[str, Any]:
        """The state once nothing is held, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.state()
            if found == {"groups": [], "free_cpus": num_cpus} or time.monotonic() > deadline:
                return found
            time.sleep(1)


@contextlib.contextmanager
def ray_head(folder: Path, num_cpus: int) -> Iterator[Head]:
    """Start a head on loopback; stop it, and all that it started, at the end."""
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port = free_port()
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--block",
        "--node-ip-address=127.0.0.1",
        f"--port={port}",
        f"--num-cpus={num_cpus}",
        "--include-dashboard=false",
        "--object-store-memory=90000000",
        f"--temp-dir={folder}",
    ]
    loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with (folder / "head.log").open("w") as log:
        process = psutil.Popen(
            command, env=os.environ | environment | loopback, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _await_start(process, folder / "head.log")
        yield Head(f"127.0.0.1:{port}", environment)
    finally:
        family = process.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs([process, *family], timeout=20)
        for left in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        psutil.wait_procs(alive, timeout=10)


def _await_start(process: psutil.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while "Ray runtime started" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            raise TimeoutError(f"Ray's head did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)
