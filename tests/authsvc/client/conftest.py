"""A running fake key service, and a clock to move."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import trustme

from authsvc.client.environment import Address
from tests.authsvc.client.fake_key_service import Clock, FakeKeyService, serve, server_credentials


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


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_certificate(authority: trustme.CA) -> grpc.ServerCredentials:
    """Make a server's certificate for localhost and 127.0.0.1; clients show none."""
    return server_credentials(authority)


@pytest.fixture
async def unhandled() -> list[dict[str, Any]]:
    """Collect what the event loop would report as nobody's error."""
    contexts: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))
    return contexts
