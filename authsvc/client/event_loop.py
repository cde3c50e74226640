"""How both command lines run what they do: on uvloop, in a process made ready for a service."""

import asyncio
import gc
import os
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import uvloop

_T = TypeVar("_T")


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end and return the result. Call it before anything starts a thread."""
    gc.freeze()  # what was imported is for good: a collection of it would stop the event loop for 40 ms now and then
    _take_turns()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _take_turns() -> None:
    """Keep a thread that is woken from interrupting the one that woke it, here and in processes started from here.

    A call passes through several threads of gRPC and the loop's. Where they share a core, each would stop the last
    one in the middle of its work: a Validate call takes 17 switches between threads by Linux's default policy, and 5
    by this one, which saves a fifth of its processor time (`python -m benchmarks.validate`).
    """
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # a sandbox may not allow it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
