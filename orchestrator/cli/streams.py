"""Standard streams that never fail, whatever they lead to.

A closed stream (cron), a reader that left (`| head`), a terminal that is gone, a full disk and a
console of few characters must neither stop a study nor change its code. What somebody wanted and
did not get is remembered, so that the command can say it.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

UNREAD = frozenset({errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO})
"""Nobody is there to read: the reader, or the terminal, is gone. Not a loss."""
PLAIN = {"−": "-", "–": "-", "—": "-", "×": "*", "·": ".", "…": "...", "→": "->", "±": "+-"} | {
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
}
"""How a console of few characters shows what we print; others become `\\u2500`, `\\udcff`."""
ERRORS = "mae-study.plain"
"""Name of the codec's way with what it cannot encode."""


class Outlet(io.RawIOBase):
    """Writes to a descriptor where that works, and nowhere where it does not."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.name = "<stderr>" if descriptor == 2 else "<stdout>"
        self.lost: OSError | None = None
        """Why something that may be wanted was not written, the first time."""
        self.is_vital = True
        """What is written is the command's result, not only what it tells on the way."""

    def writable(self) -> bool:
        """It is for writing alone."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """True on a terminal."""
        return os.isatty(self._descriptor)

    def write(self, content: ReadableBuffer, /) -> int:
        """Write all of it; a failure is noted, never raised."""
        left = memoryview(content).cast("B")
        size = len(left)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody made a shared terminal or pipe non-blocking
                select.select([], [self._descriptor], [])
            except OSError as error:
                if error.errno not in UNREAD and self.lost is None:
                    self.lost = error
                break
        return size


def secure_streams() -> None:
    """Give this process three open descriptors, and output that never raises.

    A closed descriptor would be given to the next file that is opened, and what a library prints
    would land in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest: `number`
    codecs.register_error(ERRORS, _plain)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _unfailing(sys.stdout, 1)
    elif isinstance(sys.stdout, io.TextIOWrapper):  # a caller's own, such as a test's
        sys.stdout.reconfigure(errors=ERRORS)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _unfailing(sys.stderr, 2)


def _unfailing(stream: TextIO | None, descriptor: int) -> io.TextIOWrapper:
    is_immediate = descriptor == 2 or os.isatty(descriptor)
    return io.TextIOWrapper(
        Outlet(descriptor),
        encoding=stream.encoding if stream else "utf-8",
        errors=ERRORS,
        line_buffering=is_immediate,
        write_through=descriptor == 2 or getattr(stream, "write_through", False),
    )


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    shown = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in found)
    return "".join(shown), error.end


def text_is_progress() -> None:
    """Say that standard output only tells how the work goes: the work counts without it."""
    if isinstance(outlet := getattr(sys.stdout, "buffer", None), Outlet):
        outlet.is_vital = False


def lost_output() -> Outlet | None:
    """Standard output, if something that was written to it is lost."""
    outlet = getattr(sys.stdout, "buffer", None)
    if not isinstance(outlet, Outlet):
        return None
    sys.stdout.flush()
    return outlet if outlet.lost else None
