"""How far one search goes, in entries and seconds."""

from collections.abc import Callable

from httpbridge.log_store.read_store import StoreSlowError
from httpbridge.log_store.scan import Header

_NO_PROGRESS = 5
"""A search that found no place to stop at goes on for so many times as long as it may, and then fails."""


class Budget:
    """Entries and seconds; `monotonic` is in seconds."""

    def __init__(self, entries: int, seconds: float, monotonic: Callable[[], float]) -> None:
        self.searched = 0
        self._entries, self._seconds, self._monotonic = entries, seconds, monotonic
        self._began = monotonic()
        self._oldest = ""

    def allows(self, chunk: Header, end: str) -> bool:
        """Say whether a chunk may still be searched, and note that it is.

        The chunks before it were searched down to its last timestamp. It is searched all the same where these have got
        nowhere, as all of them end with the same instant, or after `end`. Raises StoreSlowError for too many of these.
        """
        reached = min(chunk.last_at, end)
        seconds = self._monotonic() - self._began
        if self.searched and (self.searched + chunk.entries > self._entries or seconds >= self._seconds):
            if reached < self._oldest:
                return False
            if seconds >= _NO_PROGRESS * self._seconds:
                raise StoreSlowError("too many chunks of the log store overlap in time")
        self._oldest = self._oldest or reached
        self.searched += chunk.entries
        return True
