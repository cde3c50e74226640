"""Time that tests move."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(2026, 1, 2, 2, 47, 25, 678000, tzinfo=UTC)


class Clock:
    """Stands still until a test moves it: seconds when it is called, and the instant by `wall`."""

    def __init__(self, *, step_seconds: float = 0.0) -> None:
        """Let each look find it so much later."""
        self.now = 1000.0
        """What it shows, in seconds."""
        self._step_seconds = step_seconds

    def __call__(self) -> float:
        self.now += self._step_seconds
        return self.now

    def wall(self) -> datetime:
        """Return what it shows as an instant in UTC."""
        return _EPOCH + timedelta(seconds=self())

    def advance(self, seconds: float) -> None:
        """Put it forward, or back."""
        self.now += seconds

    def set(self, instant: datetime) -> None:
        """Have it show this instant."""
        self.now = (instant - _EPOCH).total_seconds()


class RunningClock:
    """Another clock, which a test can put forward: where it is an event loop's, what is due then is done next."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ahead_seconds = 0.0
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return (self._clock() if self._stopped_at is None else self._stopped_at) + self._ahead_seconds

    def advance(self, seconds: float) -> None:
        """Put it forward."""
        self._ahead_seconds += seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let no time pass meanwhile unless it is put forward, however slow the machine is."""
        self._stopped_at = self._clock()
        try:
            yield
        finally:
            self._ahead_seconds -= self._clock() - self._stopped_at
            self._stopped_at = None
