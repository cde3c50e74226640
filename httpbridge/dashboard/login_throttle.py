"""Slows down who guesses the dashboard token. Used by `sign_in`.

Only what failed counts: the right token signs in, however many wrong ones came from the same address. Nobody can guess
it; what is bounded is how many responses are waited for, and what is logged.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from authsvc.runtime.networks import address_group

WINDOW_SECONDS = 300.0
FAILURES_PER_ADDRESS_MAX = 10
FAILURES_MAX = 200
"""From everywhere."""
WAITING_MAX = 16
"""Responses that are waited for at a time, as each keeps a connection."""

_DELAY_SECONDS_FIRST = 0.25
_DELAY_SECONDS_MAX = 4.0
_LOGGED_EVERY_SECONDS = 60.0

_log = structlog.get_logger("httpbridge.dashboard")


class ThrottledError(Exception):
    """Too many wrong tokens came; `retry_after_seconds` says when the next one may be tried."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class LoginThrottle:
    """Counts wrong tokens, by address (of IPv6 by /64), over the last five minutes. `monotonic` is in seconds."""

    def __init__(
        self, monotonic: Callable[[], float], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._monotonic = monotonic
        self._sleep = sleep
        self._failures: deque[tuple[float, str]] = deque()
        self._waiting = 0
        self._unlogged = 0
        self._log_at = 0.0

    async def failed(self, address: str) -> None:
        """Count a wrong token, and wait: the longer, the more there were from the address. Raises ThrottledError."""
        group = address_group(address)
        now = self._monotonic()
        while self._failures and self._failures[0][0] <= now - WINDOW_SECONDS:
            self._failures.popleft()
        times = [time for time, who in self._failures if who == group]
        if len(times) >= FAILURES_PER_ADDRESS_MAX:
            raise self._refusal(address, now, times[0] + WINDOW_SECONDS - now)
        if len(self._failures) >= FAILURES_MAX:
            raise self._refusal(address, now, self._failures[0][0] + WINDOW_SECONDS - now)
        self._failures.append((now, group))
        if self._waiting >= WAITING_MAX:
            raise self._refusal(address, now, _DELAY_SECONDS_MAX)
        _log.warning("sign_in_refused", address=address)
        self._waiting += 1
        try:
            await self._sleep(min(_DELAY_SECONDS_FIRST * 2 ** (len(times) - 1), _DELAY_SECONDS_MAX) if times else 0.0)
        finally:
            self._waiting -= 1

    def succeeded(self, address: str) -> None:
        """Forget the address's failures: it knows the token."""
        group = address_group(address)
        self._failures = deque(failure for failure in self._failures if failure[1] != group)

    def _refusal(self, address: str, now: float, seconds: float) -> ThrottledError:
        """Log how many there were, once in a while: they cost a stranger nothing."""
        self._unlogged += 1
        if now >= self._log_at:
            _log.warning("sign_in_attempts_exhausted", address=address, attempts=self._unlogged)
            self._unlogged, self._log_at = 0, now + _LOGGED_EVERY_SECONDS
        return ThrottledError(math.ceil(seconds))
