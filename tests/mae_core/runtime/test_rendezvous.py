"""Where a rank that did not meet its gang says that it looked."""

from __future__ import annotations

import pytest

from mae_core.runtime.rendezvous import not_met


@pytest.mark.parametrize(
    ("store", "place"),
    [
        ("", "node7"),  # torchrun's
        ("file:///proc/12/fd/3", "a file of this machine"),
        ("tcp://10.0.0.2:4711", "10.0.0.2:4711"),
    ],
)
def test_the_place_is_named(store: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gang = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "node7", "GANG_STORE": store}
    for name, value in gang.items():
        monkeypatch.setenv(name, value)
    assert "rank 1 of 2 on " in (said := str(not_met(RuntimeError("late"))))
    assert f"did not meet its gang at {place} (interface " in said and said.endswith(": late")
