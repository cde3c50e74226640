"""Waiting for what nobody tells."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

DEADLINE_SECONDS = 120.0
"""After which what was waited for does not come: a busy machine may need many."""
_TURNS_AT_ONCE = 100
_POLL_SECONDS = 0.01


async def until(
    what: str, condition: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = DEADLINE_SECONDS
) -> None:
    """Return when the condition holds; fail, saying what was waited for, when it does not in time.

    It looks in each of the next turns of the event loop, and then every ten milliseconds.
    """
    deadline = time.monotonic() + seconds
    turns = 0
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        turns += 1
        await asyncio.sleep(0 if turns < _TURNS_AT_ONCE else _POLL_SECONDS)
