"""Requests that never stop, each noted with when it began and what it was told.

Unlike `load`, whose batches are found again in the store, what matters here is the instant at
which a request began, by the clock that `effective_by` is compared with: Unix seconds of this
machine.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.http_exchange import BODY, Connection, NoAnswerError, request

_RECONNECT_SECONDS = 0.02
_NO_ANSWER = (NoAnswerError, asyncio.IncompleteReadError, OSError)


@dataclass(slots=True)
class Attempt:
    """One request."""

    bridge: str
    key: str
    started_at: float
    """Unix seconds, read just before its first byte was sent."""
    status: int | None = None
    """None: no answer."""
    ended_at: float = float("inf")


class Ring:
    """The keys that senders take in turn: the one in use, and the last ones before it."""

    def __init__(self, key: str, *, retired_max: int = 1) -> None:
        self.keys = [key]
        self._retired_max = retired_max

    @property
    def current(self) -> str:
        return self.keys[0]

    def switch(self, key: str) -> None:
        """Send with another key, and go on with those before it."""
        self.keys = [key, *self.keys[: self._retired_max]]


class Traffic:
    """Senders and single shots, and what became of all their requests."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self._counts: Counter[tuple[str, str, int | None]] = Counter()

    def now(self) -> float:
        """Return the clock that requests are noted by."""
        return time.time()

    def count(self, bridge: str, key: str, status: int) -> int:
        """Return how many requests with the key a bridge has answered so."""
        return self._counts[bridge, key, status]

    def statuses(self) -> dict[str, int]:
        """Return how many requests were answered how."""
        counts: Counter[str] = Counter()
        for (_, _, status), count in self._counts.items():
            counts[str(status)] += count
        return dict(sorted(counts.items()))

    @asynccontextmanager
    async def flowing(
        self, bridges: Sequence[str], ring: Ring, *, senders: int = 2, pause_seconds: float = 0.01
    ) -> AsyncIterator[None]:
        """Send meanwhile to each bridge, on so many connections, each waiting so long after an answer."""
        tasks = [
            asyncio.create_task(self._sender(bridge, ring, pause_seconds)) for bridge in bridges for _ in range(senders)
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes

    async def shoot(self, bridge: str, key: str) -> Attempt:
        """Send one request on a connection of its own."""
        attempt = Attempt(bridge, key, time.time())
        try:
            async with Connection(bridge) as connection:
                await self._exchange(connection, attempt)
        except _NO_ANSWER:
            pass  # noted as None
        return attempt

    async def _sender(self, bridge: str, ring: Ring, pause_seconds: float) -> None:
        turn = 0
        while True:
            try:
                async with Connection(bridge) as connection:
                    while True:
                        keys = ring.keys
                        turn += 1
                        await self._exchange(connection, Attempt(bridge, keys[turn % len(keys)], 0.0))
                        await asyncio.sleep(pause_seconds)
            except _NO_ANSWER:
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _exchange(self, connection: Connection, attempt: Attempt) -> None:
        self.attempts.append(attempt)
        data = request(key=attempt.key, body=BODY)
        attempt.started_at = time.time()
        connection.send(data)
        try:
            attempt.status = (await connection.answer()).status
        finally:
            attempt.ended_at = time.time()
            self._counts[attempt.bridge, attempt.key, attempt.status] += 1
