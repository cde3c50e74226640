"""The clock that leases are kept by, at both of their ends (rule 12 of docs/watch-protocol.md)."""

import time

_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_clock() -> float:
    """Return seconds that also count while the machine is suspended, where the system has such a clock."""
    return time.clock_gettime(_BOOT_CLOCK)
