"""One run for many callers: what comes while a run is under way waits for the next one, and all get its outcome.

As in a group commit, without a timer: when nothing runs, nobody waits.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Gather(Generic[T, R]):
    """What waits is bounded, and who goes away leaves nothing behind."""

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[R]],
        *,
        size: Callable[[T], int] = lambda _: 1,
        group_size_max: float = inf,
        waiting_size_max: float = inf,
        key: Callable[[T], Hashable] | None = None,
        fails_waiting: bool = False,
    ) -> None:
        """Of the items with the same key one goes into a run, and of any size at least one.

        With `fails_waiting` a run that fails fails all who wait by then, so that nobody waits for several failures.
        """
        self._run = run
        self._size = size
        self._group_size_max = group_size_max
        self._waiting_size_max = waiting_size_max
        self._key = key
        self._fails_waiting = fails_waiting
        self._is_closed = False
        self._waiting: dict[asyncio.Future[R], T] = {}
        self._running: asyncio.Task[None] | None = None
        self.waiting_size = 0

    async def ask(self, item: T) -> R:
        """Return the outcome of the run that the item goes into, which begins after this call.

        Raises what the run raises, asyncio.QueueFull at once when too much waits, and CancelledError once it is closed.
        """
        if self._is_closed:
            raise asyncio.CancelledError
        size = self._size(item)
        if self.waiting_size + size > self._waiting_size_max:
            raise asyncio.QueueFull
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting[done] = item
        self.waiting_size += size
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run_while_asked())
        try:
            return await done
        finally:
            self._take(done)

    async def close(self) -> None:
        """Run no more, and cancel who waits."""
        self._is_closed = True
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
        for done in list(self._waiting):
            done.cancel()

    def _take(self, done: asyncio.Future[R]) -> None:
        if done in self._waiting:
            self.waiting_size -= self._size(self._waiting.pop(done))

    def _next_group(self) -> dict[asyncio.Future[R], T]:
        group: dict[asyncio.Future[R], T] = {}
        keys = set()
        group_size = 0
        for done, item in self._waiting.items():
            key = done if self._key is None else self._key(item)
            if key in keys:
                continue
            group_size += self._size(item)
            if group and group_size > self._group_size_max:
                break
            keys.add(key)
            group[done] = item
        for done in group:
            self._take(done)
        return group

    async def _run_while_asked(self) -> None:
        while group := self._next_group():
            try:
                outcome = await self._run(list(group.values()))
            except Exception as error:  # noqa: BLE001 - each of those who wait raises it
                for done in (*group, *(self._waiting if self._fails_waiting else ())):
                    self._take(done)
                    if not done.done():
                        done.set_exception(error)
            except BaseException:
                for done in group:
                    done.cancel()
                raise
            else:
                for done in group:
                    if not done.done():  # its caller has gone
                        done.set_result(outcome)
