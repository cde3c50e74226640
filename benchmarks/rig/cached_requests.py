"""Cached ingest requests without a network or a disk, for `cost`: ours, and the bare aiohttp handler, fed as bytes.

Usage: python -m benchmarks.rig.cached_requests

Forks one child for each server and number of requests, and prints its process id with them; under a tool that counts
instructions the imports are paid for once, and the difference between two children is what the requests cost. All
of the path is the real one, from aiohttp's parser over the cached verdict, the rate limit and the rows to group
commit, but for both ends and time, so that every run does the same: no socket, a store that forgets each commit, clocks
that go on at each look, and a lease that was not asked for.
"""

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import uvloop
from aiohttp import web

from authsvc.client import Decision, Verdict, verdicts
from authsvc.client.api_key import ApiKey
from authsvc.client.validator import KeyValidator
from authsvc.client.verdict_cache import VerdictCache
from authsvc.runtime.logging import LogFormat, LogLevel, configure
from authsvc.runtime.networks import Networks
from authsvc.v1 import key_service_pb2 as pb
from benchmarks.rig.bare import ingest_application
from benchmarks.rig.traffic import body, head, key
from httpbridge.http.bodies import BUDGET_BYTES, KEY_BUDGET_BYTES, Budget
from httpbridge.http.request import Router
from httpbridge.http.responses import Response, ready
from httpbridge.http.server import PublicServer, ServerLimits
from httpbridge.ingest.handler import Ingest, RateLimit
from httpbridge.log_store.chunk import Chunk
from httpbridge.log_store.sink import SqlSink

COUNTS = (200, 1200)
"""Requests: the first has everything warm, the difference to the second is counted."""

_BODY = body(1)
_REQUEST = head(key(0), len(_BODY)) + _BODY
_START = datetime(2026, 1, 31, 8, tzinfo=UTC)


class _Clock:
    """A tenth of a millisecond passes at each look."""

    def __init__(self) -> None:
        self._looks = itertools.count()

    def monotonic(self) -> float:
        return next(self._looks) / 10_000

    def now(self) -> datetime:
        return _START + timedelta(microseconds=100 * next(self._looks))


def _validator(clock: Callable[[], float]) -> KeyValidator:
    """Return one that never calls, with a verdict in its cache and a lease to use it."""
    cache = VerdictCache()
    validator = KeyValidator("127.0.0.1:1", "bench" * 8, name="bench", cache=cache, clock=clock)
    holder = validator._holder  # nothing else would give it a lease without a key service
    stream, keep_alive = holder.open(0)
    lease = pb.LeaseEvent(sequence=keep_alive.sequence)
    lease.duration.FromSeconds(3600)
    holder.receive(stream, pb.WatchResponse(lease=lease))
    api_key = ApiKey.parse(key(0))
    assert api_key is not None
    decision = Decision(Verdict.ALLOWED, "project", "key_0123456789abcdef")
    cache.put(api_key.digest, None, verdicts.Response(decision, True, 60, 0), sent_at=0)
    return validator


class _Store:
    """Forgets what is committed to it."""

    async def open(self) -> None:
        """Do nothing."""

    async def commit(self, chunks: list[Chunk]) -> list[int]:  # noqa: ARG002
        """Do nothing: the commit is done at once."""
        return []

    async def probe(self) -> None:
        """Do nothing."""

    async def check(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""


def _count_origin(project_id: str, origin: str, is_allowed: bool) -> None:  # noqa: ARG001
    raise AssertionError("the requests have no origin")


class _Transport(asyncio.Transport):
    """Takes what is written, and says when an answer came."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = b""
        self.answered = asyncio.Event()

    def write(self, data: Any) -> None:
        self.answer += data
        if self.answer.endswith(b"}"):
            self.answered.set()

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Do nothing: bytes come when the protocol is done with the last."""

    resume_reading = pause_reading

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Do nothing: all is taken at once."""


async def _ours() -> Callable[[], asyncio.Protocol]:
    clock = _Clock()

    async def readiness() -> Response:
        return ready("ok")

    ingest = Ingest(
        validator=_validator(clock.monotonic),
        count_origin=_count_origin,
        rate_limit=RateLimit(1_000_000, 2**60, clock.now),
        sink=SqlSink(_Store(), monotonic=clock.monotonic, bounds=None),
        now=clock.now,
        body_bytes_max=5 * 1024 * 1024,
        body_budget=Budget(BUDGET_BYTES, KEY_BUDGET_BYTES),
    )
    router = Router(
        ingest=ingest.handle,
        readiness=readiness,
        now=clock.now,
        monotonic=clock.monotonic,
        trusted_proxies=Networks(),
    )
    server = PublicServer(router, ServerLimits(), Networks())
    return partial(server, "127.0.0.1")


async def _bare() -> Callable[[], asyncio.Protocol]:
    runner = web.AppRunner(ingest_application(), access_log=None)
    await runner.setup()
    assert runner.server is not None
    return runner.server


SERVERS: dict[str, Callable[[], Awaitable[Callable[[], asyncio.Protocol]]]] = {"ours": _ours, "bare": _bare}


async def _serve(name: str, requests: int) -> None:
    protocol = (await SERVERS[name]())()
    transport = _Transport()
    protocol.connection_made(transport)
    for _ in range(requests):
        transport.answer = b""
        transport.answered.clear()
        protocol.data_received(_REQUEST)
        await transport.answered.wait()
        assert transport.answer.startswith(b"HTTP/1.1 200 "), transport.answer


def main() -> None:
    configure(LogLevel.INFO, LogFormat.CONSOLE)  # as services have it by default
    for name, requests in itertools.product(SERVERS, COUNTS):
        pid = os.fork()
        if pid == 0:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_serve(name, requests))
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"{name}: {status}"
        print(name, requests, pid, flush=True)


if __name__ == "__main__":
    main()
