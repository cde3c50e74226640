"""The databases that tests run on: real SQLite files and a real PostgreSQL."""

import fcntl
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import hypothesis
import pytest

from tests.e2e import forks
from tests.measured import measured, pytest_terminal_summary
from tests.migrated import migrate, put_migrated
from tests.pgbouncer import PgBouncer, spread
from tests.postgres import PostgresServer, database_name, fresh_database
from tests.scratch import SCRATCH

__all__ = ["measured", "pytest_terminal_summary"]

# Where pytest makes the directories of `tmp_path`.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SCRATCH))

# Before gRPC is imported: the PostgreSQL server is started by a fork (`subprocess` needs one to change the user), and
# gRPC's own handlers for forks crash the child when its threads are busy.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

# A shell starts its background jobs with SIGINT ignored, and what they start inherits that: tests interrupt programs.
signal.signal(signal.SIGINT, signal.default_int_handler)

# In CI what has passed must pass again; elsewhere each run looks at other examples. How long one takes is no matter.
for name, examples in (("short", 40), ("long", 300)):
    hypothesis.settings.register_profile(
        name, max_examples=examples, derandomize=bool(os.environ.get("CI")), deadline=None
    )

MIGRATED = "migrated"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option for the long forms, and those of tests/simulation."""
    parser.addoption("--long", action="store_true", help="run the long forms: all seeds, all rounds, all variants")
    parser.addoption("--simulation-steps", type=int, help="how many steps to simulate")
    parser.addoption("--simulation-seed", type=int, default=0, help="the seed to begin with")


def pytest_configure(config: pytest.Config) -> None:
    """Choose how many examples Hypothesis tries, and how commands are started."""
    is_long = config.getoption("--long")
    hypothesis.settings.load_profile("long" if is_long else "short")
    # Coverage is measured in what is executed.
    if not is_long and "COVERAGE_PROCESS_CONFIG" not in os.environ:
        forks.in_use = forks.Forks()


def pytest_unconfigure() -> None:
    """End what starts commands."""
    if forks.in_use:
        forks.in_use.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked as `long`, unless asked for it."""
    if config.getoption("--long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in set(long)]


@pytest.fixture(scope="session")
def is_long(pytestconfig: pytest.Config) -> bool:
    """Whether a test is to run in its long form."""
    return bool(pytestconfig.getoption("--long"))


@pytest.fixture(scope="session")
def postgres_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the data that every server begins with, once for all workers of pytest-xdist: `initdb` takes seconds.

    Its database `migrated` has the key service's schema.
    """
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    data = directory / "postgres"
    with (directory / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not data.exists():
            with closing(PostgresServer(parent=SCRATCH)) as server:
                server.start()
                server.sql(f"CREATE DATABASE {MIGRATED}")
                migrate(server.url(MIGRATED))
                server.stop()
                server.keep(data)
    return data


@pytest.fixture(scope="session")
def postgres_server(postgres_data: Path) -> Iterator[PostgresServer]:
    """Start the server that all tests of a worker share; one that stops or breaks it takes `private_postgres`."""
    with closing(PostgresServer(postgres_data, SCRATCH)) as server:
        server.start()
        yield server


@pytest.fixture
def private_postgres(postgres_data: Path) -> Iterator[PostgresServer]:
    """Start a server of this test's own, to stop and start; its database `postgres` is empty."""
    with closing(PostgresServer(postgres_data, SCRATCH)) as server:
        server.start()
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Make a fresh, empty PostgreSQL database, dropped afterwards."""
    with fresh_database(postgres_server, "template1") as url:
        yield url


@pytest.fixture
def migrated_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Make a fresh PostgreSQL database with the key service's schema, dropped afterwards."""
    with fresh_database(postgres_server, MIGRATED) as url:
        yield url


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


@pytest.fixture
def migrated_sqlite_url(sqlite_url: str) -> str:
    """Make a SQLite file with the key service's schema."""
    put_migrated(Path(sqlite_url.removeprefix("sqlite:///")))
    return sqlite_url


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest) -> str:
    """Give a fresh database with the key service's schema, of each kind in turn."""
    url: str = request.getfixturevalue(f"migrated_{'postgres' if request.param == 'postgresql' else 'sqlite'}_url")
    return url
