"""A directory that no other user can enter, and a lock that tells whether its command lives.

Ray makes every directory that it is given open to all. So it gets one inside of ours, which is
0700 from its first moment. Sockets lie in it, whose paths Linux limits to 107 bytes: where the
usual place for temporary files is too deep, full or not ours to trust, another one is used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import stat
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import ClusterUnreachable
from cluster.process_identity import ProcessIdentity

PREFIX = "mae-study-ray-"
FOR_RAY = "r"
LOCK_FILE, RECORD_FILE = "lock", "record.json"
RECORD_BYTES = 1 << 20
SOCKET_PATH_BYTES = 107
"""Of `sockaddr_un`, less the zero at its end."""
RAY_SOCKET = "session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""As long as the longest socket path that Ray makes below its directory."""
MIN_FREE_BYTES = 64 << 20
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_NOBODY = 65534
"""Owner that a user namespace shows for the root of the machine."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What tells later which processes belonged to a command that was killed."""

    owner: ProcessIdentity
    token_digest: str
    """SHA-256 of the token, which itself is in the environment of processes only."""
    processes: tuple[ProcessIdentity, ...] = ()
    """Ray's."""

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read what `to_json` wrote; raises `ValueError`, `TypeError` or `KeyError` else."""
        plain = json.loads(text)
        return cls(
            owner=ProcessIdentity(**plain["owner"]),
            token_digest=str(plain["token_digest"]),
            processes=tuple(ProcessIdentity(**process) for process in plain["processes"]),
        )


class PrivateDirectory:
    """A private directory that exists: opened once, so that nobody can put another in its place.

    Raises:
        OSError: there is none, or it is a link.
        PermissionError: it belongs to another user, or is open to others.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        found = os.fstat(self._fd)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            self.close()
            raise PermissionError(errno.EPERM, "not a private directory of this user", str(path))

    @property
    def for_ray(self) -> Path:
        """What Ray is given, and opens to all: none of ours lies in it."""
        return self.path / FOR_RAY

    def lock(self, *, create: bool = False) -> bool:
        """Take the lock of the directory, for as long as this process lives; False if it is held.

        Raises:
            FileNotFoundError: it has none.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if create else 0)
        file = os.open(LOCK_FILE, flags, 0o600, dir_fd=self._fd)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._lock = file
        return True

    def write(self, record: Record) -> None:
        """Replace the record."""
        new = f"{RECORD_FILE}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with open(os.open(new, flags, 0o600, dir_fd=self._fd), "w") as file:
            file.write(record.to_json())
        os.replace(new, RECORD_FILE, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def read(self) -> Record | None:
        """The record; None if there is none that can be read."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW
            with open(os.open(RECORD_FILE, flags, dir_fd=self._fd)) as file:
                return Record.from_json(file.read(RECORD_BYTES))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def remove(self) -> bool:
        """Remove what is in it, then itself; False if something is being written still."""
        for name in os.listdir(self._fd):
            if name != LOCK_FILE:  # last: whoever sees no lock sees a directory in the making
                self._remove(name)
        with contextlib.suppress(OSError):
            self._remove(LOCK_FILE)
            os.rmdir(self.path)
        return not os.path.lexists(self.path)

    def close(self) -> None:
        """Give the lock up."""
        for file in (self._fd, self._lock):
            if file is not None:
                os.close(file)
        self._lock = None

    def _remove(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._fd)
        except IsADirectoryError:
            shutil.rmtree(name, ignore_errors=True, dir_fd=self._fd)
        except FileNotFoundError:
            pass


def make_private_directory() -> PrivateDirectory:
    """A new one, locked, in the first place that will do.

    Raises:
        ClusterUnreachable: no place will do; says what is wrong with each.
    """
    problems = []
    for place in places():
        problem = _problem(place)
        if problem is None:
            try:
                return _make_in(place)
            except OSError as error:
                problem = error.strerror or str(error)
        problems.append(f"{place}: {problem}")
    raise ClusterUnreachable(
        "Ray needs a directory for its sockets and logs, and no place will do "
        f"({'; '.join(problems)}); set TMPDIR to a directory of at most {_longest()} characters "
        "on a local disk, that you can write to"
    )


def places() -> tuple[Path, ...]:
    """Where private directories may lie, the preferred one first."""
    found = [os.environ.get("TMPDIR"), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR")]
    with contextlib.suppress(OSError):  # there may be no usable one
        found.insert(0, tempfile.gettempdir())
    return tuple(dict.fromkeys(Path(p).absolute() for p in [*found, "/dev/shm"] if p))


def _make_in(place: Path) -> PrivateDirectory:
    directory = PrivateDirectory(Path(tempfile.mkdtemp(prefix=PREFIX, dir=place)))
    try:
        directory.lock(create=True)
        with socket.socket(socket.AF_UNIX) as probe:  # not every file system has them
            probe.bind(str(directory.path / "socket"))
        os.unlink(directory.path / "socket")
        os.mkdir(directory.for_ray, 0o700)
    except OSError:
        directory.remove()
        directory.close()
        raise
    return directory


def _longest() -> int:
    return SOCKET_PATH_BYTES - len(f"/{PREFIX}12345678/{FOR_RAY}/{RAY_SOCKET}")


def _problem(place: Path) -> str | None:
    """Why no private directory can be made in a place; None if nothing speaks against it."""
    if len(os.fsencode(place)) > _longest():
        return f"its path is longer than {_longest()} bytes, too long for a socket below it"
    try:
        resolved = place.resolve(strict=True)
        for folder in (resolved, *resolved.parents):
            found = folder.stat()
            is_shared = found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX
            if is_shared or found.st_uid not in (0, os.geteuid(), _NOBODY):
                return f"other users can replace what lies in {folder}"
        free = shutil.disk_usage(resolved).free
    except OSError as error:
        return error.strerror or str(error)
    if free < MIN_FREE_BYTES:
        return f"only {free >> 20} MiB are free"
    return None
