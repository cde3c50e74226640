"""What a process asks of the system: standard streams, signals, its share of a core, and no core dumps."""

import asyncio
import os
import resource
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import IO, Any

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_DUMPABLE = 4  # linux/prctl.h


def turn_off_core_dumps() -> None:
    """Keep the kernel from writing this process, and those that it starts, to disk when they crash.

    To be called before any secret is read. A limit of 0 holds for files alone: where `core_pattern` names a program,
    such as systemd-coredump or apport, it is given the process all the same. A limit of 1 is less than any dump, and
    the kernel gives such a process to no program either (fs/coredump.c). Where 0 was set by somebody else and cannot be
    raised, the process is made one that is not dumped at all, which also closes its directory in /proc to others than
    root.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except (OSError, ValueError):
        if sys.platform == "linux":
            import ctypes  # noqa: PLC0415 - seldom needed

            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def open_missing_streams() -> None:
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


def use_batch_scheduling() -> None:
    """Keep threads of this process that are woken from interrupting the one that woke them; called before any starts.

    A call passes through several threads of gRPC and the event loop's. By Linux's usual policy each that is woken stops
    the last one in the middle of its work, where they share a core. What that costs `python -m benchmarks.validate`
    shows. In return the process does not interrupt others either.
    """
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # a sandbox may not allow it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def ignore_other_signals() -> None:
    """Let signals pass that would end a process, for which a supervisor or a terminal has other uses."""
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def ignore_stop_signals() -> None:
    """Let SIGTERM and SIGINT pass, from now on."""
    report = sys.unraisablehook

    def pass_over(it: Any) -> None:
        # One that came in this very instant, perhaps to another thread, is ignored as well, and Python would say so.
        if "ignored due to race condition" not in str(it.exc_value):
            report(it)

    sys.unraisablehook = pass_over
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stop_at_signals() -> asyncio.Event:
    """Return an event of the running loop that SIGTERM and SIGINT set. One that comes again changes nothing."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end() -> None:
        if not stop.is_set():
            stop.set()
            ignore_stop_signals()

    def handle(_number: int, _frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: the service has failed
            loop.call_soon_threadsafe(end)

    # Not the loop's own handlers: these are gone, as are all of Python, before the process is.
    for number in _STOP_SIGNALS:
        signal.signal(number, handle)
    return stop
