"""Ray itself going away: its head, its driver, a node, with and without notice."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.connect import connect
from cluster.embedded.leftovers import sweep_temp_dirs
from cluster.errors import ClusterError, HeadLost
from cluster.gang import Gang
from cluster.ranks.environment import process_environment
from cluster.ranks.outcome import Loss
from cluster.slot_pool import SlotPool
from cluster.slots import SlotShape

TESTS = str(Path(__file__).resolve().parents[1])
ONE_CPU = SlotShape(cpus=1, gpus=0)
DRIVER = """
import time
from cluster.connect import connect
from cluster.slot_pool import SlotPool
from cluster.slots import SlotShape
with connect(num_cpus=2) as capacity:
    with SlotPool("orphans", 2, capacity, shape=SlotShape(1, 0)) as pool:
        print(*[slot.process.pid for slot in pool.idle], flush=True)
        time.sleep(600)
"""


@pytest.fixture(autouse=True)
def entries_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]))


def until(
    pool: SlotPool, condition: Callable[[], object], *gangs: Gang, timeout_s: float = 60
) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < timeout_s, "it does not come true"
        pool.wait(gangs, 0.1)
    return time.monotonic() - began


def launch(pool: SlotPool, entry: str, num_ranks: int, **payload: Any) -> Gang:
    gang = pool.launch(f"support.gang_entries:{entry}", payload, num_ranks)
    assert gang is not None
    return gang


@pytest.mark.parametrize("daemon", ["gcs_server", "raylet"])
def test_a_lost_head_is_told_at_once_and_a_new_one_works(daemon: str, clean_machine: None) -> None:
    """In the same process: the driver neither hangs nor is ended by Ray."""
    with pytest.raises(HeadLost, match=f"{daemon} ended"), connect(num_cpus=2) as capacity:
        with SlotPool("lost", 2, capacity, shape=ONE_CPU) as pool:
            gang = launch(pool, "wait_for_stop", 2)
            pool.wait([gang], 0.5)
            victim = next(p for p in psutil.Process().children() if p.name() == daemon)
            victim.kill()
            killed_at = time.monotonic()
            try:
                until(pool, lambda: False, gang, timeout_s=20)
            finally:
                print(f"{daemon}: told after {time.monotonic() - killed_at:.2f} s")
                assert time.monotonic() - killed_at < 2
    print(f"{daemon}: left after {time.monotonic() - killed_at:.2f} s")
    with connect(num_cpus=2) as capacity:
        with SlotPool("anew", 2, capacity, shape=ONE_CPU) as pool:
            gang = launch(pool, "where", 2)
            until(pool, lambda: gang.is_finished, gang)
            assert all(outcome.error is None for outcome in gang.outcomes.values())


def test_all_that_a_killed_driver_left_is_ended(clean_machine: None) -> None:
    """Its agents too, and a rank that is stopped; nothing of another Ray."""
    with connect(num_cpus=1) as capacity, SlotPool("mine", 1, capacity, shape=ONE_CPU) as pool:
        driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
        assert driver.stdout is not None
        ranks = [int(word) for word in driver.stdout.readline().split()]
        theirs = psutil.Process(driver.pid).children(recursive=True)
        assert len(ranks) == 2 and any(p.name() == "ray::DashboardAgent" for p in theirs)
        os.kill(ranks[0], signal.SIGSTOP)
        driver.kill()
        driver.wait()
        began = time.monotonic()
        sweep_temp_dirs()
        print(f"swept in {time.monotonic() - began:.1f} s")
        _, alive = psutil.wait_procs(theirs, timeout=1)
        assert [p.name() for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
        gang = launch(pool, "where", 1)
        until(pool, lambda: gang.is_finished, gang)
        assert gang.outcomes[0].error is None


def test_a_process_that_never_answers_is_a_failed_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clean_machine: None
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it
    ranks = process_environment(1, is_local=True)  # of all of Ray's processes they alone have it
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        f"if {ranks!r}.items() <= os.environ.items():\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    packages = filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(packages))
    told = r"on \S+ \(127\.0\.0\.1\) did not answer its first call within 0.5 s"
    with connect(num_cpus=1) as capacity, pytest.raises(ClusterError, match=told):
        compiled = os.environ["TORCHINDUCTOR_CACHE_DIR"]
        assert Path(compiled).parent.stat().st_mode & 0o077 == 0
        with SlotPool("silent", 1, capacity, shape=ONE_CPU, first_call_limit_s=0.5):
            pass
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ and not Path(compiled).exists()


@pytest.fixture
def nodes() -> Iterator[Any]:
    """Ray's own cluster of several nodes on one machine: a head without CPUs, and two nodes."""
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ |= variables
    from ray.cluster_utils import Cluster

    quick = {
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000,
        "health_check_initial_delay_ms": 0,
        "health_check_failure_threshold": 3,
    }
    shared = {"node_ip_address": "127.0.0.1", "object_store_memory": 80 << 20}
    head = shared | {"num_cpus": 0, "include_dashboard": False, "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.all = [cluster.add_node(num_cpus=1, **shared) for _ in range(2)]
    cluster.another = lambda: cluster.add_node(num_cpus=1, **shared)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_a_node_that_drains_and_one_that_dies(nodes: Any) -> None:
    with connect(nodes.address) as capacity:
        assert (capacity.cpus, capacity.is_local) == (2, False)
        with SlotPool("nodes", 2, capacity, shape=ONE_CPU) as pool:
            assert len({slot.node for slot in pool.idle}) == 2
            _ranks_of_two_nodes_meet_at_an_address(pool)
            _a_drained_node_stops_its_gang(pool)
            _a_dead_node_is_named_and_its_successor_used(pool, nodes)


def _ranks_of_two_nodes_meet_at_an_address(pool: SlotPool) -> None:
    gang = pool.launch("support.rank_entries:meet", {}, 2)
    assert gang is not None
    until(pool, lambda: gang.is_finished, gang)
    for outcome in gang.outcomes.values():
        assert outcome.value is not None, outcome.error
        assert outcome.value["ranks"] == [0, 1]
        assert outcome.value["store"].startswith("tcp://127.0.0.1:")
        listening = {ip.removeprefix("::ffff:") for ip in outcome.value["listening"]}
        assert listening == {"127.0.0.1"}
    pool.release(gang)


def _a_drained_node_stops_its_gang(pool: SlotPool) -> None:
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    gang = launch(pool, "wait_for_stop", 2)
    pool.wait([gang], 1.0)
    leaving = gang.slots[1].node
    client = ray._private.worker.global_worker.gcs_client
    deadline_ms = int((time.time() + 40) * 1000)
    reason = DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
    accepted, _ = client.drain_node(leaving, reason, "to be taken away", deadline_ms)
    assert accepted
    took = until(pool, lambda: gang.is_finished, gang)
    print(f"drain passed on after {took:.1f} s")
    assert took < 6
    for outcome in gang.outcomes.values():
        assert outcome.stop_reason == "preempted" and outcome.value is not None
        assert 30 < outcome.value["grace_s"][0] <= 40
    pool.release(gang)
    assert leaving not in {slot.node for slot in pool.idle}
    assert pool.num_ready == 1


def _a_dead_node_is_named_and_its_successor_used(pool: SlotPool, nodes: Any) -> None:
    staying = pool.idle[0].node
    gang = launch(pool, "wait_for_stop", 1)
    pool.wait([gang], 1.0)
    victim = next(node for node in nodes.all if node.node_id == staying)
    nodes.remove_node(victim, allow_graceful=False)
    took = until(pool, lambda: gang.is_finished, gang)
    print(f"node lost after {took:.1f} s")
    error = gang.outcomes[0].error
    assert error is not None and error.loss is Loss.NODE_LOST
    pool.release(gang)
    began = time.monotonic()
    assert pool.launch("support.gang_entries:where", {}, 1) is None
    assert time.monotonic() - began < 1
    nodes.another()
    until(pool, lambda: pool.num_ready == 1)
    again = launch(pool, "where", 1)
    until(pool, lambda: again.is_finished, again)
    assert again.outcomes[0].error is None
    assert again.slots[0].node != staying
    pool.release(again)
