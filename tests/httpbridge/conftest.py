"""The public HTTP server on a real socket, with the key service and the log store replaced at their boundaries."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
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
from httpbridge.http.server import PublicServer, Readiness, ReadyStatus, ServerLimits
from httpbridge.ingest.handler import Ingest
from httpbridge.ingest.rate_limit import RateLimit
from httpbridge.logs import LogBatch
from tests.clocks import Clock, RunningClock

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

    async def write(self, batch: LogBatch) -> None:
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


@dataclass(frozen=True, slots=True)
class Answer:
    """One response as it came."""

    status: int
    head: bytes
    """Status line and headers."""
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes


class Client:
    """One raw connection: what is sent is exactly what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, has_body: bool = True) -> Answer:
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.decode().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        length = int(headers.get("content-length", "0")) if has_body else 0
        return Answer(int(lines[0].split()[1]), head, headers, await self._reader.readexactly(length))

    def is_at_eof(self) -> bool:
        """Return whether the server has closed the connection, as far as is known here."""
        return self._reader.at_eof() or self._reader.exception() is not None

    async def rest(self) -> bytes:
        """Wait until the server has closed the connection, and return what it still sent."""
        return await self._reader.read()

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):  # the server may have been faster
            await self.writer.wait_closed()


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
        self.readiness = Readiness(ReadyStatus.OK)
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
        self.server = PublicServer(
            ingest=ingest.handle,
            readiness=self._ask_readiness,
            now=self.clock.wall,
            monotonic=self.clock,
            limits=limits,
            trusted_proxies=trusted_proxies,
        )
        self._trusted_proxies = trusted_proxies
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        self.listener: Listener
        self._clients = AsyncExitStack()

    async def _ask_readiness(self) -> Readiness:
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

    async def connect(self, ssl_context: ssl.SSLContext | None = None, *, source: str = "127.0.0.1") -> Client:
        """Connect from an address of this machine."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=ssl_context, local_addr=(source, 0))
        client = Client(reader, writer)
        self._clients.push_async_callback(client.close)
        return client

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
    lines = [f"{method} {target} HTTP/1.1", "Host: bridge.example"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if origin is not None:
        lines.append(f"Origin: {origin}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in (*lines, *headers, "")).encode() + (body or b"")


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
