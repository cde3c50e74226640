"""Group commit: concurrent writers share one commit, and so one wait for the disk; and none of them takes it for itself.

The SQL sink submits what each request brought; one writer task takes what waits into
the next commit soon after the last one is done, without a timer: one request alone
waits for nobody, and under load the commits grow by themselves.

What each submitter may rely on:

- it returns once its item is committed, and raises otherwise; no item is ever committed
  twice, because nothing is tried again after a commit whose outcome is unknown;
- an item that the store refuses for what it contains fails alone: its commit was rolled
  back, and is tried again in halves until the refused item stands by itself;
- going away (cancellation) neither undoes its item nor disturbs the others;
- it never waits long: a full queue, a closed one and the end of the writer raise at once, and
  a store that fails answers all who wait by then, so that nobody waits for several failures;
- other owners cost it little, whatever they submit. Owners (projects, say) have turns, by weight (deficit round robin:
  Shreedhar and Varghese, 1995), so that a light item waits for one heavy item of another owner at the most, besides the
  commit under way. And an owner may have as much waiting as it leaves free: one alone half of the room, two a third
  each, so that there is always room for one more.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import structlog

from httpbridge.errors import BatchRefusedError, StoreUnavailableError

CLOSE_SECONDS_MAX = 15.0
"""For what was accepted to be committed at the end: longer than any one commit may take."""

_GATHER_TURNS = 4
"""Turns of the event loop before each commit.

In these, those who were just answered are written to, and what they send next is read, and joins. Measured: of 32
clients that send one batch after the other nearly all share each commit, instead of half of them, for a fifth less CPU
a batch. On an idle event loop four turns take some microseconds.
"""

_GATHER_SECONDS_MAX = 0.008
"""After so long no more turns are waited for: somebody's large body makes them long, and gathers nobody."""

T = TypeVar("T")

_log = structlog.get_logger("httpbridge.sinks")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait, and how much goes into one commit. Weights are bytes, roughly."""

    queued_items_max: int = 10_000
    queued_weight_max: int = 64 * 1024 * 1024
    commit_weight_max: int = 256 * 1024
    """About 800 short rows: some 10 ms, and all in one wait for it. A heavier item goes in a commit of its own."""
    turn_weight: int = 64 * 1024
    """What an owner may put into a commit beside others. Heavier items wait until turns have made up for them."""


class _Waiting(msgspec.Struct, Generic[T]):
    item: T
    weight: int
    done: asyncio.Future[None]

    def succeed(self) -> None:
        if not self.done.done():  # a cancelled submitter has gone
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class _Owner(msgspec.Struct, Generic[T]):
    """What one owner has waiting; there is one while it has something."""

    name: str
    waiting: deque[_Waiting[T]]
    weight: int = 0
    credit: int = 0
    """The weight of what its turns let it commit, less what it did commit."""


class GroupCommit(Generic[T]):
    """The queue and its one writer; must be made in a running event loop.

    `commit` stores all the items it is given or none of them. It raises
    BatchRefusedError when it rolled back because of what an item contains, and
    StoreUnavailableError for everything else that is expected to go wrong.
    """

    def __init__(self, commit: Callable[[list[T]], Awaitable[None]], bounds: Bounds | None = None) -> None:
        self._commit = commit
        self._bounds = bounds or Bounds()
        self._owners: dict[str, _Owner[T]] = {}
        """Those who have something waiting: each of them is in one of the next two."""
        self._turns: deque[_Owner[T]] = deque()
        """In the order of their turns."""
        self._ripe: deque[_Owner[T]] = deque()
        """Whose next item is heavy, and made up for by turns that passed."""
        self._was_heavy = False
        """Whether the last group was heavy: then light items are next."""
        self._queued_items = 0
        self._queued_weight = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._is_full = False
        self._writer = asyncio.create_task(self._write_until_closed(), name="group commit")

    async def submit(self, item: T, weight: int, owner: str) -> None:
        """Return once the item is committed.

        Raises StoreUnavailableError at once when too much of the owner's waits already or the queue is
        closed, and else what the commit raised.
        """
        if self._closing or self._writer.done():
            raise StoreUnavailableError("the sink is closed")
        mine = self._owners.get(owner)
        if mine is None:
            mine = _Owner(owner, deque())
        if self._queued_items and not self._has_room(mine, weight):
            if not self._is_full:  # once until it was empty: what is refused now is tried again soon
                self._is_full = True
                _log.warning(
                    "log_queue_full",
                    batches=self._queued_items,
                    bytes=self._queued_weight,
                    owner=owner,
                    owner_bytes=mine.weight,
                )
            raise StoreUnavailableError("the queue is full")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not mine.waiting:
            self._owners[owner] = mine
            self._turns.append(mine)
        mine.waiting.append(_Waiting(item, weight, done))
        mine.weight += weight
        self._queued_items += 1
        self._queued_weight += weight
        self._wake.set()
        await done

    def _has_room(self, owner: _Owner[T], weight: int) -> bool:
        """Return whether an owner would leave as much free as it has, with an item of this weight more."""
        free_items = self._bounds.queued_items_max - self._queued_items - 1
        free_weight = self._bounds.queued_weight_max - self._queued_weight - weight
        return len(owner.waiting) < free_items and owner.weight + weight <= free_weight

    async def close(self, timeout_seconds: float = CLOSE_SECONDS_MAX) -> None:
        """Commit what was accepted, then end. After the timeout, or cancelled, it ends at once and fails what waits."""
        self._closing = True
        self._wake.set()
        try:
            await asyncio.wait([self._writer], timeout=timeout_seconds)
        finally:
            self._writer.cancel()
        await asyncio.wait([self._writer])

    async def _write_until_closed(self) -> None:
        group: list[_Waiting[T]] = []
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wake.wait()
                gathered_at = loop.time() + _GATHER_SECONDS_MAX
                for _ in range(_GATHER_TURNS):
                    await asyncio.sleep(0)
                    if loop.time() >= gathered_at:
                        break
                group = self._next_group()
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

    def _next_group(self) -> list[_Waiting[T]]:
        """Take what goes into the next commit: light items, or heavy ones that are ripe; of each when its time is."""
        group = [] if self._ripe and not self._was_heavy else self._light_group()
        if not group and self._turns and not self._ripe:
            self._skip_turns()
            self._light_group()
        self._was_heavy = not group
        return group or self._heavy_group()

    def _light_group(self) -> list[_Waiting[T]]:
        """Let each owner have its turn, beginning where the last group was full. One alone gives way to nobody."""
        turn_weight, weight_max = self._bounds.turn_weight, self._bounds.commit_weight_max
        group: list[_Waiting[T]] = []
        weight = 0
        for _ in range(len(self._turns)):
            owner = self._turns[0]
            turn = turn_weight if len(self._owners) > 1 else max(turn_weight, weight_max)
            owner.credit += turn
            while owner.waiting and (next_weight := owner.waiting[0].weight) <= owner.credit:
                if next_weight > turn_weight:
                    self._ripe.append(owner)
                    break
                if group and weight + next_weight > weight_max:
                    owner.credit -= turn  # it goes on with this turn in the next group
                    return group
                group.append(self._take(owner))
                weight += next_weight
            else:
                if owner.waiting:
                    self._turns.append(owner)
            self._turns.popleft()
        return group

    def _skip_turns(self) -> None:
        """Let turns pass, as nobody has anything light, until the next one makes an item ripe."""
        turn_weight = self._bounds.turn_weight
        turns = min((owner.waiting[0].weight - owner.credit - 1) // turn_weight for owner in self._turns)
        for owner in self._turns:
            owner.credit += turns * turn_weight

    def _heavy_group(self) -> list[_Waiting[T]]:
        """Take the ripe items that fit, and one in any case."""
        group: list[_Waiting[T]] = []
        weight = 0
        while self._ripe and (
            not group or weight + self._ripe[0].waiting[0].weight <= self._bounds.commit_weight_max
        ):
            owner = self._ripe.popleft()
            group.append(self._take(owner))
            weight += group[-1].weight
            if owner.waiting:
                self._turns.append(owner)
        return group

    def _take(self, owner: _Owner[T]) -> _Waiting[T]:
        """Take an owner's next item out of the queue, and forget an owner who has no more."""
        waiting = owner.waiting.popleft()
        owner.credit -= waiting.weight
        owner.weight -= waiting.weight
        self._queued_items -= 1
        self._queued_weight -= waiting.weight
        if not owner.waiting:
            del self._owners[owner.name]
        return waiting

    async def _write(self, group: list[_Waiting[T]]) -> None:
        """Commit the group, and settle each of its members."""
        try:
            await self._write_apart(group)
        except StoreUnavailableError as error:
            self._fail(group, str(error))
        except Exception as error:  # noqa: BLE001 - a defect; the submitters raise it, and the writer must go on
            for waiting in group:
                waiting.fail(error)

    def _fail(self, group: list[_Waiting[T]], reason: str) -> None:
        """Fail the group, but for those of it that are settled, and all that waits behind it and was never tried."""
        for waiting in (*group, *(each for owner in self._owners.values() for each in owner.waiting)):
            waiting.fail(StoreUnavailableError(reason))
        self._owners.clear()
        self._turns.clear()
        self._ripe.clear()
        self._queued_items = self._queued_weight = 0

    async def _write_apart(self, group: list[_Waiting[T]]) -> None:
        """Commit the group; when that is refused, each half by itself: log(n) commits more for one refused item."""
        try:
            await self._commit([waiting.item for waiting in group])
        except BatchRefusedError as error:
            if len(group) == 1:
                group[0].fail(error)
                return
            middle = len(group) // 2
            await self._write_apart(group[:middle])
            await self._write_apart(group[middle:])
        else:
            for waiting in group:
                waiting.succeed()
