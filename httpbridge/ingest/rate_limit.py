"""How many requests, and bytes, a key may send in a minute. Called by `ingest` when a request carried a valid key.

A fixed window aligned to the wall-clock minute, counted in this process: with several bridges
each admits the full numbers. Bytes are those of decoded bodies, counted as they come out, also of bodies that are
refused afterwards. The body that uses up the last of them is taken whole; the next one is refused before it is read,
or, where it was on its way by then, before it is decoded. So each key has one body a minute, whatever the limit.
"""

import math
from collections.abc import Callable
from datetime import datetime

import msgspec

from httpbridge.errors import RateLimitedError

WINDOW_SECONDS = 60


class Quota(msgspec.Struct, frozen=True, gc=False):
    """Where a key stands in the current window."""

    admitted: bool
    remaining: int
    """Requests left in the window; none once its bytes are used up."""
    reset_unix_seconds: int
    """When the window ends."""
    retry_after_seconds: int
    """From now to the window's end, rounded up; at least 1."""


class RateLimit:
    """Counts by key id. Holds two numbers for each key that was used in the current minute, and no more."""

    def __init__(self, limit_per_minute: int, bytes_per_minute: int, now: Callable[[], datetime]) -> None:
        self.limit_per_minute = limit_per_minute
        self._bytes_per_minute = bytes_per_minute
        self._now = now
        self._window = 0
        self._counts: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def take(self, key_id: str) -> Quota:
        """Count one request, if the key has any left, and say whether it is admitted."""
        return self._quota(key_id, 1)

    def peek(self, key_id: str) -> Quota:
        """Say where the key stands, without counting; `admitted` is whether a request would be."""
        return self._quota(key_id, 0)

    def begin_body(self, key_id: str, count: int) -> None:
        """Count a decoded body, or the first bytes of it; raise RateLimitedError when the key has none left.

        In the window of the last `take` or `peek`: a body that was not waited for need not look at the clock again.
        """
        taken = self._bytes.get(key_id, 0)
        if taken >= self._bytes_per_minute:
            raise RateLimitedError
        self._bytes[key_id] = taken + count

    def body(self, key_id: str) -> Callable[[int], None]:
        """Return what counts a body that is waited for, piece by piece; only the first can raise RateLimitedError."""
        is_first = True

        def count(count: int) -> None:
            nonlocal is_first
            self._roll()
            if is_first:
                self.begin_body(key_id, count)
                is_first = False
            else:
                self._bytes[key_id] = self._bytes.get(key_id, 0) + count

        return count

    def _roll(self) -> float:
        """Begin a new window where it is time; return the time, in Unix seconds."""
        unix_seconds = self._now().timestamp()
        window = int(unix_seconds // WINDOW_SECONDS)
        if window != self._window:  # also when the clock was set back: a window in the future would never end
            self._window = window
            self._counts = {}
            self._bytes = {}
        return unix_seconds

    def _quota(self, key_id: str, requests: int) -> Quota:
        unix_seconds = self._roll()
        limit = self.limit_per_minute if self._bytes.get(key_id, 0) < self._bytes_per_minute else 0
        used = self._counts.get(key_id, 0)
        admitted = used < limit
        if admitted and requests:
            used += requests
            self._counts[key_id] = used
        reset = (self._window + 1) * WINDOW_SECONDS
        return Quota(admitted, max(0, limit - used), reset, max(1, math.ceil(reset - unix_seconds)))
