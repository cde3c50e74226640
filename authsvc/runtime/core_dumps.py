"""No core dumps of processes that hold secrets. Used by both command lines, before they read any."""

import resource
import sys

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def turn_off() -> None:
    """Keep the kernel from writing this process, and those that it starts, to disk when they crash.

    A limit of 0 holds for files alone: where `core_pattern` names a program, such as systemd-coredump or apport, it is
    given the process all the same. A limit of 1 is less than any dump, and the kernel gives such a process to no
    program either (fs/coredump.c). Where 0 was set by somebody else and cannot be raised, the process is made one
    that is not dumped at all, which also closes its directory in /proc to others than root.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except (OSError, ValueError):
        if sys.platform == "linux":
            import ctypes  # noqa: PLC0415 - seldom needed

            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
