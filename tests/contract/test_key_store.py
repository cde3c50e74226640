"""KeyStore's promises, on SQLite and on PostgreSQL alike."""

import asyncio
import multiprocessing
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
import sqlalchemy as sa

from authsvc.client.api_key import ApiKey
from authsvc.errors import AlreadyExistsError, NotFoundError, StoreUnavailableError
from authsvc.keys import KeyId, ProjectId, generate_api_key, generate_key_id
from authsvc.migrations import upgrade
from authsvc.runtime.environment import ConfigurationError
from authsvc.storage import lease_store
from authsvc.storage import tables as tables_module
from authsvc.storage.database import Database
from authsvc.storage.key_store import SCHEMA_VERSION, KeyStore
from authsvc.storage.records import ActiveKey, ChangeKind, Mutated, NewKey, Revision
from tests.clocks import Clock
from tests.postgres import PostgresServer

DEMO = ProjectId("demo")
START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[KeyStore]:
    database = Database(url)
    try:
        clock = Clock(step_seconds=1.0)
        clock.set(START - timedelta(seconds=1))
        yield KeyStore(database, clock.wall)
    finally:
        await database.close()


@pytest.fixture
async def store(migrated_url: str) -> AsyncIterator[KeyStore]:
    async with opened(migrated_url) as store:
        yield store


def new_key() -> tuple[ApiKey, NewKey]:
    api_key = generate_api_key()
    return api_key, NewKey(generate_key_id(), api_key.digest)


async def issue(store: KeyStore, project_id: ProjectId = DEMO, *origins: str) -> tuple[ApiKey, NewKey]:
    api_key, key = new_key()
    await store.issue(project_id, origins, key, "tester")
    return api_key, key


async def lookup(store: KeyStore, api_key: ApiKey) -> tuple[Revision, ActiveKey | None]:
    """Return what one key is, and the revision that this was read at."""
    snapshot = await store.lookup([api_key.digest])
    return snapshot.revision, snapshot.keys.get(api_key.digest)


def revision_and_new(outcome: Mutated) -> tuple[Revision, bool]:
    return outcome.revision, outcome.is_new


def admits(active: ActiveKey, *origins: str) -> bool:
    """Whether these origins are admitted, and some other is not."""
    return all(map(active.origins.admits, origins)) and not active.origins.admits("https://other.test")


async def test_an_issued_key_is_found_with_its_project_and_origins(store: KeyStore) -> None:
    api_key, key = new_key()
    issued = await store.issue(DEMO, ["https://example.com"], key, "tester")
    stored = issued.key
    assert stored is not None
    assert (stored.key_id, stored.project_id, stored.create_time, stored.revoke_time) == (key.key_id, DEMO, START, None)
    assert (issued.origins, issued.revision) == (("https://example.com",), 1)
    revision, active = await lookup(store, api_key)
    assert active is not None
    assert (revision, active.key_id, active.project_id) == (1, key.key_id, DEMO)
    assert admits(active, "https://example.com")


async def test_an_unknown_digest_is_answered_with_the_revision_it_was_read_at(store: KeyStore) -> None:
    assert await lookup(store, generate_api_key()) == (0, None)
    await issue(store)
    assert await lookup(store, generate_api_key()) == (1, None)


@pytest.mark.parametrize("count", [1, 3, 256])
async def test_many_digests_are_looked_up_in_one_snapshot(store: KeyStore, count: int) -> None:
    """Known, unknown, revoked and repeated ones, in any number."""
    revoked, key = await issue(store)
    active, next_key = new_key()
    await store.revoke(DEMO, key.key_id, next_key, "tester")
    digests = [revoked.digest, active.digest, active.digest, *(generate_api_key().digest for _ in range(count))]
    snapshot = await store.lookup(digests[:count])
    assert snapshot.revision == 2
    assert {digest: key.key_id for digest, key in snapshot.keys.items()} == (
        {active.digest: next_key.key_id} if count > 1 else {}
    )


async def test_lookups_at_once_each_get_their_own_answer(store: KeyStore) -> None:
    """Also more of them than one statement takes, and when some of those who asked have gone."""
    keys = [await issue(store, ProjectId(f"p{number}")) for number in range(3)]
    unknown = generate_api_key()
    wanted = [(*keys[number % 3], f"p{number % 3}") if number % 2 else (unknown, None, "") for number in range(2500)]
    asked = [asyncio.ensure_future(lookup(store, api_key)) for api_key, _, _ in wanted]
    await asyncio.sleep(0)
    for gone in asked[1::7]:
        gone.cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    for position, ((_, key, project_id), answer) in enumerate(zip(wanted, answers, strict=True)):
        if isinstance(answer, asyncio.CancelledError):
            assert position % 7 == 1
            continue
        assert not isinstance(answer, BaseException)
        assert answer[0] == 3
        found = answer[1] and (answer[1].key_id, answer[1].project_id)
        assert found == (key and (key.key_id, project_id))


async def test_a_lookup_sees_whatever_was_committed_before_it(store: KeyStore, migrated_url: str) -> None:
    """Here or by another process: a read leaves no snapshot behind."""
    async with opened(migrated_url) as other:
        for number in range(10):
            api_key, _ = await issue(other if number % 2 else store, ProjectId(f"p{number}"))
            revision, active = await lookup(store, api_key)
            assert (revision, active is not None) == (number + 1, True)


async def test_a_project_with_an_active_key_gets_no_second_one(store: KeyStore) -> None:
    api_key, _ = await issue(store)
    with pytest.raises(AlreadyExistsError, match="demo"):
        await issue(store)
    revision, active = await lookup(store, api_key)
    assert (revision, active is not None) == (1, True), "the refusal consumed a revision or the key"


async def test_revoking_ends_the_key_and_stores_the_next_in_one_step(store: KeyStore) -> None:
    old, old_key = await issue(store, DEMO, "example.com")
    new, new_key_ = new_key()
    outcome = await store.revoke(DEMO, old_key.key_id, new_key_, "tester")
    assert outcome.revoked_key is not None
    assert outcome.key is not None
    assert (outcome.revoked_key.key_id, outcome.revoked_key.revoke_time, outcome.revision) == (
        old_key.key_id,
        START + timedelta(seconds=1),
        2,
    )
    assert outcome.key.key_id == new_key_.key_id
    assert (await lookup(store, old))[1] is None
    _, active = await lookup(store, new)
    assert active is not None
    assert admits(active, "https://example.com")
    assert [key.key_id for key in await store.keys(DEMO, before=None, limit=9)] == [new_key_.key_id, old_key.key_id]


async def test_revoking_a_revoked_key_again_changes_nothing_and_says_so(store: KeyStore) -> None:
    _, old_key = await issue(store)
    next_raw, next_key = new_key()
    first = await store.revoke(DEMO, old_key.key_id, next_key, "tester")
    again = await store.revoke(DEMO, old_key.key_id, new_key()[1], "tester")
    assert again.key is None
    assert (again.revoked_key, again.revision, again.is_new) == (first.revoked_key, 2, False)
    assert (await lookup(store, next_raw))[1] is not None
    assert len(await store.keys(DEMO, before=None, limit=9)) == 2


async def test_unknown_projects_and_keys_are_not_found(store: KeyStore) -> None:
    await issue(store)
    _, other_key = await issue(store, ProjectId("other"))
    with pytest.raises(NotFoundError, match="nobody"):
        await store.revoke(ProjectId("nobody"), None, new_key()[1], "tester")
    with pytest.raises(NotFoundError, match="key_0000"):
        await store.revoke(DEMO, KeyId("key_0000"), new_key()[1], "tester")
    with pytest.raises(NotFoundError):
        await store.revoke(DEMO, other_key.key_id, new_key()[1], "tester")  # another project's
    with pytest.raises(NotFoundError):
        await store.set_origins(ProjectId("nobody"), [], "tester")
    with pytest.raises(NotFoundError):
        await store.project(ProjectId("nobody"))
    with pytest.raises(NotFoundError):
        await store.keys(ProjectId("nobody"), before=None, limit=1)
    assert (await lookup(store, generate_api_key()))[0] == 2, "a refused mutation consumed a revision"


async def test_origins_are_replaced_and_the_active_keys_verdicts_invalidated(store: KeyStore) -> None:
    api_key, _ = await issue(store, DEMO, "example.com")
    assert revision_and_new(await store.set_origins(DEMO, ["a.example", "b.example"], "tester")) == (2, True)
    _, active = await lookup(store, api_key)
    assert active is not None
    assert admits(active, "https://a.example", "https://b.example")
    assert (await store.project(DEMO)).origins == ("a.example", "b.example")
    assert (await store.changes(after=Revision(1), limit=9))[0].invalidated_digests == (api_key.digest,)


async def test_a_list_that_is_stored_already_commits_nothing(store: KeyStore) -> None:
    """Rule 11: the revision is one as of which the list holds, and no verdict is invalidated for it."""
    await issue(store, DEMO)
    assert revision_and_new(await store.set_origins(DEMO, [], "tester")) == (1, False)
    assert revision_and_new(await store.set_origins(DEMO, ["a.example"], "tester")) == (2, True)
    await issue(store, ProjectId("other"))
    assert revision_and_new(await store.set_origins(DEMO, ["a.example"], "tester")) == (3, False)
    assert [change.revision for change in await store.changes(after=Revision(0), limit=9)] == [1, 2, 3]
    assert revision_and_new(await store.set_origins(DEMO, [], "tester")) == (4, True)
    assert (await store.project(DEMO)).origins == ()


async def test_every_mutation_leaves_a_row_that_says_who_did_what_when_and_what_it_voids(store: KeyStore) -> None:
    first, _ = await issue(store)
    second, second_key = new_key()
    await store.revoke(DEMO, None, second_key, "ada")
    await store.set_origins(DEMO, ["example.com"], "grace")
    changes = await store.changes(after=Revision(0), limit=9)
    assert [(c.revision, c.kind, c.project_id, c.caller) for c in changes] == [
        (1, ChangeKind.ISSUE, DEMO, "tester"),
        (2, ChangeKind.REVOKE, DEMO, "ada"),
        (3, ChangeKind.SET_ORIGINS, DEMO, "grace"),
    ]
    assert [c.invalidated_digests for c in changes] == [
        (first.digest,),
        (first.digest, second.digest),
        (second.digest,),
    ]
    assert [c.create_time - START for c in changes] == [timedelta(seconds=n) for n in range(3)]


async def test_a_revocation_voids_the_revoked_keys_digest_first_then_the_new_keys(store: KeyStore) -> None:
    """The audit trail tells by this order which is which."""
    first, _ = await issue(store)
    digests = [first.digest]
    for _ in range(4):  # whatever the order of the digests themselves is
        api_key, key = new_key()
        await store.revoke(DEMO, None, key, "tester")
        digests.append(api_key.digest)
    revocations = await store.changes(after=Revision(1), limit=9)
    assert [change.invalidated_digests for change in revocations] == list(pairwise(digests))


async def test_pages_of_projects_and_keys_join_without_gap_or_repeat(store: KeyStore) -> None:
    names = [ProjectId(f"p{n}") for n in range(5)]
    for name in reversed(names):
        await issue(store, name)
    for _ in range(4):
        await store.revoke(names[0], None, new_key()[1], "tester")
    first = await store.projects(after="", limit=3)
    rest = await store.projects(after=first[-1].project_id, limit=3)
    assert [project.project_id for project in first + rest] == names
    assert all(project.active_key for project in first + rest)
    keys = await store.keys(names[0], before=None, limit=3)
    more = await store.keys(names[0], before=keys[-1].create_revision, limit=3)
    assert len({key.key_id for key in keys + more}) == 5
    assert [key.revoke_time is None for key in keys + more] == [True, False, False, False, False]


async def test_twenty_revocations_at_once_leave_one_active_key_and_a_row_each(
    store: KeyStore, migrated_url: str
) -> None:
    """Two stores on one database, as two replicas of the service."""
    await issue(store)
    async with opened(migrated_url) as other:
        await asyncio.gather(*(s.revoke(DEMO, None, new_key()[1], "tester") for s in [store, other] * 10))
    keys = await store.keys(DEMO, before=None, limit=100)
    assert len(keys) == 21
    assert [key.revoke_time is None for key in keys] == [True] + [False] * 20
    changes = await store.changes(after=Revision(0), limit=100)
    assert [change.revision for change in changes] == list(range(1, 22))


async def test_twenty_revocations_of_one_key_at_once_revoke_it_once(store: KeyStore, migrated_url: str) -> None:
    _, key = await issue(store)
    async with opened(migrated_url) as other:
        outcomes = await asyncio.gather(
            *(s.revoke(DEMO, key.key_id, new_key()[1], "tester") for s in [store, other] * 10)
        )
    assert Counter(outcome.is_new for outcome in outcomes) == {False: 19, True: 1}
    assert len(await store.keys(DEMO, before=None, limit=100)) == 2


async def test_twenty_issues_of_one_new_project_at_once_make_one_key(store: KeyStore, migrated_url: str) -> None:
    async with opened(migrated_url) as other:
        outcomes = await asyncio.gather(*(issue(s) for s in [store, other] * 10), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, AlreadyExistsError)]
    assert len(refused) == 19
    assert len(await store.keys(DEMO, before=None, limit=100)) == 1


async def test_the_database_itself_refuses_a_second_active_key_and_a_repeated_digest(
    store: KeyStore, migrated_url: str
) -> None:
    api_key, _ = await issue(store)
    await issue(store, ProjectId("other"))
    database = Database(migrated_url)
    insert = sa.text(
        "INSERT INTO keys (key_id, project_id, digest, create_revision, create_time, revoke_time) "
        "VALUES ('key_x', 'demo', :digest, 99, :time, :revoked)"
    ).bindparams(
        sa.bindparam("time", type_=sa.DateTime(timezone=True)),
        sa.bindparam("revoked", type_=sa.DateTime(timezone=True)),
    )
    for digest, revoked in ((b"y" * 32, None), (api_key.digest, START)):
        with pytest.raises(sa.exc.IntegrityError):
            async with database.engine.begin() as connection:
                await connection.execute(insert, {"digest": digest, "time": START, "revoked": revoked})
    await database.close()


async def test_a_repeated_digest_rolls_the_whole_mutation_back(store: KeyStore) -> None:
    api_key, _ = await issue(store)
    with pytest.raises(sa.exc.IntegrityError):
        await store.issue(ProjectId("other"), [], NewKey(generate_key_id(), api_key.digest), "tester")
    assert [p.project_id for p in await store.projects(after="", limit=9)] == [DEMO]
    assert (await lookup(store, api_key))[0] == 1


async def test_migrations_make_the_tables_that_the_store_queries(store: KeyStore, migrated_url: str) -> None:
    database = Database(migrated_url)
    async with database.engine.connect() as connection:
        made = await connection.run_sync(
            lambda sync: {
                table: {column["name"]: column["nullable"] for column in sa.inspect(sync).get_columns(table)}
                for table in sa.inspect(sync).get_table_names()
            }
        )
    await database.close()
    made.pop("alembic_version")
    declared = tables_module.METADATA.tables.values()
    assert "leases" in tables_module.METADATA.tables, f"{lease_store.__name__} declares it"
    assert made == {table.name: {column.name: bool(column.nullable) for column in table.columns} for table in declared}


async def test_migrating_is_repeatable_and_ends_at_the_version_the_code_needs(database_url: str) -> None:
    one, other = Database(database_url), Database(database_url)
    assert await one.schema_version() is None
    await asyncio.gather(one.migrate(upgrade), other.migrate(upgrade))
    assert await one.schema_version() == SCHEMA_VERSION
    await one.migrate(upgrade)
    assert await lookup(KeyStore(one, Clock().wall), generate_api_key()) == (0, None)
    await asyncio.gather(one.close(), other.close())


def _hold_write_lock(
    path: str, held: "multiprocessing.synchronize.Event", free: "multiprocessing.synchronize.Event"
) -> None:
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("BEGIN IMMEDIATE")
        held.set()
        free.wait(60)


async def test_a_locked_sqlite_file_is_unavailable_and_then_works_again(
    migrated_sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("authsvc.storage.sqlite._BUSY_TIMEOUT_SECONDS", 0.05)
    async with opened(migrated_sqlite_url) as store:
        api_key, _ = await issue(store)
        context = multiprocessing.get_context("spawn")
        held, free = context.Event(), context.Event()
        process = context.Process(
            target=_hold_write_lock, args=(migrated_sqlite_url.removeprefix("sqlite:///"), held, free)
        )
        process.start()
        try:
            assert await asyncio.to_thread(held.wait, 60)
            with pytest.raises(StoreUnavailableError):
                await store.revoke(DEMO, None, new_key()[1], "tester")
            assert (await lookup(store, api_key))[1] is not None, "a writer must not stop readers"
        finally:
            free.set()
            await asyncio.to_thread(process.join)
        await store.revoke(DEMO, None, new_key()[1], "tester")


async def test_a_postgresql_that_went_away_is_unavailable_and_one_that_came_back_is_used(
    private_postgres: PostgresServer,
) -> None:
    async with opened(private_postgres.url("migrated")) as store:
        api_key, _ = await issue(store)
        await asyncio.to_thread(private_postgres.stop)
        with pytest.raises(StoreUnavailableError):
            await lookup(store, api_key)
        with pytest.raises(StoreUnavailableError):
            await store.revoke(DEMO, None, new_key()[1], "tester")
        await asyncio.to_thread(private_postgres.start)
        assert (await lookup(store, api_key))[1] is not None
        await asyncio.gather(*(lookup(store, api_key) for _ in range(5)))  # several pooled connections
        await asyncio.to_thread(private_postgres.stop)
        await asyncio.to_thread(private_postgres.start)
        assert (await lookup(store, api_key))[1] is not None, "a restart must not cost a validation"
        await store.revoke(DEMO, None, new_key()[1], "tester")


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense", ""])
def test_an_unusable_database_url_is_refused_by_its_variables_name(url: str) -> None:
    with pytest.raises(ConfigurationError, match="AUTHSVC_DATABASE_URL"):
        Database(url)


async def test_keys_say_who_issued_them_and_changes_are_read_from_either_end(store: KeyStore) -> None:
    _, first = new_key()
    issued = await store.issue(DEMO, [], first, "Ann")
    _, second = new_key()
    outcome = await store.revoke(DEMO, first.key_id, second, "Bob")
    keys = [issued.key, outcome.revoked_key, outcome.key]
    assert [key.creator for key in keys if key is not None] == ["Ann", "Ann", "Bob"]
    assert [key.creator for key in await store.keys(DEMO, before=None, limit=9)] == ["Bob", "Ann"]
    active = (await store.project(DEMO)).active_key
    assert active is not None
    assert active.creator == "Bob"
    await store.set_origins(DEMO, ["example.com"], "Cid")
    start = Revision(0)
    newest = await store.changes(after=start, limit=2, is_newest_first=True)
    assert [change.caller for change in newest] == ["Cid", "Bob"]
    older = await store.changes(after=start, limit=2, before=newest[-1].revision, is_newest_first=True)
    assert [change.caller for change in older] == ["Ann"]
    assert [change.caller for change in await store.changes(after=start, limit=2)] == ["Ann", "Bob"]
    expected = {first.digest: first.key_id, second.digest: second.key_id}
    assert await store.key_ids(await store.changes(after=start, limit=3)) == expected
    assert await store.key_ids([]) == {}


async def test_projects_are_found_by_a_part_of_their_ids(store: KeyStore) -> None:
    for project_id in ("a-shop", "b", "shop-c"):
        await issue(store, ProjectId(project_id))
    for containing, expected in (("", 3), ("SHOP", 2), ("b", 1), ("%", 0), ("_", 0), ("\\", 0)):
        assert len(await store.projects(after="", limit=9, containing=containing)) == expected, containing
