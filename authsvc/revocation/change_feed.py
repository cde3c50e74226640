"""The change feed: what was committed, here or by another process, brought to everyone in this one who waits for it.

It is woken by `wake`, across replicas by LISTEN/NOTIFY, by other workers on SQLite, and polls as well: a notification
can be lost.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import structlog

from authsvc.errors import StoreOverwrittenError, StoreUnavailableError
from authsvc.revocation.limits import RevocationLimits
from authsvc.runtime.clock import happens
from authsvc.runtime.logging import traceback_without_text
from authsvc.storage.bookmark import Bookmark
from authsvc.storage.database import CHANNEL, Database
from authsvc.storage.key_store import KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.storage.records import Change, Revision, StoreState
from authsvc.v1 import key_service_pb2 as pb

REMEDY = "run 'authsvc renew-epoch'"

_log = structlog.get_logger("authsvc")


class Notifier:
    """Wakes all who wait, as often as it is told."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify_all(self) -> None:
        """Wake everyone who waits now."""
        self._next.set()
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Return the event of the next time: taken before looking at what it is about, none is missed."""
        return self._next


class Outage:
    """Logs that something which is retried begins to fail, and why, and that it works again: once each.

    Whatever the error is: one that nobody foresaw must not end the service, and every replica with it.
    """

    def __init__(self, lost: str, back: str, tell: Callable[[bool], None] = lambda _: None) -> None:
        """Take the names of the two events; `tell` is told whenever one of them is logged, of whether it works."""
        self._lost = lost
        self._back = back
        self._tell = tell
        self.is_lost = False

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Go on whatever happens meanwhile, and take note of it. That the database is unavailable, the feed says."""
        try:
            yield
        except StoreUnavailableError:
            pass
        except Exception as error:  # noqa: BLE001 - see above
            self.failed(error)
        else:
            self.worked()

    def failed(self, error: Exception) -> None:
        """Take note of a failure."""
        if not self.is_lost:
            self.is_lost = True
            kind = type(error.__cause__ or error).__name__
            reason = error.reason if isinstance(error, StoreUnavailableError) else traceback_without_text(error)
            _log.warning(self._lost, error=kind, reason=reason)
            self._tell(False)

    def worked(self) -> None:
        """Take note of a success."""
        if self.is_lost:
            self.is_lost = False
            _log.info(self._back)
            self._tell(True)


class ChangeFeed:
    """The changes of the database in order, as far as this process knows them; `run` keeps it going."""

    def __init__(
        self,
        database: Database,
        store: KeyStore,
        leases: LeaseStore,
        clock: Callable[[], float],
        *,
        bookmark: Bookmark | None = None,
        tell_outage: Callable[[bool], None] = lambda _: None,
        limits: RevocationLimits = RevocationLimits(),
    ) -> None:
        """Know nothing yet; `open` reads where things stand.

        `clock`, in seconds, counts while the machine is suspended, as the database's does (rule 12). `tell_outage` is
        told whether the database can be read, each time that this changes.
        """
        self.epoch = ""
        self.revision = 0
        self.has_lost_revisions = False
        """The database has gone back within an epoch, and perhaps on since: nobody knows what holders have applied."""
        self.tell_others: Callable[[], None] = lambda: None
        """Makes other processes call `look`, where the database does not notify them."""
        self.moved = Notifier()
        """Beats when there are new changes, or a new epoch."""
        self.leases_moved = Notifier()
        """Beats when leases may have been renewed, here or elsewhere."""
        self._database = database
        self._store = store
        self._leases = leases
        self._recent: deque[pb.WatchResponse] = deque(maxlen=limits.changes_kept)
        self._wake = asyncio.Event()
        self._last_mark = ""
        """Of the change at `revision`."""
        self._bookmark = bookmark
        self._limits = limits
        self._outage = Outage("database_lost", "database_back", tell_outage)
        self._clock = clock
        self._database_clock: tuple[datetime, float]
        """The database's, and this process's before that was asked for."""

    async def open(self) -> None:
        """Start from the present; raise StoreUnavailableError."""
        state = await self._read_state()
        await self._start_from(state)
        seen = None if self._bookmark is None else self._bookmark.seen
        if seen is not None and seen.epoch == state.epoch and not await self._has(seen.revision, seen.mark, state):
            self._lose(min(state.revision, seen.revision - 1), seen.revision)
        self._note()

    def lose_unless_new(self, revision: int, known: int) -> None:
        """Take note of a mutation that got the revision; `known` was this process's revision before it began."""
        if revision <= known and not self.has_lost_revisions:
            self._lose(revision - 1, known)

    def time(self) -> datetime:
        """Return the database's clock without asking it: what it said last, and the time since; not too early."""
        said, asked_at = self._database_clock
        return said + timedelta(seconds=self._clock() - asked_at)

    async def run(self) -> None:
        """Follow the database until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll())
            if not self._database.is_sqlite:
                tasks.create_task(self._listen())

    def wake(self) -> None:
        """Look now, and let others: this process has committed a change."""
        self.look()
        self.tell_others()

    def leases_renewed(self) -> None:
        """Wake everyone who waits for leases, here and elsewhere: this process has committed some."""
        self.leases_moved.notify_all()
        self.tell_others()

    def look(self) -> None:
        """Look now: another process has committed something."""
        self._wake.set()
        self.leases_moved.notify_all()

    async def after(self, revision: int) -> list[pb.WatchResponse]:
        """Return a page of the changes that follow a revision, as events, without a gap; empty when there are none."""
        if revision >= self.revision:
            return []
        if self._recent and self._recent[0].change.revision <= revision + 1:
            first = revision + 1 - self._recent[0].change.revision
            return [self._recent[index] for index in range(first, min(first + self._limits.page, len(self._recent)))]
        return [
            _event(change) for change in await self._store.changes(after=Revision(revision), limit=self._limits.page)
        ]

    async def _poll(self) -> None:
        while True:
            self._wake.clear()
            try:
                while await self._advance():
                    pass
                self._outage.worked()
            except Exception as error:  # noqa: BLE001 - see Outage
                self._outage.failed(error)
                if isinstance(error, StoreOverwrittenError) and self._bookmark is not None:
                    self._bookmark.spoil()
            await happens(self._wake, self._limits.poll_seconds)

    async def _advance(self) -> bool:
        """Take in a page of changes; return whether there was any."""
        state = await self._read_state()
        if state.epoch != self.epoch:
            await self._start_from(state)
            self.has_lost_revisions = False
            self._recent.clear()
            self._note()
            self.moved.notify_all()
            return False
        if not self.has_lost_revisions and (
            # After an outage it may be another database: one that lost the last commits, and has had others since.
            state.revision < self.revision
            or (self._outage.is_lost and not await self._has(self.revision, self._last_mark, state))
        ):
            self._lose(min(state.revision, self.revision - 1), self.revision)
        if state.revision <= self.revision:
            return False
        changes = await self._store.changes(after=Revision(max(0, self.revision - 1)), limit=self._limits.page + 1)
        if self.revision and changes:
            last, *changes = changes
            if not self.has_lost_revisions and _mark(last) != self._last_mark:
                self._lose(self.revision - 1, self.revision)
        if not changes:
            raise StoreUnavailableError(f"the changes after {self.revision} are missing, up to {state.revision}")
        self._recent.extend(map(_event, changes))
        self.revision, self._last_mark = changes[-1].revision, _mark(changes[-1])
        self._note()
        self.moved.notify_all()
        return True

    async def _start_from(self, state: StoreState) -> None:
        last = await self._store.changes(after=Revision(max(0, state.revision - 1)), limit=1)
        self.epoch, self.revision = state.epoch, state.revision
        self._last_mark = _mark(last[0]) if last else ""

    async def _has(self, revision: int, mark: str, state: StoreState) -> bool:
        """Return whether the database has the change of this number that had this mark."""
        if not 0 < revision <= state.revision:
            return revision == 0
        found = await self._store.changes(after=Revision(revision - 1), limit=1)
        return bool(found) and (found[0].revision, _mark(found[0])) == (revision, mark)

    def _lose(self, after: int, known: int) -> None:
        _log.error("revisions_lost", after=after, known=known, remedy=REMEDY)
        self.has_lost_revisions = True
        self.moved.notify_all()

    def _note(self) -> None:
        if self._bookmark is not None and not self.has_lost_revisions:
            self._bookmark.note(self.epoch, self.revision, self._last_mark)

    async def _read_state(self) -> StoreState:
        self._database.check()
        asked_at = self._clock()
        state = await self._leases.state()
        self._database_clock = state.time, asked_at
        return state

    async def _listen(self) -> None:
        outage = Outage("notifications_lost", "notifications_back")  # polling goes on meanwhile
        while True:
            with outage.noting():
                await self._database.listen(CHANNEL, self.look)
            await asyncio.sleep(self._limits.listen_again_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


def _mark(change: Change) -> str:
    """Return what tells a change from another one of the same number."""
    return change.create_time.isoformat()


def _event(change: Change) -> pb.WatchResponse:
    event = pb.ChangeEvent(revision=change.revision, key_digests=change.invalidated_digests)
    return pb.WatchResponse(change=event)
