"""Records that another version wrote, or that lack something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.sweep_bench import Bench

from orchestrator.errors import StoreError
from orchestrator.report.predictions import Registered
from orchestrator.store.driver import LocalStore
from orchestrator.store.known_keys import build_known
from orchestrator.store.records import Records, stage_key
from orchestrator.sweep.trials import Winner
from orchestrator.tracking.registered_models import registrations

HANG = {"ranks": [1], "section": "step", "waited_s": 9.0, "limit_s": 3.0}
MARK = {"cause": "numerics", "attempt": 1, "step": 4, "rollback": 1}
DONE = {
    "science_hash": "ab12",
    "kind": "knn",
    "attempt": 1,
    "metrics": {},
    "outputs": {},
    "parents": {},
    "seconds": 1.0,
    "world_size": 1,
}
POINT = {"trial": 1, "settings": {}, "values": {"knn": 1.0}}
WINNER = {
    "trial": 1,
    "settings": {},
    "score": 1.0,
    "objective": "x",
    "num_trials": 2,
    "decided_at": "2026-01-01T00:00:00+00:00",
}
MODEL = {"name": "m", "reference": "s/c", "features": "cls", "science_hash": "ab12"}
MORE = {"mood": 1}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(LocalStore(tmp_path))


def test_unknown_keys_are_left_out(records: Records) -> None:
    key = stage_key("ab12")
    records.store.append_numbered(f"{key}/attempts", {})
    end = {"cause": "hang", "hang": HANG | MORE} | MORE
    records.store.create_json(f"{key}/ends/000001.json", end)
    done = DONE | MORE | {"intervened": [MARK | MORE]}
    records.store.create_json(f"{key}/done.json", done)
    records.store.append_numbered("models/m", MODEL | MORE)
    [attempt] = records.attempts("ab12")
    assert attempt.end is not None and attempt.end.hang is not None
    assert attempt.end.hang.ranks == (1,)
    record = records.done("ab12")
    assert record is not None and record.intervened[0].step == 4
    assert registrations(records)[0].reference == "s/c"
    winner = Winner.from_json(WINNER | MORE | {"front": [POINT | MORE]}, "w")
    assert winner.front[0].trial == 1


def test_a_trial_without_settings_is_named(tmp_path: Path) -> None:
    trials = Bench(tmp_path).trials
    key = f"{trials.prefix}/trials/000000.json"
    LocalStore(tmp_path).create_json(key, {"number": 0})
    with pytest.raises(StoreError, match=f"{key} is damaged: it lacks settings"):
        trials.settings(0)


def without(plain: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in plain.items() if key != name}


def test_a_record_that_lacks_a_key_is_named(records: Records) -> None:
    key = stage_key("ab12")
    records.store.append_numbered(f"{key}/attempts", {})
    end = f"{key}/ends/000001.json"
    records.store.create_json(end, {"cause": "hang", "hang": without(HANG, "ranks")})
    records.store.create_json(f"{key}/done.json", without(DONE, "metrics"))
    records.store.append_numbered("models/m", without(MODEL, "reference"))
    said: list[str] = []
    found = Records(records.store, said.append)
    assert found.attempts("ab12")[0].end is None
    with pytest.raises(StoreError, match=f"{key}/done.json is damaged: it lacks metrics"):
        found.done("ab12")
    assert registrations(found) == []
    assert re.search(f"{end}: hang is damaged: it lacks ranks; .* attempt 1 ended is lost", said[0])
    assert "models/m/000001.json is damaged: it lacks reference" in said[1]
    with pytest.raises(StoreError, match="w: front is damaged: it lacks values"):
        Winner.from_json(WINNER | {"front": [without(POINT, "values")]}, "w")
    with pytest.raises(StoreError, match="p is damaged: 'x' is no mapping"):
        build_known(Registered, "x", "p")
