"""Slows and limits attempts to sign in. Pure; used by `sign_in`."""

import math
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 300.0
ATTEMPTS_PER_ADDRESS_MAX = 10
ATTEMPTS_MAX = 200
"""From everywhere. Links go on signing in meanwhile."""

_DELAY_SECONDS_FIRST = 0.25
_DELAY_SECONDS_MAX = 4.0


class TooManyAttemptsError(Exception):
    """Nobody may try now; `retry_after_seconds` says when again."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"again in {retry_after_seconds} s")
        self.retry_after_seconds = retry_after_seconds


class Attempts:
    """Counts attempts that failed or are under way, by client address, over the last five minutes."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        """`monotonic` is in seconds."""
        self._monotonic = monotonic
        self._attempts: deque[tuple[float, str]] = deque()

    def begin(self, address: str) -> float:
        """Count an attempt, before it is looked at; return for how many seconds to make it wait.

        Raises TooManyAttemptsError.
        """
        now = self._monotonic()
        while self._attempts and self._attempts[0][0] <= now - WINDOW_SECONDS:
            self._attempts.popleft()
        times = [time for time, who in self._attempts if who == address]
        oldest = None
        if len(times) >= ATTEMPTS_PER_ADDRESS_MAX:
            oldest = times[0]
        elif len(self._attempts) >= ATTEMPTS_MAX:
            oldest = self._attempts[0][0]
        if oldest is not None:
            raise TooManyAttemptsError(max(1, math.ceil(oldest + WINDOW_SECONDS - now)))
        self._attempts.append((now, address))
        return min(_DELAY_SECONDS_FIRST * 2 ** (len(times) - 1), _DELAY_SECONDS_MAX) if times else 0.0

    def succeeded(self, address: str) -> None:
        """Forget the address's attempts: it knows the token."""
        self._attempts = deque(attempt for attempt in self._attempts if attempt[1] != address)
