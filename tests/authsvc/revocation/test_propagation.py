"""Issue, Revoke and SetOrigins say by when their change holds everywhere, and wait for it as long as they are let."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc import app as app_module
from authsvc.errors import StoreUnavailableError
from authsvc.revocation.change_feed import ChangeFeed
from authsvc.revocation.lessor import Holders, Lessor
from authsvc.revocation.limits import RevocationLimits
from authsvc.revocation.watch import Watch
from authsvc.runtime import clock
from authsvc.runtime.networks import Networks
from authsvc.storage.database import Database
from authsvc.storage.key_store import KeyStore
from authsvc.storage.lease_store import LeaseStore
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import operations_service_pb2 as operations_pb2
from tests.authsvc.conftest import Service, running
from tests.authsvc.revocation.watching import Watcher, issue, replica, revoke, wait
from tests.clocks import RunningClock
from tests.postgres import PostgresServer, blocked
from tests.waiting import until

Code = grpc.StatusCode
LONG = 20.0
NEVER = 3600.0
LEASE_AND_MARGIN = timedelta(seconds=65)


def instant(value: Timestamp) -> datetime:
    return value.ToDatetime(UTC)


async def set_origins(service: Service, wait_seconds: float | None = None) -> pb.SetOriginsResponse:
    request = pb.SetOriginsRequest(project_id="demo", origins=["example.com"], wait=wait(wait_seconds))
    answer: pb.SetOriginsResponse = await service.keys.SetOrigins(request, metadata=service.token())
    return answer


MUTATIONS: tuple[Callable[..., Coroutine[Any, Any, Any]], ...] = (issue, revoke, set_origins)


async def holders(service: Service) -> dict[str, pb.Holder]:
    answer = await service.operations.ListHolders(operations_pb2.ListHoldersRequest(), metadata=service.token())
    return {holder.name: holder for holder in answer.holders}


def names(found: Any) -> list[str]:
    return sorted(holder.name for holder in found)


async def validity(service: Service, api_key: str) -> "pb.Verdict.ValueType":
    answer = await service.keys.Validate(pb.ValidateRequest(api_key=api_key), metadata=service.token())
    verdict: pb.Verdict.ValueType = answer.verdict
    return verdict


async def test_without_holders_a_change_is_effective_at_once(service: Service) -> None:
    """The instant is that of the answer: no request that starts later is decided by older state."""
    for revision, call in enumerate(MUTATIONS, 1):
        before = datetime.now(UTC)
        answer = await call(service)
        assert before <= instant(answer.propagation.effective_by) <= datetime.now(UTC)
        assert (answer.revision, answer.propagation.effective) == (revision, True)
        assert not answer.propagation.confirmed
        assert not answer.propagation.pending


async def test_a_change_waits_for_its_holders_and_names_those_that_confirmed(service: Service) -> None:
    watchers = [Watcher(service, name=f"bridge-{number}") for number in range(3)]
    for watcher in watchers:
        await watcher.attach()
    for revision, call in enumerate(MUTATIONS, 1):
        waiting = asyncio.create_task(call(service, wait_seconds=LONG))
        for watcher in watchers:
            assert not waiting.done()
            await watcher.acknowledge((await watcher.change()).revision)
        answer = await waiting
        assert (answer.revision, answer.propagation.effective) == (revision, True)
        assert names(answer.propagation.confirmed) == ["bridge-0", "bridge-1", "bridge-2"]
        assert {holder.acknowledged_revision for holder in answer.propagation.confirmed} == {revision}
        assert not answer.propagation.pending


@pytest.mark.parametrize("revocation", [RevocationLimits(named_max=2)])
async def test_of_many_holders_some_are_named_and_all_are_counted(service: Service) -> None:
    """The answer stays small enough to be received; of those that are pending the last to expire are named."""
    watchers = [Watcher(service, name=f"bridge-{number}") for number in range(4)]
    for watcher in watchers:
        await watcher.attach()
    pending = (await issue(service, wait_seconds=0)).propagation
    assert (names(pending.pending), pending.pending_count) == (["bridge-2", "bridge-3"], 4)
    waiting = asyncio.create_task(set_origins(service, wait_seconds=LONG))
    for watcher in watchers:
        while (await watcher.change()).revision < 2:
            pass
        await watcher.acknowledge(2)
    confirmed = (await waiting).propagation
    assert (len(confirmed.confirmed), confirmed.confirmed_count, confirmed.pending_count) == (2, 4, 0)


@pytest.mark.parametrize("wait_seconds", [0.0, 0.2])
async def test_a_holder_that_does_not_confirm_is_named_with_the_end_of_its_lease(
    service: Service, wait_seconds: float
) -> None:
    """0 does not wait."""
    quick, silent = Watcher(service, name="quick"), Watcher(service, name="silent")
    await silent.attach()
    await issue(service, wait_seconds=0)
    await quick.attach()
    before = await holders(service)
    answer = await revoke(service, wait_seconds=wait_seconds)
    assert not answer.propagation.effective
    expiry = before["silent"].lease_expire_time
    pending = {holder.name: holder for holder in answer.propagation.pending}
    assert pending["silent"].lease_expire_time == expiry
    assert pending["silent"].holder_id == silent.holder_id
    assert answer.propagation.effective_by == max(
        (holder.lease_expire_time for holder in before.values()), key=Timestamp.ToNanoseconds
    )
    assert instant(answer.propagation.effective_by) <= instant(answer.key.create_time) + LEASE_AND_MARGIN


async def test_the_default_is_to_wait(service: Service) -> None:
    watcher = Watcher(service)
    await watcher.attach()
    waiting = asyncio.create_task(issue(service))
    await watcher.acknowledge((await watcher.change()).revision)
    assert (await waiting).propagation.effective


async def test_a_negative_wait_is_refused_and_changes_nothing(service: Service) -> None:
    await issue(service)
    for wait_seconds in (-1.0, -0.001):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await revoke(service, wait_seconds=wait_seconds)
        assert (caught.value.code(), "wait" in str(caught.value.details())) == (Code.INVALID_ARGUMENT, True)
    request = operations_pb2.ListChangesRequest()
    assert len((await service.operations.ListChanges(request, metadata=service.token())).changes) == 1


@pytest.mark.parametrize("seconds", [LONG, 10.0**17])
async def test_the_callers_deadline_bounds_the_wait(service: Service, seconds: float) -> None:
    """The answer, with the API key that nobody sees again, is on its way before that."""
    watcher = Watcher(service)
    await watcher.attach()
    issued = await issue(service, wait_seconds=0)
    revoked = await revoke(service, wait_seconds=seconds, timeout=3.0)
    assert names(revoked.propagation.pending) == ["bridge-1"]
    assert await validity(service, revoked.api_key) == pb.VERDICT_ALLOWED
    assert await validity(service, issued.api_key) == pb.VERDICT_INVALID_KEY


@pytest.mark.parametrize(
    ("left_seconds", "answer_after"), [(0.0, 0.0), (0.4, 0.3), (2.0, 1.5), (10.0, 9.5), (3600.0, 28.5), (None, 28.5)]
)
def test_a_part_of_the_callers_time_is_kept_for_the_way_of_the_answer(
    sqlite_url: str, left_seconds: float | None, answer_after: float
) -> None:
    """Half a second, on a busy machine; a quarter of it for who has less than two. No call outlasts 30 s."""
    database = Database(sqlite_url)
    store = KeyStore(database, clock.now)
    leases = LeaseStore(database, clock.now, margin_seconds=5)
    feed = ChangeFeed(database, store, leases, time.monotonic)
    holders = Holders(1, Networks(), 65, time.monotonic)
    watch = Watch(store, leases, feed, holders, lease_seconds=60, margin_seconds=5, monotonic=lambda: 1000.0)
    assert watch.respond_by(left_seconds) == pytest.approx(1000.0 + answer_after)


async def test_what_the_commit_took_is_no_more_there_to_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer keeps its time: nothing else shows the API key."""
    clock, issue_key = RunningClock(time.monotonic), KeyStore.issue

    async def slow(*arguments: Any) -> Any:
        issued = await issue_key(*arguments)
        clock.advance(LONG - 2.0)
        return issued

    monkeypatch.setattr(KeyStore, "issue", slow)
    monkeypatch.setattr(app_module, "time", SimpleNamespace(monotonic=clock))
    async with running(tmp_path / "state") as service:
        watcher = Watcher(service)
        await watcher.attach()
        answer = await issue(service, wait_seconds=LONG, timeout=LONG)
    assert answer.api_key.startswith("dt_")
    assert names(answer.propagation.pending) == ["bridge-1"]


async def test_a_service_that_stops_answers_who_waits(service: Service) -> None:
    """Its holders are told to go elsewhere, so it would hear no confirmation; and nothing else shows the API key."""
    watcher = Watcher(service)
    await watcher.attach()
    waiting = asyncio.create_task(issue(service, wait_seconds=LONG))
    await watcher.change()
    service.stop.set()
    answer = await waiting
    assert answer.api_key.startswith("dt_")
    assert names(answer.propagation.pending) == ["bridge-1"]


async def test_keep_alives_without_the_change_extend_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 10: what was granted after the first look counts only once the change is applied."""
    looked, rows = asyncio.Event(), Lessor.rows

    async def noted(self: Lessor) -> Any:
        found = await rows(self)
        looked.set()
        return found

    monkeypatch.setattr(Lessor, "rows", noted)
    watcher = Watcher(service)
    await watcher.attach()
    before = (await holders(service))["bridge-1"].lease_expire_time
    waiting = asyncio.create_task(issue(service, wait_seconds=0.3))
    await watcher.change()
    await looked.wait()
    await watcher.renew()
    await watcher.lease()
    assert (await holders(service))["bridge-1"].lease_expire_time != before
    propagation = (await waiting).propagation
    assert propagation.effective_by == propagation.pending[0].lease_expire_time == before


async def test_the_wait_ends_with_the_lease_that_was_pending(tmp_path: Path) -> None:
    """However often a holder that is behind renews."""
    async with running(tmp_path / "state", AUTHSVC_LEASE_SECONDS="1", AUTHSVC_LEASE_MARGIN_SECONDS="0") as service:
        watcher = Watcher(service)
        await watcher.attach()
        waiting = asyncio.create_task(issue(service, wait_seconds=LONG))
        await watcher.change()
        while not waiting.done():
            await watcher.renew()
            await watcher.lease()
        propagation = (await waiting).propagation
        assert propagation.effective
        assert not propagation.confirmed


async def test_a_retried_revocation_waits_like_the_first(service: Service) -> None:
    """Rule 11: it commits nothing, and says whether what the first one did holds everywhere."""
    watcher = Watcher(service)
    await watcher.attach()
    issued = await issue(service, wait_seconds=0)
    first = await revoke(service, issued.key.key_id, wait_seconds=0)
    assert names(first.propagation.pending) == ["bridge-1"]
    again = await revoke(service, issued.key.key_id, wait_seconds=0)
    assert (again.already_revoked, again.api_key, again.revision) == (True, "", first.revision)
    assert names(again.propagation.pending) == ["bridge-1"]
    waiting = asyncio.create_task(revoke(service, issued.key.key_id, wait_seconds=LONG))
    await watcher.change()
    await watcher.change()
    await watcher.acknowledge(first.revision)
    last = await waiting
    assert (last.already_revoked, last.propagation.effective) == (True, True)
    assert names(last.propagation.confirmed) == ["bridge-1"]


async def test_origins_that_are_set_again_wait_like_the_first_time(service: Service) -> None:
    """Rule 11, likewise."""
    watcher = Watcher(service)
    await watcher.attach()
    await issue(service, wait_seconds=0)
    first = await set_origins(service, wait_seconds=0)
    again = await set_origins(service, wait_seconds=0)
    assert (first.already_set, again.already_set) == (False, True)
    assert (again.revision, list(again.origins)) == (first.revision, ["example.com"])
    assert names(again.propagation.pending) == ["bridge-1"]
    waiting = asyncio.create_task(set_origins(service, wait_seconds=LONG))
    await watcher.change()
    await watcher.change()
    await watcher.acknowledge(first.revision)
    assert names((await waiting).propagation.confirmed) == ["bridge-1"]


async def test_nobody_waits_for_a_holder_that_says_release_meanwhile(service: Service) -> None:
    watcher = Watcher(service)
    await watcher.attach()
    waiting = asyncio.create_task(issue(service, wait_seconds=LONG))
    await watcher.change()
    await watcher.renew(release=True)
    propagation = (await waiting).propagation
    assert propagation.effective
    assert not propagation.confirmed


async def test_a_caller_that_goes_away_while_it_waits_has_revoked(service: Service) -> None:
    watcher = Watcher(service)
    await watcher.attach()
    issued = await issue(service, wait_seconds=0)
    waiting = asyncio.create_task(revoke(service, wait_seconds=LONG))
    while (await watcher.change()).revision < 2:
        pass
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await validity(service, issued.api_key) == pb.VERDICT_INVALID_KEY


@pytest.mark.parametrize("revocation", [RevocationLimits(lease_poll_seconds=NEVER)])
async def test_a_confirmation_ends_the_wait_without_polling(service: Service) -> None:
    watcher = Watcher(service)
    await watcher.attach()
    waiting = asyncio.create_task(issue(service, wait_seconds=LONG))
    change = await watcher.change()
    await watcher.renew()  # meanwhile the call has found that it must wait
    await watcher.lease()
    await watcher.acknowledge(change.revision)
    assert (await waiting).propagation.effective


async def test_a_holder_at_another_replica_is_told_and_heard_without_polling(
    migrated_postgres_url: str, tmp_path: Path
) -> None:
    limits = RevocationLimits(poll_seconds=NEVER, lease_poll_seconds=NEVER)
    async with (
        replica(tmp_path / "a", migrated_postgres_url, limits) as here,
        replica(tmp_path / "b", migrated_postgres_url, limits) as there,
    ):
        watchers = [Watcher(there, name="there"), Watcher(here, name="here")]
        for watcher in watchers:
            await watcher.attach()
        for _ in range(5):
            project_id = f"p{watchers[0].applied_revision}"
            waiting = asyncio.create_task(issue(here, project_id, wait_seconds=LONG))
            for watcher in watchers:
                await watcher.acknowledge((await watcher.change()).revision)
            answer = await waiting
            assert answer.propagation.effective
            assert names(answer.propagation.confirmed) == ["here", "there"]


async def test_a_holder_at_another_process_on_the_same_file_is_told_and_heard_by_polling(tmp_path: Path) -> None:
    file = f"sqlite:///{tmp_path / 'shared.db'}"
    async with (
        running(tmp_path / "a", AUTHSVC_DATABASE_URL=file) as here,
        running(tmp_path / "b", AUTHSVC_DATABASE_URL=file) as there,
    ):
        watcher = Watcher(there)
        await watcher.attach()
        waiting = asyncio.create_task(issue(here, wait_seconds=LONG))
        await watcher.acknowledge((await watcher.change()).revision)
        assert names((await waiting).propagation.confirmed) == ["bridge-1"]


async def test_a_database_that_is_lost_while_a_call_waits_costs_it_nothing_but_the_wait(
    private_postgres: PostgresServer, tmp_path: Path
) -> None:
    """The change is committed, and its API key is shown this once."""
    async with replica(tmp_path / "state", private_postgres.url("migrated")) as service:
        watcher = Watcher(service)
        await watcher.attach()
        waiting = asyncio.create_task(issue(service, wait_seconds=1.0))
        await watcher.change()
        await asyncio.to_thread(private_postgres.stop)
        answer = await waiting
        assert answer.api_key.startswith("dt_")
        assert not answer.propagation.effective
        assert instant(answer.propagation.effective_by) > datetime.now(UTC)
        assert names(answer.propagation.pending) in ([], ["bridge-1"])  # none, when they could not be read at all
        await asyncio.to_thread(private_postgres.start)


async def test_a_database_that_is_lost_before_the_holders_were_read_leaves_the_longest_lease(
    migrated_postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the database's clock, whatever the service's own says."""

    async def lost(self: LeaseStore) -> None:
        raise StoreUnavailableError("the test says so")

    monkeypatch.setattr(LeaseStore, "rows", lost)
    monkeypatch.setattr(app_module, "now", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    async with replica(tmp_path / "state", migrated_postgres_url) as service:
        before = datetime.now(UTC)
        answer = await issue(service, wait_seconds=0)
        assert answer.api_key.startswith("dt_")
        assert not answer.propagation.effective
        too_late = datetime.now(UTC) + LEASE_AND_MARGIN + timedelta(seconds=5)  # for a database that answers slowly
        assert before + LEASE_AND_MARGIN <= instant(answer.propagation.effective_by) <= too_late


async def test_the_longest_lease_is_that_of_the_commit_however_long_the_wait_and_the_machine_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By clocks that count while the machine is suspended, as it is before the call."""
    seconds = 0.0

    async def lost(self: LeaseStore) -> None:
        nonlocal seconds
        seconds += 10.0
        raise StoreUnavailableError("the test says so")

    async def never(self: ChangeFeed) -> None:
        await asyncio.Event().wait()

    start = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(LeaseStore, "rows", lost)
    monkeypatch.setattr(ChangeFeed, "run", never)  # all it knows is what it read at the start
    monkeypatch.setattr(app_module, "now", lambda: start + timedelta(seconds=seconds))
    monkeypatch.setattr(app_module, "boot_clock", lambda: seconds)
    async with running(tmp_path / "state") as service:
        seconds += 3600.0
        answer = await issue(service, wait_seconds=0.2)
        assert not answer.propagation.effective
        assert instant(answer.propagation.effective_by) == start + timedelta(seconds=3600) + LEASE_AND_MARGIN
        assert seconds > 3610.0, "it went on waiting"


@pytest.mark.parametrize("revocation", [RevocationLimits(lease_poll_seconds=NEVER)])
async def test_calls_that_wait_together_look_at_the_leases_together(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each for itself would read the whole table whenever any of them, or of the holders, has done something."""
    silent = Watcher(service, name="silent")
    await silent.attach()
    projects = [f"p{number}" for number in range(50)]
    for project_id in projects:
        await issue(service, project_id, wait_seconds=0)
    reads, rows = 0, LeaseStore.rows

    async def counted(self: LeaseStore) -> Any:
        nonlocal reads
        reads += 1
        return await rows(self)

    monkeypatch.setattr(LeaseStore, "rows", counted)
    requests = [pb.RevokeRequest(project_id=project_id, wait=wait(1.0)) for project_id in projects]
    answers = await asyncio.gather(*(service.keys.Revoke(each, metadata=service.token()) for each in requests))
    assert {answer.revision for answer in answers} == set(range(51, 101))
    assert [names(answer.propagation.pending) for answer in answers] == [["silent"]] * 50
    assert reads <= 2 * 50 + 1, "a look for each commit, and one for each call that came while one was under way"


async def test_who_comes_while_others_look_at_the_leases_gets_a_look_of_its_own(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is under way may have read from before the commit: a holder that came meanwhile would be missed."""
    looks, rows, ask = [asyncio.Event(), asyncio.Event()], LeaseStore.rows, Lessor.rows
    asked = 0

    async def gated(self: LeaseStore) -> Any:
        found = await rows(self)
        if not looks[0].is_set():
            looks[0].set()
            await looks[1].wait()
        return found

    async def counted(self: Lessor) -> Any:
        nonlocal asked
        asked += 1
        return await ask(self)

    monkeypatch.setattr(LeaseStore, "rows", gated)
    monkeypatch.setattr(Lessor, "rows", counted)
    first = asyncio.create_task(issue(service, "first", wait_seconds=0))
    await looks[0].wait()
    watcher = Watcher(service)
    await watcher.attach()
    second = asyncio.create_task(issue(service, "second", wait_seconds=0))
    await until("both have asked", lambda: asked == 2)
    looks[1].set()
    assert (await first).propagation.effective
    assert names((await second).propagation.pending) == ["bridge-1"]


async def test_the_longest_lease_is_reckoned_from_after_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that took: what was granted meanwhile counts without the change."""
    seconds, revoke_key = 0.0, KeyStore.revoke

    async def slow(*arguments: Any) -> Any:
        nonlocal seconds
        outcome = await revoke_key(*arguments)
        seconds += 7.0
        return outcome

    async def lost(self: LeaseStore) -> None:
        raise StoreUnavailableError("the test says so")

    async def never(self: ChangeFeed) -> None:
        await asyncio.Event().wait()

    start = datetime(2026, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(KeyStore, "revoke", slow)
    monkeypatch.setattr(LeaseStore, "rows", lost)
    monkeypatch.setattr(ChangeFeed, "run", never)
    monkeypatch.setattr(app_module, "now", lambda: start + timedelta(seconds=seconds))
    monkeypatch.setattr(app_module, "boot_clock", lambda: seconds)
    async with running(tmp_path / "state") as service:
        await issue(service, wait_seconds=0)
        propagation = (await revoke(service, wait_seconds=0)).propagation
    assert instant(propagation.effective_by) == start + timedelta(seconds=7) + LEASE_AND_MARGIN


@pytest.mark.parametrize("revocation", [RevocationLimits(read_seconds_max=LONG)])
async def test_only_the_first_look_at_the_leases_may_outlast_the_wait(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is enough to name who is pending; one that hangs later costs nothing but the wait."""
    watcher = Watcher(service)
    await watcher.attach()
    rows, looks = LeaseStore.rows, 0

    async def hanging(self: LeaseStore) -> Any:
        nonlocal looks
        looks += 1
        if looks > 1:
            await asyncio.Event().wait()
        return await rows(self)

    monkeypatch.setattr(LeaseStore, "rows", hanging)
    started = time.monotonic()
    answer = await issue(service, wait_seconds=0.3, timeout=LONG)
    assert time.monotonic() - started < LONG / 2
    assert looks == 2
    assert names(answer.propagation.pending) == ["bridge-1"]


async def test_a_database_that_hangs_does_not_outlast_the_caller(migrated_postgres_url: str, tmp_path: Path) -> None:
    """Someone has locked the leases: the API key comes all the same, before the caller gives up."""
    limits = RevocationLimits(response_seconds=1.0)
    async with replica(tmp_path / "state", migrated_postgres_url, limits) as service:
        database = Database(migrated_postgres_url)
        async with database.writing() as connection:
            await connection.exec_driver_sql("LOCK TABLE leases IN ACCESS EXCLUSIVE MODE")
            answer = await issue(service, wait_seconds=0.2, timeout=1.5)
            assert answer.api_key.startswith("dt_")
            assert not answer.propagation.effective
            await connection.rollback()
        await database.close()
        assert (await revoke(service)).propagation.effective


async def test_a_slow_look_at_the_leases_is_waited_for_beyond_the_wait(
    migrated_postgres_url: str, tmp_path: Path
) -> None:
    """An answer that names nobody is of little use to who has time."""
    async with replica(tmp_path / "state", migrated_postgres_url) as service:
        watcher = Watcher(service)
        await watcher.attach()
        database = Database(migrated_postgres_url)
        async with database.writing() as connection:
            await connection.exec_driver_sql("LOCK TABLE leases IN ACCESS EXCLUSIVE MODE")
            waiting = asyncio.create_task(issue(service, wait_seconds=0))
            await blocked(connection, 1)  # the look is under way, and nobody was to wait for it
        assert names((await waiting).propagation.pending) == ["bridge-1"]
        await database.close()
