"""Real MLflow servers, a gate in front of one that can be away in every way, and the comparison
of what a server has with what the journals say."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.store.driver import LocalStore
from orchestrator.store.journal import JOURNAL_FILE, JournalReader
from orchestrator.tracking.mlflow_database import (
    Destination,
    artifact_root,
    database_exists,
    default_uri,
    opened_client,
)
from orchestrator.tracking.mlflow_runs import RunWriter


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`mlflow server` on loopback, over a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--backend-store-uri": f"sqlite:///{self.folder}/server.db",
            "--default-artifact-root": f"file://{self.folder}/artifacts",
            "--workers": "1",
        }
        flat = [text for pair in options.items() for text in pair]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *flat],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return
            time.sleep(0.2)
        raise TimeoutError("the MLflow server did not start")

    def signal(self, number: signal.Signals) -> None:
        """Signal the server and its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, whatever it is doing; harmless if it is not running."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(20)
            self._process = None


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Gate:
    """A relay in front of a server. `mode` says how it behaves from now on:

    pass     as if it were not there
    refuse   nobody listens, and connections break
    hang     accepts and never answers; the server hears nothing
    error    answers 500; the server hears nothing
    swallow  the server does what it is asked; its answer is lost
    slow     0.3 s later
    """

    MODES = ("refuse", "hang", "error", "swallow", "slow")

    def __init__(self, port_behind: int) -> None:
        self._behind, self.port = port_behind, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.num_requests = 0
        self._mode = "refuse"
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def mode(self) -> str:
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        assert mode == "pass" or mode in self.MODES
        self._mode = mode
        self._break_connections()
        if mode == "refuse" and self._listener is not None:
            # A thread in `accept` would keep a closed listener alive.
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        elif mode != "refuse" and self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def close(self) -> None:
        self.mode = "refuse"

    def _break_connections(self) -> None:
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """Requests of one connection, one after another."""
        with connection, contextlib.suppress(OSError):
            while request := _read_message(connection):
                self.num_requests += 1
                self._answer(connection, request)

    def _answer(self, connection: socket.socket, request: bytes) -> None:
        mode = self._mode
        if mode == "error":
            connection.sendall(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
        elif mode == "slow":
            time.sleep(0.3)
        if mode in ("pass", "slow", "swallow"):
            with socket.create_connection(("127.0.0.1", self._behind)) as server:
                server.sendall(request)
                answer = _read_message(server)
            if mode != "swallow":
                connection.sendall(answer)


def _read_message(connection: socket.socket) -> bytes:
    """A request or an answer with its body; empty at the end of the connection."""
    content = b""
    while b"\r\n\r\n" not in content:
        if not (part := connection.recv(65536)):
            return b""
        content += part
    head, _, body = content.partition(b"\r\n\r\n")
    lines = [line.partition(b":") for line in head.lower().split(b"\r\n")[1:]]
    headers = {name.strip(): value.strip() for name, _, value in lines}
    is_chunked = b"chunked" in headers.get(b"transfer-encoding", b"")
    while (is_chunked and not body.endswith(b"0\r\n\r\n")) or len(body) < int(
        headers.get(b"content-length", 0)
    ):
        if not (part := connection.recv(65536)):
            return b""
        content += part
        body += part
    return content


def client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def runs_of(uri: str, study: str) -> list[Any]:
    """All runs of a study that are not deleted."""
    found = client(uri)
    experiment = found.get_experiment_by_name(f"mae-study/{study}")
    if experiment is None:
        return []
    return list(found.search_runs([experiment.experiment_id], max_results=1000))


def journal_points(attempts: Iterable[Path]) -> dict[tuple[str, int], tuple[float, int]]:
    """Value and time of every key at every step; of several records the first stands."""
    points: dict[tuple[str, int], tuple[float, int]] = {}
    for folder in attempts:
        for entry in JournalReader(folder / JOURNAL_FILE).read_new():
            for key, value in entry.metrics.items():
                points.setdefault((key, entry.step), (value, entry.timestamp_ms))
    return points


def compare(uri: str, run: Any, attempts: Iterable[Path]) -> dict[str, int]:
    """Count records of the journals, and what of them a run lacks, has twice or has otherwise."""
    return compare_points(uri, run, journal_points(attempts))


def compare_points(
    uri: str, run: Any, wanted: dict[tuple[str, int], tuple[float, int]]
) -> dict[str, int]:
    """The same, with records that were read before."""
    found = client(uri)
    history = [
        ((key, m.step), (m.value, m.timestamp))
        for key in sorted({key for key, _ in wanted})
        for m in found.get_metric_history(run.info.run_id, key)
    ]
    counts = Counter(point for point, _ in history)
    return {
        "journal": len(wanted),
        "mlflow": len(history),
        "missing": len(wanted.keys() - counts.keys()),
        "doubled": sum(counts.values()) - len(counts),
        "different": sum(wanted.get(point) != value for point, value in history),
    }


def touch_at_once(store: LocalStore, number: int) -> list[str]:
    """Let processes open a store's database at once; return their errors.

    They have imported MLflow already, so that nothing but the opening takes time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow.store.tracking.sqlalchemy_store", __name__])
    errors, barrier = context.Queue(), context.Barrier(number)
    processes = [
        context.Process(target=touch, args=(store, barrier, errors)) for _ in range(number)
    ]
    for process in processes:
        process.start()
    found = [errors.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(20)
    return [error for error in found if error]


def touch(store: LocalStore, barrier: Any, errors: Any) -> None:
    """Open the store's database as a shipper does, and say what went wrong."""
    try:
        barrier.wait(60)
        with opened_client(default_uri(store), artifact_root(store)):
            pass
        assert database_exists(store)
        study = str(os.getpid())
        RunWriter(Destination(uri=default_uri(store), study=study, question="?", origin="x"))
        errors.put("")
    except Exception as error:
        errors.put(f"{type(error).__name__}: {error}")
