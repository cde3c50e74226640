"""Standard streams that a process was started without, as `>&-` in a shell does. Both command lines call it first."""

import os
import sys


def open_missing() -> None:
    """Open those of the descriptors 0 to 2 that are closed on /dev/null.

    Else what is opened next would get their numbers: a socket, on which libuv aborts, or a database, into which the
    next error message would go.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest that is free
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)  # Python has None where there was no descriptor
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
