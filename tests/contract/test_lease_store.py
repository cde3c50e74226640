"""LeaseStore's promises, on SQLite and on PostgreSQL alike."""

import asyncio
import os
import re
import signal
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from authsvc.client.lease_messages import KeepAlive
from authsvc.errors import StoreUnavailableError
from authsvc.keys import ProjectId, generate_api_key, generate_key_id
from authsvc.migrations import upgrade
from authsvc.storage import database as database_module
from authsvc.storage import lease_store as lease_store_module
from authsvc.storage.database import CHANNEL, Database
from authsvc.storage.key_store import KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.storage.records import LeaseRow, NewKey
from tests.migrated import put_migrated
from tests.postgres import PostgresServer, blocked

LEASE_SECONDS = 60.0
MARGIN_SECONDS = 5.0


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Database, LeaseStore]]:
    database = Database(url)
    try:
        yield database, LeaseStore(database, now, MARGIN_SECONDS)
    finally:
        await database.close()


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    async with opened(migrated_url) as (database, _):
        yield database


@pytest.fixture
def leases(database: Database) -> LeaseStore:
    return LeaseStore(database, now, MARGIN_SECONDS)


def keep_alive(revision: int, holder_id: str = "holder-1", epoch: str = "epoch-1", name: str = "bridge") -> KeepAlive:
    return KeepAlive(epoch, holder_id, name, 1, revision)


def release(holder_id: str = "holder-1") -> KeepAlive:
    return KeepAlive("epoch-1", holder_id, "bridge", 1, 0, is_release=True)


async def row(leases: LeaseStore, holder_id: str = "holder-1") -> LeaseRow:
    return {row.holder_id: row for row in (await leases.rows())[0]}[holder_id]


async def mutate(database: Database, project_id: str = "demo") -> None:
    key = NewKey(generate_key_id(), generate_api_key().digest)
    await KeyStore(database, now).issue(ProjectId(project_id), [], key, "tester")


async def test_a_lease_expires_after_its_duration_and_the_margin_by_the_databases_clock(leases: LeaseStore) -> None:
    before = (await leases.state()).time
    assert await leases.renew([keep_alive(3, name="bridge-7")], LEASE_SECONDS) == set()
    after = (await leases.state()).time
    found = await row(leases)
    assert (found.holder_id, found.name, found.epoch, found.acknowledged_revision) == (
        "holder-1", "bridge-7", "epoch-1", 3,
    )  # fmt: skip
    assert before <= found.renew_time <= after
    assert found.expire_time - found.renew_time == timedelta(seconds=LEASE_SECONDS + MARGIN_SECONDS)


async def test_a_holder_may_ask_for_a_shorter_lease_than_others_get_in_the_same_transaction(leases: LeaseStore) -> None:
    short = replace(keep_alive(1), lease_seconds_max=LEASE_SECONDS / 2)
    await leases.renew([short, keep_alive(1, "holder-2")], LEASE_SECONDS)
    for holder_id, seconds in (("holder-1", LEASE_SECONDS / 2), ("holder-2", LEASE_SECONDS)):
        found = await row(leases, holder_id)
        assert found.expire_time - found.renew_time == timedelta(seconds=seconds + MARGIN_SECONDS)


async def test_the_acknowledged_revision_never_goes_down_within_an_epoch(leases: LeaseStore) -> None:
    """Rule 9: a late keep-alive takes the maximum."""
    for sent, kept in ((3, 3), (7, 7), (5, 7), (0, 7), (8, 8)):
        await leases.renew([keep_alive(sent)], LEASE_SECONDS)
        assert (await row(leases)).acknowledged_revision == kept


async def test_a_row_says_since_which_revision_its_holder_is_there(database: Database, leases: LeaseStore) -> None:
    await mutate(database)
    await leases.renew([keep_alive(0)], LEASE_SECONDS)
    await mutate(database, "other")
    await leases.renew([keep_alive(2), keep_alive(2, "holder-2")], LEASE_SECONDS)
    assert [(await row(leases, f"holder-{number}")).since_revision for number in (1, 2)] == [1, 2]


async def test_holders_from_before_it_was_said_count_as_there_always(database_url: str) -> None:
    """A service of the version before has written them."""
    database = Database(database_url)
    await database.migrate(lambda connection: upgrade(connection, "0002"))
    old = {"holder_id": "holder-1", "name": "bridge", "epoch": "e", "acknowledged_revision": 5, "is_gone": False}
    renamed = {"is_released": "is_gone"}
    columns = (sa.column(renamed.get(column.name, column.name), column.type) for column in lease_store_module._leases.c)
    table = sa.table("leases", *columns)
    async with database.writing() as connection:
        times = {"expire_time": now() + timedelta(seconds=60), "renew_time": now()}
        await connection.execute(table.insert().values(old | times))
    await database.close()
    async with opened(database_url) as (database, leases):
        await database.migrate(upgrade)
        found = await row(leases)
        assert (found.holder_id, found.acknowledged_revision, found.since_revision) == ("holder-1", 5, 0)
        assert await leases.renew([keep_alive(6, epoch="e")], LEASE_SECONDS) == set()
        assert (await row(leases)).since_revision == 0


async def test_any_number_of_holders_renew_in_one_transaction(leases: LeaseStore) -> None:
    """More than a statement of PostgreSQL has room for, where each value were a parameter of it: 32,767."""
    ids = [f"holder-{number}" for number in range(5000)]
    await leases.renew([release("holder-7")], LEASE_SECONDS)
    for revision in (1, 2):
        assert await leases.renew([keep_alive(revision, id_) for id_ in ids], LEASE_SECONDS) == {"holder-7"}
    rows, _ = await leases.rows()
    assert {(row.holder_id, row.acknowledged_revision) for row in rows} == {
        (id_, 2) for id_ in ids if id_ != "holder-7"
    }


async def test_another_epoch_starts_the_acknowledged_revision_afresh(leases: LeaseStore) -> None:
    await leases.renew([keep_alive(7)], LEASE_SECONDS)
    await leases.renew([keep_alive(2, epoch="epoch-2")], LEASE_SECONDS)
    found = await row(leases)
    assert (found.epoch, found.acknowledged_revision) == ("epoch-2", 2)


async def test_the_expiry_never_goes_down(leases: LeaseStore) -> None:
    """The holder may have been granted the longer lease before."""
    await leases.renew([keep_alive(1)], 3600)
    first = await row(leases)
    await leases.renew([keep_alive(2)], 1)
    second = await row(leases)
    assert second.expire_time == first.expire_time
    assert second.renew_time >= first.renew_time
    await leases.renew([keep_alive(2)], 7200)
    assert (await row(leases)).expire_time > first.expire_time


async def test_a_holder_that_said_release_is_waited_for_no_more_and_refused_for_good(leases: LeaseStore) -> None:
    """Rule 7; the other holders of the same transaction are not affected."""
    await leases.renew([keep_alive(1), keep_alive(1, "holder-2")], LEASE_SECONDS)
    assert await leases.renew([release()], LEASE_SECONDS) == set()
    assert [row.holder_id for row in (await leases.rows())[0]] == ["holder-2"]
    assert await leases.renew([keep_alive(9), keep_alive(9, "holder-2")], LEASE_SECONDS) == {"holder-1"}
    assert [row.holder_id for row in (await leases.rows())[0]] == ["holder-2"]
    assert (await row(leases, "holder-2")).acknowledged_revision == 9
    assert await leases.renew([release()], LEASE_SECONDS) == {"holder-1"}


async def test_a_release_may_be_all_that_is_known_of_a_holder(leases: LeaseStore) -> None:
    await leases.renew([release()], LEASE_SECONDS)
    assert (await leases.rows())[0] == []
    assert await leases.renew([keep_alive(1)], LEASE_SECONDS) == {"holder-1"}


async def test_only_what_expired_long_ago_is_swept(leases: LeaseStore) -> None:
    """Gone holders too, which are refused until then."""
    expired = -100.0 - MARGIN_SECONDS
    await leases.renew([keep_alive(1, "old"), release("gone")], expired)
    await leases.renew([keep_alive(1, "live")], LEASE_SECONDS)
    await leases.sweep(110.0)
    assert {row.holder_id for row in (await leases.rows())[0]} == {"old", "live"}
    assert await leases.renew([keep_alive(1, "gone")], LEASE_SECONDS) == {"gone"}
    await leases.sweep(90.0)
    assert {row.holder_id for row in (await leases.rows())[0]} == {"live"}
    assert await leases.renew([keep_alive(1, "gone")], LEASE_SECONDS) == set()


async def test_the_state_says_where_the_changes_stand_and_what_can_be_resumed(
    database: Database, leases: LeaseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await leases.state()
    assert (first.revision, first.resumable_revision) == (0, 0)
    assert re.fullmatch("[0-9a-f]{32}", first.epoch)
    for number in range(4):
        await mutate(database, f"p{number}")
    monkeypatch.setattr("authsvc.storage.lease_store.CHANGES_BEHIND_MAX", 3)
    state = await leases.state()
    assert (state.epoch, state.revision, state.resumable_revision) == (first.epoch, 4, 1)
    assert state.time > first.time


async def test_the_clock_is_read_after_the_rows(migrated_postgres_url: str) -> None:
    """So that what is found expired has expired, and `effective_by` is not before the check that it is of."""
    async with opened(migrated_postgres_url) as (database, leases):
        await leases.renew([keep_alive(1)], LEASE_SECONDS)
        async with database.writing() as connection:
            await connection.execute(sa.text("LOCK TABLE leases IN ACCESS EXCLUSIVE MODE"))
            reading = asyncio.create_task(leases.rows())
            await blocked(connection, 1)
            await connection.execute(sa.text("UPDATE leases SET renew_time = clock_timestamp()"))
        rows, state = await reading
        assert rows[0].renew_time <= state.time


async def test_replicas_that_renew_the_same_holders_in_another_order_do_not_deadlock(
    migrated_postgres_url: str,
) -> None:
    """Both meet at a row that is locked, from whichever side they come to it."""
    ids = ["a" * 16, "b" * 16, "c" * 16]
    async with (
        opened(migrated_postgres_url) as (_, one),
        opened(migrated_postgres_url) as (_, other),
        opened(migrated_postgres_url) as (third, _),
    ):
        await one.renew([keep_alive(1, id_) for id_ in ids], LEASE_SECONDS)
        async with third.writing() as connection:
            await connection.execute(sa.text("SELECT 1 FROM leases WHERE holder_id = :id FOR UPDATE"), {"id": ids[1]})
            renewing = [
                asyncio.create_task(one.renew([keep_alive(2, id_) for id_ in ids], LEASE_SECONDS)),
                asyncio.create_task(other.renew([keep_alive(3, id_) for id_ in reversed(ids)], LEASE_SECONDS)),
            ]
            await blocked(connection, 2)
        await asyncio.gather(*renewing)
        assert {row.acknowledged_revision for row in (await one.rows())[0]} == {3}


async def test_a_late_keep_alive_from_another_epoch_takes_nothing_back(leases: LeaseStore) -> None:
    """Such as the first one of all, which knows no epoch: what was acknowledged in the present one stays."""
    present = (await leases.state()).epoch
    await leases.renew([keep_alive(7, epoch=present)], LEASE_SECONDS)
    await leases.renew([keep_alive(0, epoch="")], LEASE_SECONDS)
    found = await row(leases)
    assert (found.epoch, found.acknowledged_revision) == (present, 7)


async def test_a_new_epoch_keeps_the_revision_and_stands_in_for_leases_that_were_lost(
    database: Database, leases: LeaseStore
) -> None:
    await mutate(database)
    before = await leases.state()
    epoch = await leases.renew_epoch(LEASE_SECONDS)
    rows, after = await leases.rows()
    assert (after.epoch, after.revision) == (epoch, before.revision)
    assert epoch != before.epoch
    assert [row.is_behind(after, after.revision) for row in rows] == [True]
    assert rows[0].expire_time - rows[0].renew_time == timedelta(seconds=LEASE_SECONDS + MARGIN_SECONDS)


async def test_two_replicas_renew_the_same_holders_at_once(migrated_url: str, leases: LeaseStore) -> None:
    """Whatever order they come in: neither deadlocks, and the greatest acknowledgement stays."""
    ids = [f"holder-{number:02}" for number in range(40)]
    async with opened(migrated_url) as (_, other):
        for round_ in range(10):
            await asyncio.gather(
                leases.renew([keep_alive(2 * round_, id_) for id_ in ids], LEASE_SECONDS),
                other.renew([keep_alive(2 * round_ + 1, id_) for id_ in reversed(ids)], LEASE_SECONDS),
            )
            assert {row.acknowledged_revision for row in (await leases.rows())[0]} == {2 * round_ + 1}


async def test_keep_alives_and_mutations_are_heard_by_other_replicas_once_they_are_committed(
    migrated_postgres_url: str,
) -> None:
    async with opened(migrated_postgres_url) as (database, leases), opened(migrated_postgres_url) as (other, _):
        heard: asyncio.Queue[None] = asyncio.Queue()
        listening = asyncio.create_task(other.listen(CHANNEL, lambda: heard.put_nowait(None)))
        await heard.get()  # it listens
        await leases.renew([keep_alive(1)], LEASE_SECONDS)
        await heard.get()
        await mutate(database)
        await heard.get()
        assert heard.empty()
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening


async def test_listening_ends_with_the_connection(private_postgres: PostgresServer) -> None:
    async with opened(private_postgres.url("migrated")) as (database, leases):
        heard = asyncio.Event()
        listening = asyncio.create_task(database.listen(CHANNEL, heard.set))
        await heard.wait()
        await asyncio.to_thread(private_postgres.stop)
        await listening
        with pytest.raises(StoreUnavailableError):
            await leases.renew([keep_alive(1)], LEASE_SECONDS)
        with pytest.raises(StoreUnavailableError):
            await database.listen(CHANNEL, heard.set)


async def test_listening_ends_when_the_server_is_gone_without_a_word(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a network that drops what is sent; otherwise no notification would ever come again."""
    others = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    monkeypatch.setattr(database_module, "_COMMAND_TIMEOUT_SECONDS", 1)
    listener = Database(postgres_url)
    monkeypatch.setattr(database_module, "_LISTENING_CHECK_SECONDS", 0.01)
    database = Database(postgres_url)
    heard = asyncio.Event()
    listening = asyncio.create_task(listener.listen(CHANNEL, heard.set))
    await heard.wait()
    async with database.statement() as connection:
        [pid] = (await connection.execute(sa.text(others))).scalars()
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreUnavailableError):
            await listening
    finally:
        os.kill(pid, signal.SIGCONT)
    await listener.close()
    await database.close()


def test_a_reader_that_is_cancelled_while_it_connects_leaves_no_connection_behind(migrated_sqlite_url: str) -> None:
    """SQLite's driver has a thread for each: one that is left meets a closed event loop when the process ends."""

    async def cancel_after(turns: int) -> None:
        database = Database(migrated_sqlite_url)
        leases = LeaseStore(database, now, MARGIN_SECONDS)
        reading = [asyncio.create_task(leases.state()) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)
        await database.close()

    failed: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda args: failed.append(args.exc_value))
        for turns in [*range(60)] * 2:
            asyncio.run(cancel_after(turns))
    assert failed == []


async def test_the_state_has_what_another_process_committed_before(migrated_url: str) -> None:
    """Rule 1: a lease is granted with a revision that was read after its commit."""
    async with opened(migrated_url) as (_, leases), opened(migrated_url) as (other, _):
        before = await leases.state()
        for number in range(1, 4):
            await mutate(other, f"project-{number}")
            state = await leases.state()
            assert (state.epoch, state.revision) == (before.epoch, before.revision + number)


async def test_a_lock_that_passes_costs_the_state_a_moment(tmp_path: Path) -> None:
    """On SQLite, where a reader waits for nothing else: it is read anew the usual way, which waits."""
    put_migrated(tmp_path / "keys.db")
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    async with opened(url) as (_, leases):
        before = await leases.state()
    holder = sqlite3.connect(tmp_path / "keys.db", isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    database = Database(url)
    reading = asyncio.create_task(LeaseStore(database, now, MARGIN_SECONDS).state())
    await asyncio.sleep(0)  # the short way, which does not wait, has failed
    holder.close()
    assert (await reading).revision == before.revision
    await database.close()
