"""What the key service makes of its database's refusals and settings: at the start, and while it serves."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc.app import migrate
from authsvc.config import Config
from authsvc.errors import StoreRefusedError, StoreUnavailableError
from authsvc.migrations import upgrade
from authsvc.runtime.environment import ConfigurationError
from authsvc.runtime.postgres import Postgres
from authsvc.storage.database import Database
from authsvc.v1 import key_service_pb2 as pb
from tests.authsvc.conftest import Service, running
from tests.pgbouncer import PgBouncer, spread
from tests.postgres import PostgresServer
from tests.waiting import until

Code = grpc.StatusCode
ROLE = "limited"


@pytest.fixture
def role_url(postgres_server: PostgresServer, postgres_url: str) -> Iterator[str]:
    """Name a fresh database as a role that owns it, and may have its rights taken away."""
    name = sa.make_url(postgres_url).database
    postgres_server.sql(f"CREATE ROLE {ROLE} LOGIN")
    postgres_server.sql(f"ALTER DATABASE {name} OWNER TO {ROLE}")
    yield sa.make_url(postgres_url).set(username=ROLE).render_as_string()
    postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")
    postgres_server.sql(f"CREATE DATABASE {name}")  # for the fixture beneath to drop
    postgres_server.sql(f"DROP ROLE {ROLE}")


@asynccontextmanager
async def migrated(tmp_path: Path, url: str) -> AsyncIterator[Service]:
    await migrate(Config.from_environment({"AUTHSVC_DATABASE_URL": url}))
    async with running(tmp_path / "state", AUTHSVC_DATABASE_URL=url) as service:
        yield service


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda url: url.set(database="nowhere"), 'database "nowhere" does not exist'),
        (lambda url: url.set(username="nobody_known"), 'role "nobody_known" does not exist'),
    ],
    ids=["database", "role"],
)
async def test_what_waiting_does_not_mend_stops_the_start_with_the_servers_words(
    tmp_path: Path, postgres_url: str, change: Callable[[sa.URL], sa.URL], reason: str
) -> None:
    url = change(sa.make_url(postgres_url)).render_as_string()
    with pytest.raises(ConfigurationError, match=f"^AUTHSVC_DATABASE_URL: .*{reason}$"):
        async with running(tmp_path / "state", AUTHSVC_DATABASE_URL=url):
            pass
    with pytest.raises(ConfigurationError, match=reason):
        await migrate(Config.from_environment({"AUTHSVC_DATABASE_URL": url}))


def demand_passwords(server: PostgresServer) -> None:
    Path(server.sql("SHOW hba_file")).write_text("local all all scram-sha-256\n")


async def test_a_wrong_password_stops_the_start(tmp_path: Path, private_postgres: PostgresServer) -> None:
    private_postgres.sql("ALTER ROLE postgres PASSWORD 'right'")
    demand_passwords(private_postgres)
    private_postgres.sql("SELECT pg_reload_conf()")
    url = sa.make_url(private_postgres.url("postgres")).set(password="wrong").render_as_string(hide_password=False)
    with pytest.raises(ConfigurationError, match='password authentication failed for user "postgres"'):
        async with running(tmp_path / "state", AUTHSVC_DATABASE_URL=url):
            pass


async def test_too_many_connections_pass(tmp_path: Path, postgres_server: PostgresServer, role_url: str) -> None:
    await migrate(Config.from_environment({"AUTHSVC_DATABASE_URL": role_url}))
    postgres_server.sql(f"ALTER ROLE {ROLE} CONNECTION LIMIT 0")
    with pytest.raises(StoreUnavailableError):
        async with running(tmp_path / "state", AUTHSVC_DATABASE_URL=role_url):
            pass


@pytest.mark.parametrize(
    "statements",
    [
        f"ALTER ROLE {ROLE} SET default_transaction_read_only = on",  # as a standby after a failover
        f"ALTER ROLE {ROLE} CONNECTION LIMIT 0",
        f"ALTER ROLE {ROLE} NOLOGIN",
        f"REASSIGN OWNED BY {ROLE} TO postgres",
    ],
    ids=["read-only", "connections", "login", "rights"],
)
async def test_a_database_that_refuses_is_unavailable_while_serving(
    tmp_path: Path, postgres_server: PostgresServer, role_url: str, statements: str
) -> None:
    """A refusal is a fault, which callers retry; never INTERNAL."""
    async with migrated(tmp_path, role_url) as service:
        database = str(sa.make_url(role_url).database)
        postgres_server.sql(statements, database)
        postgres_server.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{ROLE}'")
        for _ in range(2):  # the first finds that its connection is gone
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.keys.Issue(pb.IssueRequest(project_id="demo"), metadata=service.token())
            assert (caught.value.code(), caught.value.details()) == (Code.UNAVAILABLE, "the database cannot answer now")


async def test_a_standby_decides_nothing(tmp_path: Path, private_postgres: PostgresServer) -> None:
    """It would admit a key whose revocation it has not heard of: neither at the start nor while serving."""
    url = private_postgres.url("postgres")
    async with migrated(tmp_path, url) as service:
        issued = await service.keys.Issue(pb.IssueRequest(project_id="demo"), metadata=service.token())
        await asyncio.to_thread(private_postgres.stop)
        await asyncio.to_thread(private_postgres.demote)
        for _ in range(2):  # the first finds that its connection is gone
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.keys.Validate(pb.ValidateRequest(api_key=issued.api_key), metadata=service.token())
            assert (caught.value.code(), caught.value.details()) == (Code.UNAVAILABLE, "the database cannot answer now")
    with pytest.raises(StoreUnavailableError) as refused:
        async with running(tmp_path / "state", AUTHSVC_DATABASE_URL=url):
            pass
    assert refused.value.reason == "no host is primary"


async def has_sessions(url: str) -> bool:
    """Say whether the pooler's sessions can be used: for a moment it remembers that the server was away."""
    try:
        await spread(url)
    except asyncpg.PostgresError:
        return False
    return True


async def test_a_standby_behind_a_pooler_decides_nothing(tmp_path: Path, private_postgres: PostgresServer) -> None:
    """The connection to the pooler outlives the primary: a look at it when it is made is not enough."""
    pooler = PgBouncer(private_postgres)
    try:
        pooler.start()
        async with migrated(tmp_path, pooler.url("postgres")) as service:
            issued = await service.keys.Issue(pb.IssueRequest(project_id="demo"), metadata=service.token())
            request = pb.ValidateRequest(api_key=issued.api_key)
            assert (await service.keys.Validate(request, metadata=service.token())).key_id
            await asyncio.to_thread(private_postgres.stop)
            await asyncio.to_thread(private_postgres.demote)
            await until("the pooler has sessions with it", lambda: has_sessions(pooler.url("postgres")))
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await service.keys.Validate(request, metadata=service.token())
                assert caught.value.code() is Code.UNAVAILABLE
    finally:
        pooler.close()


async def test_behind_a_pooler_nobody_is_notified(pooled_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """LISTEN would be another client's a moment later, so what is left is polling; no connection is made for it."""
    async with opened(pooled_url) as database:
        assert not database.notifies
        monkeypatch.setattr(Postgres, "connect", lambda _: pytest.fail("connected"))
        await database.listen("authsvc", lambda: pytest.fail("notified"))


async def test_a_server_without_a_pooler_notifies(postgres_url: str) -> None:
    async with opened(postgres_url) as database:
        assert database.notifies


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://[::1/x",
        "postgresql:///x?host=a&host=b",
        "postgresql:///x?target_session_attrs=standby",
        "mysql://localhost/x",
    ],
)
def test_what_is_no_address_of_a_database_is_refused_by_its_variable(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^AUTHSVC_DATABASE_URL: "):
        Database(url)


async def test_a_server_without_fsync_stops_the_start(tmp_path: Path, private_postgres: PostgresServer) -> None:
    private_postgres.sql("ALTER SYSTEM SET fsync = off")
    private_postgres.sql("SELECT pg_reload_conf()")
    with pytest.raises(ConfigurationError, match=r"^AUTHSVC_DATABASE_URL: .*fsync is off, and must be on"):
        async with running(tmp_path / "state", AUTHSVC_DATABASE_URL=private_postgres.url("postgres")):
            pass


async def test_a_sqlite_file_that_is_not_synced_is_refused(sqlite_url: str) -> None:
    def unsynced(connection: Any, _record: object) -> None:
        connection.cursor().execute("PRAGMA synchronous=NORMAL")

    database = Database(sqlite_url)
    event.listen(database.engine.sync_engine, "connect", unsynced)
    with pytest.raises(StoreRefusedError) as refused:
        await database.open()
    assert refused.value.reason.endswith("synchronous is 1, and must be 2")
    await database.close()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url)
    try:
        await database.migrate(upgrade)
        yield database
    finally:
        await database.close()


async def revision(connection: AsyncConnection) -> int:
    found: int = (await connection.execute(sa.text("SELECT revision FROM revision_counter"))).scalar_one()
    return found


async def test_the_statements_of_one_reading_see_one_snapshot(sqlite_url: str) -> None:
    """On SQLite: its driver begins nothing by itself, and each statement would see what was committed last."""
    async with opened(sqlite_url) as database, database.reading() as connection:
        assert await revision(connection) == 0
        async with database.writing() as other:
            await other.execute(sa.text("UPDATE revision_counter SET revision = 1"))
        assert await revision(connection) == 0
        async with database.reading() as another:
            assert await revision(another) == 1


async def test_a_key_of_no_project_is_refused_by_the_database(database_url: str) -> None:
    """SQLite would take it, unless told at each connection to hold foreign keys."""
    insert = sa.text(
        "INSERT INTO keys (key_id, project_id, digest, create_revision, create_time)"
        " VALUES ('key_0', 'nobody', :digest, 1, CURRENT_TIMESTAMP)"
    )
    async with opened(database_url) as database, database.writing() as connection:
        with pytest.raises(sa.exc.IntegrityError):
            await connection.execute(insert, {"digest": bytes(32)})
        await connection.rollback()


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir() if path.is_file()}


async def test_the_database_is_its_users_alone_wherever_it_lies(tmp_path: Path) -> None:
    """The directory may be everyone's."""
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    async with running(tmp_path / "state", AUTHSVC_DATABASE_URL=url) as service:
        await service.keys.Issue(pb.IssueRequest(project_id="demo"), metadata=service.token())
        assert modes(tmp_path) == {"keys.db": 0o600, "keys.db-wal": 0o600, "keys.db-shm": 0o600}
    with closing(sqlite3.connect(tmp_path / "keys.db")) as connection:
        assert connection.execute("SELECT count(*) FROM keys").fetchone() == (1,)


async def test_revoking_what_is_no_key_id_is_not_found(tmp_path: Path, database_url: str) -> None:
    """Whatever the database could make of it, such as U+0000, which PostgreSQL does not take."""
    async with migrated(tmp_path, database_url) as service:
        admin = service.token()
        await service.keys.Issue(pb.IssueRequest(project_id="demo"), metadata=admin)
        for key_id in ("", "\0", "key_0123456789abcde\0", "key_0123456789abcdef\0", "key_0123456789ABCDEF", "ä" * 1000):
            request = pb.RevokeRequest(project_id="demo", key_id=key_id)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await service.keys.Revoke(request, metadata=admin)
            assert caught.value.code() is Code.NOT_FOUND, key_id
