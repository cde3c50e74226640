"""The SQL sink on PostgreSQL: outages, its durability settings, and addresses it refuses."""

import asyncio
import signal

import asyncpg
import pytest
import sqlalchemy as sa

from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.sink import open_sql_sink
from tests.contract.test_log_sink import Clock, batch, sink_on, stored_messages
from tests.postgres import PostgresServer


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
async def test_the_store_may_go_and_come_back(private_postgres: PostgresServer, how: signal.Signals) -> None:
    """Away it is unavailable, to writes and to `check`; back, it takes writes again, with nothing lost or doubled."""
    url = private_postgres.url("postgres")
    clock = Clock()
    async with sink_on(url, monotonic=clock) as sink:
        await sink.write(batch("before"))
        private_postgres.stop(how)
        with pytest.raises(StoreUnavailableError):
            await sink.write(batch("refused"))
        clock.seconds += 10
        with pytest.raises(StoreUnavailableError):
            await sink.check()
        private_postgres.start()
        clock.seconds += 10
        await sink.check()
        await sink.write(batch("after"))
    assert await stored_messages(url) == ["before", "after"]


async def test_a_restart_between_two_writes_costs_nobody_a_batch(private_postgres: PostgresServer) -> None:
    """A connection that the server closed meanwhile is replaced before it is used."""
    url = private_postgres.url("postgres")
    async with sink_on(url) as sink:
        await sink.write(batch("before"))
        await asyncio.to_thread(private_postgres.stop)  # meanwhile the loop sees the connection end
        await asyncio.to_thread(private_postgres.start)
        await sink.write(batch("after"))
    assert await stored_messages(url) == ["before", "after"]


async def test_the_bridge_may_start_before_the_store(private_postgres: PostgresServer) -> None:
    url = private_postgres.url("postgres")
    private_postgres.stop()
    clock = Clock()
    async with sink_on(url, monotonic=clock) as sink:
        with pytest.raises(StoreUnavailableError):
            await sink.check()
        private_postgres.start()
        clock.seconds += 10
        await sink.check()
        await sink.write(batch("first"))
    assert await stored_messages(url) == ["first"]


async def test_a_server_without_fsync_is_refused(private_postgres: PostgresServer) -> None:
    private_postgres.sql("ALTER SYSTEM SET fsync = off")
    private_postgres.sql("SELECT pg_reload_conf()")
    with pytest.raises(StoreSetupError, match="fsync is off, and must be on"):
        await open_sql_sink(private_postgres.url("postgres"), monotonic=Clock())


async def test_a_role_with_asynchronous_commits_is_overruled(
    postgres_url: str, postgres_server: PostgresServer
) -> None:
    """The session sets synchronous_commit itself, whatever the database's default is."""
    name = sa.make_url(postgres_url).database
    postgres_server.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    async with sink_on(postgres_url) as sink:
        await sink.write(batch("durable"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("/test_", "/missing_"), "does not exist"),
        (("//postgres@", "//stranger@"), 'role "stranger" does not exist'),
    ],
)
async def test_what_waiting_does_not_mend_stops_the_start(
    postgres_url: str, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(StoreSetupError, match=message) as refused:
        await open_sql_sink(postgres_url.replace(*change), monotonic=Clock())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://root:secret@host/x", "expected sqlite:///FILE or postgresql://"),
        ("/var/lib/secret.db", "expected sqlite:///FILE or postgresql://"),
        ("sqlite:///secret.db?timeout=5", "options after \\?"),
        ("postgresql://host:notaport/secret", "port must be a number"),
        ("postgresql://u:secret@localhost/x?sslmode=sometimes", "sslmode"),
    ],
)
async def test_an_address_that_is_none_is_one_clear_line_without_secrets(url: str, message: str) -> None:
    with pytest.raises(StoreSetupError, match=message) as refused:
        await open_sql_sink(url, monotonic=Clock())
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_a_locked_table_is_unavailable_in_bounded_time(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session's lock costs a commit its deadline, and the batch is not stored later on."""
    async with sink_on(postgres_url) as sink:
        await sink.write(batch("before"))
        blocker = await asyncpg.connect(postgres_url)
        await blocker.execute("BEGIN; LOCK TABLE chunks")
        monkeypatch.setattr("httpbridge.log_store.postgres_store.COMMIT_SECONDS_MAX", 0.3)
        with pytest.raises(StoreUnavailableError):
            await sink.write(batch("refused"))
        monkeypatch.undo()
        await blocker.close()
        await sink.write(batch("after"))
    assert await stored_messages(postgres_url) == ["before", "after"]
