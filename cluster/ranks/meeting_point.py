"""Where the ranks of a gang find each other: open to them alone, or on one address at least.

torch's own store over TCP has no password and listens on every interface. So ranks of one node
meet in a file, and those of several nodes at a socket that is bound to the node's own address.
"""

from __future__ import annotations

import os
import socket
from collections import deque

RETIRED_KEPT = 32
_retired: deque[int] = deque()
"""Files of closed meeting points. torch opens the path of a `FileStore` again when it is collected,
which every rank does after the run: a number that meant another file by then would have that file
written to, or end the process if it is a socket."""


class MeetingPoint:
    """A meeting point, open from before the ranks are told of it until `close`.

    Args:
        address: IP address to listen on; None where all ranks are on this node: a file in memory
            without a name, which processes of this user reach through `/proc`.
    """

    def __init__(self, address: str | None) -> None:
        self._socket: socket.socket | None = None
        if address is None:
            self._file = os.memfd_create("gang")
            self.url = f"file:///proc/{os.getpid()}/fd/{self._file}"
        else:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._socket = socket.create_server((address, 0), family=family, backlog=1024)
            self._file = self._socket.fileno()
            host = f"[{address}]" if ":" in address else address
            self.url = f"tcp://{host}:{self._socket.getsockname()[1]}"

    @property
    def listener(self) -> int | None:
        """The file of the listening socket; None where there is none."""
        return self._file if self._socket is not None else None

    def close(self) -> None:
        """Nobody meets here any more."""
        if self._socket is not None:
            self._socket.close()
        else:
            _retired.append(self._file)
            if len(_retired) > RETIRED_KEPT:
                os.close(_retired.popleft())


def use_interface_of(address: str) -> None:
    """Bind gloo and NCCL of this process to the interface that holds an address of this machine.

    Else gloo takes the address that the host name resolves to, often 127.0.1.1. A site's profile
    is overruled: what it names need not exist on this node. NCCL's fast networks are not
    concerned.
    """
    import psutil

    for name, held in psutil.net_if_addrs().items():
        if address in {entry.address.partition("%")[0] for entry in held}:
            os.environ["GLOO_SOCKET_IFNAME"] = name
            os.environ["NCCL_SOCKET_IFNAME"] = f"={name}"  # else it is the start of names
            return
