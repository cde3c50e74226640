"""The databases that tests run on: real SQLite files and a real PostgreSQL."""

import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.measured import measured, pytest_terminal_summary
from tests.pgbouncer import PgBouncer, spread
from tests.postgres import PostgresServer, database_name

__all__ = ["measured", "pytest_terminal_summary"]

# Before gRPC is imported: the PostgreSQL server is started by a fork (`subprocess` needs one to change the user), and
# gRPC's own handlers for forks crash the child when its threads are busy.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

# A shell starts its background jobs with SIGINT ignored, and what they start inherits that: tests interrupt programs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# In CI what has passed must pass again; elsewhere each run looks at other examples. How long one takes is no matter.
hypothesis.settings.register_profile("ours", derandomize=bool(os.environ.get("CI")), deadline=None)
hypothesis.settings.load_profile("ours")

_database_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/simulation."""
    parser.addoption("--simulation-steps", type=int, default=1_000_000, help="how many steps to simulate")
    parser.addoption("--simulation-seed", type=int, default=0, help="the seed to begin with")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Start the server that all tests share; one that stops or breaks it takes `private_postgres`."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def private_postgres() -> Iterator[PostgresServer]:
    """Start a server of this test's own, to stop and start; its database `postgres` is empty."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Make a fresh, empty PostgreSQL database, dropped afterwards."""
    name = f"test_{next(_database_numbers)}"
    postgres_server.sql(f"CREATE DATABASE {name}")
    yield postgres_server.url(name)
    postgres_server.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def pgbouncer(postgres_server: PostgresServer, postgres_url: str) -> AsyncIterator[PgBouncer]:
    """Start a pooler of this test's own, which has several sessions with the database of `postgres_url`."""
    pooler = PgBouncer(postgres_server)
    try:
        pooler.start()
        await spread(pooler.url(database_name(postgres_url)))
        yield pooler
    finally:
        pooler.close()


@pytest.fixture
def pooled_url(pgbouncer: PgBouncer, postgres_url: str) -> str:
    """Name the fresh database of `postgres_url` by way of `pgbouncer`."""
    return pgbouncer.url(database_name(postgres_url))


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """Name a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Give a fresh, empty database: the test runs once on SQLite and once on PostgreSQL."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    return url
