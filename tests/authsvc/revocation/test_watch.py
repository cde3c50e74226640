"""Watch over a real channel: who may, what a holder is sent, and how a stream ends."""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from authsvc import app as app_module
from authsvc.api.limits import CallLimits
from authsvc.client import KeyValidator
from authsvc.client.api_key import ApiKey
from authsvc.client.lease_messages import KeepAlive
from authsvc.client.verdicts import Verdict
from authsvc.config import Config
from authsvc.keys import generate_api_key
from authsvc.revocation.change_feed import ChangeFeed
from authsvc.revocation.lessor import Lessor
from authsvc.revocation.limits import RevocationLimits
from authsvc.runtime import clock
from authsvc.runtime.clock import boot_clock
from authsvc.storage.database import Database
from authsvc.storage.key_store import KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from authsvc.v1.key_service_pb2_grpc import KeyServiceStub
from tests.authsvc.conftest import Service, running
from tests.authsvc.revocation.watching import HOLDER, Watcher, ended, issue, replica, revoke
from tests.postgres import PostgresServer, blocked
from tests.waiting import until

Code = grpc.StatusCode
SWEEPING = RevocationLimits(sweep_seconds=0.01)
PATIENCE_SECONDS = 20.0
"""For what comes in milliseconds, and on a busy machine when its scheduler says so."""


@pytest.mark.parametrize("role", ["bridge", "admin"])
async def test_bridges_and_admins_may_watch(service: Service, role: str) -> None:
    watcher = Watcher(service, role=role)
    await watcher.attach()


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),)])
async def test_nobody_watches_without_a_token(service: Service, metadata: Any) -> None:
    call = service.keys.Watch(metadata=metadata)
    assert (await ended(call))[0] == Code.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (pb.WatchRequest(), "holder_id"),
        (pb.WatchRequest(holder_id="x" * 15), "holder_id"),
        (pb.WatchRequest(holder_id="x" * 65), "holder_id"),
        (pb.WatchRequest(holder_id="é" * 16), "holder_id"),
        (pb.WatchRequest(holder_id=HOLDER[:-1] + "\0"), "holder_id"),
        (pb.WatchRequest(holder_id=HOLDER + "\x1b[2J"), "holder_id"),
        (pb.WatchRequest(holder_id=HOLDER + "\n"), "holder_id"),
        (pb.WatchRequest(holder_id=HOLDER + "\x7f"), "holder_id"),
        (pb.WatchRequest(holder_id=HOLDER, name="n" * 129), "name"),
        (pb.WatchRequest(holder_id=HOLDER, name="a\0b"), "name"),
        (pb.WatchRequest(holder_id=HOLDER, epoch="e" * 33), "epoch"),
        (pb.WatchRequest(holder_id=HOLDER, applied_revision=-1), "applied_revision"),
    ],
)
async def test_a_malformed_request_ends_the_stream_and_names_the_field(
    service: Service, request_: pb.WatchRequest, named: str
) -> None:
    call = service.keys.Watch(metadata=service.token("bridge"))
    await call.write(request_)
    code, text = await ended(call)
    assert (code, text.partition(":")[0]) == (Code.INVALID_ARGUMENT, named)
    answer = await service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=service.token())
    assert not answer.holders


async def test_a_new_holder_is_reset_to_the_present_and_granted_a_lease(service: Service) -> None:
    await issue(service)
    watcher = Watcher(service)
    await watcher.renew()
    reset, lease = await watcher.next(), await watcher.next()
    assert (reset.WhichOneof("event"), reset.reset.revision, len(reset.reset.epoch)) == ("reset", 1, 32)
    assert lease.lease == pb.LeaseEvent(sequence=1, duration={"seconds": 60}, revision=1)  # type: ignore[arg-type]
    watcher.epoch, watcher.applied_revision = reset.reset.epoch, 1
    await watcher.renew()
    assert (await watcher.next()).lease.sequence == 2


async def test_a_holder_that_comes_back_is_sent_what_it_missed_without_a_reset(service: Service) -> None:
    watcher = Watcher(service)
    await watcher.attach()
    keys = [(await issue(service, name, wait_seconds=0)).api_key for name in ("demo", "other")]
    watcher.reopen()
    await watcher.renew()
    events = [await watcher.next() for _ in range(3)]
    changes = [event.change for event in events if event.HasField("change")]
    assert [change.revision for change in changes] == [1, 2]
    parsed = [ApiKey.parse(key) for key in keys]
    assert [list(change.key_digests) for change in changes] == [[key.digest] for key in parsed if key]
    assert [event.lease.revision for event in events if event.HasField("lease")] == [2]


@pytest.mark.parametrize(
    ("limit", "value"),
    [("authsvc.storage.lease_store.CHANGES_BEHIND_MAX", 1), ("authsvc.revocation.watch.CHANGE_AGE_SECONDS_MAX", -60.0)],
)
async def test_a_holder_that_is_too_far_behind_is_reset(
    service: Service, monkeypatch: pytest.MonkeyPatch, limit: str, value: float
) -> None:
    """Over 10,000 changes, or an hour, behind."""
    watcher = Watcher(service)
    await watcher.attach()
    for name in ("demo", "other"):
        await issue(service, name, wait_seconds=0)
    monkeypatch.setattr(limit, value)
    watcher.reopen()
    await watcher.renew()
    assert (await watcher.next()).reset == pb.ResetEvent(epoch=watcher.epoch, revision=2)
    assert (await watcher.next()).HasField("lease")
    watcher.applied_revision = 2
    await watcher.renew()
    assert (await watcher.next()).HasField("lease"), "reset twice"


async def test_a_holder_of_another_epoch_is_reset(service: Service) -> None:
    await issue(service)
    for epoch, revision in (("another", 1), ("", 1), ("another", 7)):
        watcher = Watcher(service)
        await watcher.attach()
        watcher.reopen()
        watcher.epoch, watcher.applied_revision = epoch, revision
        await watcher.renew()
        assert (await watcher.next()).reset.revision == 1


@pytest.mark.parametrize("is_running", [True, False], ids=["while it runs", "before it starts"])
async def test_when_the_database_lost_changes_there_are_no_leases_until_it_has_a_new_epoch(
    tmp_path: Path, is_running: bool
) -> None:
    """Holders would take the next changes for old ones, and seem to have confirmed them."""
    state = tmp_path / "state"
    async with AsyncExitStack() as stack:
        logs = stack.enter_context(capture_logs())
        service = await stack.enter_async_context(running(state))
        watcher = Watcher(service)
        await watcher.attach()
        for name in ("demo", "other"):
            await issue(service, name, wait_seconds=0)
        await watcher.acknowledge(2)
        if not is_running:
            service.stop.set()
            await ended(watcher.call)
        await asyncio.to_thread(lose_the_last_change, service)
        if not is_running:
            watcher.service = service = await stack.enter_async_context(running(state))
            watcher.reopen()
            await watcher.renew()
        for _ in range(2):
            code, text = await ended(watcher.call)
            assert (code, "lost" in text) == (Code.FAILED_PRECONDITION, True)
            watcher.reopen()
            await watcher.renew()
        [said] = [entry for entry in logs if entry["event"] == "revisions_lost"]
        assert (said["log_level"], said["after"], said["known"]) == ("error", 1, 2)
        if is_running:
            assert not (await issue(service, "another", wait_seconds=0)).propagation.effective
        await app_module.renew_epoch(Config.from_environment({"AUTHSVC_STATE_DIR": str(state)}))
        async with asyncio.timeout(60):
            old_epoch = watcher.epoch
            while True:  # the service hears of it by polling
                watcher.epoch, watcher.applied_revision = old_epoch, 2
                watcher.reopen()
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await watcher.attach()
                    break


def lose_the_last_change(service: Service) -> None:
    with closing(sqlite3.connect(service.state_dir / "authsvc.db")) as connection, connection:
        connection.execute("UPDATE revision_counter SET revision = revision - 1")
        connection.execute("DELETE FROM keys WHERE create_revision = 2")
        connection.execute("DELETE FROM projects WHERE project_id = 'other'")
        connection.execute("DELETE FROM changes WHERE revision = 2")


async def test_a_stream_is_one_holders(service: Service) -> None:
    """Each holder is a row that mutations wait for: the streams are counted, and with them the rows."""
    watcher = Watcher(service)
    await watcher.attach()
    watcher.holder_id = "another-0123456789"
    await watcher.renew()
    code, text = await ended(watcher.call)
    assert (code, "holder_id" in text) == (Code.INVALID_ARGUMENT, True)
    answer = await service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=service.token())
    assert len(answer.holders) == 1


@pytest.mark.parametrize("revocation", [RevocationLimits(opening_seconds=0.05)])
async def test_a_stream_that_asks_for_nothing_is_ended(service: Service) -> None:
    watcher = Watcher(service)
    code, text = await ended(watcher.call)
    assert (code, "no request" in text) == (Code.UNAVAILABLE, True)


async def test_every_change_reaches_every_stream_in_order(service: Service) -> None:
    watchers = [Watcher(service) for _ in range(5)]
    for watcher in watchers:
        await watcher.attach()
    await asyncio.gather(*(issue(service, f"p{number}", wait_seconds=0) for number in range(30)))
    for watcher in watchers:
        assert [(await watcher.change()).revision for _ in range(30)] == list(range(1, 31))


async def test_a_release_ends_the_stream_and_the_holder_for_good(service: Service) -> None:
    watcher = Watcher(service)
    await watcher.attach()
    await watcher.renew(release=True)
    assert (await ended(watcher.call))[0] == Code.OK
    issued = await issue(service)
    assert (issued.propagation.effective, len(issued.propagation.confirmed)) == (True, 0)
    watcher.reopen()
    await watcher.renew()
    code, text = await ended(watcher.call)
    assert (code, "release" in text) == (Code.FAILED_PRECONDITION, True)


async def test_a_stream_that_its_holder_ends_leaves_the_lease(service: Service) -> None:
    watcher = Watcher(service)
    await watcher.attach()
    await watcher.call.done_writing()
    assert (await ended(watcher.call))[0] == Code.OK
    issued = await issue(service, wait_seconds=0)
    assert [holder.holder_id for holder in issued.propagation.pending] == [watcher.holder_id]


async def test_holders_are_bounded_until_their_leases_are_over(tmp_path: Path) -> None:
    """A new one too many has no lease, so that nobody waits for it; those that there are go on."""
    limits = CallLimits(holders_max=4)
    lease = {"AUTHSVC_LEASE_SECONDS": "2", "AUTHSVC_LEASE_MARGIN_SECONDS": "0"}
    async with running(tmp_path / "state", limits, **lease) as service:
        watchers = [Watcher(service) for _ in range(3)]
        for watcher in watchers:
            await watcher.attach()
        another = Watcher(service)

        async def fault() -> str:
            """Return what keeps another one from a lease; nothing if it has got one."""
            another.call.cancel()
            another.reopen()
            try:
                await another.attach()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return (await ended(another.call))[1]
            return ""

        async def is_bounded() -> bool:
            return await fault() == "there are too many holders already"

        async def is_admitted() -> bool:
            return not await fault()

        with capture_logs() as logged:
            watchers[2].call.cancel()
            await until("the service has seen that a stream has gone", is_bounded)
        assert {line["address"] for line in logged if line["event"] == "holders_refused"} == {"127.0.0.1"}
        listed = await service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=service.token())
        assert another.holder_id not in {holder.holder_id for holder in listed.holders}
        watchers[2].reopen()
        for watcher in watchers:
            await watcher.renew()
            await watcher.lease()
            watcher.call.cancel()
        await until("their leases are over", is_admitted)


async def test_invented_holders_do_not_keep_those_from_being_named_that_have_confirmed_before(service: Service) -> None:
    """Whoever has but the bridge token can make a mutation wait, and not hide whom it really waits for."""
    bridge = Watcher(service, name="bridge")
    await bridge.attach()
    await issue(service, wait_seconds=0)
    await bridge.acknowledge((await bridge.change()).revision)
    epoch, revision = bridge.epoch, bridge.applied_revision
    for number in range(105):
        invented = Watcher(service, name=f"a-{number}")
        invented.epoch, invented.applied_revision = epoch, revision  # which it can ask for
        await invented.renew()
        await invented.lease()
        invented.call.cancel()
    revoked = await revoke(service, wait_seconds=0)
    assert (revoked.propagation.pending_count, len(revoked.propagation.pending)) == (106, 100)
    assert revoked.propagation.pending[0].holder_id == bridge.holder_id


@pytest.mark.parametrize("revocation", [RevocationLimits(slow_seconds=0.2)])
async def test_a_holder_that_does_not_read_is_disconnected_and_delays_nobody(service: Service) -> None:
    small_window = (("grpc.http2.bdp_probe", 0),)  # 64 KiB, where gRPC would make room for more and more
    async with grpc.aio.insecure_channel(str(service.address), options=small_window) as channel:
        slow, quick = Watcher(service, keys=KeyServiceStub(channel)), Watcher(service)
        await slow.attach()
        await quick.attach()
        count = insert_changes(service, count=50, digests=500)
        with capture_logs() as logs:
            await issue(service, wait_seconds=0)
            for revision in range(1, count + 2):
                assert (await quick.change()).revision == revision
            await quick.acknowledge(count + 1)
            await until(
                "the refusal is told", lambda: any(entry.get("status") == "RESOURCE_EXHAUSTED" for entry in logs)
            )
        assert (await ended(slow.call))[0] == Code.RESOURCE_EXHAUSTED
        [said] = [entry for entry in logs if entry["event"] == "holder_disconnected"]
        assert (said["log_level"], said["holder"], said["name"]) == ("warning", slow.holder_id, slow.name)


@pytest.mark.parametrize("revocation", [RevocationLimits(slow_seconds=3600.0, queue_max=60)])
async def test_a_holder_that_renews_without_reading_is_disconnected(service: Service) -> None:
    """What it is to be sent is bounded, however slow it may be."""
    small_window = (("grpc.http2.bdp_probe", 0),)
    async with grpc.aio.insecure_channel(str(service.address), options=small_window) as channel:
        slow, quick = Watcher(service, keys=KeyServiceStub(channel)), Watcher(service)
        await slow.attach()
        await quick.attach()
        count = insert_changes(service, count=50, digests=500)
        for revision in range(1, count + 1):
            assert (await quick.change()).revision == revision
        with capture_logs() as logs:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it has ended meanwhile
                for _ in range(100):
                    await slow.renew()
            await until(
                "the refusal is told", lambda: any(entry.get("status") == "RESOURCE_EXHAUSTED" for entry in logs)
            )
        code, text = await ended(slow.call)
        assert (code, "too slowly" in text) == (Code.RESOURCE_EXHAUSTED, True)
        await quick.acknowledge(count)


def insert_changes(service: Service, count: int, digests: int) -> int:
    """Commit large changes behind the service's back; return how many."""
    invalidated = json.dumps(["ab" * 32] * digests)
    with closing(sqlite3.connect(service.state_dir / "authsvc.db")) as connection, connection:
        connection.executemany(
            "INSERT INTO changes (revision, kind, project_id, invalidated_digests, caller, create_time) "
            "VALUES (?, 'set_origins', 'demo', ?, 'tester', '2026-01-01 00:00:00.000000')",
            [(number, invalidated) for number in range(1, count + 1)],
        )
        connection.execute("UPDATE revision_counter SET revision = ?", (count,))
    return count


async def test_a_service_that_stops_ends_the_streams_first(tmp_path: Path) -> None:
    """It does not wait for calls that would last for ever."""
    async with running(tmp_path / "state", CallLimits(drain_seconds=3600.0)) as service:
        watcher = Watcher(service)
        await watcher.attach()
        service.stop.set()
        code, text = await ended(watcher.call)
        assert (code, text) == (Code.UNAVAILABLE, "the key service is stopping")


async def test_a_restarted_service_waits_for_the_leases_that_were_granted_before(tmp_path: Path) -> None:
    async with running(tmp_path / "state") as service:
        watcher = Watcher(service)
        await watcher.attach()
    async with running(tmp_path / "state") as service:
        issued = await issue(service, wait_seconds=0)
        assert [holder.holder_id for holder in issued.propagation.pending] == [watcher.holder_id]
        watcher.service = service
        watcher.reopen()
        await watcher.renew()
        assert (await watcher.change()).revision == 1


async def test_a_new_epoch_ends_the_streams_and_resets_the_holders(tmp_path: Path) -> None:
    """A lease of the old epoch is waited for: its holder may have applied what was lost."""
    state = tmp_path / "state"
    async with running(state) as service:
        watcher = Watcher(service)
        await watcher.attach()
        old_epoch = watcher.epoch
        await app_module.renew_epoch(Config.from_environment({"AUTHSVC_STATE_DIR": str(state)}))
        code, text = await ended(watcher.call)
        assert (code, "epoch" in text) == (Code.UNAVAILABLE, True)
        issued = await issue(service, wait_seconds=0)
        assert watcher.holder_id in [holder.holder_id for holder in issued.propagation.pending]
        watcher.reopen()
        await watcher.attach()
        assert watcher.epoch != old_epoch
        waiting = asyncio.create_task(revoke(service, wait_seconds=0.5))
        await watcher.acknowledge((await watcher.change()).revision)
        propagation = (await waiting).propagation
        assert [holder.holder_id for holder in propagation.confirmed] == [watcher.holder_id]
        # What was restored may lack rows: one stands in for all the leases that were granted before.
        assert [holder.name for holder in propagation.pending] == ["whoever watched before the new epoch"]


async def test_a_lost_database_ends_the_streams_that_renew_and_they_come_back(
    private_postgres: PostgresServer, tmp_path: Path
) -> None:
    url = private_postgres.url("migrated")
    async with replica(tmp_path / "state", url) as service:
        watcher = Watcher(service)
        await watcher.attach()
        await asyncio.to_thread(private_postgres.stop)
        await watcher.renew()
        assert (await ended(watcher.call))[0] == Code.UNAVAILABLE
        await asyncio.to_thread(private_postgres.start)
        async with asyncio.timeout(60):
            while True:  # connections of the pool that died fail once each
                watcher.reopen()
                await watcher.renew()
                try:
                    if (await watcher.call.read()) is not grpc.aio.EOF:
                        break
                except grpc.aio.AioRpcError:
                    continue
        issued = await issue(service, wait_seconds=0)
        assert issued.propagation.pending


async def test_no_error_of_the_database_ends_the_service(
    postgres_server: PostgresServer, migrated_postgres_url: str, tmp_path: Path
) -> None:
    """Whatever it is: each of the endless tasks says so once, goes on, and says when it is over."""
    name = str(sa.make_url(migrated_postgres_url).database)
    async with replica(tmp_path / "state", migrated_postgres_url, SWEEPING) as service:
        with capture_logs() as logs:

            def said(*events: str) -> bool:
                return {entry["event"] for entry in logs} >= set(events)

            renames = (("leases", "expire_time"), ("revision_counter", "revision"))
            for table, column in renames:
                postgres_server.sql(f"ALTER TABLE {table} RENAME COLUMN {column} TO away", name)
            watcher = Watcher(service)
            await watcher.renew()
            assert (await ended(watcher.call))[0] == Code.UNAVAILABLE
            await until("it is told", lambda: said("database_lost", "leases_lost", "sweep_lost"))
            for table, column in renames:
                postgres_server.sql(f"ALTER TABLE {table} RENAME COLUMN away TO {column}", name)
            await until("it is told", lambda: said("database_back", "sweep_back"))
            watcher.reopen()
            await watcher.attach()
            assert said("leases_back")
        assert len([entry for entry in logs if entry["event"].endswith(("_lost", "_back"))]) == 6
        assert {entry["error"] for entry in logs if entry["event"].endswith("_lost")} == {"ProgrammingError"}


async def test_no_error_that_the_index_meets_ends_the_service(service: Service) -> None:
    """Such as a change of a kind that this version does not know."""
    api_key = (await issue(service)).api_key
    unknown = [generate_api_key().reveal() for _ in range(BUSY)]
    with capture_logs() as logs:

        def said(event: str) -> bool:
            return event in [entry["event"] for entry in logs]

        await asyncio.to_thread(set_kind, service, "unknown")
        assert await verdicts(service, *unknown) == {pb.VERDICT_INVALID_KEY}
        await until("it is told", lambda: said("key_cache_lost"))
        assert await verdicts(service, *unknown, api_key) == {pb.VERDICT_INVALID_KEY, pb.VERDICT_ALLOWED}
        await asyncio.to_thread(set_kind, service, "issue")
        assert await verdicts(service, *unknown) == {pb.VERDICT_INVALID_KEY}
        await until("it is told", lambda: said("key_cache_back"))
    [lost] = [entry for entry in logs if entry["event"] == "key_cache_lost"]
    assert (lost["log_level"], lost["error"]) == ("warning", "ValueError")


BUSY = 250
"""So many keys at once, and the index takes a lease."""


async def verdicts(service: Service, *api_keys: str) -> "set[pb.Verdict.ValueType]":
    request = pb.BatchValidateRequest(requests=[pb.ValidateRequest(api_key=api_key) for api_key in api_keys])
    answer = await service.keys.BatchValidate(request, metadata=service.token("bridge"))
    return {response.verdict for response in answer.responses}


def set_kind(service: Service, kind: str) -> None:
    with closing(sqlite3.connect(service.state_dir / "authsvc.db")) as connection, connection:
        connection.execute("UPDATE changes SET kind = ?", (kind,))


async def test_thousands_of_keep_alives_are_committed_in_groups(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that came meanwhile would be one long transaction, which each of them waits for."""
    groups: list[int] = []
    renew = LeaseStore.renew

    async def counted(self: LeaseStore, keep_alives: Sequence[KeepAlive], lease_seconds: float) -> set[str]:
        groups.append(len(keep_alives))
        return await renew(self, keep_alives, lease_seconds)

    monkeypatch.setattr(LeaseStore, "renew", counted)
    database = Database(migrated_url)
    leases = LeaseStore(database, clock.now, 5.0)
    feed = ChangeFeed(database, KeyStore(database, clock.now), leases, boot_clock)
    await feed.open()
    granter = Lessor(leases, feed, 60.0, 0.05)
    keep_alives = [KeepAlive("", f"holder-{number}", "bridge", 1, 0) for number in range(5200)]
    states = await asyncio.gather(*map(granter.renew, keep_alives))
    assert {state.revision for state in states} == {0}
    assert len((await leases.rows())[0]) == sum(groups) == 5200
    assert max(groups) == 500
    assert len(groups) <= 12, "those that wait go along with the next group"
    await database.close()


async def test_a_release_is_committed_although_its_stream_ends_while_it_waits(
    migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a commit that takes long, say: a lease that is not released is waited for until it ends."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    renew = LeaseStore.renew

    async def slow(self: LeaseStore, keep_alives: Sequence[KeepAlive], lease_seconds: float) -> set[str]:
        begun.set()
        await go_on.wait()
        return await renew(self, keep_alives, lease_seconds)

    monkeypatch.setattr(LeaseStore, "renew", slow)
    database = Database(migrated_url)
    leases = LeaseStore(database, clock.now, 5.0)
    feed = ChangeFeed(database, KeyStore(database, clock.now), leases, boot_clock)
    await feed.open()
    lessor = Lessor(leases, feed, 60.0, 0.05)
    first = asyncio.create_task(lessor.renew(KeepAlive("", "holder-1", "bridge", 1, 0)))
    await begun.wait()
    last = asyncio.create_task(lessor.renew(KeepAlive("", "holder-1", "bridge", 2, 0, is_release=True)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    last.cancel()
    await asyncio.wait([last])
    go_on.set()
    await first
    await lessor.renew(KeepAlive("", "holder-2", "bridge", 1, 0))  # comes after what waited
    rows, _ = await leases.rows()
    assert {row.holder_id for row in rows} == {"holder-2"}  # nobody waits for the other any more
    await lessor.close()
    await database.close()


async def test_leases_are_renewed_while_mutations_wait(migrated_postgres_url: str, tmp_path: Path) -> None:
    """Somebody, such as a backup, has locked the counter's row: no holder may lose its lease by that."""
    async with replica(tmp_path / "state", migrated_postgres_url) as service:
        watcher = Watcher(service)
        await watcher.attach()
        database = Database(migrated_postgres_url)
        async with database.writing() as connection:
            await connection.exec_driver_sql("SELECT 1 FROM revision_counter FOR UPDATE")
            waiting = [asyncio.create_task(issue(service, f"p{number}", wait_seconds=0)) for number in range(3)]
            await blocked(connection, 1)
            await watcher.renew()
            await watcher.lease()
            assert not [call for call in waiting if call.done()]
        await asyncio.gather(*waiting)
        await database.close()


async def test_a_grant_carries_what_was_committed_before_its_lease_was(
    migrated_postgres_url: str, tmp_path: Path
) -> None:
    """Rule 1: who revokes between the two reads would not see the lease, and its holder not the revocation."""
    async with (
        replica(tmp_path / "a", migrated_postgres_url) as here,
        replica(tmp_path / "b", migrated_postgres_url) as there,
    ):
        watcher = Watcher(here)
        database = Database(migrated_postgres_url)
        async with database.writing() as connection:
            await connection.exec_driver_sql("LOCK TABLE leases IN EXCLUSIVE MODE")  # reading goes on
            await watcher.renew()
            await blocked(connection, 1)
            revision = (await issue(there, wait_seconds=0)).revision
        assert (await watcher.lease()).revision == revision
        await database.close()


async def test_a_statement_that_is_cancelled_costs_one_look(migrated_postgres_url: str, tmp_path: Path) -> None:
    """As by an operator, or a `statement_timeout`."""
    cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with replica(tmp_path / "state", migrated_postgres_url) as service:
        database = Database(migrated_postgres_url)
        with capture_logs() as logs:
            async with database.writing() as connection:
                await connection.exec_driver_sql("LOCK TABLE revision_counter IN ACCESS EXCLUSIVE MODE")
                await blocked(connection, 1)
                await connection.exec_driver_sql(cancel)
            await until("it is told", lambda: any(entry["event"] == "database_back" for entry in logs))
        await database.close()
        [lost] = [entry for entry in logs if entry["event"] == "database_lost"]
        assert lost["reason"] == "canceling statement due to user request"
        await Watcher(service).attach()


@pytest.mark.parametrize("revocation", [SWEEPING])
async def test_leases_that_expired_long_ago_are_swept(service: Service) -> None:
    """After five times what they last, so that no late keep-alive finds its release forgotten (rule 7)."""
    first, second, third = Watcher(service), Watcher(service), Watcher(service)
    for watcher in (first, second, third):
        await watcher.attach()
    await asyncio.to_thread(expire, service, third, 4.5 * 60)
    await asyncio.to_thread(expire, service, first, 5 * 60)  # the sweeper goes on meanwhile
    async with asyncio.timeout(60):
        while True:
            answer = await service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=service.token())
            if first.holder_id not in (left := {holder.holder_id for holder in answer.holders}):
                break
    assert left == {second.holder_id, third.holder_id}


def expire(service: Service, watcher: Watcher, seconds: float) -> None:
    """Let a lease have expired so many seconds ago."""
    expired = datetime.now(UTC) - timedelta(seconds=seconds)
    statement = "UPDATE leases SET expire_time = ? WHERE holder_id = ?"
    with closing(sqlite3.connect(service.state_dir / "authsvc.db")) as connection, connection:
        connection.execute(statement, (f"{expired:%Y-%m-%d %H:%M:%S.%f}", watcher.holder_id))


async def test_a_validator_forgets_a_key_before_revoke_returns(service: Service) -> None:
    """The two sides together; and a key that was probed before it was issued works when Issue returns."""
    token = dict(service.token("bridge"))["authorization"].removeprefix("Bearer ")
    async with KeyValidator(service.address, token, name="bridge-1") as validator:
        await until("it has a lease", lambda: validator.has_lease)
        api_key = (await issue(service, wait_seconds=PATIENCE_SECONDS)).api_key
        for _ in range(20):
            key = ApiKey.parse(api_key)
            assert key is not None
            assert (await validator.validate(key)).verdict is Verdict.ALLOWED
            assert validator.cached(key) is not None
            revoked = await revoke(service, wait_seconds=PATIENCE_SECONDS)
            api_key = revoked.api_key
            assert [holder.name for holder in revoked.propagation.confirmed] == ["bridge-1"]
            assert validator.cached(key) is None
            assert (await validator.validate(key)).verdict is Verdict.INVALID_KEY
    assert (await revoke(service)).propagation.effective
