"""Damaged records: each is named or passed over, none is believed, none ends in a traceback."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from support.store_damage import BYTES, as_older_version, edit, variants

from cluster.hang import Hang
from cluster.process_identity import ProcessIdentity
from mae_core.data.facts import facts_for_digits
from orchestrator.errors import DamagedRecord, exit_code
from orchestrator.plan.accepted import load_accepted
from orchestrator.plan.history import kept_plans
from orchestrator.plan.pasted import resolved_path
from orchestrator.report.goodput import attempt_log
from orchestrator.report.predictions import Registered, Scored, score_lines
from orchestrator.store.adopted import adopted_key, find_adopted, held_by, name_key
from orchestrator.store.attempts import (
    Attempt,
    AttemptEnd,
    AttemptStart,
    DecisionRecord,
    Driver,
    Remedies,
)
from orchestrator.store.data_facts import keep, read_facts
from orchestrator.store.driver import MARK, SEAL, LocalStore
from orchestrator.store.generations import generations, milliseconds
from orchestrator.store.journal import JOURNAL_FILE, StageReader, read_events
from orchestrator.store.known_keys import build_known
from orchestrator.store.lease import is_alive
from orchestrator.store.lineage import steps_of
from orchestrator.store.records import DoneRecord, Intervention, Records, stage_key
from orchestrator.sweep.trials import Asked, Winner
from orchestrator.tracking.registered_models import Registration, registrations
from studies.load import load_study
from studies.spec.canonical_json import digest
from studies.spec.codec import to_plain

SCIENCE = {"kind": "pretrain", "data": "f" * 64}
KEY = digest(SCIENCE)
FOLDER = stage_key(KEY)
SHA = "cd" * 32
TIME = "2026-01-01T00:00:00+00:00"
DONE = DoneRecord(
    science_hash=KEY,
    kind="pretrain",
    attempt=1,
    metrics={"top1": 12.5, "loss": 0.5, "details": {"mce": 1.0}},
    outputs={"encoder.safetensors": SHA},
    parents={"ab": {"encoder.safetensors": SHA}},
    seconds=2.0,
    world_size=1,
    provenance={"code": {"commit": "c"}, "versions": {"torch": "2"}, "level": "bit-exact"},
    intervened=[Intervention(cause="numerics", attempt=1, step=4, rollback=1)],
)
HERE = ProcessIdentity.of_this_process()
DRIVER = Driver(
    host="h",
    pid=1,
    boot_id=HERE.boot_id,
    pid_namespace=HERE.pid_namespace,
    since=TIME,
    epoch=1,
    heartbeat="studies/quickstart/lease/000001.heartbeat",
)
START = AttemptStart(
    address="a#pretrain",
    driver=DRIVER,
    epoch=1,
    world_size=2,
    remedies=Remedies(micro_batch=8, avoid_nodes=("n",)),
    code={"commit": "c", "dirty": False},
)
END = AttemptEnd(
    cause="hang", hang=Hang(ranks=(1,), section="step", waited_s=9.0, limit_s=3.0), last_step=3
)
WINNER = Winner(
    trial=1, settings={"pretrain.lr": 0.1}, score=1.0, objective="x", num_trials=2, decided_at=TIME
)
MODEL = Registration(name="m", reference="s/c", features="cls", science_hash=KEY)
FORECAST = Registered(
    cell="a",
    stage="knn",
    protocol="p",
    science_hash=KEY,
    top1=1.0,
    low=0.0,
    high=2.0,
    level=0.9,
    law="1 / N",
    statements=("s",),
    registered_at=TIME,
)
ADOPTED = {
    "sha256": SHA,
    "source": "f.pth",
    "layout": "hf",
    "encoder": {"width": 8, "depth": 1, "num_heads": 1, "patch_size": 2},
    "decoder": None,
    "num_classes": None,
    "image_size": 8,
    "num_channels": 1,
    "files": {"encoder.safetensors": SHA},
    "notes": ["n"],
    "left_out": [],
    "left_out_of_the_pickle": [],
    "mapping": {"a": ["b"]},
}


def write_all(store: LocalStore) -> Records:
    """One record of every kind."""
    records = Records(store, lambda text: None)
    records.write_identity(KEY, SCIENCE)
    records.end_attempt(KEY, records.begin_attempt(KEY, START), END)
    decision = DecisionRecord(decision="start", world_size=1, remedies=Remedies(micro_batch=8))
    records.decide(KEY, decision)
    records.complete(DONE)
    store.append_numbered(f"{FOLDER}/superseded", DONE.to_json())
    whole = load_study("quickstart")
    study = to_plain(replace(whole, cells=whole.cells[:1], sweep=None))
    known = {"hash": KEY, "science": SCIENCE}
    resolved = {"study": study, "stages": {"N4/e240/s0#pretrain": known}}
    store.append_numbered("studies/quickstart/resolved", resolved)
    store.create_json(f"{adopted_key(SHA)}/record.json", ADOPTED)
    store.create_json(name_key("mae"), {"sha256": SHA, "source": "f.pth", "at": TIME})
    store.append_numbered("models/m", asdict(MODEL) | {"at": TIME})
    store.create_json("sweeps/s/winner-0002.json", WINNER.to_json())
    store.create_json("sweeps/s/trials/000000.json", {"number": 0, "settings": {"knn.k": 5}})
    store.append_numbered("studies/quickstart/predictions", asdict(FORECAST))
    store.append_numbered("studies/quickstart/lease", asdict(DRIVER))
    keep(store, "datasets/facts-f.json", facts_for_digits())
    records.store_id()
    return records


def _winner(records: Records) -> None:
    plain = records.store.read_json("sweeps/s/winner-0002.json")
    assert plain is not None
    Winner.from_json(plain, "w")


def _scored(records: Records) -> None:
    plain = records.store.read_json("studies/quickstart/predictions/000001.json")
    one = Scored(record=build_known(Registered, plain, "p"), measured=50.0)
    assert score_lines([one])[1]


def _asked(records: Records) -> None:
    plain = records.store.read_json("sweeps/s/trials/000000.json")
    assert isinstance(build_known(Asked, plain, "t").settings, dict)


def _lease(records: Records) -> None:
    plain = records.store.read_json("studies/quickstart/lease/000001.json")
    is_alive(records.store, Driver.from_json(plain or {}))


def _done(records: Records) -> None:
    record = records.done(KEY)
    assert record is not None
    milliseconds(record.finished_at)


def _history(records: Records) -> None:
    for generation in generations(records, KEY):
        assert milliseconds(generation.opened_at) + milliseconds(generation.ended_at) >= 0
        assert isinstance(generation.commit + generation.state + generation.last_message, str)
        assert len([a.to_json() for a in generation.attempts]) < 3
    records.lineage(KEY)


def _states(records: Records) -> None:
    if load_accepted(records, "quickstart"):
        assert list(kept_plans(records, "quickstart"))


READERS: dict[str, Callable[[Records], object]] = {
    f"{FOLDER}/done.json": _done,
    f"{FOLDER}/identity.json": lambda records: records.identity(KEY),
    f"{FOLDER}/attempts/000001.json": _history,
    f"{FOLDER}/ends/000001.json": _history,
    f"{FOLDER}/decisions/000001.json": _history,
    f"{FOLDER}/superseded/000001.json": _history,
    "studies/quickstart/resolved/000001.json": _states,
    f"{adopted_key(SHA)}/record.json": lambda records: find_adopted(records, SHA).encoder,
    name_key("mae"): lambda records: held_by(records, "mae"),
    "studies/quickstart/lease/000001.json": _lease,
    "studies/quickstart/predictions/000001.json": _scored,
    "sweeps/s/trials/000000.json": _asked,
    "models/m/000001.json": registrations,
    "sweeps/s/winner-0002.json": _winner,
    "datasets/facts-f.json": lambda r: read_facts(r.store, "datasets/facts-f.json"),
    "store.json": lambda records: records.store_id(),
}
SIDE = ("attempts/", "ends/", "decisions/", "superseded/", "resolved/", "models/", "store.json")


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return write_all(LocalStore(tmp_path))


def test_every_kind_of_record_is_read_back(records: Records, tmp_path: Path) -> None:
    made = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.json")}
    assert made == set(READERS)
    for key, read in READERS.items():
        assert records.store.read_sealed(key)[1], f"{key} bears its digest"
        read(records)
    assert records.passed_over == {}


@pytest.mark.parametrize("key", READERS)
def test_damaged_bytes_are_found_before_use(tmp_path: Path, key: str) -> None:
    draw, path = random.Random(0), tmp_path / key
    whole = write_all(LocalStore(tmp_path)).store.read(key) or b""
    for name in [n for n in BYTES for _ in range(20 if n == "one bit" else 1)]:
        damaged = BYTES[name](whole, draw)
        path.write_bytes(damaged)
        fresh = Records(LocalStore(tmp_path), lambda text: None)
        assert _reads(key, fresh), f"{name}: believed"
        path.write_bytes(whole)


def _reads(key: str, records: Records) -> bool:
    """Read a record; True if it was refused or passed over as damaged."""
    try:
        READERS[key](records)
    except DamagedRecord as error:
        assert exit_code(error) == 8
        return True
    is_facts = key.startswith("datasets/") and read_facts(records.store, key) is None
    return is_facts or key in records.passed_over or key == "store.json"


@pytest.mark.parametrize("key", READERS)
def test_no_value_of_a_record_ends_in_a_traceback(tmp_path: Path, key: str) -> None:
    """Edited, and so other than its digest; and of a version that kept none."""
    whole = write_all(LocalStore(tmp_path)).store.read_json(key)
    path, count = tmp_path / key, 0
    found = list(variants(whole))
    tried = found[:: max(1, len(found) // 120)]
    for variant in tried:
        as_older_version(path, variant)
        fresh = Records(LocalStore(tmp_path), lambda text: None)
        try:
            READERS[key](fresh)
        except Exception as error:
            assert exit_code(error) is not None, f"{variant}: {error!r}"
            count += 1
        count += bool(fresh.passed_over)
        if key.startswith("datasets/"):
            count += read_facts(fresh.store, key) is None
    assert count > len(tried) / 4 or key == "store.json", "types are checked"


@pytest.mark.parametrize("key", READERS)
def test_an_edited_record_and_one_of_another_place_are_damaged(tmp_path: Path, key: str) -> None:
    store = write_all(LocalStore(tmp_path)).store
    path = tmp_path / key
    path.with_name("copy.json").write_bytes(path.read_bytes())
    edit(path, **{"metrics": {"top1": 99.9}})
    with pytest.raises(DamagedRecord, match="its own digest differs: it was edited"):
        store.read_json(key)
    with pytest.raises(DamagedRecord, match="is of another place"):
        store.read_json(f"{Path(key).parent.as_posix()}/copy.json".removeprefix("./"))


def test_a_record_whose_digest_was_taken_out_is_damaged(tmp_path: Path) -> None:
    """In a store of this version; in one of an older version, nobody can tell."""
    store, path = write_all(LocalStore(tmp_path)).store, tmp_path / FOLDER / "done.json"
    for taken_out in ({"metrics": {"top1": 99.9}}, {SEAL: None}):
        path.write_text(json.dumps(DONE.to_json() | taken_out))
        with pytest.raises(DamagedRecord, match="bears no digest, as every record here does"):
            Records(store).done(KEY)
    as_older_version(path, DONE.to_json())
    assert Records(LocalStore(tmp_path)).done(KEY) == DONE
    LocalStore(tmp_path).create_json("more.json", {})
    assert not (tmp_path / MARK).exists(), "an older store stays one"


def test_a_completion_record_of_another_stage_is_refused(records: Records) -> None:
    other = stage_key("ab12")
    as_older = DONE.to_json()
    records.store.create_json(f"{other}/done.json", as_older)
    with pytest.raises(DamagedRecord, match=f"it is of {KEY}"):
        records.done("ab12")


def test_side_records_are_named_set_apart_and_numbers_are_not_used_again(tmp_path: Path) -> None:
    write_all(LocalStore(tmp_path))
    said: list[str] = []
    records = Records(LocalStore(tmp_path), said.append)
    side = [key for key in READERS if any(part in key for part in SIDE)]
    for key in side:
        (tmp_path / key).write_bytes(b"{torn")
        READERS[key](records)
    records.set_apart()
    assert f"damaged/{FOLDER}/attempts/000001.json" in "".join(said)
    assert any("how attempt 1 ended is lost, its result is whole" in text for text in said)
    for key in side:
        assert (tmp_path / "damaged" / key).read_bytes() == b"{torn"
    assert records.begin_attempt(KEY, START) == 2
    assert records.decide(KEY, DecisionRecord(decision="start")) == 2
    fresh = Records(LocalStore(tmp_path), said.append)
    before = len(said)
    for key in side:
        READERS[key](fresh)
    assert fresh.done(KEY) is not None and len(said) == before


def test_damaged_facts_are_said_once_and_found_again_by_a_scan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, key = write_all(LocalStore(tmp_path)).store, "datasets/facts-f.json"
    (tmp_path / key).write_text("{}")
    assert [read_facts(store, key) for _ in range(3)] == [None] * 3
    assert capsys.readouterr().err.count("`run` reads the images again") == 1
    keep(store, key, facts_for_digits())
    assert read_facts(store, key) == facts_for_digits()
    assert (tmp_path / "damaged" / key).read_text() == "{}"


def test_a_study_is_planned_from_the_states_that_are_whole(tmp_path: Path) -> None:
    records = write_all(LocalStore(tmp_path))
    (tmp_path / "studies/quickstart/resolved/000002.json").write_text("[]")
    assert len(list(kept_plans(records, "quickstart"))) == 1
    assert resolved_path(records, "quickstart").endswith("resolved/000001.json")
    assert load_accepted(records, "quickstart")["N4/e240/s0", "pretrain"].hash == KEY


def test_lines_of_a_journal_with_values_of_other_types_are_left_out(tmp_path: Path) -> None:
    entry = {"seq": 0, "t": 1, "step": 1, "metrics": {"loss": 1.0}}
    event = {"seq": 1, "t": 2, "event": "restored", "step": 1, "write_s": 0.5}
    attempt = Attempt(number=1, start=replace(START, started_at=TIME))
    path = tmp_path / JOURNAL_FILE
    for whole in (entry, event):
        for variant in variants(whole):
            path.write_text(f"{json.dumps(variant)}\n{json.dumps(entry)}\n{json.dumps(event)}\n")
            reader = StageReader()
            reader.follow([tmp_path])
            with reader.reading() as entries:
                assert all(math.isfinite(v) for e in entries for v in e.metrics.values())
            assert steps_of(tmp_path).resumed >= 1
            assert attempt_log(attempt, read_events(path), entries) is not None
