"""Every way to a log store: a SQLite file, PostgreSQL, and the one writer of several workers."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from httpbridge.log_store.sink import Store, store_at
from httpbridge.log_store.writer import serve_writer
from httpbridge.log_store.writer_client import RemoteStore

SOCKET = Path("log-writer")
"""Where the writer listens, in the working directory: long paths cannot be bound."""


class WrittenElsewhere(str):
    """The address of a SQLite file that another one writes to; whoever reads opens the file."""

    __slots__ = ()


def written_store(url: str) -> Store:
    """Return the store as who writes logs has it, not opened yet."""
    return RemoteStore(SOCKET) if isinstance(url, WrittenElsewhere) else store_at(url)


@pytest.fixture
async def remote_url(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """Run the writer of several workers meanwhile."""
    monkeypatch.chdir(tmp_path)
    stop, started = asyncio.Event(), asyncio.Event()
    writer = asyncio.create_task(serve_writer(sqlite_url, SOCKET, stop, started.set))
    await started.wait()
    yield WrittenElsewhere(sqlite_url)
    stop.set()
    await writer


@pytest.fixture(params=["sqlite", "postgresql", "remote"])
def written_url(request: pytest.FixtureRequest) -> str:
    """Give a fresh, empty store, to be opened by `written_store`: the test runs once for each way to one."""
    name = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "remote": "remote_url"}[request.param]
    url: str = request.getfixturevalue(name)
    return url
