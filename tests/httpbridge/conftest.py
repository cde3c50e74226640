"""The public HTTP server on a real socket, with the key service and the log store replaced at their boundaries."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import pytest
import trustme

from authsvc.client import Decision, KeyServiceUnavailableError, Verdict
from authsvc.client.api_key import ApiKey, Digest
from authsvc.client.validator import KeyValidator
from authsvc.client.verdict_cache import sendable_origin
from authsvc.runtime.environment import Address
from authsvc.runtime.networks import Networks
from httpbridge.http.bodies import Budget
from httpbridge.http.listener import Listener
from httpbridge.http.request import Router
from httpbridge.http.responses import Response, ready
from httpbridge.http.server import PublicServer, ServerLimits
from httpbridge.ingest.handler import Ingest, RateLimit
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.logs import LogBatch
from tests import http_exchange
from tests.clocks import Clock, RunningClock
from tests.http_exchange import Answer, Connection

KEY = "dt_0123456789abcdef01234567"
KEY_ID = "key-1"
SECOND_KEY = "dt_89abcdef0123456789abcdef"
KEY_IDS = {KEY: KEY_ID, SECOND_KEY: "key-2"}
PROJECT_ID = "demo"
OTHER_KEY = "dt_ffffffffffffffffffffffff"
BLOCKED_ORIGIN = "https://evil.example"
NOBODY = Networks()
BODY = b'{"logs": [{"level": "info", "message": "hello"}]}'


class FakeValidator:
    """Stands for the key service's client: knows two keys, and one origin that its project does not admit."""

    def __init__(self) -> None:
        self.asked: list[tuple[Digest, str | None]] = []
        self.is_asked = asyncio.Event()
        self.remembers = False
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()

    def cached(self, api_key: ApiKey, origin: str | None) -> Decision | None:
        return self._decide(api_key, origin) if self.remembers else None

    async def validate(self, api_key: ApiKey, origin: str | None) -> Decision:
        self.asked.append((api_key.digest, origin))
        self.is_asked.set()
        await self.gate.wait()
        if self.is_away:
            raise KeyServiceUnavailableError("the key service is away")
        return self._decide(api_key, origin)

    @staticmethod
    def _decide(api_key: ApiKey, origin: str | None) -> Decision:
        key_id = KEY_IDS.get(api_key.reveal())
        if key_id is None:
            return Decision(Verdict.INVALID_KEY, "", "")
        verdict = (
            Verdict.ORIGIN_NOT_ALLOWED if sendable_origin(origin) in (BLOCKED_ORIGIN, "null", "") else Verdict.ALLOWED
        )
        return Decision(verdict, PROJECT_ID, key_id)


class CountedOrigins:
    """Notes the origins that were to be counted, and whether each was admitted."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, str, bool]] = []

    def count(self, project_id: str, origin: str, is_allowed: bool) -> None:
        self.counted.append((project_id, origin, is_allowed))


class MemorySink:
    """A log store that keeps batches in memory, and fails or waits when told to."""

    def __init__(self) -> None:
        self.batches: list[LogBatch] = []
        self.failure: Exception | None = None
        self.writing = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def write(self, batch: LogBatch, idempotency: IdempotencyKey | None = None) -> None:
        self.writing.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.batches.append(batch)

    async def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def close(self) -> None:
        """Nothing is held."""


class Bridge:
    """A running server, and the handles to what stands around it."""

    def __init__(
        self,
        *,
        rate_limit: int,
        bytes_per_minute: int,
        body_budget_bytes: int,
        key_body_budget_bytes: int,
        trusted_proxies: Networks,
        limits: ServerLimits,
    ) -> None:
        self.clock = Clock()
        self.validator = FakeValidator()
        self.sink = MemorySink()
        self.origins = CountedOrigins()
        self.readiness = ready("ok")
        ingest = Ingest(
            validator=cast(KeyValidator, self.validator),
            count_origin=self.origins.count,
            rate_limit=RateLimit(rate_limit, bytes_per_minute, self.clock.wall),
            sink=self.sink,
            now=self.clock.wall,
            body_bytes_max=limits.body_bytes_max,
            body_budget=Budget(body_budget_bytes, key_body_budget_bytes),
        )
        self.turns = ingest.turns
        router = Router(
            ingest=ingest.handle,
            readiness=self._ask_readiness,
            now=self.clock.wall,
            monotonic=self.clock,
            trusted_proxies=trusted_proxies,
        )
        self.server = PublicServer(router, limits, trusted_proxies)
        self._trusted_proxies = trusted_proxies
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self.listener: Listener
        self._clients = AsyncExitStack()

    async def _ask_readiness(self) -> Response:
        return self.readiness

    def start(self, ssl_context: ssl.SSLContext | None = None) -> None:
        address = Address("127.0.0.1", self.port)
        self.listener = Listener(
            self.listening, self.server, "X", address, tls=ssl_context, trusted_proxies=self._trusted_proxies
        )

    async def stop(self) -> None:
        self.sink.gate.set()
        self.validator.gate.set()
        await self._clients.aclose()
        self.listener.close()
        await self.server.shutdown(timeout_seconds=5)

    async def connect(self, ssl_context: ssl.SSLContext | None = None, *, source: str = "127.0.0.1") -> Connection:
        """Connect from an address of this machine."""
        client = Connection(f"127.0.0.1:{self.port}", ssl_context, source=source)
        return await self._clients.enter_async_context(client)

    async def exchange(self, data: bytes, *, has_body: bool = True) -> Answer:
        """Send bytes on a new connection and return the first answer."""
        client = await self.connect()
        client.send(data)
        return await client.answer(has_body=has_body)


@asynccontextmanager
async def running_bridge(
    *,
    rate_limit: int = 5000,
    bytes_per_minute: int = 2**60,
    body_budget_bytes: int = 64 * 1024 * 1024,
    key_body_budget_bytes: int = 64 * 1024 * 1024,
    trusted_proxies: Networks = NOBODY,
    ssl_context: ssl.SSLContext | None = None,
    **limits: Any,
) -> AsyncIterator[Bridge]:
    """Run a bridge; `limits` are those of ServerLimits."""
    bridge = Bridge(
        rate_limit=rate_limit,
        bytes_per_minute=bytes_per_minute,
        body_budget_bytes=body_budget_bytes,
        key_body_budget_bytes=key_body_budget_bytes,
        trusted_proxies=trusted_proxies,
        limits=ServerLimits(**{"keepalive_seconds": 60.0, "body_timeout_seconds": 60.0} | limits),
    )
    bridge.start(ssl_context)
    try:
        yield bridge
    finally:
        await bridge.stop()


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with running_bridge() as bridge:
        yield bridge


def request(
    method: str = "POST",
    target: str = "/ingest/logs",
    *headers: str,
    key: str | None = KEY,
    origin: str | None = None,
    body: bytes | None = None,
) -> bytes:
    """Write a request; with a body, its length is declared."""
    return http_exchange.request(*headers, method=method, target=target, key=key, origin=origin, body=body)


@pytest.fixture(scope="session")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's side and the client's."""
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    return server_side, client_side


@pytest.fixture
async def loop_clock(monkeypatch: pytest.MonkeyPatch) -> RunningClock:
    """Let the test put the event loop's time forward."""
    loop = asyncio.get_running_loop()
    clock = RunningClock(loop.time)
    monkeypatch.setattr(loop, "time", clock)
    return clock
