"""Streams of StreamValidate: a batch after the other, each of which counts, and is logged, like a call.

`interceptors` serves them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Self

from authsvc.api import messages


class BatchStreams:
    """All such streams of this process."""

    def __init__(self, idle_seconds: float, monotonic: Callable[[], float], answered: Callable[[float], None]) -> None:
        """End a stream without a batch for so long; call `answered` with when a batch came, once its answer is sent."""
        self._idle_seconds = idle_seconds
        self._monotonic = monotonic
        self._answered = answered
        self.calls = 0
        """Batches under way now."""
        self._idle: set[Callable[[], None]] = set()
        """How to end those that wait for a batch."""
        self._is_stopping = False

    def stop(self) -> None:
        """End them, each after the batch that is under way: they go on elsewhere."""
        self._is_stopping = True
        for end in self._idle:
            end()

    async def serve(self, handler: Any, requests: AsyncIterator[bytes], context: Any) -> None:
        """Serve one until its end, with a handler of gRPC's."""
        batch = _Handed()
        async with aclosing(handler.stream_stream(batch, context)) as responses:
            while (message := await self._next(requests)) is not None:
                started = self._monotonic()
                self.calls += 1
                try:
                    batch.message = messages.parse(handler, message)
                    response = await anext(responses)
                finally:
                    self.calls -= 1
                await context.write(response)  # however long its caller takes to read, nobody waits for that
                self._answered(started)

    async def _next(self, requests: AsyncIterator[bytes]) -> bytes | None:
        """Return the next message of a stream; None at its end, and at ours: it was idle for long, or we stop.

        A message that comes in the very instant of that is lost; its caller sees the end, and asks again in a call.
        """
        if self._is_stopping:
            return None
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        is_over = False

        def end() -> None:
            nonlocal is_over
            is_over = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(self._idle_seconds, end)
        self._idle.add(end)
        try:
            return await anext(requests, None)
        except asyncio.CancelledError:
            if not is_over:
                raise
            task.uncancel()
            return None
        finally:
            timer.cancel()
            self._idle.discard(end)


class _Handed:
    """What a servicer reads its requests from: the one that it was handed last."""

    message: Any = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return self.message
