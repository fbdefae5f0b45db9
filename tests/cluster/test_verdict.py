"""Outcomes of a gang's ranks → one cause and the rank that shows it."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from safetensors import SafetensorError

from cluster.ranks.outcome import Loss, Raised, RankError, RankOutcome, describe, lost
from cluster.verdict import Cause, cause_of, judge
from mae_core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    RendezvousError,
)
from mae_core.train.loop import Stopped

QUALIFIED = {
    "OutOfMemoryError": "torch.OutOfMemoryError",
    "DistNetworkError": "torch.distributed.DistNetworkError",
    "SafetensorError": "safetensors._safetensors_rust.SafetensorError",
}
"""Types of libraries; others are Python's or ours."""
OURS = {
    c.__name__: c
    for c in (CheckpointError, ConfigError, DataError, NumericsError, RendezvousError, Stopped)
}


def ok(rank: int, stop: str | None = None) -> RankOutcome:
    return RankOutcome(rank=rank, value={}, stop_reason=stop)


def link(types: str, message: str = "", number: int | None = None) -> Raised:
    """One exception; `types` from its own up to its root."""
    names = types.split()
    claims = [OURS[name].attempt_cause for name in names if name in OURS]
    return Raised(
        types=tuple(QUALIFIED.get(name, f"builtins.{name}") for name in names),
        message=message,
        errno=number,
        claim=claims[0] if claims else None,
    )


def bad(
    rank: int,
    types: str,
    message: str = "",
    at: float = 1.0,
    stop: str | None = None,
    number: int | None = None,
    of: Raised | None = None,
) -> RankOutcome:
    """Outcome of a rank that failed; `of` is what the error was raised from."""
    if types in {loss.value for loss in Loss}:
        error = RankError(name=types, message=message, at=at, loss=Loss(types))
    else:
        chain = (link(types, message, number), *([of] if of else []))
        error = RankError(name=types.split()[0], message=message, at=at, chain=chain)
    return RankOutcome(rank=rank, error=error, stop_reason=stop)


def raised(error: Exception) -> RankOutcome:
    """Outcome of a rank that raised this."""
    try:
        raise error
    except Exception as caught:
        return RankOutcome(rank=0, error=describe(caught))


RESET = "[../third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3"
PIPE = "[../third_party/gloo/gloo/transport/tcp/pair.cc:598] writev [::1]:4: Broken pipe"
FULL = "[Errno 28] No space left on device: '/store/checkpoints/x'"
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
ZIP = "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
DEATH = "the process of rank 1 died (ActorDiedError)"

TABLE: list[tuple[str, list[RankOutcome], Cause, int | None]] = [
    ("all ranks returned", [ok(0), ok(1)], Cause.SUCCESS, None),
    ("returned although it was asked to stop", [ok(0, "preempted")], Cause.SUCCESS, None),
    # Stops, by the reason that was given.
    ("preempted", [bad(0, "Stopped", stop="preempted")], Cause.PREEMPTED, 0),
    ("cancelled", [bad(0, "Stopped", stop="cancelled")], Cause.CANCELLED, 0),
    ("resized", [bad(0, "Stopped", stop="resize")], Cause.RESIZED, 0),
    ("stopped, nobody says why", [bad(0, "Stopped")], Cause.CANCELLED, 0),
    (
        "the notice reached one rank, both stopped",
        [bad(0, "Stopped"), bad(1, "Stopped", stop="preempted")],
        Cause.PREEMPTED,
        0,
    ),
    (
        "a preemption outweighs a resize",
        [bad(0, "Stopped", stop="resize"), bad(1, "Stopped", stop="preempted")],
        Cause.PREEMPTED,
        0,
    ),
    (
        "killed when the grace was over",
        [bad(0, "RankDied", DEATH, stop="preempted"), bad(1, "RuntimeError", RESET)],
        Cause.PREEMPTED,
        0,
    ),
    (
        "the node went after its notice",
        [bad(0, "NodeLost", stop="preempted"), bad(1, "RuntimeError", RESET)],
        Cause.PREEMPTED,
        0,
    ),
    (
        "lost each other while stopping",
        [bad(0, "RuntimeError", RESET, stop="preempted"), ok(1, "preempted")],
        Cause.PREEMPTED,
        0,
    ),
    (
        "ended because the grace was over",
        [bad(0, "EndedWithItsGang", stop="cancelled")],
        Cause.CANCELLED,
        0,
    ),
    (
        "hung while it saved for a preemption",
        [bad(0, "Hang", stop="preempted")],
        Cause.PREEMPTED,
        0,
    ),
    ("died while it was to be resized", [bad(1, "RankDied", stop="resize")], Cause.RANK_DIED, 1),
    (
        "a full disk stays one, whoever asked to stop",
        [bad(0, "OSError Exception", FULL, stop="preempted", number=errno.ENOSPC)],
        Cause.DISK,
        0,
    ),
    (
        "numerics stay numerics, whoever asked to stop",
        [bad(0, "NumericsError MaeCoreError Exception", stop="cancelled")],
        Cause.NUMERICS,
        0,
    ),
    (
        "user code that fails while stopping",
        [bad(0, "KeyError Exception", stop="preempted"), bad(1, "Stopped", stop="preempted")],
        Cause.ERROR,
        0,
    ),
    # Deaths: the survivors' complaints come first and mean nothing.
    (
        "a dead rank and a survivor",
        [bad(0, "RuntimeError Exception", RESET, 1.0), bad(1, "RankDied", DEATH, 2.0)],
        Cause.RANK_DIED,
        1,
    ),
    (
        "a survivor with an odd complaint",
        [bad(0, "RuntimeError Exception", "boom", 1.0), bad(1, "RankDied", DEATH, 2.0)],
        Cause.RANK_DIED,
        1,
    ),
    (
        "a lost node before everything",
        [bad(0, "NumericsError", at=1.0), bad(1, "NodeLost", at=5.0)],
        Cause.NODE_LOST,
        1,
    ),
    (
        "the kernel's killer and a survivor",
        [bad(0, "RuntimeError", RESET, 1.0), bad(1, "HostOutOfMemory", at=2.0)],
        Cause.HOST_OUT_OF_MEMORY,
        1,
    ),
    (
        "a peer was ended because another failed",
        [bad(0, "EndedWithItsGang", at=1.0), bad(1, "ValueError Exception", "boom", 2.0)],
        Cause.ERROR,
        1,
    ),
    (
        "a hang, and the peer that was ended with it",
        [bad(0, "EndedWithItsGang", at=1.0), bad(1, "Hang", at=1.0)],
        Cause.HANG,
        1,
    ),
    ("ended with its gang, nobody says why", [bad(0, "EndedWithItsGang")], Cause.RANK_DIED, 0),
    (
        "of two deaths the earlier",
        [bad(0, "RankDied", at=3.0), bad(1, "RankDied", at=2.0)],
        Cause.RANK_DIED,
        1,
    ),
    (
        "a death that a typed error caused",
        [bad(0, "NumericsError", at=1.0), bad(1, "RankDied", at=2.0)],
        Cause.NUMERICS,
        0,
    ),
    (
        "a typed error after a death",
        [bad(0, "DataError", at=2.0), bad(1, "RankDied", at=1.0)],
        Cause.RANK_DIED,
        1,
    ),
    # Types of ours and of torch.
    ("a loss that is not finite", [bad(0, "NumericsError MaeCoreError")], Cause.NUMERICS, 0),
    ("a picture that cannot be read", [bad(1, "DataError MaeCoreError")], Cause.BAD_DATA, 1),
    ("an impossible setting", [bad(0, "ConfigError ValueError")], Cause.BAD_INPUT, 0),
    ("a damaged encoder", [bad(0, "CheckpointError")], Cause.CHECKPOINT, 0),
    (
        "torch's own type",
        [bad(0, "OutOfMemoryError RuntimeError", CUDA)],
        Cause.DEVICE_OUT_OF_MEMORY,
        0,
    ),
    ("Python's own type", [bad(0, "MemoryError Exception")], Cause.HOST_OUT_OF_MEMORY, 0),
    ("a type of ours, derived", [bad(0, "SpikeError NumericsError")], Cause.NUMERICS, 0),
    # Texts and numbers, where the type says nothing.
    ("CUDA memory by text", [bad(0, "RuntimeError", CUDA)], Cause.DEVICE_OUT_OF_MEMORY, 0),
    (
        "memory of a library of CUDA's",
        [
            bad(
                0,
                "RuntimeError",
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
            )
        ],
        Cause.DEVICE_OUT_OF_MEMORY,
        0,
    ),
    (
        "CPU memory by text",
        [bad(0, "RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to ...")],
        Cause.HOST_OUT_OF_MEMORY,
        0,
    ),
    (
        "CPU memory by number",
        [bad(0, "OSError", "[Errno 12] Cannot allocate memory", number=errno.ENOMEM)],
        Cause.HOST_OUT_OF_MEMORY,
        0,
    ),
    ("a full disk", [bad(0, "OSError", FULL, number=errno.ENOSPC)], Cause.DISK, 0),
    (
        "a quota",
        [bad(0, "OSError", "[Errno 122] Disk quota exceeded", number=errno.EDQUOT)],
        Cause.DISK,
        0,
    ),
    (
        "a broken disk",
        [bad(0, "OSError", "[Errno 5] Input/output error", number=errno.EIO)],
        Cause.DISK,
        0,
    ),
    (
        "a read-only store",
        [bad(0, "OSError", "[Errno 30] Read-only file system", number=errno.EROFS)],
        Cause.DISK,
        0,
    ),
    (
        "a full disk from Rust",
        [bad(0, "SafetensorError", "Error while serializing: No space left (os error 28)")],
        Cause.DISK,
        0,
    ),
    (
        "a full disk under torch's zip writer",
        [bad(0, "RuntimeError", f"PytorchStreamWriter failed writing file data/3: {ZIP}")],
        Cause.DISK,
        0,
    ),
    ("a full disk as that writer is closed", [bad(0, "RuntimeError", ZIP)], Cause.DISK, 0),
    (
        "a full disk in an error of ours",
        [
            bad(
                0,
                "CheckpointError",
                f"step 40 could not be written ({FULL})",
                of=link("OSError", FULL, errno.ENOSPC),
            )
        ],
        Cause.DISK,
        0,
    ),
    (
        "a broken disk under a data set",
        [
            bad(
                0,
                "DataError",
                "part-3.parquet: [Errno 5] Input/output error",
                of=link("OSError", "", errno.EIO),
            )
        ],
        Cause.DISK,
        0,
    ),
    (
        "a missing file is user code's",
        [bad(0, "FileNotFoundError OSError", "[Errno 2] no x", number=errno.ENOENT)],
        Cause.ERROR,
        0,
    ),
    (
        "the port was taken",
        [bad(0, "DistNetworkError", "The server socket: EADDRINUSE, address already in use")],
        Cause.RENDEZVOUS,
        0,
    ),
    (
        "they lost each other and nobody died",
        [bad(0, "RuntimeError", RESET, 2.0), bad(1, "RuntimeError", PIPE, 1.0)],
        Cause.RENDEZVOUS,
        1,
    ),
    (
        "who did not meet the others lost them",
        [bad(0, "RankDied", DEATH, 2.0), bad(1, "RendezvousError", "rank 1 did not meet", 1.0)],
        Cause.RANK_DIED,
        0,
    ),
    (
        "a download that was broken off is user code's",
        [bad(0, "RuntimeError", "Connection reset while reading http://x/y.zip")],
        Cause.ERROR,
        0,
    ),
    # Anything else is user code, the earliest.
    ("an exception on one rank", [ok(0), bad(1, "KeyError LookupError", "'x'")], Cause.ERROR, 1),
    (
        "of two the earlier",
        [bad(0, "KeyError", at=2.0), bad(1, "ValueError", at=1.0)],
        Cause.ERROR,
        1,
    ),
    (
        "specific evidence beats an earlier exception",
        [bad(0, "ValueError", "boom", 1.0), bad(1, "NumericsError", "nan", 2.0)],
        Cause.NUMERICS,
        1,
    ),
    (
        "an exception beats a lost connection",
        [bad(0, "RuntimeError", RESET, 1.0), bad(1, "ValueError", "boom", 2.0)],
        Cause.ERROR,
        1,
    ),
]


@pytest.mark.parametrize(
    ("outcomes", "cause", "rank"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_the_table_of_verdicts(outcomes: list[RankOutcome], cause: Cause, rank: int | None) -> None:
    verdict = judge(outcomes)
    assert (verdict.cause, verdict.rank) == (cause, rank)
    # The order in which outcomes came in is no evidence.
    assert judge(outcomes[::-1]).cause is cause


def test_a_verdict_says_who_asked_and_what_was_said() -> None:
    verdict = judge([bad(0, "OSError", FULL, stop="preempted", number=errno.ENOSPC)])
    assert verdict.message == f"OSError: {FULL}" and verdict.stop_reason == "preempted"


def test_every_cause_but_those_of_the_driver_is_reached() -> None:
    reached = {row[2] for row in TABLE}
    assert set(Cause) - reached == {Cause.HEAD_LOST, Cause.DRIVER_LOST}


def test_a_chain_may_have_several_numbers() -> None:
    error = bad(0, "OSError", "x", number=errno.ENOENT, of=link("OSError", "y", errno.ENOSPC)).error
    assert error is not None and cause_of(error) is Cause.DISK


# What users and libraries raise that only looks like ours, or like the machine's.


class UsersDataError(Exception):
    """As pandas or a database has one."""


UsersDataError.__name__ = UsersDataError.__qualname__ = "DataError"
UsersConfigError = type("ConfigError", (Exception,), {})
UsersStopped = type("Stopped", (Exception,), {})


@pytest.mark.parametrize(
    "error",
    [
        UsersDataError("a user's pandas or sqlalchemy error"),
        UsersConfigError("a user's own ConfigError"),
        UsersStopped("a user's own Stopped; nobody asked to stop"),
        ValueError("column '[c10d]' is missing"),
        KeyError("'no space left' in captions"),
        ValueError("CUDA out of memory, said the caption"),
        KeyError("[Errno 28]"),
    ],
    ids=repr,
)
def test_names_and_words_of_others_are_plain_user_errors(error: Exception) -> None:
    outcome = raised(error)
    verdict = judge([outcome])
    assert (verdict.cause, verdict.blames_node) == (Cause.ERROR, False)
    assert verdict.message == f"{type(error).__name__}: {error}"


class BlurredPicture(DataError):
    """A user's own kind of ours."""


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (BlurredPicture("x"), Cause.BAD_DATA),
        (ConfigError("x"), Cause.BAD_INPUT),
        (NumericsError("x"), Cause.NUMERICS),
        (CheckpointError("x"), Cause.CHECKPOINT),
        (Stopped("x"), Cause.CANCELLED),
        (MemoryError(), Cause.HOST_OUT_OF_MEMORY),
        (full(), Cause.DISK),
        (FileNotFoundError(errno.ENOENT, "x"), Cause.ERROR),
        (RendezvousError("x"), Cause.RENDEZVOUS),
        (torch.distributed.DistStoreError("wait timeout"), Cause.RENDEZVOUS),
        (ConnectionResetError(errno.ECONNRESET, "x"), Cause.RENDEZVOUS),
        (RuntimeError(CUDA), Cause.DEVICE_OUT_OF_MEMORY),
    ],
    ids=repr,
)
def test_real_exceptions_are_judged_by_what_they_are(error: Exception, cause: Cause) -> None:
    assert judge([raised(error)]).cause is cause


def test_types_of_libraries_have_the_names_that_are_judged() -> None:
    real = (torch.OutOfMemoryError, torch.distributed.DistNetworkError, SafetensorError)
    for error in real:
        assert describe(error("x")).chain[0].types[0] == QUALIFIED[error.__name__]


def test_what_an_error_was_raised_from_counts_unless_it_is_hidden() -> None:
    def wrapped(hide: bool) -> RankOutcome:
        try:
            try:
                raise full()
            except OSError as error:
                raise CheckpointError("cannot be written") from (None if hide else error)
        except CheckpointError as error:
            return RankOutcome(rank=0, error=describe(error))

    assert judge([wrapped(False)]).cause is Cause.DISK
    assert judge([wrapped(True)]).cause is Cause.CHECKPOINT


def test_an_outcome_crosses_as_json() -> None:
    outcomes = [
        ok(0, "preempted"),
        raised(full()),
        lost(1, Loss.NODE_LOST, "gone", "trace"),
        RankOutcome(rank=2, value={"top1": [0.5]}, is_going=True, rss_bytes=7),
    ]
    assert [RankOutcome.from_json(outcome.to_json()) for outcome in outcomes] == outcomes


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (bad(0, "RankDied"), True),
        (bad(0, "NodeLost"), True),
        (bad(0, "Hang"), True),
        (bad(0, "RuntimeError", "CUDA error: uncorrectable ECC error encountered"), True),
        (bad(0, "KeyError", "3"), False),
        (bad(0, "KeyError", "'xid 3'"), False),
        (bad(0, "Stopped", stop="preempted"), False),
        (bad(0, "NumericsError"), False),
    ],
)
def test_what_speaks_against_a_node(outcome: RankOutcome, counts: bool) -> None:
    assert judge([outcome]).blames_node is counts
