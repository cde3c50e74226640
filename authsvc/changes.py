"""The change feed: what was committed, here or by another process, brought to everyone in this one who waits for it.

`watch` reads it. Woken in-process by `wake`, across replicas by PostgreSQL's
LISTEN/NOTIFY, among the workers of one service on SQLite by each other, and by polling
beneath all of them: a notification can be lost.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import structlog

from authsvc.client.holder import ChangeEvent
from authsvc.database import Database
from authsvc.errors import StoreUnavailableError
from authsvc.lease_store import LeaseStore
from authsvc.leases import CHANGES_BEHIND_MAX
from authsvc.store import CHANNEL, Change, KeyStore, Revision

_POLL_SECONDS = 0.25
_PAGE = 500
_LISTEN_AGAIN_SECONDS = 1.0

_log = structlog.get_logger("authsvc")


class Pulse:
    """Wakes all who wait, as often as it beats."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def beat(self) -> None:
        """Wake everyone who waits now."""
        self._next.set()
        self._next = asyncio.Event()

    def next(self) -> asyncio.Event:
        """Return the event of the next beat: taken before looking at what it is about, no beat is missed."""
        return self._next


class ChangeFeed:
    """The changes of the database in order, as far as this process knows them; `run` keeps it going."""

    def __init__(
        self, database: Database, store: KeyStore, leases: LeaseStore, tell_others: Callable[[], None] = lambda: None
    ) -> None:
        """Know nothing yet; `open` reads where things stand.

        `tell_others` makes other processes call `look`, where the database does not notify them.
        """
        self.epoch = ""
        self.revision = 0
        self.moved = Pulse()
        """Beats when there are new changes, or a new epoch."""
        self.leases_moved = Pulse()
        """Beats when leases may have been renewed, here or elsewhere."""
        self._database = database
        self._store = store
        self._leases = leases
        self._recent: deque[ChangeEvent] = deque(maxlen=CHANGES_BEHIND_MAX)
        self._tell_others = tell_others
        self._wake = asyncio.Event()
        self._is_lost = False

    async def open(self) -> None:
        """Start from the present; raise StoreUnavailableError."""
        state = await self._leases.state()
        self.epoch, self.revision = state.epoch, state.revision

    async def run(self) -> None:
        """Follow the database until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll())
            if not self._database.is_sqlite:
                tasks.create_task(self._listen())

    def wake(self) -> None:
        """Look now, and let others: this process has committed a change."""
        self.look()
        self._tell_others()

    def leases_renewed(self) -> None:
        """Wake who waits for leases, here and elsewhere: this process has committed some."""
        self.leases_moved.beat()
        self._tell_others()

    def look(self) -> None:
        """Look now: another process has committed something."""
        self._wake.set()
        self.leases_moved.beat()

    async def after(self, revision: int) -> list[ChangeEvent]:
        """Return a page of the changes that follow a revision, without a gap; empty when there are none yet."""
        if revision >= self.revision:
            return []
        if self._recent and self._recent[0].revision <= revision + 1:
            first = revision + 1 - self._recent[0].revision
            return [self._recent[index] for index in range(first, min(first + _PAGE, len(self._recent)))]
        return [_event(change) for change in await self._store.changes(after=Revision(revision), limit=_PAGE)]

    async def _poll(self) -> None:
        while True:
            self._wake.clear()
            try:
                while await self._advance():
                    pass
                self._note(is_lost=False)
            except StoreUnavailableError:
                self._note(is_lost=True)
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _advance(self) -> bool:
        """Take in a page of changes; return whether there was any."""
        state = await self._leases.state()
        if state.epoch != self.epoch:
            self.epoch, self.revision = state.epoch, state.revision
            self._recent.clear()
            self.moved.beat()
            return False
        if state.revision <= self.revision:
            return False
        changes = await self._store.changes(after=Revision(self.revision), limit=_PAGE)
        self._recent.extend(map(_event, changes))
        self.revision = changes[-1].revision
        self.moved.beat()
        return True

    def _note(self, *, is_lost: bool) -> None:
        if is_lost != self._is_lost:
            (_log.warning if is_lost else _log.info)("database_lost" if is_lost else "database_back")
        self._is_lost = is_lost

    async def _listen(self) -> None:
        while True:
            with suppress(StoreUnavailableError):  # polling goes on meanwhile, and says so
                await self._database.listen(CHANNEL, self.look)
            await asyncio.sleep(_LISTEN_AGAIN_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


def _event(change: Change) -> ChangeEvent:
    return ChangeEvent(change.revision, change.voided_digests)
