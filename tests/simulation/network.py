"""The network between bridges and replicas: delays, losses, duplicates, cuts, and streams that die on one side only."""

from collections.abc import Callable
from typing import Any

from tests.simulation.schedule import Schedule

_DELAY_SECONDS_MAX = 20.0
_CONGESTION_SECONDS_MAX = 6.0
_STRAGGLER_SECONDS_MAX = 60.0
"""A message may sit in a buffer for longer than any time-out."""


class Network:
    """How messages fare. While it is healthy, what is sent arrives soon and once; what was sent before may be late."""

    __slots__ = ("_congested_until", "_cut_until", "_schedule", "in_order", "is_healthy", "random", "trouble")

    def __init__(self, schedule: Schedule, in_order: bool) -> None:
        """`in_order`: streams are like gRPC's. Otherwise they lose, repeat and reorder messages, which is safe too."""
        self._schedule = schedule
        self.random = schedule.random
        self.in_order = in_order
        self.is_healthy = False
        self.trouble = 0.0
        """The probability that a message fares badly."""
        self._cut_until: dict[tuple[str, str], float] = {}
        self._congested_until = 0.0

    def __repr__(self) -> str:
        return "network"

    def delay(self) -> float:
        """Return how long a message or a statement takes: milliseconds, and now and then seconds."""
        chance = self.random.random()
        if self.is_healthy:
            return 0.001 + 0.01 * chance
        tail: float = (1.0001 - chance) ** 1.3
        return min(0.002 / tail, _DELAY_SECONDS_MAX)

    def cut(self, source: str, target: str, seconds: float) -> None:
        """Let nothing through in one direction for a while."""
        self._cut_until[source, target] = self._schedule.now + seconds

    def congest(self, seconds: float) -> None:
        """Let the answers that are sent in this time take seconds: they are old when they come."""
        self._congested_until = self._schedule.now + seconds

    def heal(self) -> None:
        """Let everything through again; the streams that died meanwhile stay dead."""
        self._cut_until.clear()
        self._congested_until = 0.0
        self.is_healthy = True

    def is_cut(self, source: str, target: str) -> bool:
        """Whether nothing gets through now."""
        return self._cut_until.get((source, target), 0.0) > self._schedule.now

    def call(self, source: str, target: str) -> float | None:
        """Return how long the request of a call takes, None when it is lost."""
        if self.is_cut(source, target) or (not self.is_healthy and self.random.random() < self.trouble):
            return None
        return self.delay()

    def answer(self, source: str, target: str) -> float | None:
        """Return how long the answer to a call takes, None when it is lost."""
        delay = self.call(source, target)
        if delay is not None and self._congested_until > self._schedule.now:
            delay += self.random.random() * _CONGESTION_SECONDS_MAX
        return delay


class Pipe:
    """One direction of a stream."""

    __slots__ = ("_network", "_ready_at", "_schedule", "is_dead", "source", "target")

    def __init__(self, schedule: Schedule, network: Network, source: str, target: str) -> None:
        self._schedule = schedule
        self._network = network
        self.source = source
        self.target = target
        self.is_dead = False
        """The other side will never hear of it."""
        self._ready_at = 0.0

    def send(self, deliver: Callable[..., None], *message: Any) -> None:
        """Deliver a message: once and in order, or none ever again; or without order, twice, late or not at all."""
        network, schedule = self._network, self._schedule
        random = network.random
        if network.is_cut(self.source, self.target) and random.random() < 0.7:
            self.is_dead = True
        if self.is_dead:
            return
        delay = network.delay()
        if not network.is_healthy and random.random() < network.trouble:
            if network.in_order:
                delay += random.uniform(0.0, 8.0)
            elif random.random() < 0.3:
                return
            else:
                schedule.after(_STRAGGLER_SECONDS_MAX * random.random() ** 3, deliver, *message)
        if network.in_order or network.is_healthy:
            self._ready_at = max(self._ready_at, schedule.now + delay)
            delay = self._ready_at - schedule.now
        schedule.after(delay, deliver, *message)
