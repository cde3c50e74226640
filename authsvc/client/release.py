"""SIGTERM in a program that does nothing about it: its validators release their leases before it ends.

The system's default ends a process at once, and revocations would wait for a lease that nobody uses any more. A host
that handles SIGTERM is left alone: it closes its validators itself, or ends its event loop, which releases them too.
"""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Protocol
from weakref import WeakSet

_RELEASE_SECONDS_MAX = 1.5
"""From the signal to the end of the process, whatever the event loop does meanwhile."""


class Lessee(Protocol):
    """Who has a lease to release."""

    def release_soon(self, done: Callable[[], None]) -> None:
        """Have it released, and `done` called then. Called in the main thread, between any two steps of it.

        Raises RuntimeError when that cannot be any more.
        """


_lessees: WeakSet[Lessee] = WeakSet()  # a process has one handler for a signal, and so one list


def release_on_sigterm(lessee: Lessee) -> None:
    """Have the lease released when SIGTERM would end the process; no more than that is changed about the signal."""
    _lessees.add(lessee)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _release_and_end)


def forget(lessee: Lessee) -> None:
    """There is nothing to release any more."""
    _lessees.discard(lessee)
    if (
        not _lessees
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is _release_and_end
    ):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _release_and_end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # the next one ends the process: ours below, or an impatient person's
    waiting = set(_lessees)

    def end() -> None:
        os.kill(os.getpid(), number)

    timer = threading.Timer(_RELEASE_SECONDS_MAX, end)
    timer.daemon = True
    timer.start()

    def released(lessee: Lessee) -> None:
        waiting.discard(lessee)
        if not waiting:
            end()

    for lessee in list(waiting):
        try:
            lessee.release_soon(lambda lessee=lessee: released(lessee))  # type: ignore[misc]
        except RuntimeError:  # its event loop is closed
            released(lessee)
