"""Group commit: concurrent writers share one commit, and so one wait for the disk.

The SQL sink submits what each request brought; a writer task takes what waits (of each
project in its turn: see `fair_queue`) into the next commit soon after the last one is done,
without a timer: one request alone waits for nobody, and under load the commits grow by themselves.

What is heavy goes in a lane of its own, with a writer of its own: a store has a commit of each at
a time, and one that can do one at a time only does them by turns.

What each submitter may rely on:

- it returns once its item is committed, and raises otherwise; no item is ever committed
  twice, because nothing is tried again after a commit whose outcome is unknown;
- going away (cancellation) neither undoes its item nor disturbs the others;
- a light item waits for one commit of a heavy one at the most, besides commits of light ones, and other owners leave
  it its room;
- it never waits long: a full queue, a closed one and the end of the writer raise at once, and
  a store that fails answers all who wait by then, so that nobody waits for several failures.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from types import coroutine
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store.fair_queue import Bounds, FairQueue

CLOSE_SECONDS_MAX = 15.0
"""For what was accepted to be committed at the end: longer than any one commit may take."""

_GATHER_TURNS = 4
"""Turns of the event loop before each commit.

In these, those who were just answered are written to, and what they send next is read, and joins. Measured: of 32
clients that send one batch after the other nearly all share each commit, instead of half of them, for a fifth less CPU
a batch. On an idle event loop four turns take some microseconds.
"""

T = TypeVar("T")
Commit = Callable[[list[T]], Awaitable[Mapping[int, Exception] | None]]


@coroutine
def _gather_turns() -> Generator[None, None, None]:
    for _ in range(_GATHER_TURNS):  # what asyncio.sleep(0) does, without two coroutines for each turn
        yield


_log = structlog.get_logger("httpbridge.log_store")


class _Waiting(msgspec.Struct, Generic[T]):
    item: T
    done: asyncio.Future[None]

    def succeed(self) -> None:
        if not self.done.done():  # a cancelled submitter has gone
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class GroupCommit(Generic[T]):
    """Both lanes; must be made in a running event loop.

    `commit` stores all the items it is given or none of them, but for those whose places it returns, each with why it
    is not stored. It raises StoreUnavailableError for what is expected to go wrong. It is called with heavy items while
    it commits light ones.
    """

    def __init__(self, commit: Commit[T], bounds: Bounds | None = None) -> None:
        """Each lane has these bounds. Heavy is what is heavier than a turn."""
        bounds = bounds or Bounds()
        self._turn_weight = bounds.turn_weight
        self._light = _Lane(commit, bounds, "group commit")
        self._heavy = _Lane(commit, bounds, "group commit of heavy items")

    def submit(self, item: T, weight: int, owner: str) -> Coroutine[Any, Any, None]:
        """Return once the item is committed.

        Raises StoreUnavailableError at once when too much of the owner's waits already or the queue is
        closed, and else what the commit raised.
        """
        return (self._heavy if weight > self._turn_weight else self._light).submit(item, weight, owner)

    async def close(self, timeout_seconds: float = CLOSE_SECONDS_MAX) -> None:
        """Commit what was accepted, then end. After the timeout, or cancelled, it ends at once and fails what waits."""
        writers = [lane.end() for lane in (self._light, self._heavy)]
        try:
            await asyncio.wait(writers, timeout=timeout_seconds)
        finally:
            for writer in writers:
                writer.cancel()
        await asyncio.wait(writers)


class _Lane(Generic[T]):
    """A queue and its one writer."""

    def __init__(self, commit: Commit[T], bounds: Bounds, name: str) -> None:
        self._commit = commit
        self._queue: FairQueue[_Waiting[T]] = FairQueue(bounds)
        self._wake = asyncio.Event()
        self._closing = False
        self._is_full = False
        self._writer = asyncio.create_task(self._write_until_closed(), name=name)

    async def submit(self, item: T, weight: int, owner: str) -> None:
        """See GroupCommit."""
        if self._closing or self._writer.done():
            raise StoreUnavailableError("the sink is closed")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._queue.add(_Waiting(item, done), weight, owner):
            if not self._is_full:  # once until it was empty: what is refused now is tried again soon
                self._is_full = True
                _log.warning(
                    "log_queue_full",
                    batches=self._queue.items,
                    bytes=self._queue.weight,
                    owner=owner,
                    owner_bytes=self._queue.weight_of(owner),
                )
            raise StoreUnavailableError("the queue is full")
        self._wake.set()
        await done

    def end(self) -> "asyncio.Task[None]":
        """Take nothing more; return the writer, which ends when all is committed, or cancelled."""
        self._closing = True
        self._wake.set()
        return self._writer

    async def _write_until_closed(self) -> None:
        group: list[_Waiting[T]] = []
        try:
            while True:
                await self._wake.wait()
                await _gather_turns()
                group = self._queue.next_group()
                if group:
                    await self._write(group)
                elif self._closing:
                    return
                else:
                    self._is_full = False
                    self._wake.clear()
        finally:
            # However the writer ends, nobody may wait for it any longer.
            self._fail(group, "the sink stopped")

    async def _write(self, group: list[_Waiting[T]]) -> None:
        """Commit the group, and settle each of its members."""
        try:
            failures = await self._commit([waiting.item for waiting in group])
        except StoreUnavailableError as error:
            self._fail(group, str(error))
        except Exception as error:  # noqa: BLE001 - a defect; the submitters raise it, and the writer must go on
            for waiting in group:
                waiting.fail(error)
        else:
            for place, waiting in enumerate(group):
                if failures and place in failures:
                    waiting.fail(failures[place])
                else:
                    waiting.succeed()

    def _fail(self, group: list[_Waiting[T]], reason: str) -> None:
        """Fail the group, but for those of it that are settled, and all that waits behind it and was never tried."""
        for waiting in (*group, *self._queue.clear()):
            waiting.fail(StoreUnavailableError(reason))
