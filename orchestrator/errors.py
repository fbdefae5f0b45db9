"""Errors a user can act on, each with its documented exit code (docs/cli.md)."""

from __future__ import annotations

import errno
import os

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class UserError(Exception):
    """Base: one clear message, no traceback."""

    exit_code = 2


class DriftError(UserError):
    """A cell's address is known with another identity."""

    exit_code = 3


class StagesFailed(UserError):
    """The study ran, and some stages did not succeed."""

    exit_code = 4


class StudyBusy(UserError):
    """Another driver runs this study."""

    exit_code = 5


class TrackingError(UserError):
    """The tracking server cannot be used."""

    exit_code = 7


class StoreError(UserError):
    """The store cannot be read or written."""

    exit_code = 8


class DamagedRecord(StoreError):
    """A record, or a file that a record names, is not what was written."""


class Preempted(UserError):
    """The surroundings asked this process to go."""

    exit_code = 9

    def __init__(self) -> None:
        super().__init__("preempted: checkpoints are committed; run the same command to continue")


def explain_os_error(error: OSError) -> str | None:
    """Say what a full or forbidden place means for the user; None for any other `OSError`."""
    name = error.filename
    place = f"{os.fsdecode(name)}: " if isinstance(name, str | bytes) else ""
    if error.errno in FULL:
        return f"{place}no space left: free some, then run the same command"
    if error.errno == errno.EFBIG:
        return f"{place}no file may be so large here: raise the limit (ulimit -f)"
    if error.errno in REFUSED:
        reason = os.strerror(error.errno or 0)
        return f"{place}cannot be used ({reason}): change its permissions or name another place"
    return None


def exit_code(error: Exception) -> int | None:
    """Documented exit code of an error that a user can act on, None for a defect."""
    from cluster.errors import ClusterError
    from mae_core.errors import MaeCoreError
    from studies.errors import StudyError

    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, ClusterError):
        return 6
    if isinstance(error, MaeCoreError | StudyError):
        return 2
    if isinstance(error, OSError) and explain_os_error(error):
        return StoreError.exit_code
    return None


EXIT_CODES = {
    0: "done, or nothing to do",
    1: "a defect of mae-study itself (a traceback is shown)",
    2: "bad input: command line, study, configuration or data; or no room for its output",
    3: "drift: a known cell has another identity; see `plan`, then --accept-changes",
    4: "the study ran and some stages failed; see `status` and `logs`",
    5: "another driver is running this study, or has taken it over",
    6: "more GPUs or CPUs asked than the cluster has, or no cluster at the address",
    7: "the MLflow server cannot be used",
    8: "the store cannot be read or written",
    9: "preempted (SIGTERM, SIGUSR1, SIGUSR2, SIGHUP): checkpoints are committed; the same command "
    "continues",
    130: "interrupted (Ctrl-C); the same command continues",
}
