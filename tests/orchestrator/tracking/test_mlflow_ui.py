"""The MLflow UI lets nobody in without its key: other users of the machine reach loopback too."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import requests
from support.mlflow_servers import free_port

from orchestrator.tracking.mlflow_ui import Door

KEY = "the-key-of-this-test"


async def _inside(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"inside"})


def _ask(path: str, kind: str = "http", **headers: str) -> dict[str, Any]:
    """What the messages of an answer say together."""
    page, _, query = path.partition("?")
    named = {"host": "127.0.0.1:5000", **headers}
    scope = {
        "type": kind,
        "scheme": "http",
        "path": page,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "server": ("127.0.0.1", 5000),
    }
    answer: dict[str, Any] = {}

    async def send(message: dict[str, Any]) -> None:
        answer.update(message)

    async def receive() -> dict[str, Any]:
        return {"type": f"{kind}.request"}

    asyncio.run(Door(_inside, KEY)(scope, receive, send))
    return answer


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/get-artifact", {"authorization": f"Bearer {KEY[:-1]}"}),
        ("/", {"authorization": "Bearer "}),
        ("/", {"cookie": "mae_study_ui_5000="}),
        ("/", {"cookie": f"mae_study_ui_5001={KEY}"}),
        ("/?key=", {}),
        ("/?key=%C3%A9", {}),
        (f"/api?key={KEY}x", {}),
    ],
)
def test_without_the_key_nobody_comes_in(path: str, headers: dict[str, str]) -> None:
    answer = _ask(path, **headers)
    assert answer["status"] == 401 and b"mae-study mlflow" in answer["body"]
    assert _ask(path, "websocket", **headers) == {"type": "websocket.close", "code": 1008}


@pytest.mark.parametrize(
    "headers", [{"authorization": f"Bearer {KEY}"}, {"cookie": f"a=b; mae_study_ui_5000={KEY}"}]
)
def test_the_key_opens(headers: dict[str, str]) -> None:
    assert _ask("/", **headers)["body"] == b"inside"


@pytest.mark.parametrize(
    ("path", "page"), [("/?", "/"), ("/a?b=c&", "/a?b=c"), ("//evil.example/a?", "/evil.example/a")]
)
def test_the_address_gives_a_cookie_and_leads_to_its_own_page(path: str, page: str) -> None:
    answer = _ask(f"{path}key={KEY}")
    headers = {name.decode(): value.decode() for name, value in answer["headers"]}
    assert (answer["status"], answer["body"], headers["location"]) == (303, b"", page)
    name, _, cookie = headers["set-cookie"].partition("=")
    assert name == "mae_study_ui_5000" and cookie.startswith(KEY)
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie


def test_the_command_serves_a_store_to_who_has_its_key(tmp_path: Path) -> None:
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "mlflow.db").touch()
    command = [sys.executable, "-m", "orchestrator.cli.main", "mlflow", "--store", str(tmp_path)]
    command += ["--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next(w for w in server.stdout.readline().split() if w.startswith("http"))
            found = urlsplit(address)
            api = f"http://{found.netloc}/api/2.0/mlflow/experiments/search?max_results=1"
            while server.poll() is None:
                with contextlib.suppress(requests.ConnectionError):
                    assert requests.get(api, timeout=60).status_code == 401
                    break
                time.sleep(0.1)  # until it listens
            assert requests.get(f"http://{found.netloc}/health", timeout=60).status_code == 401
            browser = requests.Session()
            assert "<!doctype html>" in browser.get(address, timeout=60).text
            assert browser.get(api, timeout=60).json()["experiments"]
            key = found.query.removeprefix("key=")
            program = requests.get(api, headers={"Authorization": f"Bearer {key}"}, timeout=60)
            assert program.json()["experiments"]
            assert key not in " ".join(psutil.Process(server.pid).cmdline())
        finally:
            server.terminate()
