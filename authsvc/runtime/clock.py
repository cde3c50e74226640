"""The clocks: the one whose instants are stored, and the one that leases are kept by; waiting by the event loop's."""

import asyncio
import time
from datetime import UTC, datetime

_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def now() -> datetime:
    """Return the instant that is stored and counted by: aware, UTC."""
    return datetime.now(UTC)


def boot_clock() -> float:
    """Return seconds that also count while the machine is suspended, where the system has such a clock.

    Both ends of a lease go by it (rule 12 of docs/watch-protocol.md).
    """
    return time.clock_gettime(_BOOT_CLOCK)


async def happens(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, but no longer than this; return whether it came."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
