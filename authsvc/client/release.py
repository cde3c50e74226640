"""SIGTERM in a program that does not handle it: its validators release their leases before it ends.

Otherwise revocations would wait for a lease that nobody uses any more.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from weakref import WeakKeyDictionary

_RELEASE_SECONDS_MAX = 1.5
"""From the signal to the end of the process, whatever the event loop does meanwhile."""


_leases: WeakKeyDictionary[asyncio.Task[None], Callable[[], None]] = WeakKeyDictionary()
"""What has a lease, and what makes it release it. A process has one handler for a signal, and so one list."""


def release_on_sigterm(watching: asyncio.Task[None], leave: Callable[[], None]) -> None:
    """When SIGTERM would end the process, have `leave` called in the task's event loop, and wait for the task's end."""
    _leases[watching] = leave
    watching.add_done_callback(_forget)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _release_and_end)


def _forget(watching: asyncio.Task[None]) -> None:
    _leases.pop(watching, None)
    if (
        not _leases
        and threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is _release_and_end
    ):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _release_and_end(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # the next one ends the process: ours below, or an impatient person's
    waiting = dict(_leases)

    def end() -> None:
        os.kill(os.getpid(), number)

    timer = threading.Timer(_RELEASE_SECONDS_MAX, end)
    timer.daemon = True
    timer.start()

    def released(watching: asyncio.Task[None]) -> None:
        waiting.pop(watching, None)
        if not waiting:
            end()

    def release(watching: asyncio.Task[None], leave: Callable[[], None]) -> None:
        leave()
        watching.add_done_callback(released)

    for watching, leave in list(waiting.items()):
        try:
            watching.get_loop().call_soon_threadsafe(release, watching, leave)
        except RuntimeError:  # it is closed
            released(watching)
