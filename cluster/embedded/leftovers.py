"""End what is left of an embedded Ray: of this command at its end, of one that was killed later.

Nothing is believed that another user could have written, and nothing is ended that is not a
process of Ray, of this user and of that very session.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import replace

import psutil

from cluster.embedded.private_directory import PREFIX, PrivateDirectory, Record, places
from cluster.process_identity import ProcessIdentity

EXIT_GRACE_S = 3.0
REMOVALS = 5
IN_THE_MAKING_S = 60.0
"""A directory without a record that is younger is being made."""


def with_processes(record: Record) -> Record:
    """The record with the daemons that this command has by now.

    Some rewrite their environment with their title, and close their logs when Ray's node ends:
    nothing else would tell them from those of another Ray then.
    """
    seen = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if _is_ray(process):
                seen.append(ProcessIdentity.of(process.pid))
    return replace(record, processes=tuple(seen))


def leave_nothing(directory: PrivateDirectory, record: Record | None) -> None:
    """End the processes of an embedded Ray, by themselves where they do so quickly; its files too.

    More than once where need be: a worker that was being started when the others were listed goes
    on to write its logs.

    Args:
        record: None if no process is to be ended.
    """
    for _ in range(REMOVALS):
        if record is not None:
            inside = f"{directory.for_ray}{os.sep}"
            _end([p for p in psutil.process_iter() if _belongs(p, record, inside)])
        if directory.remove():
            return


def sweep_temp_dirs() -> None:
    """Remove what embedded Rays have left whose command was killed: processes, directories.

    A directory is left alone if it is not a private one of this user, if its lock is held, which
    a living command sees to from any container of this machine, or if it is of another machine
    or another boot of this one. Processes are ended where their numbers mean something: in
    the PID namespace of the command that was killed.
    """
    for place in places():
        with contextlib.suppress(OSError):
            for entry in place.iterdir():
                if entry.name.startswith(PREFIX):
                    with contextlib.suppress(OSError):
                        _sweep(PrivateDirectory(entry))


def _sweep(directory: PrivateDirectory) -> None:
    with contextlib.closing(directory):
        with contextlib.suppress(FileNotFoundError):  # no lock, like no record
            if not directory.lock():
                return
        record = directory.read()
        if record is None:  # its command was killed before it started Ray
            if time.time() - directory.path.lstat().st_mtime > IN_THE_MAKING_S:
                directory.remove()
        elif record.owner.is_running is False:
            leave_nothing(directory, record)
        elif record.owner.is_of_this_boot and not record.owner.is_visible:
            leave_nothing(directory, None)


def _end(left: list[psutil.Process]) -> None:
    for process in list(left):
        with contextlib.suppress(psutil.Error):
            left += [child for child in process.children(recursive=True) if child not in left]
    _, alive = psutil.wait_procs(left, timeout=EXIT_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=EXIT_GRACE_S)


def _belongs(process: psutil.Process, record: Record, inside: str) -> bool:
    """Whether it is a Ray process of this user, and of the session that a record describes.

    Args:
        inside: start of every path in the session's directory.
    """
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if process.uids().effective != os.geteuid() or not _is_ray(process):
            return False
        return (
            ProcessIdentity.of(process.pid) in record.processes
            or token_digest(process.environ().get("RAY_AUTH_TOKEN", "")) == record.token_digest
            or any(inside in argument for argument in process.cmdline())
            or any(f.path.startswith(inside) and f.mode != "r" for f in process.open_files())
        )
    except (psutil.Error, OSError):
        return False


def token_digest(token: str) -> str:
    """What a record says of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _is_ray(process: psutil.Process) -> bool:
    """By name, or by a Python program that is part of Ray."""
    name = process.name()
    if name.startswith(("ray::", "raylet", "gcs_server")):
        return True
    return name.startswith("python") and any(
        f"{os.sep}ray{os.sep}" in argument for argument in process.cmdline()[1:4]
    )
