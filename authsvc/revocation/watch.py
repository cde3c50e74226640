"""Watch streams, the leases they renew, and waiting until a change holds everywhere.

`key_service` turns messages into what is here and back; `index` is connected without any.
The decisions are `leases`'; the rules are those of docs/watch-protocol.md, by number.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from authsvc.client.lease_messages import Event, KeepAlive
from authsvc.errors import (
    HolderReleasedError,
    InvalidArgumentError,
    RevisionsLostError,
    SlowHolderError,
    StoreUnavailableError,
    StreamEndedError,
)
from authsvc.revocation.change_feed import REMEDY, ChangeFeed, Outage
from authsvc.revocation.holder_bounds import Holders
from authsvc.revocation.leases import CHANGE_AGE_SECONDS_MAX, Propagation, WatchSession
from authsvc.runtime.gather import Gather
from authsvc.storage.key_store import KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.storage.records import LeaseRow, Revision, StoreState

_log = structlog.get_logger("authsvc")

_OPENING_SECONDS = 5.0
"""For the first request of a stream."""
_QUEUE_MAX = 1000
_SLOW_SECONDS = 5.0
_POLL_SECONDS = 0.05
"""Between two looks at the leases, which other processes may renew without a notification."""
_READ_SECONDS_MAX = 2.0
"""For the first look at the leases, beyond the time to wait: an answer that names nobody is of little use."""
_ANSWER_SECONDS = 0.5
_ANSWER_SHARE_MAX = 0.25
"""Of the time that a caller has, kept for the answer's way back: one that comes late has lost the API key."""
_CALL_SECONDS_MAX = 29.0
"""The interceptor ends a call after 30 s."""
_LOST = "the database has lost changes that holders applied, and needs a new epoch"
_GROUP_MAX = 500
"""Keep-alives in one transaction: who waits for another is not kept waiting for thousands."""
_SWEEP_SECONDS = 60.0
_LEASES_KEPT = 5
"""Rule 7: an expired lease is swept, and its id forgotten, after so many times its duration."""


class LeaseGranter:
    """Renews leases. All that wait go into one transaction, but one for each holder."""

    def __init__(self, leases: LeaseStore, feed: ChangeFeed, lease_seconds: float) -> None:
        self._leases = leases
        self._feed = feed
        self._lease_seconds = lease_seconds
        self._grants = Gather(self._grant, group_size_max=_GROUP_MAX, key=lambda keep_alive: keep_alive.holder_id)
        self._outage = Outage("leases_lost", "leases_back")
        self._lost_in_epoch = ""
        """Where it has been logged that a holder knows more."""

    async def renew(self, keep_alive: KeepAlive) -> StoreState:
        """Commit the lease, and return what was read of the database after that commit (rule 1).

        Raises HolderReleasedError for a holder that released its lease (rule 7), RevisionsLostError,
        StoreUnavailableError.
        """
        if self._feed.has_lost_revisions and not keep_alive.is_release:
            raise RevisionsLostError(_LOST)
        if keep_alive.applied_revision > self._feed.revision and keep_alive.epoch == self._feed.epoch:
            await self._check(keep_alive)  # mostly the feed has only not heard of it yet
        refused, state = await self._grants.ask(keep_alive)
        if keep_alive.holder_id in refused:
            raise HolderReleasedError("this holder released its lease; a new one needs a new id")
        return state

    async def _check(self, keep_alive: KeepAlive) -> None:
        state = await self._leases.state()
        if keep_alive.applied_revision > state.revision and keep_alive.epoch == state.epoch:
            if self._lost_in_epoch != state.epoch:
                self._lost_in_epoch = state.epoch
                known = keep_alive.applied_revision
                _log.error(
                    "revisions_lost", after=state.revision, known=known, holder=keep_alive.holder_id, remedy=REMEDY
                )
            raise RevisionsLostError(_LOST)

    async def _grant(self, keep_alives: list[KeepAlive]) -> tuple[set[str], StoreState]:
        """Return the ids of those who were refused, and the state."""
        try:
            refused = await self._leases.renew(keep_alives, self._lease_seconds)
            state = await self._leases.state()  # rule 1: a later transaction
        except Exception as error:  # noqa: BLE001 - see Outage
            self._outage.failed(error)
            raise StoreUnavailableError("no lease can be renewed") from None
        finally:
            self._feed.leases_renewed()
        self._outage.worked()
        return refused, state

    async def close(self) -> None:
        """Renew no more."""
        await self._grants.close()


class LeaseReader:
    """Reads all leases for those who wait for a change to hold: one look at a time, however many they are.

    Who asks while a look is under way gets the next one, since theirs must begin after their change was committed.
    """

    def __init__(self, leases: LeaseStore, feed: ChangeFeed) -> None:
        """After a look, `leases_moved` of the feed beats within a poll's time, for those who still wait."""
        self._leases = leases
        self._feed = feed
        self._reads: Gather[None, tuple[list[LeaseRow], StoreState]] = Gather(self._read)
        self._poll: asyncio.TimerHandle | None = None
        self._outage = Outage("lease_reads_lost", "lease_reads_back")

    async def rows(self) -> tuple[list[LeaseRow], StoreState]:
        """Return what `LeaseStore.rows` read after this call; raise StoreUnavailableError."""
        return await self._reads.ask(None)

    async def _read(self, _: list[None]) -> tuple[list[LeaseRow], StoreState]:
        try:
            found = await self._leases.rows()
            self._outage.worked()
            return found
        except StoreUnavailableError:
            raise  # the feed has said so
        except Exception as error:  # noqa: BLE001 - see Outage
            self._outage.failed(error)
            raise StoreUnavailableError("the leases cannot be read") from None
        finally:
            if self._poll is not None:
                self._poll.cancel()
            self._poll = asyncio.get_running_loop().call_later(_POLL_SECONDS, self._feed.leases_moved.notify_all)

    async def close(self) -> None:
        """Look no more."""
        await self._reads.close()
        if self._poll is not None:
            self._poll.cancel()


class Watch:
    """All streams of this process, and the tasks that serve them; `run` keeps them going."""

    def __init__(
        self,
        store: KeyStore,
        leases: LeaseStore,
        feed: ChangeFeed,
        holders: Holders,
        *,
        lease_seconds: float,
        margin_seconds: float,
        monotonic: Callable[[], float],
    ) -> None:
        """Leases last `lease_seconds` for their holders, and the margin longer for those who wait for them."""
        self._store = store
        self._leases = leases
        self._feed = feed
        self._holders = holders
        self._granter = LeaseGranter(leases, feed, lease_seconds)
        self._reader = LeaseReader(leases, feed)
        self._lease_seconds = lease_seconds
        self._margin_seconds = margin_seconds
        self._monotonic = monotonic
        self._closing = asyncio.Event()

    async def run(self) -> None:
        """Grant leases, follow changes and sweep, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._feed.run())
                tasks.create_task(self._sweep())
        finally:
            await self._granter.close()
            await self._reader.close()

    def close(self) -> None:
        """End every stream: their holders open others elsewhere, and keep their leases meanwhile."""
        self._closing.set()
        self._feed.leases_moved.notify_all()  # nobody waits any longer

    async def serve(
        self, keep_alives: AsyncIterator[KeepAlive], send: Callable[[Event], Awaitable[None]], address: str | None
    ) -> None:
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

    def answer_by(self, left_seconds: float | None) -> float:
        """Return when a call must be answered whose caller waits so long, or does not say: for `propagate`."""
        left_seconds = _CALL_SECONDS_MAX if left_seconds is None else min(left_seconds, _CALL_SECONDS_MAX)
        return self._monotonic() + left_seconds - min(_ANSWER_SECONDS, left_seconds * _ANSWER_SHARE_MAX)

    async def propagate(self, revision: int, wait_seconds: float, answer_by: float) -> Propagation | None:
        """Wait until no holder can decide by what was before a committed revision, but no longer than this.

        Returns before `answer_by` whatever happens, since only the answer shows the API key; and at once when the
        service stops, since it hears no more of its holders. None says that the database could not be asked, or has
        lost revisions: then no lease that counts without the change outlasts what `lease_bound` was at its commit.
        """
        give_up_at = min(self._monotonic() + wait_seconds, answer_by)
        read_by = min(give_up_at + _READ_SECONDS_MAX, answer_by)
        propagation = None
        while not self._feed.has_lost_revisions:
            moved = self._feed.leases_moved.next()
            try:
                async with asyncio.timeout(read_by - self._monotonic()):
                    rows, state = await self._reader.rows()
                if propagation is None:
                    propagation, read_by = Propagation(revision, rows, state), give_up_at
                else:
                    propagation.update(rows, state)
            except (StoreUnavailableError, TimeoutError):
                pass  # the change is committed, and its API key must reach the caller before the caller gives up
            left_seconds = give_up_at - self._monotonic()
            if left_seconds <= 0 or self._closing.is_set() or (propagation is not None and propagation.is_effective):
                return propagation
            try:
                async with asyncio.timeout(left_seconds):
                    await moved.wait()
            except TimeoutError:
                return propagation
        return None

    def lease_bound(self) -> datetime:
        """Return the instant, by the database's clock, by which every lease that has been granted has expired."""
        return self._feed.time() + timedelta(seconds=self._lease_seconds + self._margin_seconds)

    async def _sweep(self) -> None:
        outage = Outage("sweep_lost", "sweep_back")
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            try:
                await self._leases.sweep(self._lease_seconds * _LEASES_KEPT)
                outage.worked()
            except StoreUnavailableError:
                pass  # the feed has said so
            except Exception as error:  # noqa: BLE001 - see Outage
                outage.failed(error)


class _Stream:
    """One stream: a reader, a pusher of changes, and a writer with a bounded queue between them."""

    def __init__(self, watch: Watch, address: str | None) -> None:
        self._store = watch._store
        self._feed = watch._feed
        self._granter = watch._granter
        self._holders = watch._holders
        self._address = address
        self._session = WatchSession(watch._lease_seconds)
        self.holder_id = ""
        self.name = ""
        self._epoch = ""
        self._opened = asyncio.Event()
        self._closing = watch._closing
        self._queue: asyncio.Queue[Event] = asyncio.Queue(_QUEUE_MAX)

    async def serve(self, keep_alives: AsyncIterator[KeepAlive], send: Callable[[Event], Awaitable[None]]) -> None:
        tasks = [
            asyncio.create_task(self._read(keep_alives)),
            asyncio.create_task(self._push()),
            asyncio.create_task(self._write(send)),
            asyncio.create_task(self._until_closing()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _read(self, keep_alives: AsyncIterator[KeepAlive]) -> None:
        keep_alive = await self._first(keep_alives)
        while keep_alive is not None:
            if keep_alive.holder_id != self.holder_id:  # a row each, which every mutation waits for
                raise InvalidArgumentError("holder_id: a stream is one holder's")
            if self._address is not None:
                self._holders.admit(keep_alive.holder_id, self._address)
            state = await self._granter.renew(keep_alive)
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

    async def _first(self, keep_alives: AsyncIterator[KeepAlive]) -> KeepAlive | None:
        try:
            async with asyncio.timeout(_OPENING_SECONDS):
                keep_alive = await anext(keep_alives, None)
        except TimeoutError:
            raise StreamEndedError(f"no request came within {_OPENING_SECONDS:g} s") from None
        if keep_alive is not None:
            self.holder_id, self.name = keep_alive.holder_id, keep_alive.name
        return keep_alive

    async def _resumable(self, keep_alive: KeepAlive, state: StoreState) -> StoreState:
        """Leave no resuming from a change that is over an hour old: the cache holds nothing from then."""
        if keep_alive.applied_revision >= state.revision:
            return state
        missing = await self._store.changes(after=Revision(keep_alive.applied_revision), limit=1)
        if missing and state.time - missing[0].create_time > timedelta(seconds=CHANGE_AGE_SECONDS_MAX):
            return replace(state, resumable_revision=state.revision)
        return state

    async def _push(self) -> None:
        await self._opened.wait()
        while True:
            moved = self._feed.moved.next()
            if self._feed.epoch != self._epoch:
                raise StreamEndedError("the database began a new epoch")
            if self._feed.has_lost_revisions:
                raise RevisionsLostError(_LOST)
            position = self._session.position
            changes = [] if position is None else await self._feed.after(position)
            for event in self._session.changed(changes):
                self._offer(event)
            if changes:
                await self._queue.join()  # what comes next waits in the feed, not in the queue
            else:
                await moved.wait()

    def _offer(self, event: Event) -> None:
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            raise SlowHolderError("this holder reads too slowly") from None

    async def _write(self, send: Callable[[Event], Awaitable[None]]) -> None:
        while True:
            event = await self._queue.get()
            try:
                async with asyncio.timeout(_SLOW_SECONDS):
                    await send(event)
            except TimeoutError:
                raise SlowHolderError("this holder reads too slowly") from None
            self._queue.task_done()

    async def _until_closing(self) -> None:
        await self._closing.wait()
        raise StreamEndedError("the key service is stopping")
