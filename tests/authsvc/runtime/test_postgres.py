"""Connections to PostgreSQL: what URLs ask for, and what is given up behind a pooler, and only there."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest
import sqlalchemy as sa
import trustme

from authsvc.runtime.database_url import PostgresAddress, SetupError, parse_database_url
from authsvc.runtime.postgres import Connection, Postgres, StandbyError, separate
from tests.authsvc.storage.test_database import demand_passwords
from tests.e2e.processes import free_port
from tests.pgbouncer import SESSIONS, PgBouncer, spread
from tests.postgres import PostgresServer, database_name

PID = "SELECT pg_backend_pid()"


def postgres(url: str, settings: dict[str, str] | None = None, *, is_primary: bool = False) -> Postgres:
    address = parse_database_url(url)
    assert isinstance(address, PostgresAddress)
    return Postgres(address, program="tests", command_seconds_max=30, settings=settings or {}, is_primary=is_primary)


@asynccontextmanager
async def connected(url: str, **settings: str) -> AsyncIterator[Connection]:
    connection = await postgres(url, settings).connect()
    try:
        yield connection
    finally:
        await connection.close()


async def show(connection: Connection, setting: str) -> str:
    value: str = await connection.fetchval("SELECT current_setting($1)", setting)
    return value


async def test_the_server_is_told_what_the_url_says(postgres_url: str) -> None:
    async with connected(postgres_url) as connection:
        assert await show(connection, "application_name") == "tests"
    url = f"{postgres_url}&application_name=my%20keys&options=-c%20geqo%3Doff%20-c%20work_mem%3D1MB"
    async with connected(url, work_mem="2MB") as connection:
        assert await show(connection, "application_name") == "my keys"
        assert await show(connection, "geqo") == "off"
        assert await show(connection, "work_mem") == "2MB", "what we need goes before what the URL says"


@pytest.mark.parametrize("where", ["user", "query", "passfile"])
async def test_a_password_may_have_any_character(private_postgres: PostgresServer, tmp_path: Path, where: str) -> None:
    password = r"p@/:?#[]%20 +&=ä€\x"
    private_postgres.sql(f"ALTER ROLE postgres PASSWORD '{password}'")
    demand_passwords(private_postgres)
    private_postgres.sql("SELECT pg_reload_conf()")
    passfile = tmp_path / "pass"
    passfile.write_text(
        "# a comment\n*:*:*:other:no\nlocalhost:5432:postgres:postgres:"
        + password.replace("\\", "\\\\").replace(":", "\\:")
        + "\n"
    )
    passfile.chmod(0o600)
    host, encoded = quote(str(private_postgres.directory), safe=""), quote(password, safe="")
    url = {
        "user": f"postgres://postgres:{encoded}@{host}/postgres",
        "query": f"postgres:///postgres?host={host}&user=postgres&password={encoded}",
        "passfile": f"postgres://postgres@{host}/postgres?passfile={quote(str(passfile))}",
    }[where]
    async with connected(url) as connection:
        assert await connection.fetchval("SELECT 1") == 1


@pytest.mark.parametrize(("mode", "message"), [(0o644, "its mode must be 0600"), (None, "No such file or directory")])
async def test_a_passfile_that_cannot_be_used_is_named(
    postgres_url: str, tmp_path: Path, mode: int | None, message: str
) -> None:
    """To pass over it as libpq does would not help, as the server would then speak of a password."""
    passfile = tmp_path / "pass"
    if mode is not None:
        passfile.touch()
        passfile.chmod(mode)
    with pytest.raises(SetupError, match=f"^passfile: .*{message}"):
        await postgres(f"{postgres_url}&passfile={passfile}").connect()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Listen on a port, and never answer."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Hold a port on which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


async def test_hosts_are_tried_in_turn_each_for_its_time(postgres_url: str, silent_port: int, closed_port: int) -> None:
    """One that is cut off must not use up the time of those behind it."""
    directory = postgres_url.partition("host=")[2]
    url = f"postgresql://postgres@/postgres?host=127.0.0.1,127.0.0.1,{directory}&port={closed_port},{silent_port},5432"
    async with connected(f"{url}&connect_timeout=1") as connection:
        assert not connection.is_pooled


@pytest.mark.parametrize("role", ["primary", "read-write", "any", "prefer-standby", "standby", "read-only"])
async def test_the_server_has_the_role_that_is_asked_for(private_postgres: PostgresServer, role: str) -> None:
    url = f"{private_postgres.url('postgres')}&target_session_attrs={role}"
    if role in ("standby", "read-only"):
        with pytest.raises(ConnectionError, match=f"no host is {role}"):
            await postgres(url).connect()
        private_postgres.stop()
        private_postgres.demote()
    async with connected(url) as connection:
        assert await connection.fetchval("SELECT pg_is_in_recovery()") is (role in ("standby", "read-only"))


@pytest.mark.parametrize("role", ["standby", "read-only", "prefer-standby"])
def test_who_needs_the_primary_takes_no_url_of_a_standby(role: str) -> None:
    with pytest.raises(SetupError, match="target_session_attrs"):
        postgres(f"postgresql:///x?target_session_attrs={role}", is_primary=True)


@pytest.mark.parametrize(("variable", "value"), [("PGPORT", "many"), ("PGSSLMODE", "sometimes")])
async def test_variables_of_libpq_that_are_wrong_are_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SetupError, match="PG… variables"):
        await postgres("postgresql://127.0.0.1/x").connect()


async def test_a_connection_without_a_pooler_keeps_its_statements_prepared(postgres_url: str) -> None:
    direct = postgres(postgres_url)
    engine = direct.engine(connections_max=1, overflow_max=0, wait_seconds_max=5)
    async with engine.connect() as connection:
        for _ in range(2):
            await connection.execute(sa.text("SELECT 'kept'"))
        count = sa.text("SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT ''kept'''")
        assert (await connection.execute(count)).scalar_one() == 1
    await engine.dispose()
    own = await direct.connect()
    await own.fetchval("SELECT 'kept by the driver'::text")
    kept = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT ''kept by the driver''::text'"
    assert await own.fetchval(kept) == 1
    await own.close()
    assert direct.is_pooled is False


async def test_behind_a_pooler_statements_of_many_clients_land_on_all_sessions_and_nothing_is_prepared(
    pooled_url: str, postgres_url: str
) -> None:
    pooled = postgres(pooled_url)
    engine = pooled.engine(connections_max=8, overflow_max=0, wait_seconds_max=30)

    async def ask() -> list[int]:
        found = []
        for _ in range(20):
            async with engine.connect() as connection:
                await separate(connection)
                found.append((await connection.execute(sa.text(PID))).scalar_one())
        return found

    pids = {pid for found in await asyncio.gather(*(ask() for _ in range(8))) for pid in found}
    assert len(pids) == SESSIONS
    connection = await pooled.connect()
    assert connection.is_pooled
    assert pooled.is_pooled
    for _ in range(SESSIONS):  # it takes turns
        assert await connection.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE name <> ''") == 0
    await connection.close()
    await engine.dispose()


async def test_settings_hold_behind_a_pooler_and_are_left_to_nobody(pooled_url: str) -> None:
    settings = {"work_mem": "1MB", "default_transaction_read_only": "on"}
    pooled = postgres(pooled_url, settings)
    engine = pooled.engine(connections_max=1, overflow_max=0, wait_seconds_max=5)
    for _ in range(2 * SESSIONS):
        async with engine.connect() as connection:
            for setting, value in {"work_mem": "1MB", "transaction_read_only": "on"}.items():
                assert (await connection.execute(sa.text(f"SHOW {setting}"))).scalar_one() == value
    await engine.dispose()
    async with connected(pooled_url, work_mem="1MB") as own:
        for _ in range(2 * SESSIONS):
            async with own.settled():
                assert await show(own, "work_mem") == "1MB"
            assert await show(own, "work_mem") == "4MB"
            assert await show(own, "transaction_read_only") == "off"


async def test_a_pooler_that_turns_to_a_standby_is_found_out_at_the_next_transaction(
    private_postgres: PostgresServer,
) -> None:
    """The connection to the pooler outlives the primary: a look at each connection is not enough."""
    pooler = PgBouncer(private_postgres)
    try:
        pooler.start()
        url = pooler.url("postgres")
        engine = postgres(url, is_primary=True).engine(connections_max=1, overflow_max=0, wait_seconds_max=30)
        async with engine.connect() as connection:
            await connection.execute(sa.text("SELECT 1"))
            await connection.rollback()
            await asyncio.to_thread(private_postgres.stop)
            await asyncio.to_thread(private_postgres.demote)
            await spread(url)
            with pytest.raises(StandbyError):
                await connection.execute(sa.text("SELECT 1"))
            await connection.rollback()
        await engine.dispose()
    finally:
        pooler.close()


async def test_a_primary_behind_a_pooler_is_known_for_one_though_it_was_a_standby(
    private_postgres: PostgresServer,
) -> None:
    """The pooler tells each client what it heard from the server at first."""
    private_postgres.stop()
    private_postgres.demote()
    pooler = PgBouncer(private_postgres)
    try:
        pooler.start()
        url = pooler.url("postgres")
        async with connected(url) as connection:
            assert await connection.fetchval("SELECT pg_is_in_recovery()")
        private_postgres.sql("SELECT pg_promote()")
        connection = await postgres(url, is_primary=True).connect()
        await connection.close()
    finally:
        pooler.close()


async def test_an_engine_that_is_not_imported_costs_callers_of_the_client_nothing() -> None:
    """Who validates keys needs no database."""
    script = "import sys, authsvc.client; assert not {'asyncpg', 'sqlalchemy', 'click'} & sys.modules.keys()"
    assert (await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script])).returncode == 0


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, Path]:
    """Write a CA, another one, and certificates of the first for 127.0.0.1 and for a client."""
    ca, other, files = trustme.CA(), trustme.CA(), {}
    made: dict[str, Any] = {"ca": ca.cert_pem, "other": other.cert_pem}
    for name, issued in (("server", ca.issue_cert("127.0.0.1")), ("client", ca.issue_cert("postgres"))):
        made |= {f"{name}-cert": issued.cert_chain_pems[0], f"{name}-key": issued.private_key_pem}
    for name, blob in made.items():
        files[name] = tmp_path / f"{name}.pem"
        blob.write_to_path(files[name])
        files[name].chmod(0o644)
    (tmp_path / "garbage.pem").write_text("no PEM")
    return files | {"garbage": tmp_path / "garbage.pem", "missing": tmp_path / "missing.pem"}


@pytest.fixture
def tls_pooler(postgres_server: PostgresServer, certificates: dict[str, Path], closed_port: int) -> Iterator[PgBouncer]:
    """Start a pooler that speaks TLS alone, and asks for a client's certificate: the tests' PostgreSQL has no TLS."""
    pooler = PgBouncer(postgres_server, port=free_port())
    for name in ("ca", "server-cert", "server-key"):
        (pooler.directory / name).write_bytes(certificates[name].read_bytes())
        (pooler.directory / name).chmod(0o644)
    with (pooler.directory / "pgbouncer.ini").open("a") as configuration:
        for setting, name in (("ca", "ca"), ("cert", "server-cert"), ("key", "server-key")):
            configuration.write(f"\nclient_tls_{setting}_file = {pooler.directory / name}")
        configuration.write("\nclient_tls_sslmode = verify-ca")
    try:
        pooler.start()
        yield pooler
    finally:
        pooler.close()


CLIENT = "&sslcert={client-cert}&sslkey={client-key}"


@pytest.mark.parametrize(
    ("query", "refused"),
    [
        ("sslmode=verify-full&sslrootcert={ca}" + CLIENT, None),
        ("sslmode=verify-ca&sslrootcert={ca}" + CLIENT, None),
        ("sslmode=require" + CLIENT, None),
        ("ssl=true" + CLIENT, None),
        ("sslmode=prefer" + CLIENT, None),
        ("sslmode=verify-full&sslrootcert={other}" + CLIENT, "the server's certificate is not trusted: "),
        ("sslmode=require&sslrootcert={other}" + CLIENT, "the server's certificate is not trusted: "),
        ("sslrootcert=system" + CLIENT, "the server's certificate is not trusted: "),
        ("sslmode=verify-full&sslrootcert={missing}", "sslrootcert: No such file or directory"),
        ("sslmode=verify-full&sslrootcert={garbage}", "sslrootcert: no certificate or crl found"),
        ("sslmode=require&sslcrl={garbage}", "sslcrl: no certificate or crl found"),
        ("sslmode=require&sslcert={missing}", "sslcert: No such file or directory"),
        ("sslmode=require&sslcert={client-cert}&sslkey={server-key}", "sslcert, sslkey: key values mismatch"),
    ],
)
async def test_tls_is_as_the_url_says(
    tls_pooler: PgBouncer, certificates: dict[str, Path], query: str, refused: str | None
) -> None:
    query = query.format_map(certificates)
    direct = postgres(f"postgresql://postgres@127.0.0.1:{tls_pooler.port}/postgres?{query}")
    if refused is None:
        connection = await direct.connect()
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
        return
    with pytest.raises(SetupError) as error:
        await direct.connect()
    assert str(error.value).startswith(refused)


async def test_without_tls_nothing_is_said_to_a_server_that_asks_for_it(tls_pooler: PgBouncer) -> None:
    url = f"postgresql://postgres@127.0.0.1:{tls_pooler.port}/postgres?sslmode=disable"
    with pytest.raises(asyncpg.PostgresError, match="SSL required"):
        await postgres(url).connect()


async def test_options_of_the_url_that_a_pooler_refuses_are_named(pgbouncer: PgBouncer, postgres_url: str) -> None:
    url = pgbouncer.url(database_name(postgres_url)) + "&options=-c%20geqo%3Doff"
    with pytest.raises(SetupError, match="the parameter options cannot be used"):
        await postgres(url).connect()
