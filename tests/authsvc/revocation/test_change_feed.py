"""The change feed: every commit, whoever made it, arrives once, in order and without a gap."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import sqlalchemy as sa
from structlog.testing import capture_logs

from authsvc.keys import ProjectId, generate_api_key, generate_key_id
from authsvc.revocation.change_feed import ChangeFeed, Notifier
from authsvc.revocation.limits import RevocationLimits
from authsvc.storage.database import Database
from authsvc.storage.key_store import KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.storage.records import NewKey
from tests.lease_events import change
from tests.postgres import PostgresServer
from tests.waiting import until

POLLING = RevocationLimits(poll_seconds=0.01)
NOT_POLLING = RevocationLimits(poll_seconds=3600.0)


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Replica:
    """A process's view of the database."""

    database: Database
    store: KeyStore
    leases: LeaseStore
    feed: ChangeFeed

    async def mutate(self, count: int = 1) -> None:
        for _ in range(count):
            key = NewKey(generate_key_id(), generate_api_key().digest)
            await self.store.issue(ProjectId(key.key_id.replace("_", "-")), [], key, "tester")

    def has_lost_revisions(self) -> bool:
        return self.feed.has_lost_revisions

    async def reached(self, revision: int) -> None:
        """Return once the feed knows of the revision."""
        while True:
            moved = self.feed.moved.next()
            if self.feed.revision >= revision:
                return
            await moved.wait()

    async def follow(self, revision: int) -> list[int]:
        """Return the revisions of all changes after this one, a page after the other."""
        seen: list[int] = []
        while page := await self.feed.after(seen[-1] if seen else revision):
            seen += [event.change.revision for event in page]
        return seen


class Deaf(Database):
    """A database whose notifications are lost."""

    async def listen(self, channel: str, notified: Callable[[], None]) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def replica(
    url: str,
    *,
    runs: bool = True,
    hears: bool = True,
    tell_others: Callable[[], None] = lambda: None,
    limits: RevocationLimits = RevocationLimits(),
) -> AsyncIterator[Replica]:
    database = (Database if hears else Deaf)(url)
    store, leases = KeyStore(database, now), LeaseStore(database, now, 5.0)
    feed = ChangeFeed(database, store, leases, time.monotonic, limits=limits)
    feed.tell_others = tell_others
    await feed.open()
    running = asyncio.create_task(feed.run()) if runs else None
    try:
        yield Replica(database, store, leases, feed)
    finally:
        if running is not None:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        await database.close()


async def test_what_another_process_commits_is_found_by_polling(migrated_url: str) -> None:
    """Alone: notifications may be lost, and SQLite has none."""
    async with replica(migrated_url, hears=False, limits=POLLING) as here, replica(migrated_url, runs=False) as there:
        for revision in (1, 2, 3):
            await there.mutate()
            await here.reached(revision)


async def test_what_another_replica_commits_is_notified(migrated_postgres_url: str) -> None:
    """Without waiting for the next poll."""
    async with (
        replica(migrated_postgres_url, limits=NOT_POLLING) as here,
        replica(migrated_postgres_url, runs=False) as there,
    ):
        for revision in (1, 2, 3):
            await there.mutate()
            await here.reached(revision)


async def test_what_this_process_commits_is_found_at_once(migrated_url: str) -> None:
    async with replica(migrated_url, hears=False, limits=NOT_POLLING) as here:
        for revision in (1, 2, 3):
            await here.mutate()
            here.feed.wake()
            await here.reached(revision)


async def test_what_another_worker_tells_of_is_found_at_once_and_told_to_nobody_else(migrated_sqlite_url: str) -> None:
    told: list[str] = []
    async with (
        replica(migrated_sqlite_url, tell_others=lambda: told.append("by here"), limits=NOT_POLLING) as here,
        replica(migrated_sqlite_url, tell_others=lambda: told.append("by there"), runs=False) as there,
    ):
        for revision in (1, 2, 3):
            await there.mutate()
            there.feed.wake()
            here.feed.look()  # what the workers' parent makes of it
            await here.reached(revision)
        renewed = there.feed.leases_moved.next()
        there.feed.leases_renewed()
        assert renewed.is_set()
    assert told == ["by there"] * 4


async def test_pages_join_without_gap_or_repeat_wherever_they_come_from(migrated_sqlite_url: str) -> None:
    """From memory, and for those further behind from the database."""
    limits = RevocationLimits(page=7, changes_kept=20)
    async with replica(migrated_sqlite_url, limits=limits) as there:
        await there.mutate(10)
        async with replica(migrated_sqlite_url, limits=limits) as here:
            assert here.feed.revision == 10
            await here.mutate(30)
            here.feed.wake()
            await here.reached(40)
            for revision in range(41):
                assert await here.follow(revision) == list(range(revision + 1, 41))


async def test_a_change_carries_what_it_voids_from_memory_and_from_the_database_alike(migrated_sqlite_url: str) -> None:
    async with replica(migrated_sqlite_url) as here:
        api_key = generate_api_key()
        await here.store.issue(ProjectId("demo"), [], NewKey(generate_key_id(), api_key.digest), "tester")
        here.feed.wake()
        await here.reached(1)
        async with replica(migrated_sqlite_url) as late:
            assert await here.feed.after(0) == await late.feed.after(0) == [change(1, (api_key.digest,))]


async def test_a_new_epoch_starts_the_feed_afresh(migrated_sqlite_url: str) -> None:
    async with replica(migrated_sqlite_url) as here:
        await here.mutate()
        here.feed.wake()
        await here.reached(1)
        moved = here.feed.moved.next()
        epoch = await here.leases.renew_epoch(60)
        here.feed.wake()
        await moved.wait()
        assert (here.feed.epoch, here.feed.revision) == (epoch, 1)
        assert await here.follow(0) == [1]


async def another_history(there: Replica, revision: int) -> None:
    """Have a change that is not the one that was, and has its number, as after a failover that lost the last commit."""
    statement = sa.text("UPDATE changes SET create_time = '2026-01-31 08:00:00.000000' WHERE revision = :revision")
    async with there.database.writing() as connection:
        await connection.execute(statement, {"revision": revision})


async def test_a_history_that_lost_a_change_and_went_on_is_known_for_another_one(migrated_url: str) -> None:
    """Though its revision was never seen to be lower: what follows does not follow what holders have applied."""
    with capture_logs() as logs:
        async with replica(migrated_url, limits=POLLING) as here, replica(migrated_url, runs=False) as there:
            await there.mutate(2)
            await here.reached(2)
            await another_history(there, 2)
            await there.mutate()
            await here.reached(3)
            assert here.has_lost_revisions()
            await there.mutate(2)
            await here.reached(5)
            epoch = await there.leases.renew_epoch(60)
            await until("the epoch is seen", lambda: here.feed.epoch == epoch)
            await there.mutate()
            await here.reached(6)
            assert not here.has_lost_revisions()
    assert [(it["event"], it.get("after"), it.get("known")) for it in logs] == [("revisions_lost", 1, 2)]


async def test_after_an_outage_the_last_change_has_to_be_the_one_that_was(migrated_sqlite_url: str) -> None:
    """With the same number: nothing would follow it to be noticed by."""
    with capture_logs() as logs:
        async with (
            replica(migrated_sqlite_url, limits=POLLING) as here,
            replica(migrated_sqlite_url, runs=False) as there,
        ):
            await there.mutate(2)
            await here.reached(2)
            for number, is_another in enumerate((False, True), 1):
                async with there.database.writing() as connection:
                    await connection.execute(sa.text("ALTER TABLE revision_counter RENAME TO away"))
                await until("it is told", lambda number=number: count(logs, "database_lost") == number)
                if is_another:
                    await another_history(there, 2)
                async with there.database.writing() as connection:
                    await connection.execute(sa.text("ALTER TABLE away RENAME TO revision_counter"))
                await until("it is told", lambda number=number: count(logs, "database_back") == number)
                assert here.has_lost_revisions() == is_another
    assert count(logs, "revisions_lost") == 1


def count(logs: Sequence[Mapping[str, object]], event: str) -> int:
    return [entry["event"] for entry in logs].count(event)


async def test_a_lost_database_is_said_once_and_what_was_committed_meanwhile_is_found(
    private_postgres: PostgresServer,
) -> None:
    """Looking and listening both come back, however many of the pool's connections died."""
    url = private_postgres.url("migrated")
    limits = replace(NOT_POLLING, listen_again_seconds=0.01)
    with capture_logs() as logs:
        async with replica(url, limits=limits) as here:

            async def told(count: int) -> None:
                def is_told() -> bool:
                    here.feed.look()
                    return len(logs) == count

                await until("it is told", is_told)

            for number in (1, 2):
                await asyncio.gather(*(here.leases.state() for _ in range(5)))  # several pooled connections
                await asyncio.to_thread(private_postgres.stop)
                await told(2 * number - 1)
                await asyncio.to_thread(private_postgres.start)
                await told(2 * number)
                async with replica(url, runs=False) as there:
                    await there.mutate()
                await here.reached(number)
            async with replica(url, runs=False) as there:
                for revision in (3, 4, 5):
                    await there.mutate()
                    await here.reached(revision)
    assert [entry["event"] for entry in logs] == ["database_lost", "database_back"] * 2


async def test_a_pulse_wakes_all_who_wait_and_misses_none() -> None:
    pulse = Notifier()
    waiting = [asyncio.create_task(pulse.next().wait()) for _ in range(3)]
    missed = pulse.next()
    pulse.notify_all()
    await asyncio.gather(*waiting)
    assert missed.is_set()
    assert not pulse.next().is_set()
