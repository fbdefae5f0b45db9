"""What users and libraries raise, as it crosses from rank to driver and is judged there."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cluster.ranks.outcome import MESSAGE_LIMIT, RankError, RankOutcome, describe
from cluster.verdict import Cause, judge, spoils_process
from mae_core.errors import CheckpointError, DataError
from mae_core.train.loop import Stopped


def crossed(error: BaseException, stop: str | None = None) -> RankOutcome:
    """Outcome of a rank that raised this, as its driver reads it."""
    try:
        raise error
    except BaseException as caught:
        outcome = RankOutcome(rank=0, error=describe(caught), stop_reason=stop)
    read = RankOutcome.from_json(outcome.to_json())
    assert read == outcome
    return read


def described(error: BaseException) -> RankError:
    found = crossed(error).error
    assert found is not None and found.chain
    return found


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Silent(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


class Leaving(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Listed(Exception):
    def __str__(self) -> str:
        return ["no", "text"]  # type: ignore[return-value]


class Broken(OSError):
    @property  # type: ignore[misc]
    def errno(self) -> int:
        raise KeyError("errno")


class BrokenData(DataError, Broken):
    pass


class Bare(BaseException):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: OSError(["a.png", "b.png"], "missing"),
        lambda: OSError(Path("/x"), "missing"),
        lambda: OSError({1: 2}, "missing"),
        lambda: OSError(10**5000, "missing"),
        lambda: OSError("28", "missing"),
        lambda: Silent(1),
        lambda: Leaving(1),
        lambda: Listed(1),
        lambda: Broken(28, "x"),
        lambda: KeyError(object(), b"\xff", None),
        lambda: FileNotFoundError(errno.ENOENT, "no", "caf\udce9.png"),
        lambda: Bare("x"),
        lambda: BaseException(),
        lambda: type("Odd", (Exception,), {"__module__": None, "attempt_cause": []})("x"),
    ],
)
def test_whatever_a_user_raises_is_an_error_of_its_own(make: Callable[[], BaseException]) -> None:
    outcome = crossed(make())
    verdict = judge([outcome])
    assert (verdict.cause, verdict.rank, verdict.blames_node) == (Cause.ERROR, 0, False)
    assert verdict.traceback and outcome.to_json().encode()
    # As a file or a terminal takes it.
    assert (verdict.message + verdict.traceback).encode()


def test_a_part_that_cannot_be_read_hides_nothing_else() -> None:
    verdict = judge([crossed(BrokenData(28, "x"))])
    assert verdict.cause is Cause.BAD_DATA and "BrokenData" in verdict.message


def test_of_a_huge_message_start_and_end_are_kept() -> None:
    try:
        raise ValueError("x") from RuntimeError("first " + "x" * 10_000_000 + " last")
    except ValueError as error:
        huge = described(error)
    link = huge.chain[1].message
    assert link.startswith("first ") and link.endswith(" last")
    error = described(ValueError("first " + "y" * 10_000_000 + " last"))
    for message in (link, error.message, error.chain[0].message):
        assert len(message) <= MESSAGE_LIMIT + 20
        assert message.startswith("first ") and message.endswith(" last")
    assert len(crossed(ValueError("z" * 10_000_000)).to_json()) < 40_000


@pytest.mark.parametrize(
    "error",
    [
        ssl.SSLSyscallError(5, "Some I/O error occurred"),
        ssl.SSLError(30, "x"),
        socket.gaierror(5, "No address associated with hostname"),
        socket.herror(12, "x"),
    ],
    ids=repr,
)
def test_numbers_of_other_spaces_are_no_numbers_of_the_system(error: OSError) -> None:
    assert described(error).chain[0].errno is None
    assert judge([crossed(error)]).cause is Cause.ERROR


def test_a_number_of_the_system_is_kept() -> None:
    assert described(full()).chain[0].errno == errno.ENOSPC


def from_full() -> CheckpointError:
    error = CheckpointError("cannot be written")
    error.__cause__ = full()
    return error


@pytest.mark.parametrize(
    ("members", "cause"),
    [
        ([full()], Cause.DISK),
        ([full(), ValueError("x"), full()], Cause.DISK),
        ([from_full()], Cause.DISK),
        ([ExceptionGroup("inner", [DataError("x")]), DataError("y")], Cause.BAD_DATA),
        ([full(), DataError("x")], Cause.ERROR),
        ([ValueError("x"), KeyError("y")], Cause.ERROR),
        ([Stopped("x"), Stopped("y")], Cause.PREEMPTED),
        ([Stopped("x"), ValueError("y")], Cause.ERROR),
    ],
    ids=repr,
)
def test_a_group_is_judged_by_its_members(members: list[Exception], cause: Cause) -> None:
    group = ExceptionGroup("several", members)
    assert judge([crossed(group, stop="preempted")]).cause is cause
    outer = RuntimeError("outer")
    outer.__cause__ = group
    if cause is not Cause.PREEMPTED:
        assert judge([crossed(outer)]).cause is cause


def test_a_huge_group_is_described_in_part() -> None:
    group = ExceptionGroup("many", [ValueError(str(i)) for i in range(1000)])
    for depth in range(2000):
        group = ExceptionGroup(str(depth), [group])
    assert len(crossed(group).to_json()) < 100_000


class AcceleratorFault(torch.AcceleratorError):
    """A user's kind of torch's."""


def of_library(module: str, name: str) -> type[Exception]:
    return type(name, (Exception,), {"__module__": module})


CudaApiError = of_library("numba.cuda.cudadrv.driver", "CudaAPIError")
CupyError = of_library("cupy_backends.cuda.api.driver", "CUDADriverError")
PycudaError = of_library("pycuda._driver", "LogicError")


@pytest.mark.parametrize(
    ("error", "spoils"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("NCCL Error 2: unhandled system error"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (torch.OutOfMemoryError("x"), True),
        (torch.AcceleratorError("x"), True),
        (AcceleratorFault("x"), True),
        (CudaApiError("[700] Call to cuMemcpyDtoH results in CUDA_ERROR_ILLEGAL_ADDRESS"), True),
        (CupyError("CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access"), True),
        (PycudaError("cuMemcpyDtoH failed: an illegal memory access was encountered"), True),
        (ExceptionGroup("x", [RuntimeError("CUDA error: unspecified launch failure")]), True),
        (SystemExit(1), True),
        (KeyboardInterrupt(), True),
        (
            RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                "cuda:0 and cpu!"
            ),
            False,
        ),
        (RuntimeError("No CUDA GPUs are available"), False),
        (PycudaError("invalid device ordinal"), False),
        (RuntimeError("custom failed: x"), False),
        (ValueError("CUDA error"), False),
        (full(), False),
    ],
    ids=repr,
)
def test_which_errors_spoil_their_process(error: BaseException, spoils: bool) -> None:
    assert spoils_process(described(error)) is spoils


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("unknown taxid 5", Cause.ERROR),
        ("uncorrectable ecc in the caption", Cause.ERROR),
        ("no space left in the gallery", Cause.ERROR),
        ("CUDA out of memory, said the caption", Cause.ERROR),
        ("address already in use by another customer", Cause.ERROR),
        ("unable to write to file </torch_7_1>: No space left on device (28)", Cause.DISK),
        (
            "unable to mmap 4096 bytes from file <x>: Cannot allocate memory (12)",
            Cause.HOST_OUT_OF_MEMORY,
        ),
        ("[/gloo/transport/tcp/device.cc:84] bind: Address already in use", Cause.RENDEZVOUS),
        ("CUDA error: out of memory", Cause.DEVICE_OUT_OF_MEMORY),
    ],
)
def test_a_text_decides_only_with_a_mark_of_its_origin(message: str, cause: Cause) -> None:
    verdict = judge([crossed(RuntimeError(message))])
    assert (verdict.cause, verdict.blames_node) == (cause, False)


LEAVING = """
import sys
from cluster.ranks.actor import RankProcess

def leave(payload, control):
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[payload["by"]](3)

if __name__ == "__main__":
    process = RankProcess()
    environment = {"RANK": "0", "WORLD_SIZE": "1"}
    for by in ("SystemExit", "KeyboardInterrupt"):
        print(process.run("r", "leaving:leave", '{"by": "%s"}' % by, environment))
    import os, signal
    os.kill(os.getpid(), signal.SIGTERM)
    print(process.run("r", "leaving:leave", '{"by": "SystemExit"}', environment))
"""


def test_leaving_the_process_is_an_error_of_user_code(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    said = subprocess.run(
        [sys.executable, tmp_path / "leaving.py"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    outcomes = [RankOutcome.from_json(line) for line in said]
    assert [o.error.name for o in outcomes if o.error] == [
        "SystemExit",
        "KeyboardInterrupt",
        "SystemExit",
    ]
    for outcome in outcomes:
        verdict = judge([outcome])
        assert (verdict.cause, verdict.blames_node) == (Cause.ERROR, False)
    # Signals stay notices.
    assert [o.stop_reason for o in outcomes] == [None, None, "preempted"]
