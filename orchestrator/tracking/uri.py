"""What a tracking URI means, and whether a study can start with it.

Errors that waiting cannot fix stop a study before it starts; an unreachable server is waited for.
"""

from __future__ import annotations

import configparser
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit, urlunsplit

from mae_core.config.base import SECRET_WORDS
from orchestrator.errors import TrackingError

if TYPE_CHECKING:
    import requests

SERVERS = ("http", "https")
DATABASES = ("sqlite", "postgresql", "mysql")
UNFIT_TEXT = (
    "MLflow finds no database below a path with a question mark, a percent code such as %20, a "
    "control character or a byte that is no UTF-8"
)
PROBE_TIMEOUT_S = 5.0
"""For a connection, and again for an answer."""
PASSING = (408, 425, 429)
"""Statuses below 500 that another time may not come again."""
AUTHENTICATED_BY = (
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
)
"""Environment variables of MLflow's client, besides user name and password."""
UNFIT = re.compile(r"\?|%[0-9A-Fa-f]{2}|[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""What the path of a SQLite file must not hold."""
INTO_STORE = "name another, or leave out --tracking-uri to track into the store"


def sqlite_path(uri: str) -> Path | None:
    """File of a SQLite database, None for anything else.

    Such an address has no fragment: `#` is part of the path.
    """
    scheme, _, rest = uri.partition(":///")
    name = rest.partition("?")[0]
    is_file = scheme.split("+")[0] == "sqlite" and name not in ("", ":memory:")
    return Path(name).absolute() if is_file else None


def sqlite_uri(path: Path) -> str | None:
    """Address of a SQLite file for MLflow; None if there is none that all its parts agree on.

    Where SQLAlchemy reads a percent code, or ends the path at a question mark, MLflow makes the
    folders of the path as it is written. Control characters and bytes that are no UTF-8 have no
    place in an address.
    """
    text = str(path)
    return None if UNFIT.search(text) else f"sqlite:///{text}"


def without_credentials(uri: str) -> str:
    """The URI as it may be shown: user name, password and options that hold secrets left out."""
    parsed = urlsplit(uri)
    host = parsed.netloc.rpartition("@")[2]
    has_secret = any(word in parsed.query.lower() for word in SECRET_WORDS)
    if not has_secret and "@" not in parsed.netloc:
        return uri
    return urlunsplit(parsed._replace(netloc=host, query="" if has_secret else parsed.query))


def check_uri(uri: str) -> str | None:
    """Return why a server does not answer now, None if it does or if `uri` is a database.

    Takes no longer than a few seconds.

    Raises:
        TrackingError: waiting will not help: no such scheme, a malformed address, a server
            that refuses us, is no MLflow server or is open to the network.
    """
    try:
        parsed = urlsplit(uri)
        parsed.port  # noqa: B018  (raises for what is no port)
    except ValueError as error:
        raise _refusal(repr(uri), f"malformed ({error})", "use http://host:port") from error
    shown = without_credentials(uri)
    scheme = parsed.scheme.split("+")[0]  # postgresql+psycopg2 names a driver too
    if scheme in SERVERS:
        return _check_server(uri, shown, parsed)
    if scheme not in (*DATABASES, "databricks"):
        other = "a database such as sqlite:////path/mlflow.db"
        raise _refusal(
            shown, "no such scheme", f"use http://host:port of an MLflow server, or {other}"
        )
    if (path := sqlite_path(uri)) is not None:
        if sqlite_uri(path) is None:
            raise _refusal(repr(uri), UNFIT_TEXT)
        _check_folder(path)
    return None


def require_answer(uri: str) -> None:
    """Refuse what cannot be used now; for what is not worth waiting for.

    Raises:
        TrackingError: it does not answer, or waiting would not help.
    """
    if reason := check_uri(uri):
        raise TrackingError(
            f"MLflow at {without_credentials(uri)} cannot be reached: {reason}; try later"
        )


def _refusal(shown: str, reason: str, advice: str = INTO_STORE) -> TrackingError:
    return TrackingError(
        f"tracking URI {shown} cannot be used: {reason}; {advice}; nothing was run"
    )


def _check_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_usable = os.access(path if path.exists() else path.parent, os.W_OK)
        reason = "" if is_usable else "not writable"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise _refusal(str(path), reason)


def _check_server(uri: str, shown: str, parsed: SplitResult) -> str | None:
    if not parsed.hostname:
        raise _refusal(shown, "it names no host", "use http://host:port")
    login = _login()
    is_known = login is not None or parsed.username or any(map(os.environ.get, AUTHENTICATED_BY))
    if not is_known and not _is_loopback(parsed.hostname):
        raise _refusal(
            shown,
            "it is not on this machine and no credentials are set, so that whoever reaches it "
            "could change your results",
            "start it with --app-name basic-auth and set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN), or reach it through a tunnel on "
            "127.0.0.1",
        )
    return _probe(uri, shown, login)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _login() -> tuple[str, str] | None:
    """User name and password where MLflow's client looks for them."""
    names = ("mlflow_tracking_username", "mlflow_tracking_password")
    config = configparser.ConfigParser()
    try:
        config.read(Path("~/.mlflow/credentials").expanduser())
    except (configparser.Error, OSError, RuntimeError):
        config.clear()
    name, password = (
        os.environ.get(n.upper()) or config.get("mlflow", n, fallback=None, raw=True) for n in names
    )
    return (name, password) if name and password else None


def _probe(uri: str, shown: str, login: tuple[str, str] | None) -> str | None:
    """Ask for one experiment, without MLflow, whose import takes seconds."""
    import requests

    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    is_lax = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true")
    try:
        answer = requests.get(
            uri.rstrip("/") + "/api/2.0/mlflow/experiments/search",
            params={"max_results": "1"},
            headers={"Authorization": f"Bearer {token}"} if token and not login else {},
            auth=login,
            verify=False if is_lax else os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or True,
            cert=os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"),
            timeout=PROBE_TIMEOUT_S,
        )
    except requests.exceptions.SSLError as error:
        raise _refusal(shown, f"its certificate is not accepted ({error})") from error
    except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects) as error:
        raise _refusal(shown, f"it cannot be asked ({error})") from error
    except requests.RequestException as error:
        return f"no answer ({type(error).__name__})"
    return _judge(answer, shown)


def _judge(answer: requests.Response, shown: str) -> str | None:
    status = answer.status_code
    if status >= 500 or status in PASSING:
        return f"it answers with status {status}"
    if status in (401, 403):
        if os.environ.get("MLFLOW_TRACKING_AUTH") or os.environ.get("MLFLOW_TRACKING_AWS_SIGV4"):
            return None  # MLflow's client signs its requests in ways of its own
        logins = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        raise _refusal(shown, f"it refuses us with status {status}", f"set {logins}")
    try:
        is_mlflow = status == 200 and isinstance(answer.json(), dict)
    except ValueError:
        is_mlflow = False
    if not is_mlflow:
        raise _refusal(shown, f"it is not an MLflow server (its API answers with status {status})")
    return None
