"""Watch streams, and waiting until a change holds everywhere, by the rules of docs/watch-protocol.md."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeAlias

import structlog

from authsvc.client.lease_messages import KeepAlive
from authsvc.errors import (
    HolderReleasedError,
    InvalidArgumentError,
    RevisionsLostError,
    SlowHolderError,
    StoreUnavailableError,
    StreamEndedError,
)
from authsvc.revocation.change_feed import ChangeFeed, Outage
from authsvc.revocation.leases import CHANGE_AGE_SECONDS_MAX, Propagation, WatchSession
from authsvc.revocation.lessor import LOST, Holders, Lessor
from authsvc.revocation.limits import RevocationLimits
from authsvc.runtime.clock import happens
from authsvc.storage.key_store import KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.storage.records import Revision, StoreState
from authsvc.v1 import key_service_pb2 as pb

_log = structlog.get_logger("authsvc")

Send: TypeAlias = Callable[[pb.WatchResponse], Awaitable[None]]

_RESPONSE_SHARE_MAX = 0.25
"""Of the time that a caller has: so much of it is kept for the response at most."""
_CALL_SECONDS_MAX = 29.0
"""The call guard ends a call after 30 s."""
_LEASES_KEPT = 5
"""Rule 7: an expired lease is swept, and its id forgotten, after so many times its duration."""


@dataclass(eq=False)
class Watch:
    """All streams of this process, and the tasks that serve them; `run` keeps them going.

    Leases last `lease_seconds` for their holders, and the margin longer for those who wait for them.
    """

    store: KeyStore
    leases: LeaseStore
    feed: ChangeFeed
    holders: Holders
    lease_seconds: float
    margin_seconds: float
    monotonic: Callable[[], float]
    limits: RevocationLimits = RevocationLimits()

    def __post_init__(self) -> None:
        self.lessor = Lessor(self.leases, self.feed, self.lease_seconds, self.limits.lease_poll_seconds)
        self.closing = asyncio.Event()

    async def run(self) -> None:
        """Follow changes and sweep, until cancelled; then grant no more leases."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.feed.run())
                tasks.create_task(self._sweep())
        finally:
            await self.lessor.close()

    def close(self) -> None:
        """End every stream: their holders open others elsewhere, and keep their leases meanwhile."""
        self.closing.set()
        self.feed.leases_moved.notify_all()  # nobody waits any longer

    async def serve(self, keep_alives: AsyncIterator[KeepAlive], send: Send, address: str | None) -> None:
        """Serve one stream until the holder ends it or releases its lease; it has no deadline (rule 6).

        `address` is the holder's; None for one of our own, which is not bounded.
        Raises StreamEndedError when the service stops, its database begins a new epoch, or nothing is asked;
        InvalidArgumentError for a second holder's request, TooManyHoldersError, SlowHolderError, HolderReleasedError,
        RevisionsLostError, StoreUnavailableError.
        """
        try:
            stream = _Stream(self, address)
            await stream.serve(keep_alives, send)
        except (SlowHolderError, HolderReleasedError) as error:
            _log.warning("holder_disconnected", holder=stream.holder_id, name=stream.name, reason=str(error))
            raise

    def respond_by(self, left_seconds: float | None) -> float:
        """Return when to respond to a caller that waits so long, or does not say: for `propagate`."""
        left_seconds = _CALL_SECONDS_MAX if left_seconds is None else min(left_seconds, _CALL_SECONDS_MAX)
        return self.monotonic() + left_seconds - min(self.limits.response_seconds, left_seconds * _RESPONSE_SHARE_MAX)

    async def propagate(self, revision: int, wait_seconds: float, respond_by: float) -> Propagation | None:
        """Wait until no holder can decide by what was before a committed revision, but no longer than this.

        Returns before `respond_by` whatever happens, since only the response shows the API key; and at once when the
        service stops. None says that the database could not be asked, or has lost revisions: then no lease that counts
        without the change outlasts what `lease_bound` was at its commit.
        """
        give_up_at = min(self.monotonic() + wait_seconds, respond_by)
        read_by = min(give_up_at + self.limits.read_seconds_max, respond_by)
        propagation = None
        while not self.feed.has_lost_revisions:
            moved = self.feed.leases_moved.next()
            try:
                async with asyncio.timeout(read_by - self.monotonic()):
                    rows, state = await self.lessor.rows()
                if propagation is None:
                    propagation, read_by = Propagation(revision, rows, state), give_up_at
                else:
                    propagation.update(rows, state)
            except (StoreUnavailableError, TimeoutError):
                pass  # the change is committed, and its API key must reach the caller before the caller gives up
            left_seconds = give_up_at - self.monotonic()
            if left_seconds <= 0 or self.closing.is_set() or (propagation is not None and propagation.is_effective):
                return propagation
            if not await happens(moved, left_seconds):
                return propagation
        return None

    def lease_bound(self) -> datetime:
        """Return the instant, by the database's clock, by which every lease that has been granted has expired."""
        return self.feed.time() + timedelta(seconds=self.lease_seconds + self.margin_seconds)

    async def _sweep(self) -> None:
        outage = Outage("sweep_lost", "sweep_back")
        while True:
            await asyncio.sleep(self.limits.sweep_seconds)
            with outage.noting():
                await self.leases.sweep(self.lease_seconds * _LEASES_KEPT)


class _Stream:
    """One stream: a reader, a pusher of changes, and a writer with a bounded queue between them."""

    def __init__(self, watch: Watch, address: str | None) -> None:
        self.holder_id = ""
        self.name = ""
        self._watch = watch
        self._address = address
        self._session = WatchSession(watch.lease_seconds)
        self._epoch = ""
        self._opened = asyncio.Event()
        self._queue: asyncio.Queue[pb.WatchResponse] = asyncio.Queue(watch.limits.queue_max)

    async def serve(self, keep_alives: AsyncIterator[KeepAlive], send: Send) -> None:
        work = (self._read(keep_alives), self._push(), self._write(send), self._until_closing())
        tasks = [asyncio.create_task(each) for each in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _read(self, keep_alives: AsyncIterator[KeepAlive]) -> None:
        opening_seconds = self._watch.limits.opening_seconds
        try:
            async with asyncio.timeout(opening_seconds):
                keep_alive = await anext(keep_alives, None)
        except TimeoutError:
            raise StreamEndedError(f"no request came within {opening_seconds:g} s") from None
        if keep_alive is not None:
            self.holder_id, self.name = keep_alive.holder_id, keep_alive.name
        while keep_alive is not None:
            if keep_alive.holder_id != self.holder_id:  # a row each, which every mutation waits for
                raise InvalidArgumentError("holder_id: a stream is one holder's")
            if self._address is not None:
                self._watch.holders.admit(keep_alive.holder_id, self._address)
            state = await self._watch.lessor.renew(keep_alive)
            if keep_alive.is_release:
                return
            if not self._opened.is_set():
                self._epoch = state.epoch
                state = await self._resumable(keep_alive, state)
            elif state.epoch != self._epoch:
                raise StreamEndedError("the database began a new epoch")
            for event in self._session.renewed(keep_alive, state):
                self._offer(event)
            self._opened.set()
            keep_alive = await anext(keep_alives, None)

    async def _resumable(self, keep_alive: KeepAlive, state: StoreState) -> StoreState:
        """Leave no resuming from a change that is over an hour old: the cache holds nothing from then."""
        if keep_alive.applied_revision >= state.revision:
            return state
        missing = await self._watch.store.changes(after=Revision(keep_alive.applied_revision), limit=1)
        if missing and state.time - missing[0].create_time > timedelta(seconds=CHANGE_AGE_SECONDS_MAX):
            return replace(state, resumable_revision=state.revision)
        return state

    async def _push(self) -> None:
        await self._opened.wait()
        feed = self._watch.feed
        while True:
            moved = feed.moved.next()
            if feed.epoch != self._epoch:
                raise StreamEndedError("the database began a new epoch")
            if feed.has_lost_revisions:
                raise RevisionsLostError(LOST)
            position = self._session.position
            changes = [] if position is None else await feed.after(position)
            for event in self._session.changed(changes):
                self._offer(event)
            if changes:
                await self._queue.join()  # what comes next waits in the feed, not in the queue
            else:
                await moved.wait()

    def _offer(self, event: pb.WatchResponse) -> None:
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            raise SlowHolderError("this holder reads too slowly") from None

    async def _write(self, send: Send) -> None:
        while True:
            event = await self._queue.get()
            try:
                async with asyncio.timeout(self._watch.limits.slow_seconds):
                    await send(event)
            except TimeoutError:
                raise SlowHolderError("this holder reads too slowly") from None
            self._queue.task_done()

    async def _until_closing(self) -> None:
        await self._watch.closing.wait()
        raise StreamEndedError("the key service is stopping")
