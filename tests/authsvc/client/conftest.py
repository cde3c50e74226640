"""A running fake key service, and a clock to move."""

from collections.abc import AsyncIterator

import pytest

from authsvc.client.environment import Address
from tests.authsvc.client.fake_key_service import Clock, FakeKeyService, serve


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service() -> FakeKeyService:
    return FakeKeyService()


@pytest.fixture
async def address(service: FakeKeyService) -> AsyncIterator[Address]:
    """Where `service` listens."""
    server, port = serve(service, "127.0.0.1:0")
    await server.start()
    yield Address("127.0.0.1", port)
    service.gate.set()
    await server.stop(None)
