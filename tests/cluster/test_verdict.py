"""Outcomes of a gang's ranks → one cause and the rank that shows it."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.verdict import Cause, cause_of, judge

Outcome = dict[str, Any]


def ok(rank: int, stop: str | None = None) -> Outcome:
    return {"rank": rank, "value": {}, "stop_reason": stop}


def bad(
    rank: int, types: str, message: str = "", at: float = 1.0, stop: str | None = None
) -> Outcome:
    """Outcome of a rank that failed; `types` from the error's own up to its root."""
    names = types.split()
    error = {"type": names[0], "types": names, "message": message, "traceback": "", "at": at}
    return {"rank": rank, "error": error, "stop_reason": stop}


RESET = "[../third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3"
FULL = "[Errno 28] No space left on device: '/store/checkpoints/x'"
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"
ZIP = "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
DEATH = "the process of rank 1 died (ActorDiedError)"

TABLE: list[tuple[str, list[Outcome], Cause, int | None]] = [
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
        [bad(0, "OSError Exception", FULL, stop="preempted")],
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
    ),  # fmt: skip
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
        [bad(0, "OSError", "[Errno 12] Cannot allocate memory")],
        Cause.HOST_OUT_OF_MEMORY,
        0,
    ),
    ("a full disk", [bad(0, "OSError", FULL)], Cause.DISK, 0),
    ("a quota", [bad(0, "OSError", "[Errno 122] Disk quota exceeded")], Cause.DISK, 0),
    ("a broken disk", [bad(0, "OSError", "[Errno 5] Input/output error")], Cause.DISK, 0),
    ("a read-only store", [bad(0, "OSError", "[Errno 30] Read-only file system")], Cause.DISK, 0),
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
        [bad(0, "CheckpointError", f"step 40 could not be written ({FULL})")],
        Cause.DISK,
        0,
    ),
    (
        "a broken disk under a data set",
        [bad(0, "DataError", "part-3.parquet: [Errno 5] Input/output error")],
        Cause.DISK,
        0,
    ),
    (
        "a missing file is user code's",
        [bad(0, "FileNotFoundError OSError", "[Errno 2] no x")],
        Cause.ERROR,
        0,
    ),  # fmt: skip
    (
        "the port was taken",
        [bad(0, "DistNetworkError", "The server socket: EADDRINUSE, address already in use")],
        Cause.RENDEZVOUS,
        0,
    ),
    (
        "they lost each other and nobody died",
        [bad(0, "RuntimeError", RESET, 2.0), bad(1, "RuntimeError", "Broken pipe", 1.0)],
        Cause.RENDEZVOUS,
        1,
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
def test_the_table_of_verdicts(outcomes: list[Outcome], cause: Cause, rank: int | None) -> None:
    verdict = judge(outcomes)
    assert (verdict.cause, verdict.rank) == (cause, rank)
    # The order in which outcomes came in is no evidence.
    assert judge(outcomes[::-1]).cause is cause


def test_a_verdict_says_who_asked_and_what_was_said() -> None:
    verdict = judge([bad(0, "OSError", FULL, stop="preempted")])
    assert verdict.message == f"OSError: {FULL}" and verdict.stop_reason == "preempted"


def test_every_cause_but_those_of_the_driver_is_reached() -> None:
    reached = {row[2] for row in TABLE}
    assert set(Cause) - reached == {Cause.HEAD_LOST, Cause.DRIVER_LOST}


def test_a_message_may_name_several_numbers() -> None:
    error = bad(0, "OSError", "[Errno 2] x, then [Errno 28] y")["error"]
    assert cause_of(error) is Cause.DISK
