"""Standard streams that a process was started without, or that take nothing. Used by both command lines."""

import os
import sys
from typing import IO


def open_missing() -> None:
    """Open those of the descriptors 0 to 2 that are closed, as by `>&-` in a shell, on /dev/null. To be called first.

    Else what is opened next would get their numbers: a socket, on which libuv aborts, or a database, into which the
    next error message would go.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)  # Python has None where there was no descriptor
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def discard(stream: IO[str]) -> None:
    """Drop what a stream could not write: Python tries once more at its end, and complains."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
