"""How many requests a key may make in a minute. Called by `ingest` for every request that carried a valid key.

A fixed window aligned to the wall-clock minute, counted in this process: with several bridges
each admits the full number.
"""

import math
from collections.abc import Callable
from datetime import datetime

import msgspec

WINDOW_SECONDS = 60


class Quota(msgspec.Struct, frozen=True, gc=False):
    """Where a key stands in the current window."""

    admitted: bool
    remaining: int
    """Requests left in the window."""
    reset_unix_seconds: int
    """When the window ends."""
    retry_after_seconds: int
    """From now to the window's end, rounded up; at least 1."""


class RateLimit:
    """Counts requests by key id. Holds one number for each key that was used in the current minute, and no more."""

    def __init__(self, limit_per_minute: int, now: Callable[[], datetime]) -> None:
        self.limit_per_minute = limit_per_minute
        self._now = now
        self._window = 0
        self._counts: dict[str, int] = {}

    def take(self, key_id: str) -> Quota:
        """Count one request, if the key has any left, and say whether it is admitted."""
        return self._quota(key_id, 1)

    def peek(self, key_id: str) -> Quota:
        """Say where the key stands, without counting; `admitted` is whether a request would be."""
        return self._quota(key_id, 0)

    def _quota(self, key_id: str, requests: int) -> Quota:
        unix_seconds = self._now().timestamp()
        window = int(unix_seconds // WINDOW_SECONDS)
        if window != self._window:  # also when the clock was set back: a window in the future would never end
            self._window = window
            self._counts = {}
        used = self._counts.get(key_id, 0)
        admitted = used < self.limit_per_minute
        if admitted and requests:
            used += requests
            self._counts[key_id] = used
        reset = (window + 1) * WINDOW_SECONDS
        return Quota(admitted, self.limit_per_minute - used, reset, max(1, math.ceil(reset - unix_seconds)))
