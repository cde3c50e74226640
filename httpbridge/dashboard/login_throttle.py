"""Slows down who guesses the dashboard token. Pure; used by `sign_in`.

Only what failed counts: the right token signs in, however many wrong ones came from the same address. Nobody can guess
it; what is bounded is how many answers are waited for, and what is logged.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from authsvc.runtime.networks import address_group

WINDOW_SECONDS = 300.0
ATTEMPTS_PER_ADDRESS_MAX = 10
ATTEMPTS_MAX = 200
"""From everywhere."""
WAITING_MAX = 16
"""Answers that are waited for at a time, as each keeps a connection."""

_DELAY_SECONDS_FIRST = 0.25
_DELAY_SECONDS_MAX = 4.0
_TOLD_EVERY_SECONDS = 60.0


class TooManyAttemptsError(Exception):
    """Too many wrong tokens came; `retry_after_seconds` says when the next one may be tried."""

    def __init__(self, retry_after_seconds: int, untold: int) -> None:
        super().__init__(f"again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds
        self.untold = untold
        """How many of these the log should tell of, this one included; 0 when it has just told."""


class LoginThrottle:
    """Counts attempts that failed, by client address (of IPv6 by /64), over the last five minutes."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """`monotonic` is in seconds."""
        self._monotonic = monotonic
        self._attempts: deque[tuple[float, str]] = deque()
        self._waiting = 0
        self._untold = 0
        self._tell_at = 0.0

    @contextmanager
    def failed(self, address: str) -> Iterator[float]:
        """Count a wrong token; give for how many seconds to make it wait, inside of the block.

        Raises TooManyAttemptsError.
        """
        group = address_group(address)
        now = self._monotonic()
        while self._attempts and self._attempts[0][0] <= now - WINDOW_SECONDS:
            self._attempts.popleft()
        times = [time for time, who in self._attempts if who == group]
        oldest = None
        if len(times) >= ATTEMPTS_PER_ADDRESS_MAX:
            oldest = times[0]
        elif len(self._attempts) >= ATTEMPTS_MAX:
            oldest = self._attempts[0][0]
        if oldest is not None:
            raise self._too_many(oldest + WINDOW_SECONDS - now, now)
        self._attempts.append((now, group))
        if self._waiting >= WAITING_MAX:
            raise self._too_many(_DELAY_SECONDS_MAX, now)
        self._waiting += 1
        try:
            yield min(_DELAY_SECONDS_FIRST * 2 ** (len(times) - 1), _DELAY_SECONDS_MAX) if times else 0.0
        finally:
            self._waiting -= 1

    def succeeded(self, address: str) -> None:
        """Forget the address's attempts: it knows the token."""
        group = address_group(address)
        self._attempts = deque(attempt for attempt in self._attempts if attempt[1] != group)

    def _too_many(self, seconds: float, now: float) -> TooManyAttemptsError:
        self._untold += 1
        if now < self._tell_at:
            return TooManyAttemptsError(math.ceil(seconds), 0)
        untold, self._untold, self._tell_at = self._untold, 0, now + _TOLD_EVERY_SECONDS
        return TooManyAttemptsError(math.ceil(seconds), untold)
