"""What is still sent of a refused body: discarded while enough of it comes, so that slow clients read why."""

import asyncio
import gzip

import pytest

from tests.clocks import RunningClock
from tests.http_exchange import Connection
from tests.httpbridge.conftest import BLOCKED_ORIGIN, BODY, Bridge, request, running_bridge

LIMIT_BYTES = 1024 * 1024
HEALTH = request("GET", "/health", key=None)


async def was_read(bridge: Bridge) -> None:
    """Return once the server has read what was sent before."""
    for _ in range(3):
        await bridge.exchange(HEALTH)


def upload(*headers: str, length: int, **keywords: str | None) -> bytes:
    return request("POST", "/ingest/logs", f"Content-Length: {length}", *headers, **keywords)  # type: ignore[arg-type]


REFUSED = {
    401: upload(length=900_000, key=None),
    403: upload(length=900_000, origin=BLOCKED_ORIGIN),
    404: upload(length=900_000).replace(b"/ingest/logs", b"/nowhere"),
    413: upload(length=2_000_000),
    415: upload("Content-Encoding: br", length=900_000),
    429: upload(length=900_000),
}


@pytest.mark.parametrize("status", REFUSED)
async def test_a_slow_client_goes_on_sending_a_refused_body_and_reads_why(
    loop_clock: RunningClock, status: int
) -> None:
    """9 KiB in 4 s, for almost two minutes; before, the connection broke after two seconds."""
    async with running_bridge(body_bytes_max=LIMIT_BYTES, rate_limit=1) as bridge:
        if status == 429:
            await bridge.exchange(request(body=BODY))
        client = await bridge.connect()
        client.send(REFUSED[status])
        with loop_clock.stopped():
            for _ in range(28):  # 112 s
                client.send(bytes(9 * 1024))
                await was_read(bridge)
                loop_clock.advance(4)
                await was_read(bridge)
            assert not client.is_at_eof()
        assert (await client.answer()).status == status


async def test_the_connection_goes_on_after_a_refused_body_however_slowly_it_came(
    bridge: Bridge, loop_clock: RunningClock
) -> None:
    client = await bridge.connect()
    body = gzip.compress(bytes(10_000_000))
    client.send(upload("Content-Encoding: gzip", length=len(body) + 100_000, key=None) + body)
    assert (await client.answer()).status == 401
    for _ in range(10):
        loop_clock.advance(4)
        client.send(bytes(10_000))
        await was_read(bridge)
    client.send(request(body=BODY))
    assert (await client.answer()).status == 200
    assert bridge.sink.batches != []


async def test_a_body_that_was_not_asked_for_is_not_waited_for_any_longer(
    bridge: Bridge, loop_clock: RunningClock
) -> None:
    client = await bridge.connect()
    client.send(upload("Expect: 100-continue", length=1_000_000, key=None))
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    loop_clock.advance(6)
    assert await client.rest() == b""


@pytest.mark.parametrize(("sent_bytes", "is_open"), [(8 * 1024, True), (8 * 1024 - 1, False), (0, False)])
async def test_8_kib_in_5_seconds_are_waited_for_and_less_is_not(
    bridge: Bridge, loop_clock: RunningClock, sent_bytes: int, is_open: bool
) -> None:
    client = await bridge.connect()
    client.send(upload(length=1_000_000, key=None))
    assert (await client.answer()).status == 401
    with loop_clock.stopped():
        await was_read(bridge)
        loop_clock.advance(4)
        client.send(bytes(sent_bytes))
        await was_read(bridge)
        loop_clock.advance(2)
        await was_read(bridge)
        assert client.is_at_eof() is not is_open


async def test_no_longer_than_two_minutes_however_much_comes(bridge: Bridge, loop_clock: RunningClock) -> None:
    client = await bridge.connect()
    client.send(upload(length=5_000_000, key=None))
    assert (await client.answer()).status == 401
    with loop_clock.stopped():
        for seconds in (*[4] * 29, 3.5):
            client.send(bytes(10_000))
            await was_read(bridge)
            assert not client.is_at_eof()
            loop_clock.advance(seconds)
        client.send(bytes(10_000))
        await was_read(bridge)
        loop_clock.advance(0.8)
        await was_read(bridge)
        assert client.is_at_eof()


@pytest.mark.parametrize("is_chunked", [False, True], ids=["declared", "chunked"])
async def test_no_more_than_the_largest_body_is_discarded(is_chunked: bool) -> None:
    async with running_bridge(body_bytes_max=LIMIT_BYTES) as bridge:
        client = await bridge.connect()
        if is_chunked:
            client.send(request("POST", "/ingest/logs", "Transfer-Encoding: chunked", key=None))
        else:
            client.send(upload(length=100 * LIMIT_BYTES, key=None))
        assert (await client.answer()).status == 401
        sent_bytes = 0
        ended = asyncio.create_task(client.rest())
        while not ended.done():
            client.send(b"10000\r\n%b\r\n" % bytes(65536) if is_chunked else bytes(65536))
            sent_bytes += 65536
            await was_read(bridge)
        assert LIMIT_BYTES < sent_bytes < 2 * LIMIT_BYTES


async def test_a_chunked_body_that_turns_out_too_large_is_read_on_for_its_413(loop_clock: RunningClock) -> None:
    async with running_bridge(body_bytes_max=LIMIT_BYTES, body_timeout_seconds=1000) as bridge:
        client = await bridge.connect()
        client.send(request("POST", "/ingest/logs", "Transfer-Encoding: chunked"))
        for _ in range(20):
            client.send(b"10000\r\n%b\r\n" % bytes(65536))
            await was_read(bridge)
            loop_clock.advance(4)
        client.send(b"0\r\n\r\n" + request(body=BODY))
        assert [(await client.answer()).status for _ in range(2)] == [413, 200]


async def lingering(bridge: Bridge, source: str) -> Connection:
    client = await bridge.connect(source=source)
    client.send(upload(length=1_000_000, key=None) + b" ")
    assert (await client.answer()).status == 401
    await was_read(bridge)
    return client


async def test_a_tenth_of_the_places_is_for_that_and_of_them_no_address_takes_the_last_quarter(
    loop_clock: RunningClock,
) -> None:
    async with running_bridge(connections_max=200) as bridge:
        one = [await lingering(bridge, "127.0.0.2") for _ in range(20)]
        assert [client.is_at_eof() for client in one] == [False] * 15 + [True] * 5
        others = [await lingering(bridge, f"127.0.1.{number}") for number in range(1, 8)]
        assert [client.is_at_eof() for client in others] == [False] * 5 + [True] * 2
        loop_clock.advance(6)
        await was_read(bridge)
        assert all(client.is_at_eof() for client in one + others)
        assert not (await lingering(bridge, "127.0.0.2")).is_at_eof()
