"""One cause per attempt, from the earliest and most specific evidence of its ranks.

Evidence counts in this order: a notice of preemption, a node that is gone, the earliest error
that names its own cause, the earliest other exception, lost connections. What the survivors of a
dead peer say is collateral, and a request to stop explains those ends that a stop can cause.

An exception is judged by what its class claims (`attempt_cause`), by the error numbers of its
chain, and by its qualified types. A group is judged by its members, if those that name a cause name
the same. Texts count only where a library gives nothing else: in exceptions of its own types, and
in the plain `RuntimeError` of torch's C++ if the text shows that it is from there.
"""

from __future__ import annotations

import enum
import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster.ranks.outcome import Loss, Raised, RankError, RankOutcome


class Cause(enum.Enum):
    """Why an attempt ended."""

    SUCCESS = "success"
    PREEMPTED = "preempted"
    """Asked to leave by its surroundings: a signal, a node that is drained."""
    CANCELLED = "cancelled"
    """Stopped by its user."""
    RESIZED = "resized"
    """Stopped by the controller, to go on with another world size."""
    NODE_LOST = "node lost"
    HOST_OUT_OF_MEMORY = "host out of memory"
    DEVICE_OUT_OF_MEMORY = "device out of memory"
    NUMERICS = "numerics"
    """A loss or gradient that is not finite, or a spike."""
    HANG = "hang"
    """No progress within the limit of its section."""
    BAD_DATA = "bad data"
    BAD_INPUT = "bad input"
    """A configuration that no retry can fix."""
    DISK = "disk"
    """A place to write that is full, read-only or broken."""
    CHECKPOINT = "checkpoint"
    """A checkpoint, or a parent's output, that cannot be used."""
    RANK_DIED = "rank died"
    """Its process is gone: killed or crashed."""
    RENDEZVOUS = "rendezvous"
    """The gang could not meet, or its ranks lost each other for an unknown reason."""
    ERROR = "error"
    """Any other exception: user code."""
    HEAD_LOST = "head lost"
    """Ray's head went, and the gang with it; never judged from outcomes."""
    DRIVER_LOST = "driver lost"
    """The driver went, and the gang with it; never judged from outcomes."""


@dataclass(frozen=True)
class Verdict:
    """The cause and the evidence for it."""

    cause: Cause
    message: str = ""
    rank: int | None = None
    traceback: str = ""
    stop_reason: str | None = None
    """Why the gang had been asked to stop, whatever ended it."""
    blames_node: bool = False
    """The end speaks against the rank's node: a dead rank, a hang, broken memory."""


_BY_LOSS = {
    Loss.RANK_DIED: Cause.RANK_DIED,
    Loss.NODE_LOST: Cause.NODE_LOST,
    Loss.HOST_OUT_OF_MEMORY: Cause.HOST_OUT_OF_MEMORY,
    Loss.HANG: Cause.HANG,
    Loss.ENDED_WITH_GANG: Cause.RANK_DIED,
}
_BY_CLAIM = {
    cause.value: cause
    for cause in (Cause.BAD_INPUT, Cause.BAD_DATA, Cause.CHECKPOINT, Cause.NUMERICS)
}
_STOP_CLAIM = "stopped"
_BY_TYPE = {
    "torch.OutOfMemoryError": Cause.DEVICE_OUT_OF_MEMORY,
    "builtins.MemoryError": Cause.HOST_OUT_OF_MEMORY,
}
_BY_ERRNO: dict[int | None, Cause] = {
    errno.ENOSPC: Cause.DISK,
    errno.EDQUOT: Cause.DISK,
    errno.EIO: Cause.DISK,
    errno.EROFS: Cause.DISK,
    errno.EFBIG: Cause.DISK,
    errno.ENOMEM: Cause.HOST_OUT_OF_MEMORY,
    errno.EADDRINUSE: Cause.RENDEZVOUS,
}
_TORCH_TEXTS = (
    ("cuda out of memory", Cause.DEVICE_OUT_OF_MEMORY),
    ("hip out of memory", Cause.DEVICE_OUT_OF_MEMORY),
    ("cuda error: out of memory", Cause.DEVICE_OUT_OF_MEMORY),
    ("cublas_status_alloc_failed", Cause.DEVICE_OUT_OF_MEMORY),
    ("cudnn_status_alloc_failed", Cause.DEVICE_OUT_OF_MEMORY),
    ("defaultcpuallocator: can't allocate memory", Cause.HOST_OUT_OF_MEMORY),
    ("defaultcpuallocator: not enough memory", Cause.HOST_OUT_OF_MEMORY),
    ("cannot allocate memory", Cause.HOST_OUT_OF_MEMORY),
    ("no space left", Cause.DISK),
    # torch's zip writer, under DeepSpeed's shards: what a full disk looks like from C++.
    ("pytorchstreamwriter failed", Cause.DISK),
    ("inline_container.cc", Cause.DISK),
    ("eaddrinuse", Cause.RENDEZVOUS),
    ("address already in use", Cause.RENDEZVOUS),
)
_FROM_TORCH = re.compile(
    r"\[enforce fail at|pytorchstreamwriter|inline_container|defaultcpuallocator"
    r"|(cuda|hip) out of memory\. tried to allocate|cuda error|cu(blas|dnn)_status_"
    r"|\bc10d?\b|\bgloo\b|\bnccl|server socket"
    # Of shared memory and mapped files: "unable to write to file </torch_7>: ... (28)".
    r"|unable to .+ \(\d+\)"
)
"""What shows that a plain `RuntimeError` is of torch's C++, not of somebody's Python."""
_SAFETENSORS_TEXTS = tuple((f"(os error {number})", cause) for number, cause in _BY_ERRNO.items())
"""Rust writes error numbers into its texts, and safetensors passes only the text on."""
_WRAPS_OTHERS = frozenset({Cause.CHECKPOINT, Cause.BAD_DATA})
"""Our errors that may wrap an error of the disk, which is more specific."""
_NODE_FAILURES = frozenset({Cause.RANK_DIED, Cause.NODE_LOST, Cause.HANG})
_BROKEN_HARDWARE = "uncorrectable ecc"
_DEVICE_TYPES = frozenset({"torch.AcceleratorError", "torch.OutOfMemoryError"})
_DEVICE_LIBRARIES = ("torch", "cupy", "numba", "triton", "pycuda")
_DEVICE_TEXTS = re.compile(
    r"cuda (driver |runtime )?error|cuda_?error|(cuda|hip) out of memory\. tried to allocate"
    r"|cu(blas|dnn)_status_|cudnn error|nccl ?error|triton error \[cuda\]"
    # PyCUDA names the call: "cuMemcpyDtoH failed: an illegal memory access was encountered".
    r"|(?-i:\bcu[A-Z]\w+ failed: )",
    re.IGNORECASE,
)
_EXPLAINED_BY_STOP = {
    Cause.PREEMPTED: frozenset({Cause.RANK_DIED, Cause.NODE_LOST, Cause.HANG, Cause.RENDEZVOUS}),
    Cause.CANCELLED: frozenset({Cause.RANK_DIED, Cause.HANG, Cause.RENDEZVOUS}),
    # Nobody kills a gang that is to be resized: a death is one of its own.
    Cause.RESIZED: frozenset[Cause](),
}
_STOPPED = {
    "preempted": Cause.PREEMPTED,
    "cancelled": Cause.CANCELLED,
    "resize": Cause.RESIZED,
}
"""By reason of the request to stop; the first that any rank was given counts."""
_LOST_CONNECTION_TEXTS = (
    "connection reset",
    "connection closed",
    "connection refused",
    "connection was likely closed",
    "broken pipe",
    "socket closed",
    "remote process exited",
    "ncclremoteerror",
    "gloo/transport",
    "gloo connectfullmesh failed",
    "[c10d]",
    "nccl communicator was aborted",
)
_LOST_CONNECTION_TYPES = frozenset(
    {"torch.distributed.DistNetworkError", "torch.distributed.DistStoreError"}
)
_LOST_CONNECTION_CLAIM = "rendezvous"
_LOST_CONNECTION = frozenset(
    {errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ESHUTDOWN}
)


def judge(outcomes: Sequence[RankOutcome]) -> Verdict:
    """Judge the gang, not the rank."""
    failed = [(o.rank, o.error) for o in outcomes if o.error is not None]
    if not failed:
        return Verdict(Cause.SUCCESS)
    reason = _stop_reason(outcomes)
    stopped = _STOPPED.get(reason or "cancelled", Cause.CANCELLED)
    rank, error = min(failed, key=lambda pair: (_weight(pair[1]), pair[1].at))
    cause = stopped if _is_stop(error) else cause_of(error)
    if reason is not None and (cause in _EXPLAINED_BY_STOP[stopped] or _says_nothing(error)):
        cause = stopped
    return Verdict(
        cause,
        f"{error.name}: {error.message}",
        rank,
        error.traceback,
        reason,
        cause in _NODE_FAILURES or _shows_broken_hardware(error),
    )


def cause_of(error: RankError) -> Cause:
    """Cause that one rank's error names."""
    return _named(error) or (Cause.RENDEZVOUS if _lost_connection(error) else Cause.ERROR)


def spoils_process(error: RankError) -> bool:
    """True if the process that raised it must not be used again.

    A device's error leaves a broken context: one that torch has a type for, or whose text has a
    status of CUDA, cuBLAS, cuDNN or NCCL in a `RuntimeError` or an exception of a library for
    GPUs. What is no `Exception`, such as `SystemExit`, passes by the cleaning up after errors.
    """
    is_exit = bool(error.chain) and "builtins.Exception" not in error.chain[0].types
    return is_exit or any(map(_is_of_device, _links(error)))


def _is_of_device(link: Raised) -> bool:
    if not _DEVICE_TYPES.isdisjoint(link.types):
        return True
    sources = ("builtins.RuntimeError", *_DEVICE_LIBRARIES)
    is_source = any(name.startswith(sources) for name in link.types)
    return is_source and _DEVICE_TEXTS.search(link.message) is not None


def _shows_broken_hardware(error: RankError) -> bool:
    said = (link.message.lower() for link in _links(error) if _is_of_device(link))
    return any(_BROKEN_HARDWARE in message for message in said)


def _links(error: RankError) -> Iterator[Raised]:
    """All exceptions of an error, members of groups too."""
    for link in error.chain:
        yield link
        for member in link.members:
            yield from member


def _named(error: RankError) -> Cause | None:
    """Cause that an error names by itself."""
    return _BY_LOSS[error.loss] if error.loss is not None else _named_by(error.chain)


def _named_by(chain: Sequence[Raised]) -> Cause | None:
    told = next((cause for link in chain if (cause := _told(link)) is not None), None)
    claimed = _BY_CLAIM.get(chain[0].claim or "")
    if claimed is None or (claimed in _WRAPS_OTHERS and told is Cause.DISK):
        return told
    return claimed


def _told(link: Raised) -> Cause | None:
    """Cause that an exception of the machine or of a library names, or all members of a group."""
    if link.members:
        causes = {_named_by(member) for member in link.members} - {None}
        return causes.pop() if len(causes) == 1 else None
    if link.errno in _BY_ERRNO:
        return _BY_ERRNO[link.errno]
    named = next((_BY_TYPE[name] for name in link.types if name in _BY_TYPE), None)
    if named is not None:
        return named
    if _is_of_torch(link):
        return _by_text(link, _TORCH_TEXTS)
    is_rust = link.types[0].startswith("safetensors.")
    return _by_text(link, _SAFETENSORS_TEXTS) if is_rust else None


def _by_text(link: Raised, texts: Sequence[tuple[str, Cause]]) -> Cause | None:
    message = link.message.lower()
    return next((cause for text, cause in texts if text in message), None)


def _is_of_torch(link: Raised) -> bool:
    """True for a type of torch's own, or the plain one of its C++ if the text shows that."""
    own = link.types[0]
    is_plain = own == "builtins.RuntimeError" and _FROM_TORCH.search(link.message.lower())
    return bool(is_plain) or own.startswith("torch.")


def _weight(error: RankError) -> int:
    """Rank of a piece of evidence; of equal ones the earliest counts."""
    if _is_stop(error):
        return 3
    if _says_nothing(error):
        return 5
    cause = _named(error)
    if cause is None:
        return 4 if _lost_connection(error) else 2
    return 0 if cause is Cause.NODE_LOST else 1


def _is_stop(error: RankError) -> bool:
    if not error.chain:
        return False
    first = error.chain[0]
    claims = {member[0].claim for member in first.members} or {first.claim}
    return claims == {_STOP_CLAIM}


def _says_nothing(error: RankError) -> bool:
    return error.loss is Loss.ENDED_WITH_GANG


def _lost_connection(error: RankError) -> bool:
    """True for what a rank says because a peer is gone."""
    first = error.chain[0]
    if first.errno in _LOST_CONNECTION or first.claim == _LOST_CONNECTION_CLAIM:
        return True
    if not _LOST_CONNECTION_TYPES.isdisjoint(first.types):
        return True
    said = first.message.lower()
    return _is_of_torch(first) and any(text in said for text in _LOST_CONNECTION_TEXTS)


def _stop_reason(outcomes: Sequence[RankOutcome]) -> str | None:
    """Why the gang was asked to stop: a notice that reached one rank is one for all."""
    given = {o.stop_reason for o in outcomes}
    return next((reason for reason in _STOPPED if reason in given), None)
