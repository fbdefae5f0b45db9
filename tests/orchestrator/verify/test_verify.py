"""Every damage of a store is found by `verify` and before use, and `repair` makes way for `run`."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from support.finished_study import fill
from support.store_damage import BYTES, NO_FILES, as_older_version, edit
from support.whole_store import encoder_key, kept_keys, whole_store

from mae_core.config import ENCODER_FILE
from orchestrator.cli.main import main
from orchestrator.errors import DamagedRecord
from orchestrator.store.driver import SEAL, LocalStore
from orchestrator.store.journal import JOURNAL_FILE
from orchestrator.store.kept_files import adopted_file, check_named
from orchestrator.store.lease import hold
from orchestrator.store.records import Records
from orchestrator.tracking.registered_models import find_weights
from orchestrator.verify.compare import verify
from orchestrator.verify.damage import Kind
from studies.load import load_study


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def quiet(folder: Path) -> Records:
    return Records(LocalStore(folder / "store"), lambda text: None)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    whole_store(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged; hard links of the store stay links."""
    names: dict[int, Path] = {}
    for path in sorted(p for p in original.rglob("*") if p.is_file()):
        copy = tmp_path / path.relative_to(original)
        copy.parent.mkdir(parents=True, exist_ok=True)
        known = names.setdefault(path.stat().st_ino, copy)
        shutil.copy2(path, copy) if known is copy else os.link(known, copy)
    return tmp_path


def test_a_whole_store_is_sound_and_nothing_is_written(folder: Path) -> None:
    store = folder / "store"
    before = {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in store.rglob("*")}
    done = call("verify", "--store", store)
    assert done.exit_code == 0 and done.output.rstrip().endswith("compared: none damaged")
    found = json.loads(call("verify", "--store", store, "--json").stdout)
    assert found["damages"] == found["not_verifiable"] == found["stale"] == []
    keys = kept_keys(quiet(folder))
    assert found["num_records"] + found["num_files"] == len(keys) - 2, "manifests name the rest"
    assert call("verify", "two", "--store", store).exit_code == 0
    assert call("verify", folder / "two.py", "--store", store).exit_code == 0
    assert call("verify", "tow", "--store", store).exit_code == 2
    assert call("repair", "--store", store).stdout == "nothing to repair\n"
    after = {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in before}
    leases = {p for p in before if "lease" in p.as_posix()}
    assert {p for p in before if before[p] != after[p]} <= leases


@pytest.mark.parametrize("kind", BYTES)
def test_every_damage_of_every_file_is_found(folder: Path, kind: str) -> None:
    """All records at once, then all files that records name: a record names no others."""
    keys, draw = kept_keys(quiet(folder)), random.Random(kind)
    for batch in ([k for k in keys if k.endswith(".json")], [k for k in keys if k[-5:] != ".json"]):
        whole = {folder / "store" / key: (folder / "store" / key).read_bytes() for key in batch}
        for path, content in whole.items():
            path.write_bytes(BYTES[kind](content, draw))
        named = {damage.key for damage in verify(quiet(folder)).damages}
        assert set(batch) - named == set()
        for path, content in whole.items():
            path.write_bytes(content)
    assert verify(quiet(folder)).damages == ()


@pytest.mark.parametrize("kind", NO_FILES)
def test_what_stands_in_the_place_of_a_record_is_found_and_moved(folder: Path, kind: str) -> None:
    store, study = folder / "store", folder / "two.py"
    sides = [*store.glob("stages/*/*/attempts/*.json"), *store.glob("stages/*/*/ends/*.json")]
    for path in sides:
        path.unlink()
        NO_FILES[kind](path)
    for place in store.glob("stages/*/*/attempts/*/outputs"):
        NO_FILES[kind](place.with_name(JOURNAL_FILE))
    status = call("status", study, "--store", store)
    assert status.exit_code == 0 and "it is passed over" in status.stderr
    assert call("report", study, "--store", store).exit_code == 0
    done = [p for p in store.glob("stages/*/*/done.json") if "knn" in p.read_text()]
    [encoder, *_] = store.glob(f"stages/*/*/attempts/*/outputs/{ENCODER_FILE}")
    for path in (*done, encoder):
        path.unlink()
        NO_FILES[kind](path)
    assert call("plan", study, "--store", store).exit_code == 8
    named = {store / damage.key for damage in verify(quiet(folder)).damages}
    assert named == {*sides, *done, encoder}
    assert call("repair", "--store", store).exit_code == 0
    assert call("verify", "--store", store).exit_code == 0
    assert call("plan", study, "--store", store).exit_code == 0


def test_a_file_in_the_place_of_an_attempt_is_said(folder: Path) -> None:
    attempts = [p for p in (folder / "store").glob("stages/*/*/attempts/*") if p.is_dir()]
    for place in attempts:
        shutil.rmtree(place)
        place.touch()
    for verb in ("report", "status", "plan"):
        assert call(verb, folder / "two.py", "--store", folder / "store").exit_code in (0, 8)
    found = {damage.key for damage in verify(quiet(folder)).damages}
    assert {key.rpartition("/outputs/")[0] for key in found} >= {
        path.relative_to(folder / "store").as_posix() for path in attempts[:1]
    }


def test_a_disk_that_is_not_mounted_is_no_missing_stage(folder: Path) -> None:
    store = folder / "store"
    moved = store / "stages"
    moved.rename(folder / "disk")
    moved.symlink_to(folder / "disk")
    assert verify(quiet(folder)).damages == ()
    (folder / "disk").rename(folder / "unmounted")
    planned = call("plan", folder / "two.py", "--store", store)
    assert planned.exit_code == 8 and f"{moved} is a link to nothing" in planned.stderr


def test_what_commands_pass_over_is_repaired_too(folder: Path) -> None:
    store = folder / "store"
    kinds = ("lease", "resolved", "ends", "attempts", "decisions", "superseded")
    side = [path for kind in kinds for path in store.glob(f"*/**/{kind}/*.json")]
    with hold(LocalStore(store), "two"):  # the damaged lease is an old one: nobody waits for it
        pass
    shards = sorted(store.glob("stages/*/*/checkpoints/*/shards/*"))[:1]
    for path in (*side, *shards, store / "store.json"):
        path.write_bytes(path.read_bytes()[:-3])
    assert call("verify", "--store", store).exit_code == 8
    repaired = json.loads(call("repair", "--store", store, "--json").stdout)
    assert len(repaired["moved_to"]) == len(side) + 2 and repaired["computed_again"] == []
    assert call("verify", "--store", store).exit_code == 0
    assert call("repair", "--store", store).stdout == "nothing to repair\n"


def test_files_that_are_gone_are_found(folder: Path) -> None:
    records = quiet(folder)
    files = [key for key in kept_keys(records) if not key.endswith(".json")]
    for key in files:
        (folder / "store" / key).rename(folder / "store" / f"{key}.gone")
    assert {damage.key for damage in verify(records).damages} == set(files)
    for key in files:
        (folder / "store" / f"{key}.gone").rename(folder / "store" / key)
    for path in (folder / "store").glob("stages/*/*/identity.json"):
        path.unlink()
    assert {d.kind for d in verify(quiet(folder)).damages} == {Kind.IDENTITY}


def test_an_edited_accuracy_is_never_reported(folder: Path) -> None:
    store = folder / "store"
    path = next(p for p in store.glob("stages/*/*/done.json") if "top1" in p.read_text())
    edit(path, metrics={"top1": 99.9, "num_images": 200})
    for verb in ("plan", "status", "report", "laws", "run"):
        done = call(verb, folder / "two.py", "--store", store)
        assert done.exit_code == 8, verb
        assert "its own digest differs" in done.stderr and "`mae-study verify`" in done.stderr
    done = call("verify", "two", "--store", store)
    assert done.exit_code == 8
    assert "completion record of two/" in done.output and "`mae-study repair two`" in done.output
    assert "computed again by `run` after that: two/" in done.output
    with hold(LocalStore(store), "two"):
        assert call("repair", "two", "--store", store).exit_code == 5
    assert path.is_file()
    repaired = call("repair", "two", "--store", store, "--json")
    key = path.relative_to(store).as_posix()
    assert json.loads(repaired.stdout)["moved_to"] == [f"damaged/{key}"]
    assert (store / "damaged" / key).is_file() and not path.exists()
    assert call("verify", "two", "--store", store).exit_code == 0
    stages = json.loads(call("plan", folder / "two.py", "--store", store, "--json").stdout)[
        "stages"
    ]
    assert [s["status"] for s in stages].count("missing") == 1
    fill(folder, 2, 0.1)
    assert call("status", folder / "two.py", "--store", store).exit_code == 0


def test_records_without_a_digest_are_said_to_be_not_verifiable(folder: Path) -> None:
    store = folder / "store"
    path = next(store.glob("stages/*/*/done.json"))
    plain = json.loads(path.read_text())
    del plain[SEAL]
    as_older_version(path, plain)
    done = call("verify", "--store", store)
    assert done.exit_code == 0 and "1 records are of an older version" in done.output
    found = json.loads(call("verify", "--store", store, "--json").stdout)
    assert found["not_verifiable"] == [path.relative_to(store).as_posix()]


def test_a_damaged_encoder_is_refused_by_all_that_read_it(folder: Path) -> None:
    records = quiet(folder)
    store = folder / "store"
    path = store / encoder_key(records)
    path.write_bytes(BYTES["one bit"](path.read_bytes(), random.Random(1)))
    cell = next(c.address for c in load_study("quickstart").cells if c.pretrain)
    out = ("--layout", "timm", "--out", folder / "out.pth", "--store", store)
    for reference in (f"quickstart/{cell}", path):
        done = call("export", reference, *out)
        assert done.exit_code == 8 and "its SHA-256 is not that of its record" in done.stderr
    kept = store / "studies/quickstart/resolved/000001.json"
    debugged = call("debug", kept, cell, "knn", "--store", store)
    assert debugged.exit_code == 8 and ENCODER_FILE in debugged.stderr
    debugged = call("debug", kept, cell, "knn", "--encoder", path, "--store", store)
    assert debugged.exit_code == 8 and ENCODER_FILE in debugged.stderr
    with pytest.raises(DamagedRecord, match=ENCODER_FILE):
        find_weights(records, f"quickstart/{cell}")
    with pytest.raises(DamagedRecord):
        check_named(records, path)
    database = store / "tracking" / "mlflow.db"
    database.parent.mkdir()
    database.write_text("of before")
    assert call("mlflow", "rebuild", "--store", store).exit_code == 8
    assert call("mlflow", "register", f"quickstart/{cell}", "--store", store).exit_code == 8
    assert database.read_text() == "of before", "nothing is archived before all is read"
    found = verify(quiet(folder), "quickstart")
    assert [d.kind for d in found.damages] == [Kind.OUTPUT]
    assert found.computed_again == (f"quickstart/{cell}#pretrain",)
    assert verify(quiet(folder), "two").damages == ()


def test_a_damaged_adopted_encoder_is_adopted_again(folder: Path) -> None:
    records, store = quiet(folder), folder / "store"
    adopted_file(records, "mae_t", ENCODER_FILE)
    [path] = store.glob(f"adopted/*/*/files/{ENCODER_FILE}")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")  # in place: outputs of stages are links to it
    export = ("export", "mae_t", "--layout", "timm", "--out", folder / "o.pth", "--store", store)
    assert call(*export).exit_code == 8
    kinds = {d.kind for d in verify(records).damages}
    assert kinds == {Kind.ADOPTED, Kind.OUTPUT}
    again = call("adopt", folder / "mae.pth", "--name", "mae_t", "--store", store)
    assert again.exit_code == 0, again.output
    assert path.read_bytes() == whole and call(*export).exit_code == 0
    assert call("repair", "--store", store).exit_code == 0
    assert verify(quiet(folder)).damages == ()


def test_what_others_put_into_a_store_is_no_damage_and_half_an_adoption_is(folder: Path) -> None:
    store = folder / "store"
    for place in ("stages", "stages/ab", "studies/two/predictions", "models/m", "adopted"):
        (store / place).mkdir(exist_ok=True)
        (store / place / "notes.txt").write_text("mine")
    assert verify(quiet(folder)).damages == ()
    assert call("report", folder / "two.py", "--store", store).exit_code == 0
    [record] = store.glob("adopted/*/*/record.json")
    record.unlink()
    assert [d.kind for d in verify(quiet(folder)).damages] == [Kind.ADOPTED]
    assert call("repair", "--store", store).exit_code == 0
    assert [d.kind for d in verify(quiet(folder)).damages] == [Kind.NAME]
    again = call("adopt", folder / "mae.pth", "--name", "mae_t", "--store", store)
    assert again.exit_code == 0 and verify(quiet(folder)).damages == ()


def test_predictions_that_are_gone_are_refused(folder: Path) -> None:
    store = folder / "store"
    for path in store.rglob("predictions.parquet"):
        path.unlink()
    study = folder / "two.py"
    done = call("compare", f"{study}:a", f"{study}:b", "--store", store)
    assert done.exit_code == 8 and "cannot be read (No such file" in done.stderr
    assert len(verify(quiet(folder), "two").damages) == 5, "the archived one too"


def test_a_store_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    for verb in ("plan", "status"):
        done = call(verb, "quickstart", "--store", tmp_path / "misspelt")
        assert done.exit_code == 0 and done.stderr.count("no store at") == 1
        assert str(tmp_path / "misspelt") in done.stderr
    assert call("verify", "--store", tmp_path / "misspelt").exit_code == 8
    fill(tmp_path, 1, 0.1)
    sides = [f"{tmp_path}/two.py:{family}" for family in "ab"]
    assert "no store" not in call("compare", *sides, "--store", tmp_path / "store").stderr
    assert call("compare", *sides, "--store", tmp_path / "none").stderr.count("no store at") == 1
