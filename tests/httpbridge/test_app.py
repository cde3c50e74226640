"""The bridge as it is started: what it asks of the system."""

import asyncio
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from authsvc.client.environment import Address
from httpbridge.app import serve
from httpbridge.config import Config
from httpbridge.server import CONNECTIONS_MAX


@asynccontextmanager
async def started(config: Config) -> AsyncIterator[Address]:
    """Run the bridge, with no key service to be found."""
    stop, address = asyncio.Event(), asyncio.get_running_loop().create_future()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(config, stop, address.set_result))
        try:
            yield await address
        finally:
            stop.set()


@pytest.fixture
def open_files_max() -> Iterator[int]:
    """Set a small soft limit, and return the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(listen=Address("127.0.0.1", 0), key_service=Address("127.0.0.1", 1), state_dir=tmp_path)


async def test_as_many_open_files_are_asked_for_as_connections_may_need(config: Config, open_files_max: int) -> None:
    """Otherwise the usual 1,024 would be the bound, and accepting would fail at it."""
    async with started(config):
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= (
        CONNECTIONS_MAX if open_files_max == resource.RLIM_INFINITY else min(CONNECTIONS_MAX, open_files_max)
    )
