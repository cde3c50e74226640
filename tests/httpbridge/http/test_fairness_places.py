"""Who has a place when places run out: the longest idle loses its own, an address to itself, health checks never."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress

import pytest
import structlog

from authsvc.runtime.networks import Networks
from httpbridge.http.server import HEALTH_CONNECTIONS_MAX
from tests.clocks import RunningClock
from tests.http_exchange import Connection
from tests.httpbridge.conftest import BODY, OTHER_KEY, Bridge, request, running_bridge

EventDict = structlog.typing.EventDict

HEALTH = request("GET", "/health", key=None)
OVERLOADED = b'{"error": "Overloaded"}'
STRANGER = "127.0.0.2"


@pytest.fixture
def events() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as events:
        yield events


def warnings(events: list[EventDict]) -> list[tuple[str, str, int]]:
    return [(event["event"], event["address"], event["of_address"]) for event in events if "address" in event]


async def is_open(bridge: Bridge, client: Connection) -> bool:
    """Return whether the server keeps a connection, once it has done what it had to do."""
    for _ in range(3):
        await bridge.exchange(HEALTH)
    return not client.is_at_eof()


async def still_open(bridge: Bridge, clients: list[Connection]) -> list[bool]:
    await bridge.exchange(HEALTH)
    return [await is_open(bridge, client) for client in clients]


async def served(client: Connection, data: bytes = HEALTH) -> int:
    client.send(data)
    return (await client.answer()).status


async def test_an_address_that_takes_every_place_loses_its_own_and_nobody_else_notices(events: list[EventDict]) -> None:
    async with running_bridge(connections_max=40) as bridge:
        kept = await bridge.connect()
        assert await served(kept) == 200
        silent = [await bridge.connect(source=STRANGER) for _ in range(100)]
        assert await served(kept, request(body=BODY)) == 200
        honest = [await bridge.connect(source=f"127.0.1.{number}") for number in range(1, 6)]
        assert [await served(client, request(body=BODY)) for client in (*honest, kept)] == [200] * 6
        more = await bridge.connect(source=STRANGER)
        assert [await served(more, request(body=BODY)) for _ in range(2)] == [200] * 2
        opened = await still_open(bridge, silent)
        # 30 places are for anybody, and one of them is the first client's.
        assert opened == [False] * (100 - sum(opened)) + [True] * sum(opened)
        assert 25 <= sum(opened) <= 30
    assert warnings(events) == [("connections_evicted", STRANGER, 29)]


async def test_the_longest_idle_makes_room_whatever_it_did_before_and_whoever_it_is(loop_clock: RunningClock) -> None:
    async with running_bridge(connections_max=8, keepalive_seconds=10_000) as bridge:
        clients: list[Connection] = []

        async def connect(count: int) -> None:
            for _ in range(count):
                clients.append(await bridge.connect(source=f"127.0.1.{len(clients) + 1}"))
                while len(bridge.server._connections) < len(clients):
                    await asyncio.sleep(0)
                loop_clock.advance(1)

        await connect(3)
        assert await served(clients[1], request(body=BODY)) == 200  # while there is room for many more
        loop_clock.advance(1)
        await connect(5)
        for number in (0, 3):  # these are used, so that others are idle longer
            assert await served(clients[number], request(body=BODY)) == 200
            loop_clock.advance(1)
        clients[2].send(b"POST /ingest/logs HTTP/1.1\r\n")  # part of a head is no use of it
        closed = []
        for number in range(8):
            newer = await bridge.connect(source=f"127.0.2.{number + 1}")
            assert await served(newer, request(body=BODY)) == 200
            closed.append([index for index, client in enumerate(clients) if client.is_at_eof()])
        order = [min(set(now) - set(before)) for before, now in zip([[], *closed], closed, strict=False)]
        assert order == [2, 1, 4, 5, 6, 7, 0, 3]


async def test_a_connection_that_is_worked_on_keeps_its_place(events: list[EventDict]) -> None:
    """When nobody can make room, whoever comes then is told so, but for health checks."""
    async with running_bridge(connections_max=4) as bridge:
        bridge.sink.gate.clear()
        busy = [await bridge.connect(source=f"127.0.1.{number}") for number in range(1, 5)]
        for client in busy:
            client.send(request(body=BODY))
        await bridge.sink.writing.wait()
        for path in ("/health", "/ready", "/health?x", "//x"):
            answer = await bridge.exchange(request("GET", path, key=None))
            expected = 503 if path == "//x" else 200
            assert (answer.status, answer.headers["connection"]) == (expected, "close"), path
        assert (await bridge.exchange(request("HEAD", "/ready", key=None), has_body=False)).status == 200
        for refused in (request(body=BODY), request("GET", "/nowhere"), request("POST", "/health", key=None)):
            answer = await bridge.exchange(refused)
            assert (answer.status, answer.body) == (503, OVERLOADED)
            assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
        assert len(bridge.validator.asked) == 4
        bridge.sink.gate.set()
        assert [(await client.answer()).status for client in busy] == [200] * 4
    assert [name for name, _, _ in warnings(events)] == ["connections_refused"]


async def test_who_is_idle_makes_room_although_others_who_are_not_came_before() -> None:
    async with running_bridge(connections_max=4) as bridge:
        bridge.sink.gate.clear()
        busy = [await bridge.connect(source=f"127.0.1.{number}") for number in range(1, 4)]
        for client in busy:
            client.send(request(body=BODY))
        await bridge.sink.writing.wait()
        idle = await bridge.connect()
        newer = await bridge.connect(source="127.0.1.4")
        assert await served(newer, request("GET", "/nowhere")) == 404
        assert idle.is_at_eof()
        bridge.sink.gate.set()
        assert [(await client.answer()).status for client in busy] == [200] * 3


async def test_places_for_health_checks_cannot_be_held(loop_clock: RunningClock) -> None:
    """Whoever takes one has little time, and makes room for the next before that."""
    async with running_bridge(connections_max=1) as bridge:
        bridge.sink.gate.clear()
        busy = await bridge.connect()
        busy.send(request(body=BODY))
        await bridge.sink.writing.wait()
        silent = [await bridge.connect(source=STRANGER) for _ in range(HEALTH_CONNECTIONS_MAX + 20)]
        for _ in range(5):
            assert (await bridge.exchange(HEALTH)).status == 200
        assert not silent[-1].is_at_eof()
        assert silent[0].is_at_eof()
        loop_clock.advance(3)
        assert [await client.rest() for client in silent] == [b""] * len(silent)
        bridge.sink.gate.set()
        assert (await busy.answer()).status == 200


async def test_a_trusted_proxy_is_bounded_by_the_places_alone() -> None:
    async with running_bridge(connections_max=20, trusted_proxies=Networks.parse("127.0.0.2")) as bridge:
        proxied = [await bridge.connect(source="127.0.0.2") for _ in range(20)]
        assert await still_open(bridge, proxied[2:]) == [True] * 18  # the probes themselves need a place
    async with running_bridge(connections_max=20) as bridge:
        direct = [await bridge.connect(source="127.0.0.2") for _ in range(20)]
        assert sum(await still_open(bridge, direct)) <= 15


@pytest.mark.parametrize("sent_bytes", [1000, 100_000], ids=["slow", "fast"])
async def test_a_body_that_hardly_comes_is_as_good_as_idle(loop_clock: RunningClock, sent_bytes: int) -> None:
    """It is told so, and sent again; one of which 8 KiB come in 5 s keeps its place."""
    async with running_bridge(connections_max=1, body_timeout_seconds=1000, keepalive_seconds=1000) as bridge:
        client = await bridge.connect()
        client.send(request("POST", "/ingest/logs", "Content-Length: 1000000") + b" " * sent_bytes)
        await bridge.validator.is_asked.wait()
        assert (await bridge.exchange(request(body=BODY))).status == 503  # within the first 5 s
        loop_clock.advance(20)
        expected = 200 if sent_bytes == 1000 else 503
        other = await bridge.connect(source="127.0.1.1")
        other.send(request(body=BODY))
        assert (await other.answer()).status == expected
        if sent_bytes == 1000:
            answer = await client.answer()
            assert (answer.status, answer.body, answer.headers["connection"]) == (503, OVERLOADED, "close")
            assert await client.rest() == b""
        else:
            client.send(b" " * (1_000_000 - sent_bytes - len(BODY)) + BODY)
            assert (await client.answer()).status == 200


async def test_a_client_that_takes_no_answers_makes_room(loop_clock: RunningClock) -> None:
    async with running_bridge(connections_max=1, keepalive_seconds=1000) as bridge:
        bridge.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of those that it accepts
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", bridge.port))
            sending = asyncio.create_task(loop.sock_sendall(client, request(key=OTHER_KEY) * 100_000))
            await bridge.validator.is_asked.wait()
            asked = 0
            while len(bridge.validator.asked) != asked:  # until no more of them are answered
                asked = len(bridge.validator.asked)
                for _ in range(20):
                    await bridge.exchange(HEALTH)
            assert (await bridge.exchange(request(body=BODY))).status == 503
            loop_clock.advance(6)
            assert (await bridge.exchange(request(body=BODY))).status == 200
            with suppress(ConnectionError):
                await sending


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00"], ids=["nothing", "part of a hello"])
async def test_connections_that_do_not_get_on_with_tls_are_idle_ones(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], events: list[EventDict], sent: bytes
) -> None:
    server_side, client_side = tls
    async with running_bridge(ssl_context=server_side, connections_max=3) as bridge:
        silent = [await bridge.connect() for _ in range(3)]
        for client in silent:
            client.send(sent)
        client = await bridge.connect(client_side)
        assert await served(client, request(body=BODY)) == 200
        assert await silent[0].rest() == b""
        assert not silent[2].is_at_eof()
        bridge.listener.close()
        assert await silent[2].rest() == b""
    assert [name for name, _, _ in warnings(events)] == ["connections_evicted"]


async def test_a_health_check_over_tls_has_a_place(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server_side, client_side = tls
    async with running_bridge(ssl_context=server_side, connections_max=1) as bridge:
        bridge.sink.gate.clear()
        busy = await bridge.connect(client_side)
        busy.send(request(body=BODY))
        await bridge.sink.writing.wait()
        check = await bridge.connect(client_side)
        assert await served(check) == 200
        bridge.sink.gate.set()
        assert (await busy.answer()).status == 200


async def test_when_the_places_are_as_busy_as_they_can_be_a_connection_too_many_is_told_so_at_once() -> None:
    """Not even the places for health checks are left: they are being answered."""
    async with running_bridge(connections_max=1) as bridge:
        bridge.sink.gate.clear()
        gate = asyncio.Event()

        async def readiness() -> object:
            await gate.wait()
            return bridge.readiness

        bridge.server.router._readiness = readiness  # type: ignore[assignment]
        busy = await bridge.connect()
        busy.send(request(body=BODY))
        await bridge.sink.writing.wait()
        checks = [await bridge.connect(source=f"127.0.1.{number + 1}") for number in range(HEALTH_CONNECTIONS_MAX)]
        for check in checks:
            check.send(request("GET", "/ready", key=None))
        while not all(connection._request for connection in bridge.server._connections):
            await asyncio.sleep(0)
        answer = await bridge.exchange(b"")
        assert (answer.status, answer.body, answer.headers["connection"]) == (503, OVERLOADED, "close")
        gate.set()
        bridge.sink.gate.set()
        assert [(await client.answer()).status for client in (*checks, busy)] == [200] * (len(checks) + 1)
