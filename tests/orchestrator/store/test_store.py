"""Records, leases and journals in a store. Its storage has a suite of its own."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from cluster.hang import Hang
from mae_core.runtime.arrow_storage import ArrowStorage
from mae_core.runtime.storage import LocalStorage
from orchestrator.errors import StoreError, StudyBusy
from orchestrator.store.attempts import AttemptEnd, AttemptStart, DecisionRecord, Driver, Remedies
from orchestrator.store.driver import LocalStore, Store
from orchestrator.store.journal import JournalReader, JournalWriter
from orchestrator.store.lease import acquire, hold
from orchestrator.store.records import DoneRecord, Records, stage_key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(tmp_path / "store")


def test_a_record_is_created_once(store: Store) -> None:
    assert store.read("a/b") is None and store.read_json("a/b") is None
    assert store.create("a/b", b"x") and not store.create("a/b", b"y")
    assert store.read("a/b") == b"x" and store.read("a/b/below") is None
    store.delete("a")
    store.delete("a")
    assert store.list("a") == []


def test_numbered_records_never_overwrite(store: Store) -> None:
    assert [store.append_numbered("log", {"i": i}) for i in range(3)] == [1, 2, 3]
    assert store.numbered_keys("log")[-1] == "log/000003.json" and not store.numbered("nothing")
    assert store.read_json("log/000003.json") == {"i": 2}
    assert store.set_apart(["log/000003.json", "log/000003.json"]) == ["damaged/log/000003.json"]
    assert store.append_numbered("log", {}) == 4


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "a/../../b"])
def test_no_key_leaves_the_store(store: Store, key: str) -> None:
    for verb in (store.read, store.list, store.delete, store.path, lambda k: store.create(k, b"")):
        with pytest.raises(StoreError, match=f"key '{key}' leaves the store"):
            verb(key)


@pytest.mark.parametrize("content", [b"{torn", b"", b"[1]", b"null", b"\xff\xfe"])
def test_a_damaged_record_is_named(store: Store, content: bytes) -> None:
    store.create("r.json", content)
    with pytest.raises(StoreError, match="'r.json' in the store is damaged"):
        store.read_json("r.json")


def test_a_file_in_the_way_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a file stands where a directory should be.*--store"):
        LocalStore(tmp_path / "file").check_writable()
    with pytest.raises(StoreError, match="a file stands where a directory should be.*--store"):
        LocalStore(tmp_path / "file").check_readable()
    with pytest.raises(StoreError, match="a file stands where a directory should be.*--store"):
        LocalStore(tmp_path).create("file/below", b"")


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    def full(name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreError, match="is full: free some space"):
        Store(LocalStorage(tmp_path, full)).create("k", b"")


def test_a_store_needs_exclusive_creation_and_paths(tmp_path: Path) -> None:
    """A bucket without a conditional put is refused aloud, not trusted."""
    filesystem = SubTreeFileSystem(str(tmp_path), LocalFileSystem())
    store = Store(ArrowStorage(filesystem, "bucket"))
    with pytest.raises(StoreError, match="cannot create a file exclusively"):
        store.create("k", b"1")
    with pytest.raises(StoreError, match="not a directory of this machine"):
        store.path("k")


@pytest.mark.parametrize("content", ["{", "[]", "null", "[" * 100_000, "\xff"])
def test_a_record_that_is_no_mapping_is_damaged(tmp_path: Path, content: str) -> None:
    store = LocalStore(tmp_path)
    store.create("k.json", content.encode("latin-1"))
    with pytest.raises(StoreError, match="'k.json' in the store is damaged"):
        store.read_json("k.json")


def test_completion_is_created_once(tmp_path: Path) -> None:
    records = Records(LocalStore(tmp_path))
    record = DoneRecord(
        science_hash="ab12",
        kind="knn",
        attempt=1,
        metrics={"top1": 1.0},
        outputs={},
        parents={},
        seconds=1.0,
        world_size=1,
    )
    assert records.complete(record) and not records.complete(record)
    assert records.done("ab12") == record
    assert records.known_stages() == {"ab12"}
    records.supersede("ab12")
    assert records.done("ab12") is None


def test_a_record_is_archived_once_whatever_cuts_that_off(tmp_path: Path) -> None:
    class Stuck(LocalStorage):
        def delete(self, name: str) -> None:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    folder = stage_key("ab12")
    LocalStore(tmp_path).create_json(f"{folder}/done.json", {"science_hash": "ab12"})
    for _ in range(2):
        with pytest.raises(StoreError, match="not usable"):
            Records(Store(Stuck(tmp_path))).supersede("ab12")
    records = Records(LocalStore(tmp_path))
    assert records.store.list(f"{folder}/superseded") == ["000001.json"]
    assert records.store.read(f"{folder}/done.json") is not None, "nothing is lost"
    records.supersede("ab12")
    assert records.store.list(f"{folder}/superseded") == ["000001.json"]
    assert records.store.read(f"{folder}/done.json") is None


def test_the_folder_of_a_stage_may_be_on_another_disk(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    store.create_json("stages/ab/ab12/done.json", {"a": 1})
    folder = tmp_path / "store" / "stages" / "ab" / "ab12"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert store.read_json("stages/ab/ab12/done.json") == {"a": 1}
    assert store.create_json("stages/ab/ab12/more.json", {}) and store.list("stages/ab/ab12")


def test_attempts_are_numbered_and_ended_once(tmp_path: Path) -> None:
    records = Records(LocalStore(tmp_path))
    assert [records.begin_attempt("ab12", AttemptStart()) for _ in range(2)] == [1, 2]
    records.end_attempt("ab12", 1, AttemptEnd(cause="rank died"))
    first, second = records.attempts("ab12")
    assert first.end is not None and first.end.cause == "rank died" and second.end is None


def test_attempts_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = Records(LocalStore(tmp_path))
    start = AttemptStart(
        address="a#b",
        driver=Driver(host="h", pid=3, heartbeat="k"),
        epoch=2,
        world_size=4,
        remedies=Remedies(micro_batch=8, avoid_nodes=("n",)),
        code={"commit": "c", "dirty": True},
    )
    hang = Hang(ranks=(1,), section="step", waited_s=9.0, limit_s=3.0)
    end = AttemptEnd(cause="hang", rank=1, hang=hang, last_step=5, ended_at="2026-01-01T00:00:00")
    records.end_attempt("ab12", records.begin_attempt("ab12", start), end)
    [found] = records.attempts("ab12")
    assert replace(found.start, started_at="") == start and found.start.started_at
    assert found.end == end


def test_attempts_of_other_versions_are_read(tmp_path: Path) -> None:
    records = Records(LocalStore(tmp_path))
    key, time = stage_key("ab12"), "2026-01-01T00:00:00+00:00"
    start = {"driver": {"host": "h", "since": time, "mood": 7}, "colour": "red", "started_at": time}
    records.store.append_numbered(f"{key}/attempts", start)
    records.store.append_numbered(f"{key}/attempts", {"driver": None})
    records.store.create_json(f"{key}/ends/000001.json", {"cause": "error", "mood": 1})
    records.store.append_numbered(f"{key}/decisions", {"decision": "start", "mood": 1})
    first, second = records.attempts("ab12")
    assert first.start == AttemptStart(driver=Driver(host="h", since=time), started_at=time)
    assert first.end == AttemptEnd(cause="error") and second.start == AttemptStart()
    assert records.decisions("ab12") == [DecisionRecord(decision="start")]


def test_a_second_driver_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    with hold(store, "s") as lease:
        with pytest.raises(StudyBusy, match=str(os.getpid())):
            acquire(store, "s")
        lease.check()
    with hold(store, "s") as later:
        assert later.epoch == 2
        with pytest.raises(StudyBusy):
            lease.check()


def test_the_lease_of_a_killed_driver_is_taken_over(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from orchestrator.store.lease import acquire\n"
        "from orchestrator.store.driver import LocalStore\n"
        "acquire(LocalStore(Path(sys.argv[1])), 's').__enter__(); os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    with hold(LocalStore(tmp_path), "s") as lease:
        assert lease.epoch == 2


def test_a_journal_is_followed_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    reader = JournalReader(path)
    assert reader.read_new() == []
    writer = JournalWriter(path)
    writer.write(1, {"loss": 2.0})
    assert [e.step for e in reader.read_new()] == [1]
    with path.open("a") as torn:
        torn.write('{"seq": 1, "t": 5, "st')
    assert reader.read_new() == []
    with path.open("a") as rest:
        rest.write('ep": 2, "metrics": {"loss": 1.0}}\n')
    assert [e.metrics for e in reader.read_new()] == [{"loss": 1.0}]
    writer.close()


def test_a_failed_shipment_reads_the_same_entries_again(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "j")
    writer.write(1, {"loss": 2.0})
    reader = JournalReader(tmp_path / "j")
    with pytest.raises(OSError), reader.transaction():
        assert len(reader.read_new()) == 1
        raise OSError
    assert len(reader.read_new()) == 1
    writer.close()


def test_a_journal_outlives_a_full_disk(tmp_path: Path) -> None:
    """In a child process whose files may not grow, for a while."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        writer = JournalWriter(tmp_path / "j")
        for step in range(30):
            if step == 10:
                size = (tmp_path / "j").stat().st_size + 20
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            if step == 20:
                unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
            writer.write(step, {"loss": 1.0})
        writer.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [e.step for e in JournalReader(tmp_path / "j").read_new()] == list(range(30))
