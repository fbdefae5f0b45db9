"""The in-training monitor: what it says, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.gangs import train

from cluster.slot_pool import SlotPool
from mae_core.pretrain.monitor import PREFIX, effective_rank


def test_effective_rank_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(500, 1, generator=generator) @ torch.randn(1, 8, generator=generator)
    assert effective_rank(flat) == pytest.approx(1, abs=1e-3)
    round_cloud = torch.randn(20_000, 8, generator=generator)
    assert effective_rank(round_cloud) == pytest.approx(8, abs=0.01)
    assert effective_rank(torch.ones(10, 4)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("zero", [1, 3])
def test_a_monitored_run_computes_what_an_unmonitored_one_does(
    pool: SlotPool, tmp_path: Path, zero: int
) -> None:
    settings = {"zero": zero, "noise": True}
    plain = train(pool, tmp_path / "plain", 2, **settings)
    watched = train(pool, tmp_path / "watched", 2, **settings, execution={"monitor_every_steps": 6})
    assert watched["digest"] == plain["digest"]
    assert watched["losses"] == plain["losses"]
    seen = dict(watched["watched"])
    assert sorted(seen) == [6, 12]
    assert seen[12][PREFIX + "loss_dev"] < seen[6][PREFIX + "loss_dev"]
    assert 1 < seen[12][PREFIX + "effective_rank_dev"] <= 16
    assert 10 < seen[12][PREFIX + "knn_top1_dev"] <= 100
