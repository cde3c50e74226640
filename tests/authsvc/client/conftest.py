"""A running fake key service, and a clock to move."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import trustme

from authsvc.client import key_client as key_client_module
from authsvc.client.validator import KeyValidator
from authsvc.runtime.environment import Address
from tests.authsvc.client.fake_key_service import FakeKeyService, serve, server_credentials
from tests.clocks import Clock
from tests.waiting import until


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Make a clock that the event loop's timers follow: moving it ends the waits that are due by then."""
    clock = Clock()
    loop = asyncio.get_running_loop()
    time, start = loop.time, clock.now
    monkeypatch.setattr(loop, "time", lambda: time() + clock.now - start)
    return clock


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


@pytest.fixture
async def validator(service: FakeKeyService, address: Address, clock: Clock) -> AsyncIterator[KeyValidator]:
    """Make a validator that has a lease."""
    async with KeyValidator(address, service.token, name="bridge-1", clock=clock) as validator:
        await until("it has a lease", lambda: validator.has_lease)
        yield validator


@pytest.fixture
def one_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients open a single channel, so that the second lookup already finds a stream, however slow it is."""
    monkeypatch.setattr(key_client_module, "_CHANNELS", 1)
    monkeypatch.setattr(key_client_module, "_FIRST_RESPONSE_SECONDS", 30.0)


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
