"""How ranks find each other: the store in which they exchange their addresses.

`GANG_STORE` says where it is: `file:///path` for ranks of one machine, `tcp://address:port` for
those of several, where `GANG_LISTENER` is rank 0's listening socket. A rank that is alone needs
none. Without the variable torch makes its own, by `MASTER_ADDR` and `MASTER_PORT`: under torchrun.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from urllib.parse import urlsplit

from torch.distributed import (  # type: ignore[attr-defined]
    FileStore,
    HashStore,
    Store,
    TCPStore,
    register_rendezvous_handler,
)

from mae_core.errors import ConfigError, RendezvousError

SCHEME = "gang"
MEETING_TIMEOUT = timedelta(minutes=2)
"""The ranks of a gang are started together."""


def init_method() -> str:
    """What torch is to be initialised with.

    Raises:
        ConfigError: GLOO_SOCKET_IFNAME names no interface of this machine.
    """
    _check_interfaces()
    if _world() > 1 and not os.environ.get("GANG_STORE"):
        return "env://"
    _register()
    return f"{SCHEME}://"


def not_met(error: Exception) -> RendezvousError:
    """The error of a rank that did not meet its gang: who, where, and why."""
    if store := os.environ.get("GANG_STORE"):
        place = urlsplit(store).netloc or "a file of this machine"
    else:
        place = os.environ.get("MASTER_ADDR", "")
    name = os.environ.get("GLOO_SOCKET_IFNAME", "any")
    return RendezvousError(
        f"rank {os.environ['RANK']} of {_world()} on {socket.gethostname()} did not meet its gang "
        f"at {place} (interface {name}): {error}"
    )


@functools.cache
def _register() -> None:
    register_rendezvous_handler(SCHEME, _meet)  # type: ignore[no-untyped-call]


def _meet(url: str, **_: object) -> Iterator[tuple[Store, int, int]]:
    yield _store(), int(os.environ["RANK"]), _world()


def _store() -> Store:
    world = _world()
    if world == 1:
        return HashStore()
    place = urlsplit(os.environ["GANG_STORE"])
    if place.scheme == "file":
        return FileStore(place.path, world)
    assert place.hostname is not None and place.port is not None
    listener = os.environ.get("GANG_LISTENER")
    return TCPStore(
        place.hostname,
        place.port,
        world,
        is_master=bool(listener),
        timeout=MEETING_TIMEOUT,
        # A copy: the store closes its own.
        master_listen_fd=os.dup(int(listener)) if listener else None,
    )


def _check_interfaces() -> None:
    named = [n for n in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if n]
    here = [name for _, name in socket.if_nameindex()]
    missing = [name for name in named if name not in here]
    if missing:
        raise ConfigError(
            f"GLOO_SOCKET_IFNAME names {missing[0]!r}, and {socket.gethostname()} has "
            f"{', '.join(here)}: correct it, or unset it"
        )


def _world() -> int:
    return int(os.environ["WORLD_SIZE"])
