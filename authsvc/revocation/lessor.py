"""The leases in the database: granted to many holders at a time, and read for those who wait for a change to hold."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

import structlog

from authsvc.client.lease_messages import KeepAlive
from authsvc.errors import HolderReleasedError, RevisionsLostError, StoreUnavailableError, TooManyHoldersError
from authsvc.revocation.change_feed import REMEDY, ChangeFeed, Outage
from authsvc.runtime.gather import Gather
from authsvc.runtime.networks import Networks, Places
from authsvc.runtime.tally import Tally
from authsvc.storage.lease_store import LeaseStore
from authsvc.storage.records import LeaseRow, StoreState

_log = structlog.get_logger("authsvc")

LOST = "the database has lost changes that holders applied, and needs a new epoch"
_GROUP_MAX = 500
"""Keep-alives in one transaction: who waits for another is not kept waiting for thousands."""


class Lessor:
    """Renews leases, all that wait in one transaction, but one for each holder; reads them, once for all who wait.

    Who asks while others are served is served next: a read must begin after the change that it is for was committed.
    """

    def __init__(self, leases: LeaseStore, feed: ChangeFeed, lease_seconds: float, poll_seconds: float) -> None:
        self._leases = leases
        self._feed = feed
        self._lease_seconds = lease_seconds
        self._poll_seconds = poll_seconds
        self._grants = Gather(self._grant, group_size_max=_GROUP_MAX, key=lambda keep_alive: keep_alive.holder_id)
        self._reads: Gather[None, tuple[list[LeaseRow], StoreState]] = Gather(self._read)
        self._poll: asyncio.TimerHandle | None = None
        self._grant_outage = Outage("leases_lost", "leases_back")
        self._read_outage = Outage("lease_reads_lost", "lease_reads_back")
        self._lost_in_epoch = ""
        """Where it has been logged that a holder knows more."""

    async def renew(self, keep_alive: KeepAlive) -> StoreState:
        """Commit the lease, and return what was read of the database after that commit (rule 1).

        Raises HolderReleasedError (rule 7), RevisionsLostError, StoreUnavailableError.
        """
        if self._feed.has_lost_revisions and not keep_alive.is_release:
            raise RevisionsLostError(LOST)
        if keep_alive.applied_revision > self._feed.revision and keep_alive.epoch == self._feed.epoch:
            await self._check(keep_alive)  # mostly the feed has only not heard of it yet
        # It is committed also where its stream ends meanwhile: a release that is lost is waited for.
        refused, state = await asyncio.shield(self._grants.ask(keep_alive))
        if keep_alive.holder_id in refused:
            raise HolderReleasedError("this holder released its lease; a new one needs a new id")
        return state

    async def rows(self) -> tuple[list[LeaseRow], StoreState]:
        """Return what `LeaseStore.rows` read after this call; raise StoreUnavailableError.

        `leases_moved` of the feed is notified within a poll's time, for those who still wait.
        """
        return await self._reads.ask(None)

    async def close(self) -> None:
        """Renew and read no more."""
        await self._grants.close()
        await self._reads.close()
        if self._poll is not None:
            self._poll.cancel()

    async def _check(self, keep_alive: KeepAlive) -> None:
        state = await self._leases.state()
        known = keep_alive.applied_revision
        if known > state.revision and keep_alive.epoch == state.epoch:
            if self._lost_in_epoch != state.epoch:
                self._lost_in_epoch = state.epoch
                holder = keep_alive.holder_id
                _log.error("revisions_lost", after=state.revision, known=known, holder=holder, remedy=REMEDY)
            raise RevisionsLostError(LOST)

    async def _grant(self, keep_alives: list[KeepAlive]) -> tuple[set[str], StoreState]:
        """Return the ids of those who were refused, and the state."""
        try:
            refused = await self._leases.renew(keep_alives, self._lease_seconds)
            state = await self._leases.state()  # rule 1: a later transaction
        except Exception as error:  # noqa: BLE001 - see Outage
            self._grant_outage.failed(error)
            raise StoreUnavailableError("no lease can be renewed") from None
        finally:
            self._feed.leases_renewed()
        self._grant_outage.worked()
        return refused, state

    async def _read(self, _: list[None]) -> tuple[list[LeaseRow], StoreState]:
        try:
            with self._read_outage.noting():
                return await self._leases.rows()
            raise StoreUnavailableError("the leases cannot be read")
        finally:
            if self._poll is not None:
                self._poll.cancel()
            loop = asyncio.get_running_loop()
            self._poll = loop.call_later(self._poll_seconds, self._feed.leases_moved.notify_all)


class Holders:
    """How many may hold leases: a place each, until its lease is over, also where it is released before.

    A mutation waits for each of them, so they are bounded in all and by address; each process counts those it renewed.
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
