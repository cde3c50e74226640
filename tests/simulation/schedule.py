"""Virtual time: one queue of steps, one source of randomness, and the clocks. Used by all of the simulation.

A step is whatever happens at one instant and cannot be interrupted: a message arrives,
one database statement runs, a process is stopped. Equal seeds give equal schedules.
"""

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from random import Random
from typing import Any

from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from authsvc.client.lease_messages import KeepAlive
from authsvc.client.verdicts import Response
from authsvc.storage.records import LeaseRow, StoreState

TRACE_STEPS = 400
"""How much of a schedule a failure prints."""

_ORIGIN = datetime(2000, 1, 1, tzinfo=UTC)


class Schedule:
    """What happens next. `now` is true time in seconds, which nobody in the simulated world can read."""

    __slots__ = ("_count", "_queue", "now", "random", "steps", "trace")

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = Random(seed)
        self.steps = 0
        self.trace: deque[tuple[float, Any, tuple[Any, ...]]] = deque(maxlen=TRACE_STEPS)
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Do something so much later; what is due at the same instant happens in the order given."""
        self._count += 1
        heappush(self._queue, (self.now + seconds, self._count, action, arguments))

    def note(self, text: str, *arguments: Any) -> None:
        """Add a line to the trace that is no step."""
        self.trace.append((self.now, text, arguments))

    def run(self, steps: int) -> None:
        """Take so many steps."""
        queue, trace = self._queue, self.trace
        for _ in range(steps):
            self.now, _, action, arguments = heappop(queue)
            self.steps += 1
            trace.append((self.now, action, arguments))
            action(*arguments)

    def lines(self) -> list[str]:
        """Return the last steps, one a line."""
        return [
            f"{time:12.6f}  {_named(action)} {' '.join(map(_shown, arguments))}"
            for time, action, arguments in self.trace
        ]


def _named(action: Any) -> str:
    if isinstance(action, str):
        return f"    -> {action}"
    owner = getattr(action, "__self__", None)
    return f"{owner!r}.{action.__name__}" if owner is not None else str(action.__name__)


def _shown(argument: Any) -> str:
    """Return an argument in as few characters as a reader of the schedule needs."""
    match argument:
        case float():
            return f"{argument:.6f}"
        case datetime():
            return f"db:{seconds_of(argument):.6f}"
        case bytes():
            return argument.decode()
        case list() | tuple():
            return "(" + ", ".join(map(_shown, argument)) + ")"
        case Message():
            return MessageToString(argument, as_one_line=True)
        case KeepAlive():
            text = f"{argument.holder_id}#{argument.sequence} applied {argument.applied_revision} {argument.epoch}"
            return text + (" release" if argument.is_release else "")
        case LeaseRow():
            text = f"{argument.holder_id} acknowledged {argument.acknowledged_revision} {argument.epoch}"
            return text + (" gone" if argument.is_released else f" until {_shown(argument.expire_time)}")
        case StoreState():
            return f"revision {argument.revision} {argument.epoch} {_shown(argument.time)}"
        case Response():
            return f"{argument.decision.verdict} at {argument.revision}"
        case _:
            return _named(argument) if callable(argument) else repr(argument)


def seconds_of(time: datetime) -> float:
    """Return what the database's clock showed, in seconds."""
    return (time - _ORIGIN).total_seconds()


class Clock:
    """A clock that runs at a constant rate near 1, and can be put forward or back."""

    __slots__ = ("_schedule", "offset", "rate")

    def __init__(self, schedule: Schedule, rate: float, offset: float) -> None:
        self._schedule = schedule
        self.rate = rate
        self.offset = offset

    def __call__(self) -> float:
        """Return what it shows now, in seconds."""
        return self._schedule.now * self.rate + self.offset

    def true_time(self, reading: float) -> float:
        """Return when it shows, or showed, this if nobody puts it forward or back."""
        return (reading - self.offset) / self.rate

    def time(self) -> datetime:
        """Return what it shows now, as a database does."""
        return _ORIGIN + timedelta(seconds=self())

    def time_after(self, seconds: float) -> datetime:
        """Return what it will show so much later."""
        return _ORIGIN + timedelta(seconds=self() + seconds)
