"""Gangs on a real embedded Ray: placement, warmth, failure, stopping, cleaning up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from support.gangs import finish, launched, train, values

from cluster.connect import Capacity
from cluster.errors import ResourcesUnavailable
from cluster.slot_pool import SlotPool
from cluster.slots import slot_shape
from cluster.verdict import Cause

GOLDEN_LOSS = (2.8128481, 0.6058176)
"""Of the first and the twelfth step of the tests' training, on a CPU in fp32."""
TESTS = str(Path(__file__).resolve().parents[1])


def test_a_gang_is_all_or_nothing_and_slots_stay_warm(pool: SlotPool) -> None:
    first = launched(pool, "support.rank_entries:echo", {"say": 1}, 2)
    assert pool.launch("support.rank_entries:echo", {}, 1) is None
    assert finish(pool, first).cause is Cause.SUCCESS
    assert [(v["rank"], v["world"], v["said"]) for v in values(first)] == [(0, 2, 1), (1, 2, 1)]
    again = launched(pool, "support.rank_entries:echo", {}, 1)
    finish(pool, again)
    assert values(again)[0]["pid"] in {v["pid"] for v in values(first)}
    assert values(again)[0]["world"] == 1


def test_an_error_on_one_rank_ends_the_gang_and_names_it(
    pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.slot_pool.COLLATERAL_GRACE_S", 1.0)
    gang = launched(pool, "support.rank_entries:fail_on_rank_1", {"sleep_s": 60}, 2)
    verdict = finish(pool, gang)
    assert "boom" in verdict.message or verdict.cause is Cause.RANK_DIED
    assert finish(pool, launched(pool, "support.rank_entries:echo", {}, 2)).cause is Cause.SUCCESS


def test_a_stage_that_leaves_its_process_is_an_error_of_its_own(pool: SlotPool) -> None:
    verdict = finish(pool, launched(pool, "support.rank_entries:leave", {}, 1))
    assert (verdict.cause, verdict.message) == (Cause.ERROR, "SystemExit: 3")
    assert not verdict.blames_node
    after = launched(pool, "support.rank_entries:echo", {}, 1)
    assert finish(pool, after).cause is Cause.SUCCESS


def test_a_killed_rank_is_the_cause_and_is_replaced(
    pool: SlotPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.slot_pool.COLLATERAL_GRACE_S", 1.0)
    before = launched(pool, "support.rank_entries:echo", {}, 2)
    finish(pool, before)
    gang = launched(pool, "support.rank_entries:wait_for_stop", {}, 2)
    assert gang is not None
    time.sleep(0.5)
    victim = values(before)[1]["pid"]
    os.kill(victim, signal.SIGKILL)
    while 1 not in gang.outcomes:
        pool.wait([gang], 0.2)
    verdict = finish(pool, gang)
    assert (verdict.cause, verdict.rank) == (Cause.RANK_DIED, 1)
    after = launched(pool, "support.rank_entries:echo", {}, 2)
    assert finish(pool, after).cause is Cause.SUCCESS
    assert victim not in {v["pid"] for v in values(after)}


def test_a_stop_reaches_running_ranks(pool: SlotPool) -> None:
    gang = launched(pool, "support.rank_entries:wait_for_stop", {}, 2)
    assert gang is not None
    gang.request_stop()
    assert finish(pool, gang).cause is Cause.SUCCESS
    assert all(v["stopped"] for v in values(gang))


def test_more_than_the_cluster_has_is_refused_with_numbers(capacity: Capacity) -> None:
    with pytest.raises(ResourcesUnavailable, match="has 2 CPUs and 0 GPUs"):
        SlotPool("big", 3, capacity, shape=slot_shape(capacity))


def test_everything_listens_on_loopback(pool: SlotPool) -> None:
    """Ray's processes are children of this one."""
    family = psutil.Process().children(recursive=True)
    listening = {
        c.laddr.ip
        for process in family
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    assert listening and all(
        ip.removeprefix("::ffff:").startswith("127.") or ip == "::1" for ip in listening
    ), listening


def test_ranks_of_a_node_meet_where_nobody_else_can(pool: SlotPool) -> None:
    """Not by a store that listens: what does is gloo's, on loopback."""
    for world in (2, 1):
        gang = launched(pool, "support.rank_entries:meet", {}, world)
        assert finish(pool, gang).cause is Cause.SUCCESS
        for found in values(gang):
            assert found["ranks"] == list(range(world)) and found["interface"] == "lo"
            assert found["store"].startswith("file:///proc/")
            assert {ip.removeprefix("::ffff:") for ip in found["listening"]} == {"127.0.0.1"}


def test_a_pool_removes_its_placement_group(capacity: Capacity, pool: SlotPool) -> None:
    from ray.util import placement_group_table

    states = {e["name"]: e["state"] for e in placement_group_table().values()}
    assert states["tests"] == "CREATED"
    assert [n for n, s in states.items() if s == "CREATED"] == ["tests"]


# Training in gangs: the same Ray, the same warm ranks.


def test_losses_agree_over_zero_stages_world_sizes_and_accumulation(
    pool: SlotPool, tmp_path: Path
) -> None:
    """Micro × accumulation × world = global: the same samples, masks and mean gradient."""
    cases = {
        "one": (1, 1, {}),
        "two": (2, 1, {}),
        "zero3": (2, 3, {}),
        "accumulated": (2, 2, {"micro_batch": 16}),
    }
    losses = {
        name: dict(train(pool, tmp_path / name, world, zero=zero, execution=extra)["losses"])
        for name, (world, zero, extra) in cases.items()
    }
    for name, found in losses.items():
        for step, loss in losses["one"].items():
            assert found[step] == pytest.approx(loss, rel=2e-5), name


def test_a_warm_rank_computes_what_a_new_one_does(pool: SlotPool, tmp_path: Path) -> None:
    """Stages of other kinds in between leave no trace: DeepSpeed's ZeRO-3 patches torch."""
    first = train(pool, tmp_path / "first", 2, zero=1)
    train(pool, tmp_path / "between", 2, zero=3)
    train(pool, tmp_path / "also", 1, zero=0, precision="bf16")
    again = train(pool, tmp_path / "again", 2, zero=1)
    assert again["digest"] == first["digest"]


def test_the_golden_loss(pool: SlotPool, tmp_path: Path) -> None:
    """A refactor of numerics keeps these; a change that means to move them says why."""
    losses = dict(train(pool, tmp_path, 1)["losses"])
    assert losses[1] == pytest.approx(GOLDEN_LOSS[0], rel=1e-5)
    assert losses[12] == pytest.approx(GOLDEN_LOSS[1], rel=1e-4)


def test_clipping_bounds_the_update(pool: SlotPool, tmp_path: Path) -> None:
    """Gradients clipped to nothing leave SGD's network as it was."""
    from safetensors.torch import load_file

    train(pool, tmp_path / "free", 1, sgd=1e9)
    train(pool, tmp_path / "clipped", 1, sgd=1e-30)
    train(pool, tmp_path / "untrained", 1, steps=0)
    free, clipped, untrained = (
        load_file(tmp_path / name / "outputs" / "encoder.safetensors")
        for name in ("free", "clipped", "untrained")
    )
    for name, weights in untrained.items():
        assert (clipped[name] - weights).abs().max() < 1e-20
        assert (free[name] - weights).abs().max() > 0


def test_an_untrained_network_is_a_result(pool: SlotPool, tmp_path: Path) -> None:
    result = train(pool, tmp_path, 1, steps=0)
    assert result["metrics"]["steps"] == 0 and result["digest"]
