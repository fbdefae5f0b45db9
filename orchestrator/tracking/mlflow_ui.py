"""The MLflow UI of a store, on loopback, for who knows a key.

Loopback is open to every user of the machine, and whoever reaches MLflow's server acts as its
owner: changes and deletes results, and reads any file of the owner's, as an artifact of an
experiment that is said to lie there. So the address that is printed bears a key, which the browser
keeps in a cookie; programs send it as `MLFLOW_TRACKING_TOKEN`.
"""

from __future__ import annotations

import os
import secrets
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from orchestrator.store.driver import LocalStore
from orchestrator.tracking.mlflow_database import artifact_root, default_uri

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.types import ASGIApp, Receive, Scope, Send

KEY_VARIABLE = "MAE_STUDY_UI_KEY"
"""In the environment, which other users cannot read, as they can a command line."""
CLOSED = "This MLflow needs the key in the address that `mae-study mlflow` printed.\n"


def new_key() -> str:
    """A key that nobody guesses."""
    return secrets.token_urlsafe(32)


def serve(store: LocalStore, port: int, key: str) -> NoReturn:
    """Become the server of a store's own runs, on loopback."""
    from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR

    os.environ |= {
        KEY_VARIABLE: key,
        BACKEND_STORE_URI_ENV_VAR: default_uri(store),
        ARTIFACT_ROOT_ENV_VAR: artifact_root(store).as_uri(),
    }
    command = [sys.executable, "-m", "uvicorn", "--factory", f"{__name__}:app"]
    # Its log of requests would show the key.
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "warning"]
    os.execv(sys.executable, command)


def app() -> Door:
    """What uvicorn serves: MLflow behind a door."""
    from mlflow.server.fastapi_app import app as server

    return Door(server, os.environ[KEY_VARIABLE])


class Door:
    """Lets through to an application whoever shows the key; all else is refused (401)."""

    def __init__(self, inside: ASGIApp, key: str) -> None:
        self._inside, self._key = inside, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""
        from starlette.requests import HTTPConnection
        from starlette.responses import PlainTextResponse, RedirectResponse

        if scope["type"] == "lifespan":
            await self._inside(scope, receive, send)
            return
        seen = HTTPConnection(scope)
        name = f"mae_study_ui_{seen.url.port}"  # cookies of all ports are kept together
        bearer = seen.headers.get("authorization", "").removeprefix("Bearer ")
        if self._is_key(seen.cookies.get(name, "")) or self._is_key(bearer):
            await self._inside(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif self._is_key(key := seen.query_params.get("key", "")):
            answer = RedirectResponse(_without_key(seen), status_code=303)
            answer.set_cookie(name, key, httponly=True, samesite="strict")
            await answer(scope, receive, send)
        else:
            await PlainTextResponse(CLOSED, status_code=401)(scope, receive, send)

    def _is_key(self, shown: str) -> bool:
        return secrets.compare_digest(shown.encode(), self._key)


def _without_key(seen: HTTPConnection[Any]) -> str:
    """The same page of the same server, so that the key stays in no history."""
    url = seen.url.remove_query_params("key")
    return f"/{url.path.lstrip('/')}{'?' if url.query else ''}{url.query}"
