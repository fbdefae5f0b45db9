"""What another user of the machine could try: each attack says what it got.

Run as a program: `python -m support.other_user UID ATTACK JSON`. It imports as its starter, becomes
the user for good, tries, and prints the list of what succeeded as JSON; none is a defence.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from orchestrator.errors import StoreError
from orchestrator.store.driver import LocalStore
from orchestrator.store.lease import LeaseTimes, acquire, lease_prefix

UID = 4242
TRY_S, PING_S = 2.0, 0.5
QUICK = LeaseTimes(heartbeat_s=0.05, stale_after_s=0.5)
_TOKEN = re.compile(rb"[0-9a-f]{64}")
Attack = Callable[..., list[str]]


def attempt(attack: Attack, uid: int = UID, token: str | None = None, **facts: Any) -> list[str]:
    """What an attack gets as a user; `facts` are what that user can find out."""
    environment = {name: value for name, value in os.environ.items() if "RAY_" not in name}
    mode = {"RAY_AUTH_MODE": "disabled"} if token is None else {}
    if token is not None:
        mode = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-m", "support.other_user", str(uid), attack.__name__, json.dumps(facts)],
        env=environment | mode,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    got: list[str] = json.loads(done.stdout.splitlines()[-1])
    return got


def find_tokens(folder: str) -> list[str]:
    """Everything that looks like a token in Ray's files, environments and command lines."""
    places = [*Path("/proc").glob("[0-9]*/environ"), *Path("/proc").glob("[0-9]*/cmdline")]
    with contextlib.suppress(OSError):
        places += [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    found: set[bytes] = set()
    for place in places:
        with contextlib.suppress(OSError):
            if not place.is_socket():
                found |= set(_TOKEN.findall(place.read_bytes()))
    return sorted(token.decode() for token in found)


def replace_class(address: str) -> list[str]:
    """Overwrite a pickled class in Ray's key-value store, which ranks would unpickle."""
    from ray._raylet import GcsClient

    got = []
    with contextlib.suppress(Exception):
        client = GcsClient(address=address)
        for key in client.internal_kv_keys(b"", b"fun", TRY_S):
            got.append(key.decode(errors="replace"))
            client.internal_kv_put(key + b"-evil", b"evil", True, b"fun", TRY_S)
            got.append("written")
    return got


def plant_leftovers(place: str, victims: list[dict[str, Any]], live: str) -> list[str]:
    """Leave directories that name processes to end, and links to living ones."""
    got = []
    owner = victims[0] | {"pid": 4_194_303}
    for number, mode in enumerate((0o700, 0o755, 0o777)):
        folder = Path(place) / f"mae-study-ray-evil{number}"
        folder.mkdir()
        folder.chmod(mode)
        record = {"owner": owner, "token_digest": "0" * 64, "processes": victims}
        (folder / "record.json").write_text(json.dumps(record))
        (folder / "lock").touch()
        listed = [[victim["pid"], victim["started"]] for victim in victims]
        (folder / "processes.json").write_text(json.dumps(listed))
        os.utime(folder, (0, 0))
        got.append(folder.name)
    (Path(place) / "mae-study-ray-evillink").symlink_to(live)
    return got


def enter_stores(url: str, ports: list[int]) -> list[str]:
    """Change a key of torch's store: at whatever port listens, or in the gang's file."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    got = []
    with contextlib.suppress(OSError), open(url.removeprefix("file://"), "r+b") as file:
        got.append(f"file of {len(file.read())} bytes")
    for port in filter(_is_store, ports):
        with contextlib.suppress(Exception):
            wait = timedelta(seconds=TRY_S)
            store = TCPStore("127.0.0.1", port, None, False, wait, wait_for_workers=False)
            store.set("evil", "evil")
            if store.get("evil") == b"evil":
                got.append(f"port {port}")
    return got


def _is_store(port: int) -> bool:
    """Whether torch's store answers there; its own client waits for ever where another does."""
    ping = struct.pack("<BIBI", 0, 0x3C85F7CE, 13, 7)  # "validate" with its magic, "ping" 7
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(PING_S)
        client.sendall(ping)
        return client.recv(4) == struct.pack("<I", 7)
    return False


def use_files(paths: list[str]) -> list[str]:
    """Read, write, enter or replace files; connect to sockets."""
    return [f"{how} {path}" for path in paths for how in _uses(Path(path))]


def _uses(path: Path) -> Iterator[str]:
    for how, use in (
        ("read", lambda: path.open("rb").close()),
        ("write", lambda: path.open("ab").close()),
        ("list", lambda: list(path.iterdir())),
        ("create below", lambda: (path / "evil").touch()),
        ("move", lambda: path.rename(path.with_name(f"{path.name}.evil"))),
        ("connect to", lambda: _connect(path)),
    ):
        with contextlib.suppress(OSError):
            use()
            yield how


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TRY_S)
        client.connect(str(path))


def lease_acts(root: Path) -> dict[str, Callable[[], object]]:
    """What could be tried with the lease of study `s` in a store, by name."""
    store, folder = LocalStore(root), root / lease_prefix("s")
    beat = folder / "000001.heartbeat"

    def lock_database() -> None:
        """For ever: `flock` asks for no right to write."""
        with (root / "tracking/mlflow.db.lock").open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def beat_for_ever() -> None:
        aside = folder / "aside"
        aside.touch()
        os.utime(aside, (2e9, 2e9))
        aside.replace(beat)

    return {
        "take a free one": lambda: acquire(store, "free", QUICK),
        "take, by a record": lambda: store.create_json(f"{lease_prefix('s')}/000002.json", {}),
        "release": lambda: store.create_json(f"{lease_prefix('s')}/000001.released", {}),
        "remove": lambda: (folder / "000001.json").unlink(),
        "rewrite": lambda: (folder / "000001.json").write_text("{}"),
        "stop the heartbeat": beat.unlink,
        "beat for ever": beat_for_ever,
        "move the folder": lambda: folder.rename(root / "studies/gone"),
        "fill another study's folder": lambda: (root / "studies/t/lease").mkdir(parents=True),
        "lock the database": lock_database,
    }


def take_lease(root: str) -> list[str]:
    """Try every act with a lease, in a store of its own below `root` that has the act's name."""
    got = []
    for name in lease_acts(Path(root)):
        with contextlib.suppress(PermissionError, StoreError):
            lease_acts(Path(root) / name)[name]()
            got.append(name)
    return got


ATTACKS: Iterable[Attack] = (
    find_tokens,
    replace_class,
    plant_leftovers,
    take_lease,
    enter_stores,
    use_files,
)


def _become(uid: int) -> None:
    if uid:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


if __name__ == "__main__":
    # All of it before the user can no longer read the library.
    import encodings.idna  # noqa: F401
    import encodings.raw_unicode_escape  # noqa: F401

    import ray  # noqa: F401
    import torch.distributed  # noqa: F401

    _become(int(sys.argv[1]))
    chosen = next(attack for attack in ATTACKS if attack.__name__ == sys.argv[2])
    print(json.dumps(chosen(**json.loads(sys.argv[3]))))
