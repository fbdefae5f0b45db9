"""Errors a user can act on, each with its documented exit code (docs/cli.md)."""

from __future__ import annotations


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


EXIT_CODES = {
    0: "done, or nothing to do",
    1: "a defect of mae-study itself (a traceback is shown)",
    2: "bad input: command line, study, configuration or data",
    3: "drift: a known cell has another identity; see `plan`, then --accept-changes",
    4: "the study ran and some stages failed; see `status` and `logs`",
    5: "another driver is running this study",
    6: "more GPUs or CPUs asked than the cluster has, or no cluster at the address",
    7: "the MLflow server cannot be used",
    8: "the store cannot be read or written",
    130: "interrupted; the same command continues",
}
