"""Logging events that come in large numbers: once in a while, with the addresses that they come from."""

from collections import Counter
from collections.abc import Callable

ADDRESSES_MAX = 10_000
"""Whose refusals are remembered: some 100 bytes each."""


class Tally:
    """Counts events by address, for one line a second, as anybody could fill the disk."""

    def __init__(self, monotonic: Callable[[], float], log: Callable[..., object]) -> None:
        """`log` writes a line, and gets its fields."""
        self._monotonic = monotonic
        self._log = log
        self._addresses: Counter[str] = Counter()
        self._count = 0
        self._last: dict[str, object] = {}
        self._logged_at = float("-inf")

    def add(self, address: str, **fields: object) -> None:
        """Count one; the line has the last one's fields."""
        self._count += 1
        if address in self._addresses or len(self._addresses) < ADDRESSES_MAX:
            self._addresses[address] += 1
        self._last = fields
        self.flush()

    def flush(self) -> None:
        """Write what was counted, if it is time for a line: how many there were, and who did most of it."""
        time = self._monotonic()
        if not self._count or time - self._logged_at < 1.0:
            return
        [(address, address_count)] = self._addresses.most_common(1)
        counts = {"count": self._count, "address": address, "address_count": address_count}
        self._log(**counts, addresses=len(self._addresses), **self._last)
        self._addresses.clear()
        self._count, self._logged_at = 0, time
