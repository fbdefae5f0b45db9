"""What keeps Ray from starting is said before, or from what is measured and logged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.embedded import preflight, start_failure
from cluster.embedded.preflight import Resource, check_loopback, check_resources
from cluster.embedded.start_failure import why_not_started
from cluster.errors import ClusterUnreachable

SCRIPT = """
from cluster.embedded.preflight import check_resources, load_ray
from cluster.errors import ClusterUnreachable
try:
    check_resources()
    load_ray()
except ClusterUnreachable as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("limit", "variables", "said"),
    [
        ("ulimit -n 40", {}, "40 open files are left, Ray needs 256: raise the limit (ulimit -n)"),
        ("ulimit -f 1", {}, "0 MiB in a file are left"),
        ("true", {"RAY_health_check_period_ms": "soon"}, "RAY_health_check_period_ms='soon': corr"),
        ("true", {"RAY_health_check_period_ms": "3000"}, ""),
    ],
)
def test_what_would_stop_ray_is_said_at_once(
    limit: str, variables: dict[str, str], said: str
) -> None:
    """The bad variable would end this very process without a word."""
    command = ["bash", "-c", f'{limit}; exec "$@"', "bash", sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout and bool(said) == bool(done.stdout.strip())


def test_a_machine_without_loopback_is_refused() -> None:
    check_loopback()
    command = [sys.executable, "-c", SCRIPT.replace("check_resources", "check_loopback")]
    alone = subprocess.run(["unshare", "-rn", *command], capture_output=True, text=True)
    if "unshare failed" in alone.stderr:
        pytest.skip("network namespaces may not be made here")
    assert "127.0.0.1 cannot be reached" in alone.stdout and "ip link set lo up" in alone.stdout


def short(left: float) -> list[Resource]:
    return [Resource(name="MiB of memory", left=left, needed=400, remedy="end other programs")]


def test_what_is_short_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "resources", lambda: short(100.0))
    with pytest.raises(ClusterUnreachable, match="100 MiB of memory are left, Ray needs 400: end"):
        check_resources()


def test_files_in_the_cache_of_a_container_are_no_memory_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "CGROUPS", tmp_path)
    group = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition(":")[2].lstrip("/")
    (tmp_path / group).mkdir(parents=True, exist_ok=True)
    (tmp_path / group / "memory.max").write_text("1000000\n")
    (tmp_path / group / "memory.current").write_text("990000\n")
    assert preflight.memory_left() == 10_000
    cache = "anon 90000\ninactive_file 600000\nactive_file 200000\nslab_reclaimable 100000\n"
    (tmp_path / group / "memory.stat").write_text(cache)
    assert preflight.memory_left() == 910_000
    (tmp_path / group / "memory.max").write_text("max\n")
    assert preflight.memory_left() > 1_000_000


def test_a_failed_start_is_told_by_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no advice is given that nothing speaks for."""
    for name in preflight.ray_variables():
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_OURS", "1")
    (tmp_path / "gcs_server.out").write_text(
        "[2026-11-28 14:00:00,000 I 1 1] fine\n[2026-11-28 14:00:01,000 C 1 1] no such file\n"
    )
    error = Exception("The current node timed out.\nSee the logs.")
    monkeypatch.setattr(start_failure, "resources", lambda: short(9000.0))
    told = why_not_started(error, tmp_path, {"RAY_OURS"})
    assert told.startswith("Ray says: The current node timed out. See the logs.; its log says: [")
    assert told.endswith("no such file")
    monkeypatch.setattr(start_failure, "resources", lambda: short(500.0))
    monkeypatch.setenv("RAY_theirs", "1")
    told = why_not_started(error, tmp_path, {"RAY_OURS"})
    assert told.startswith("little is left of what it needs (500 MiB of memory are left, Ray needs")
    assert told.endswith("the environment sets RAY_theirs; try without")
