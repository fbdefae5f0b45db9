"""MLflow refused, hanging, erring, killed or absent: nothing is lost and nothing is double."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.mlflow_servers import (
    Gate,
    Server,
    client,
    compare,
    free_port,
    running_server,
    runs_of,
    touch_at_once,
)

from orchestrator.errors import TrackingError
from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import JOURNAL_FILE, JournalWriter
from orchestrator.tracking.mlflow_database import Destination, database_exists
from orchestrator.tracking.run_values import Point, RunInfo, RunStatus, RunUpdate
from orchestrator.tracking.shipper import Shipper
from orchestrator.tracking.uri import check_uri

CELL = RunInfo(name="a", level="cell", identity="cell:a")
STAGE = RunInfo(
    name="a#pretrain",
    level="stage",
    identity="stage:1",
    parent=CELL,
    params={"mask_ratio": 0.75},
)
TIMEOUT_S = 1
"""Of a request, so that a hanging server costs the tests less."""


@pytest.fixture(autouse=True)
def short_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT_S))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def gate(server: Server) -> Iterator[Gate]:
    gate = Gate(server.port)
    yield gate
    gate.close()


class Stage:
    """A stage that trains: its journal grows, and a shipper follows it."""

    def __init__(self, uri: str, study: str, root: Path) -> None:
        self.target = Destination(uri=uri, study=study, question="?", origin=root.name)
        self._root = root
        self.attempts: list[Path] = []
        self._writer: JournalWriter | None = None
        self._step = 0

    def begin_attempt(self) -> None:
        """A new attempt, which goes over the last five steps again."""
        if self._writer is not None:
            self._writer.close()
        self.attempts.append(self._root / f"attempts/{len(self.attempts) + 1}")
        self._writer = JournalWriter(self.attempts[-1] / JOURNAL_FILE)
        self._step = max(0, self._step - 5)

    def train(self, steps: int) -> None:
        assert self._writer is not None
        for _ in range(steps):
            self._step += 1
            value = 1 / (self._step + len(self.attempts))
            self._writer.write(self._step, {"loss": value, "lr": 2 * value})
            self._writer.event("saved", {"step": self._step})

    def update(self, status: RunStatus = RunStatus.RUNNING) -> RunUpdate:
        is_done = status is RunStatus.FINISHED
        return RunUpdate(
            info=STAGE,
            status=status,
            attempts=tuple(self.attempts),
            results=(Point("final.loss", 0.5, 1000),) if is_done else (),
            attempt=1,
            tags={"state": "done" if is_done else "running"},
        )

    def compared(self, uri: str) -> dict[str, int]:
        run = self.run(uri)
        assert run is not None
        return compare(uri, run, self.attempts)

    def run(self, uri: str) -> Any:
        """The stage's run, None if there is none; there are never two."""
        found = [r for r in runs_of(uri, self.target.study) if r.data.tags["level"] == "stage"]
        assert len(found) <= 1
        return found[0] if found else None

    def wait(self, uri: str, shipper: Shipper, timeout_s: float = 60) -> None:
        """Wait until all that was journaled has arrived."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            shipper.tend()
            if self.run(uri) is not None and self.compared(uri)["missing"] == 0:
                return
            time.sleep(0.3)
        raise TimeoutError(f"still missing: {self.run(uri) and self.compared(uri)}")


def assert_complete(stage: Stage, uri: str, steps: int) -> None:
    """Everything is there once: curves, params, tags, results, one run of each kind."""
    expected = {"journal": 2 * steps, "mlflow": 2 * steps}
    assert stage.compared(uri) == expected | {"missing": 0, "doubled": 0, "different": 0}
    run = stage.run(uri)
    assert run.info.status == "FINISHED" and run.data.tags["state"] == "done"
    assert run.data.params == {"mask_ratio": "0.75"} and run.data.metrics["final.loss"] == 0.5
    runs = {r.data.tags["level"]: r for r in runs_of(uri, stage.target.study)}
    assert len(runs_of(uri, stage.target.study)) == len(runs)
    assert runs.keys() == {"study", "cell", "stage"}
    assert run.data.tags["mlflow.parentRunId"] == runs["cell"].info.run_id


@pytest.mark.parametrize("kind", Gate.MODES)
def test_an_outage_at_the_start_in_the_middle_and_at_the_end(
    kind: str, gate: Gate, server: Server, tmp_path: Path
) -> None:
    stage = Stage(gate.uri, f"outage-{kind}", tmp_path)
    gate.mode = kind
    shipper = Shipper(stage.target)
    assert (shipper.absent is None) == (kind == "slow")
    stage.begin_attempt()
    shipper.send(stage.update())
    stage.train(30)
    time.sleep(2 * TIMEOUT_S)
    gate.mode = "pass"
    stage.wait(server.uri, shipper)
    gate.mode = kind
    stage.train(30)
    stage.begin_attempt()
    shipper.send(stage.update())
    stage.train(30)
    time.sleep(2 * TIMEOUT_S)
    gate.mode = "pass"
    stage.wait(server.uri, shipper)
    gate.mode = kind
    stage.train(30)
    shipper.send(stage.update(RunStatus.FINISHED))
    opens = threading.Timer(3 * TIMEOUT_S, lambda: setattr(gate, "mode", "pass"))
    opens.start()
    assert shipper.close() is None
    opens.join()
    assert_complete(stage, server.uri, 115)


def test_answers_lost_at_random_make_nothing_double(
    gate: Gate, server: Server, tmp_path: Path
) -> None:
    """Every other request is applied and not answered, that which makes a run among them."""
    stage = Stage(gate.uri, "lost-answers", tmp_path)
    stage.begin_attempt()
    stage.train(30)
    gate.mode = "pass"
    shipper = Shipper(stage.target)
    shipper.send(stage.update(RunStatus.FINISHED))
    stop = threading.Event()

    def flap() -> None:
        while not stop.wait(0.25):
            gate.mode = "swallow" if gate.mode == "pass" else "pass"

    flapping = threading.Thread(target=flap)
    flapping.start()
    time.sleep(6 * TIMEOUT_S)
    stop.set()
    flapping.join()
    gate.mode = "pass"
    assert shipper.close() is None
    assert_complete(stage, server.uri, 30)


def test_a_server_that_never_comes_is_given_up_and_made_up_for_later(
    gate: Gate, server: Server, tmp_path: Path
) -> None:
    stage = Stage(gate.uri, "never", tmp_path)
    gate.mode = "hang"
    stage.begin_attempt()
    stage.train(10)
    shipper = Shipper(stage.target)
    shipper.send(stage.update(RunStatus.FINISHED))
    began = time.monotonic()
    problem = shipper.close()
    assert time.monotonic() - began < 30
    assert problem is not None and gate.uri in problem and "could not be used" in problem
    gate.mode = "pass"
    shipper = Shipper(stage.target)
    shipper.send(stage.update(RunStatus.FINISHED))
    assert shipper.close() is None
    assert_complete(stage, server.uri, 10)


def test_a_killed_shipper_is_replaced(server: Server, tmp_path: Path) -> None:
    stage = Stage(server.uri, "killed", tmp_path)
    stage.begin_attempt()
    stage.train(2000)
    shipper = Shipper(stage.target)
    shipper.send(stage.update())
    stage.wait(server.uri, shipper)
    os.kill(shipper.pid, signal.SIGKILL)
    stage.train(2000)
    shipper.send(stage.update())
    stage.wait(server.uri, shipper)
    stage.train(2000)
    shipper.send(stage.update(RunStatus.FINISHED))
    os.kill(shipper.pid, signal.SIGKILL)
    assert shipper.close() is None
    assert_complete(stage, server.uri, 6000)


def test_a_server_that_freezes_and_one_that_is_killed(tmp_path: Path) -> None:
    """What was asked of a frozen server is done when it thaws, after everybody gave it up."""
    with running_server(tmp_path) as server:
        stage = Stage(server.uri, "frozen", tmp_path / "store")
        stage.begin_attempt()
        shipper = Shipper(stage.target)
        deadline = time.monotonic() + 30
        while not runs_of(server.uri, "frozen"):  # the study run: the shipper is at work
            assert time.monotonic() < deadline
            time.sleep(0.1)
        server.signal(signal.SIGSTOP)
        stage.train(50)
        shipper.send(stage.update())
        time.sleep(3 * TIMEOUT_S)
        server.signal(signal.SIGCONT)
        stage.wait(server.uri, shipper)
        stage.train(50)
        server.kill()
        stage.train(50)
        time.sleep(TIMEOUT_S)
        server.start()
        stage.train(50)
        shipper.send(stage.update(RunStatus.FINISHED))
        assert shipper.close() is None
        assert_complete(stage, server.uri, 200)


def test_of_a_run_made_twice_one_stays(server: Server, tmp_path: Path) -> None:
    """A frozen server may make a run long after it was asked to, when there is another."""
    stage = Stage(server.uri, "twice", tmp_path)
    stage.begin_attempt()
    stage.train(10)
    shipper = Shipper(stage.target)
    shipper.send(stage.update())
    assert shipper.close() is None
    run = stage.run(server.uri)
    again = client(server.uri).create_run(
        run.info.experiment_id, tags=run.data.tags, start_time=run.info.start_time - 1000
    )
    shipper = Shipper(stage.target)
    shipper.send(stage.update(RunStatus.FINISHED))
    assert shipper.close() is None
    assert_complete(stage, server.uri, 10)
    assert stage.run(server.uri).info.run_id == run.info.run_id != again.info.run_id


def test_of_a_cell_made_twice_one_stays_with_its_stages(server: Server, tmp_path: Path) -> None:
    stage = Stage(server.uri, "two-cells", tmp_path)
    stage.begin_attempt()
    stage.train(10)
    shipper = Shipper(stage.target)
    shipper.send(stage.update(RunStatus.FINISHED))
    assert shipper.close() is None
    run, mlflow = stage.run(server.uri), client(server.uri)
    cell = mlflow.get_run(run.data.tags["mlflow.parentRunId"])
    again = mlflow.create_run(
        run.info.experiment_id, tags=cell.data.tags, start_time=cell.info.start_time - 1000
    )
    for key in ("final.loss", "lr"):  # it looks more like the one in use than the other
        mlflow.log_metric(again.info.run_id, key, 1.0)
    shipper = Shipper(stage.target)
    assert shipper.close() is None
    assert_complete(stage, server.uri, 10)
    assert stage.run(server.uri).data.tags["mlflow.parentRunId"] == again.info.run_id


def test_a_run_that_somebody_deletes_is_made_again(server: Server, tmp_path: Path) -> None:
    stage = Stage(server.uri, "deleted", tmp_path)
    stage.begin_attempt()
    stage.train(10)
    shipper = Shipper(stage.target)
    shipper.send(stage.update())
    stage.wait(server.uri, shipper)
    client(server.uri).delete_run(stage.run(server.uri).info.run_id)
    stage.train(10)
    stage.wait(server.uri, shipper)
    shipper.send(stage.update(RunStatus.FINISHED))
    assert shipper.close() is None
    assert_complete(stage, server.uri, 20)


def test_lines_that_come_late_do_not_make_a_step_double(server: Server, tmp_path: Path) -> None:
    """A shared directory shows a dead node's last lines after the next attempt has begun."""
    stage = Stage(server.uri, "late", tmp_path)
    stage.begin_attempt()
    stage.train(10)
    late = stage.attempts[0] / JOURNAL_FILE
    whole = late.read_bytes()
    late.write_bytes(b"".join(whole.splitlines(keepends=True)[:-6]))
    stage.begin_attempt()
    stage.train(10)
    shipper = Shipper(stage.target)
    shipper.send(stage.update())
    assert shipper.close() is None
    late.write_bytes(whole)
    shipper = Shipper(stage.target)
    shipper.send(stage.update(RunStatus.FINISHED))
    assert shipper.close() is None
    found = stage.compared(server.uri)
    assert found["missing"] == found["doubled"] == 0 and found["mlflow"] == 30


def test_stores_do_not_share_runs(server: Server, tmp_path: Path) -> None:
    """The same study from two stores, or again from one made anew, draws curves of its own."""
    for name in "ab":
        stage = Stage(server.uri, "shared", tmp_path / name)
        stage.begin_attempt()
        stage.train(5)
        shipper = Shipper(stage.target)
        shipper.send(stage.update(RunStatus.FINISHED))
        assert shipper.close() is None
    stages = [r for r in runs_of(server.uri, "shared") if r.data.tags["level"] == "stage"]
    assert len(stages) == 2
    for run in stages:
        folder = tmp_path / run.data.tags["store"]
        found = compare(server.uri, run, [folder / "attempts/1"])
        assert found == {"journal": 10, "mlflow": 10, "missing": 0, "doubled": 0, "different": 0}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'{"experiments": []}', None),
        (500, b"", "status 500"),
        (503, b"", "status 503"),
        (429, b"", "status 429"),
        (401, b"", TrackingError),
        (403, b"", TrackingError),
        (404, b"", TrackingError),
        (200, b"<html>", TrackingError),
    ],
)
def test_what_an_answer_means(status: int, body: bytes, expected: Any) -> None:
    with http_answer(status, body) as uri:
        if expected is TrackingError:
            with pytest.raises(TrackingError, match="nothing was run"):
                check_uri(uri)
        else:
            found = check_uri(uri)
            assert found is None if expected is None else expected in (found or "")


def test_nobody_listens() -> None:
    assert "no answer" in (check_uri(f"http://127.0.0.1:{free_port()}") or "")


class http_answer:
    """A server that gives every request the same answer."""

    def __init__(self, status: int, body: bytes) -> None:
        from http.server import BaseHTTPRequestHandler, HTTPServer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_many_processes_may_touch_a_fresh_store(tmp_path: Path) -> None:
    for round_ in range(2):
        assert touch_at_once(LocalStore(tmp_path / str(round_)), 8) == []


def test_a_database_whose_maker_was_killed_is_made_again(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from orchestrator.store.driver import LocalStore\n"
        "from orchestrator.tracking.mlflow_database import *\n"
        "store = LocalStore(Path(sys.argv[1]))\n"
        "with opened_client(default_uri(store), artifact_root(store)): pass"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    maker = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "tracking").glob(".mlflow.db-new-*/mlflow.db")):
        assert time.monotonic() < deadline and maker.poll() is None
        time.sleep(0.01)
    maker.kill()
    maker.wait()
    assert not database_exists(LocalStore(tmp_path))
    subprocess.run(command, check=True, timeout=60)
    assert database_exists(LocalStore(tmp_path))
    assert sorted(p.name for p in (tmp_path / "tracking").iterdir()) == [
        "mlflow.db",
        "mlflow.db.lock",
    ]
