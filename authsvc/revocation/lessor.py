"""The leases in the database: renewed for many holders at a time, and read for those who wait for a change to hold.

The rules are those of docs/watch-protocol.md, by number.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeAlias

import structlog

from authsvc.client.lease_messages import KeepAlive
from authsvc.errors import HolderReleasedError, RevisionsLostError, StoreUnavailableError, TooManyHoldersError
from authsvc.revocation.change_feed import REMEDY, ChangeFeed, Outage
from authsvc.runtime.networks import Networks, Places
from authsvc.runtime.tally import Tally
from authsvc.storage.lease_rows import LeaseRow, StoreState
from authsvc.storage.lease_store import LeaseStore

_log = structlog.get_logger("authsvc")

LOST = "the database has lost changes that holders applied, and needs a new epoch"
_GROUP_MAX = 500
"""Keep-alives in one transaction: who waits for another is not kept waiting for thousands."""
_POLL_SECONDS = 0.05
"""Between two looks at the leases, which other processes may renew without a notification."""

_Waiting: TypeAlias = tuple[KeepAlive, asyncio.Future[StoreState]]


class Lessor:
    """Renews leases. Like group commit: all that wait go into one transaction, and the next follows when it is done."""

    def __init__(self, leases: LeaseStore, feed: ChangeFeed, lease_seconds: float) -> None:
        self._leases = leases
        self._feed = feed
        self._lease_seconds = lease_seconds
        self._waiting: list[_Waiting] = []
        self._wake = asyncio.Event()
        self._outage = Outage("leases_lost", "leases_back")
        self._lost_in_epoch = ""
        """Where it has been logged that a holder knows more."""

    async def renew(self, keep_alive: KeepAlive) -> StoreState:
        """Commit the lease, and return what was read of the database after that commit (rule 1).

        Raises HolderReleasedError for a holder that released its lease (rule 7), RevisionsLostError,
        StoreUnavailableError.
        """
        if self._feed.has_lost_revisions and not keep_alive.is_release:
            raise RevisionsLostError(LOST)
        if keep_alive.applied_revision > self._feed.revision and keep_alive.epoch == self._feed.epoch:
            await self._check(keep_alive)  # mostly the feed has only not heard of it yet
        done: asyncio.Future[StoreState] = asyncio.get_running_loop().create_future()
        self._waiting.append((keep_alive, done))
        self._wake.set()
        return await done

    async def _check(self, keep_alive: KeepAlive) -> None:
        state = await self._leases.state()
        known = keep_alive.applied_revision
        if known > state.revision and keep_alive.epoch == state.epoch:
            if self._lost_in_epoch != state.epoch:
                self._lost_in_epoch = state.epoch
                holder = keep_alive.holder_id
                _log.error("revisions_lost", after=state.revision, known=known, holder=holder, remedy=REMEDY)
            raise RevisionsLostError(LOST)

    async def run(self) -> None:
        """Renew what waits, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            group: dict[str, _Waiting] = {}
            waiting, self._waiting = self._waiting, []
            for keep_alive, done in waiting:
                if keep_alive.holder_id in group or len(group) == _GROUP_MAX:
                    self._waiting.append((keep_alive, done))
                    self._wake.set()
                else:
                    group[keep_alive.holder_id] = keep_alive, done
            await self._grant(group)

    async def _grant(self, group: dict[str, _Waiting]) -> None:
        refused: set[str] = set()
        state = None
        try:
            refused = await self._leases.renew([keep_alive for keep_alive, _ in group.values()], self._lease_seconds)
            state = await self._leases.state()  # rule 1: a later transaction
            self._outage.worked()
        except Exception as error:  # noqa: BLE001 - see Outage
            self._outage.failed(error)
        self._feed.leases_renewed()
        for holder_id, (_, done) in group.items():
            if done.done():
                continue  # its stream has ended
            if holder_id in refused:
                done.set_exception(HolderReleasedError("this holder released its lease; a new one needs a new id"))
            elif state is None:
                done.set_exception(StoreUnavailableError("no lease can be renewed"))
            else:
                done.set_result(state)


class Holders:
    """How many may hold leases: a place each, until its lease is over, also where it is released before.

    All holders have the same token, and a mutation waits for each of them: so they are bounded in all and by address.
    Each process counts those whose leases it renewed itself.
    """

    def __init__(
        self, holders_max: int, trusted_proxies: Networks, lease_seconds: float, monotonic: Callable[[], float]
    ) -> None:
        """Take how long a lease lasts for those who wait for it, margin included."""
        self._places = Places(holders_max, trusted_proxies)
        self._lease_seconds = lease_seconds
        self._monotonic = monotonic
        self._leases: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Address and end of each, by the holder's id; the one that ends first is first."""
        self._refused = Tally(monotonic, lambda **fields: _log.warning("holders_refused", **fields))

    def admit(self, holder_id: str, address: str) -> None:
        """Note that a holder is about to renew its lease; raise TooManyHoldersError for a new one too many."""
        now = self._monotonic()
        while self._leases and next(iter(self._leases.values()))[1] <= now:
            self._places.release(self._leases.popitem(last=False)[1][0])
        if (known := self._leases.get(holder_id)) is not None:
            address = known[0]
        elif not self._places.take(address):
            self._refused.add(address)
            raise TooManyHoldersError("there are too many holders already")
        self._leases[holder_id] = address, now + self._lease_seconds
        self._leases.move_to_end(holder_id)


class LeaseReader:
    """Reads all leases: one look at a time, however many ask.

    Who asks while a look is under way gets the next one, since theirs must begin after their change was committed.
    """

    def __init__(self, leases: LeaseStore, feed: ChangeFeed) -> None:
        """After a look, `leases_moved` of the feed beats within a poll's time, for those who still wait."""
        self._leases = leases
        self._feed = feed
        self._lock = asyncio.Lock()
        self._begun = 0
        self._is_done = False
        """The last look; else whoever it was for gave it up."""
        self._found: tuple[list[LeaseRow], StoreState] | None = None
        self._poll: asyncio.TimerHandle | None = None
        self._outage = Outage("lease_reads_lost", "lease_reads_back")

    async def rows(self) -> tuple[list[LeaseRow], StoreState]:
        """Return what `LeaseStore.rows` read after this call; raise StoreUnavailableError."""
        begun = self._begun
        async with self._lock:
            if self._begun == begun or not self._is_done:
                await self._look()
            if self._found is None:
                raise StoreUnavailableError("the leases cannot be read")
            return self._found

    async def _look(self) -> None:
        self._begun += 1
        self._is_done, self._found = False, None
        with self._outage.noting():
            self._found = await self._leases.rows()
        self._is_done = True
        if self._poll is not None:
            self._poll.cancel()
        self._poll = asyncio.get_running_loop().call_later(_POLL_SECONDS, self._feed.leases_moved.notify_all)
