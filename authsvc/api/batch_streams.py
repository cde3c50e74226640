"""Streams of StreamValidate: a batch after the other, each of which counts, and is logged, like a call."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

from authsvc.api import messages


class BatchStreams:
    """All such streams of this process."""

    def __init__(self, idle_seconds: float, monotonic: Callable[[], float], responded: Callable[[float], None]) -> None:
        """End a stream without a batch for so long. `responded` is told when a batch came whose response was sent."""
        self._idle_seconds = idle_seconds
        self._monotonic = monotonic
        self._responded = responded
        self._started: dict[Any, float] = {}
        """When the batches that are under way now came, by the context of their stream."""
        self._idle: set[asyncio.Timeout] = set()
        """Of those that wait for a batch."""
        self._is_stopping = False

    @property
    def calls(self) -> int:
        """How many are under way now."""
        return len(self._started)

    def stop(self) -> None:
        """End them, each after the batch that is under way: they go on elsewhere."""
        self._is_stopping = True
        for idle in self._idle:
            if not idle.expired():
                idle.reschedule(0.0)  # which is long ago

    async def serve(self, handler: Any, requests: AsyncIterator[bytes], context: Any) -> None:
        """Serve one until its end, with a handler of gRPC's."""

        async def batches() -> AsyncGenerator[Any, None]:
            while (message := await self._next(requests)) is not None:
                self._started[context] = self._monotonic()
                yield messages.parse(handler, message)

        try:
            async with (
                aclosing(batches()) as requested,
                aclosing(handler.stream_stream(requested, context)) as responses,
            ):
                async for response in responses:
                    started = self._started.pop(context)
                    await context.write(response)  # however long its caller takes to read, nobody waits for that
                    self._responded(started)
        finally:
            self._started.pop(context, None)

    async def _next(self, requests: AsyncIterator[bytes]) -> bytes | None:
        """Return the next message of a stream; None at its end, and at ours: it was idle for long, or we stop.

        A message that comes in the very instant of that is lost; its caller sees the end, and asks again in a call.
        """
        if not self._is_stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._idle_seconds) as idle:
                    self._idle.add(idle)
                    try:
                        return await anext(requests, None)
                    finally:
                        self._idle.discard(idle)
        return None
