"""What happens on the wire: what is not HTTP, 100 Continue, keep-alive, pipelining, clients slow or gone."""

import asyncio
import gc
import gzip
import logging
import socket
import ssl
import tracemalloc
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import cast

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from httpbridge.http.connection import Connection
from tests.httpbridge.conftest import BLOCKED_ORIGIN, BODY, KEY, OTHER_KEY, SECOND_KEY, Bridge, request, running_bridge

BAD_REQUEST = b'{"error": "Bad request"}'
CANARY = KEY.removeprefix("dt_")
LIMIT_BYTES = 1024 * 1024

EventDict = structlog.typing.EventDict


@pytest.fixture
def events(caplog: pytest.LogCaptureFixture) -> Iterator[list[EventDict]]:
    """Collect what is logged, at every level, by us and by every library."""
    caplog.set_level(logging.DEBUG)
    with structlog.testing.capture_logs() as events:
        yield events


def with_key(start: bytes, end: bytes = b"\r\n\r\n") -> bytes:
    return start + KEY.encode() + end


HEAD = b"POST /ingest/logs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
MALFORMED = {
    "no HTTP at all": with_key(b""),
    "method": with_key(b"B@D /ingest/logs HTTP/1.1\r\nAuthorization: Bearer "),
    "key as method": KEY.encode() + b" / HTTP/1.1\r\n\r\n",
    "key as version": with_key(b"GET / "),
    "version": with_key(b"GET / HTTP/3.0\r\nAuthorization: Bearer "),
    "no host": with_key(b"POST /ingest/logs HTTP/1.1\r\nAuthorization: Bearer "),
    "two hosts": with_key(b"POST /ingest/logs HTTP/1.1\r\nHost: a\r\nHost: b\r\nAuthorization: Bearer "),
    "space before colon": with_key(b"POST /ingest/logs HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer "),
    "no colon": with_key(b"POST /ingest/logs HTTP/1.1\r\nHost: x\r\nAuthorization Bearer "),
    "folded header": with_key(b"POST /ingest/logs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer\r\n "),
    "NUL in header": with_key(HEAD, b"\0\r\n\r\n"),
    "bare CR": with_key(HEAD, b"\rX: y\r\n\r\n"),
    "long header": with_key(HEAD, b"x" * 10_000 + b"\r\n\r\n"),
    "long header name": with_key(HEAD, b"\r\n" + b"x" * 10_000 + b": y\r\n\r\n"),
    "long target": with_key(b"GET /", b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "many headers": with_key(HEAD, b"\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
    "length not a number": with_key(HEAD, b"\r\nContent-Length: 1x\r\n\r\n"),
    "length negative": with_key(HEAD, b"\r\nContent-Length: -1\r\n\r\n"),
    "length overflows": with_key(HEAD, b"\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
    "two lengths": with_key(HEAD, b"\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"),
    "length and chunks": with_key(HEAD, b"\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunk size": with_key(HEAD, b"\r\nTransfer-Encoding: chunked\r\n\r\n" + KEY.encode() + b"\r\n"),
    "target without slash": with_key(b"GET ", b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "target port": with_key(b"GET http://x:", b"/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "target host": with_key(b"GET http://[", b"/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "connect target": with_key(b"CONNECT x:", b" HTTP/1.1\r\nHost: x\r\n\r\n"),
    "old websocket": with_key(HEAD, b"\r\nSec-WebSocket-Key1: x\r\n\r\n"),
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00" + with_key(b""),
    "HTTP/2 in words": with_key(b"GET /health HTTP/2.0\r\nHost: x\r\nAuthorization: Bearer "),
    "HTTP/0.9 in words": with_key(b"GET /health HTTP/0.9\r\nHost: x\r\nAuthorization: Bearer "),
    "HTTP/0.9": b"GET /health?" + KEY.encode() + b"\r\n\r\n",
    "coding": with_key(HEAD, b"\r\nTransfer-Encoding: gzip\r\n\r\n"),
    "no coding": with_key(HEAD, b"\r\nTransfer-Encoding:\r\nContent-Length: 0\r\n\r\n"),
    "two codings": with_key(HEAD, b"\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    "chunks in HTTP/1.0": with_key(HEAD.replace(b"/1.1", b"/1.0"), b"\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + KEY.encode(),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_not_http_is_a_400_that_neither_repeats_nor_logs_a_byte_of_it(
    bridge: Bridge,
    name: str,
    events: list[EventDict],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    client = await bridge.connect()
    client.send(MALFORMED[name])
    answer = await client.answer()
    assert (answer.status, answer.body) == (400, BAD_REQUEST)
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["connection"] == "close"
    written = repr((answer, await client.rest(), events, caplog.records, caplog.text, capfd.readouterr()))
    assert events == [{"event": "request", "log_level": "debug", "status": 400, "reason": "not HTTP"}]
    assert CANARY not in written
    assert bridge.sink.batches == []


@pytest.mark.parametrize("name", MALFORMED)
async def test_requests_that_are_whole_are_answered_although_what_follows_in_the_same_segment_is_not_http(
    bridge: Bridge, name: str
) -> None:
    client = await bridge.connect()
    client.send(request(body=BODY) + CHUNKED + chunk(BODY) + b"0\r\n\r\n" + MALFORMED[name])
    answers = [await client.answer() for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 400]
    assert len(bridge.sink.batches) == 2


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("follower", [b"x", b"\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 100_000])
async def test_the_last_request_of_a_connection_is_answered_whatever_follows_it(
    bridge: Bridge, follower: bytes, pieces: int
) -> None:
    sent = request("POST", "/ingest/logs", "Connection: close", body=BODY) + follower
    client = await bridge.connect()
    if pieces == 2:
        client.send(sent[:200])
        await bridge.validator.is_asked.wait()
        sent = sent[200:]
    client.send(sent)
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert len(bridge.sink.batches) == 1


async def test_what_follows_a_body_that_waited_to_be_read_is_answered(bridge: Bridge) -> None:
    """The body is more than is taken in before its turn, and the next requests came with its end."""
    bridge.validator.gate.clear()
    client = await bridge.connect()
    client.send(request(body=LARGE_BODY) + request(body=BODY) * 2)
    await bridge.validator.is_asked.wait()
    for _ in range(10):
        await bridge.exchange(request("GET", "/health", key=None))
    bridge.validator.gate.set()
    assert [(await client.answer()).status for _ in range(3)] == [200] * 3


@pytest.mark.parametrize(
    "sent",
    [
        request(body=BODY),
        request("GET", f"/{KEY}?{KEY}", "X-Key: " + KEY),
        request("POST", "/ingest/logs?" + KEY, body=f'{{"logs": "{KEY}", "{KEY}": 1}}'.encode()),
        request("POST", "/ingest/logs", f"Content-Encoding: {KEY}", body=BODY),
        request("POST", "/ingest/logs", f"Expect: {KEY}", body=BODY),
        request(origin=f"https://{KEY}", body=BODY),
        request("CONNECT", KEY),
        request("GET", KEY),
    ],
)
async def test_no_answer_and_no_log_line_repeats_a_key(
    bridge: Bridge, sent: bytes, events: list[EventDict], caplog: pytest.LogCaptureFixture
) -> None:
    answer = await bridge.exchange(sent)
    assert any(event["status"] == answer.status for event in events)
    assert CANARY not in repr((answer, events, caplog.text))


async def test_an_unexpected_error_is_logged_with_its_place_and_without_its_text(
    bridge: Bridge, events: list[EventDict]
) -> None:
    bridge.sink.failure = RuntimeError(f"cannot take {KEY}")
    bridge.sink.failure.__cause__ = ValueError(f"cannot store {KEY}")
    assert (await bridge.exchange(request(body=BODY))).status == 503
    (event,) = [event for event in events if event["log_level"] == "error"]
    assert "in handle" in event["traceback"]
    assert "builtins.ValueError" in event["traceback"]
    assert CANARY not in repr(events)


async def test_nothing_is_logged_per_request_above_debug(
    events: list[EventDict], caplog: pytest.LogCaptureFixture
) -> None:
    async with running_bridge() as bridge:
        for sent in (request(body=BODY), request(key=None), b"x\r\n\r\n", request("GET", "/nowhere")):
            await bridge.exchange(sent)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert [event["log_level"] for event in events] == ["debug"] * 4
    assert events[0]["project_id"] == "demo"
    assert events[3]["path"] is None


EXPECT = "Expect: 100-continue"


@pytest.mark.parametrize(
    ("headers", "key", "status"),
    [
        ((), None, 401),
        ((), OTHER_KEY, 401),
        ((f"Origin: {BLOCKED_ORIGIN}",), KEY, 403),
        (("Content-Encoding: br",), KEY, 415),
        (("Content-Length: 9999999",), KEY, 413),
    ],
)
async def test_a_refused_request_is_never_asked_for_its_body(
    bridge: Bridge, headers: tuple[str, ...], key: str | None, status: int
) -> None:
    length = () if any("Content-Length" in header for header in headers) else ("Content-Length: 5",)
    client = await bridge.connect()
    client.send(request("POST", "/ingest/logs", EXPECT, *headers, *length, key=key))
    answer = await client.answer()
    assert answer.status == status  # the first bytes back are no 100
    assert answer.headers["connection"] == "close"  # nobody knows whether the body follows


async def test_a_body_is_asked_for_only_once_the_key_is_known_to_be_good(bridge: Bridge) -> None:
    bridge.validator.gate.clear()
    client = await bridge.connect()
    client.send(request("POST", "/ingest/logs", EXPECT, f"Content-Length: {len(BODY)}"))
    await bridge.validator.is_asked.wait()
    assert not bridge.sink.writing.is_set()
    bridge.validator.gate.set()
    assert (await client.answer()).status == 100
    client.send(BODY)
    assert (await client.answer()).status == 200
    client.send(request(body=BODY))
    assert (await client.answer()).status == 200


async def test_a_body_that_comes_unasked_for_is_taken(bridge: Bridge) -> None:
    answer = await bridge.exchange(request("POST", "/ingest/logs", EXPECT, body=BODY))
    assert answer.status == 200


async def test_a_client_of_http_1_0_is_not_asked_for_its_body(bridge: Bridge) -> None:
    """It would not know what a 100 is (RFC 9110, 10.1.1)."""
    client = await bridge.connect()
    sent = request("POST", "/ingest/logs", EXPECT, f"Content-Length: {len(BODY)}")
    client.send(sent.replace(b"HTTP/1.1", b"HTTP/1.0"))
    await bridge.validator.is_asked.wait()
    await bridge.exchange(request("GET", "/health", key=None))  # by then it would have been asked
    client.send(BODY)
    assert (await client.answer()).status == 200


async def test_a_connection_outlives_refusals(bridge: Bridge) -> None:
    client = await bridge.connect()
    steps = [
        (request(key=None, body=BODY), 401),
        (request(origin=BLOCKED_ORIGIN, body=BODY), 403),
        (request("GET", "/nowhere", body=BODY), 404),
        (request("PUT", body=BODY), 405),
        (request("POST", "/ingest/logs", "Content-Encoding: br", body=BODY), 415),
        (request(body=b"{"), 400),
        (request(body=BODY), 200),
    ]
    for sent, status in steps:
        client.send(sent)
        answer = await client.answer()
        assert (answer.status, answer.headers.get("connection")) == (status, None)


async def test_the_rest_of_a_refused_body_is_discarded_and_the_connection_goes_on(bridge: Bridge) -> None:
    client = await bridge.connect()
    client.send(request("POST", "/ingest/logs", "Content-Length: 100000", key=None))
    assert (await client.answer()).status == 401
    client.send(gzip.compress(bytes(1000)) + bytes(100000 - len(gzip.compress(bytes(1000)))))
    client.send(request(body=BODY))
    assert (await client.answer()).status == 200


async def test_pipelined_requests_are_answered_in_order(bridge: Bridge) -> None:
    client = await bridge.connect()
    count = 100  # more than are parsed ahead
    client.send(b"".join(request(key=KEY if i % 2 else None, body=BODY) for i in range(count)))
    assert [(await client.answer()).status for _ in range(count)] == [401, 200] * (count // 2)
    assert len(bridge.sink.batches) == count // 2


async def test_a_flood_on_one_connection_leaves_others_their_turn(bridge: Bridge) -> None:
    """Requests that are refused without waiting for anything do not keep the event loop to themselves."""
    flood, other = await bridge.connect(), await bridge.connect()
    count = 1000
    flood.send(request(key=OTHER_KEY) * count)
    other.send(request("GET", "/health", key=None))
    assert (await other.answer()).status == 200
    assert len(bridge.validator.asked) < count // 2
    assert [(await flood.answer()).status for _ in range(count)] == [401] * count


@pytest.mark.parametrize(
    "follower",
    [
        request(key=None, body=bytes(500_000)),
        request("GET", "/health", *(f"X-{number}: {'x' * 8000}" for number in range(7)), key=None),
    ],
    ids=["bodies", "headers"],
)
async def test_a_connection_holds_little_of_what_follows_a_request_that_waits(bridge: Bridge, follower: bytes) -> None:
    """However large the requests are, and although all of them are answered in the end."""
    count = 20_000_000 // len(follower)
    unsent = memoryview(follower * count)
    bridge.validator.gate.clear()
    loop = asyncio.get_running_loop()
    other = await bridge.connect()
    with socket.create_connection(("127.0.0.1", bridge.port)) as client:
        client.setblocking(False)
        client.send(request(body=BODY))
        await bridge.validator.is_asked.wait()
        tracemalloc.start()
        try:
            stalls = 0
            while unsent and stalls < 3:
                try:
                    unsent = unsent[client.send(unsent[:65536]) :]
                    stalls = 0
                except BlockingIOError:
                    stalls += 1
                other.send(request("GET", "/health", key=None))  # by its answer the server has read what it would
                await other.answer()
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        bridge.validator.gate.set()
        sending = asyncio.create_task(loop.sock_sendall(client, unsent))
        answers = b""
        while answers.count(b"HTTP/1.1 ") <= count:
            received = await loop.sock_recv(client, 65536)
            assert received
            answers += received
        await sending
    assert held_bytes < 4 * 1024 * 1024


FIELD = b"X: " + b"y" * 8000 + b"\r\n"


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (with_key(HEAD, b"\r\n"), FIELD),
        (b"", b"\r\n" * 4000),
        (request("POST", "/ingest/logs", "Transfer-Encoding: chunked") + b"1\r\n{\r\n0\r\n", FIELD),
        (request("POST", "/ingest/logs", "Transfer-Encoding: chunked") + b"1;x=", b"y" * 8000),
        (request(body=BODY[:-1] + b" ") + with_key(HEAD, b"\r\n"), FIELD),
    ],
    ids=["head", "empty lines", "trailers", "chunk extension", "head after a body"],
)
async def test_of_a_head_that_does_not_end_little_is_taken(bridge: Bridge, start: bytes, piece: bytes) -> None:
    client = await bridge.connect()
    client.send(start)
    ended = asyncio.create_task(client.rest())
    sent_bytes = 0
    while not ended.done():
        client.send(piece)
        sent_bytes += len(piece)
        await bridge.exchange(request("GET", "/health", key=None))  # by then the server has read it
    assert (await ended).endswith(BAD_REQUEST)
    assert 64 * 1024 < sent_bytes < 128 * 1024


async def test_of_a_head_that_comes_at_once_little_is_taken(bridge: Bridge) -> None:
    client = await bridge.connect()
    client.send(with_key(HEAD, b"\r\n" + FIELD * 90 + b"\r\n"))
    assert (await client.answer()).status == 400
    assert bridge.validator.asked == []


async def test_a_head_of_64_kib_is_taken(bridge: Bridge) -> None:
    large = request("POST", "/ingest/logs", *[FIELD.decode().strip()] * 8, body=BODY)
    client = await bridge.connect()
    for _ in range(10):
        client.send(large * 3)
        assert [(await client.answer()).status for _ in range(3)] == [200] * 3


async def test_requests_that_do_not_end_where_segments_do_are_taken(bridge: Bridge) -> None:
    """Each segment has the end of one body, and a head with as much of the next: that is no head without an end."""
    whole = request(body=BODY + b" " * 2000)
    client = await bridge.connect()
    ahead = len(whole) - 1000
    client.send(whole[:ahead])
    for _ in range(80):  # 160 kB
        client.send(whole[ahead:] + whole[:ahead])
        assert (await client.answer()).status == 200


async def test_a_length_may_begin_with_any_number_of_zeros(bridge: Bridge) -> None:
    sent = request("POST", "/ingest/logs", f"Content-Length: {len(BODY):05000}") + BODY
    assert (await bridge.exchange(sent)).status == 200


HTTP_2 = request("POST", "/ingest/logs", "Connection: upgrade", "Upgrade: h2c", body=BODY)
WEBSOCKET = request("POST", "/ingest/logs", "Connection: upgrade", "Upgrade: websocket", body=BODY)


@pytest.mark.parametrize("following", [b"", request(body=BODY), request("GET", "/health")[:20]])
@pytest.mark.parametrize(
    ("offer", "status"),
    [
        (HTTP_2, 200),
        (WEBSOCKET, 200),
        (request("GET", "/health", "Connection: upgrade", "Upgrade: h2c"), 200),
        (request("CONNECT", "bridge.example:443"), 404),
    ],
)
async def test_an_offer_of_another_protocol_is_answered_in_this_one_and_ends_the_connection(
    bridge: Bridge, offer: bytes, status: int, following: bytes
) -> None:
    """Where the next request begins is not known then, so nothing that follows is taken for one."""
    client = await bridge.connect()
    client.send(request("PUT") + offer + following)
    answers = [await client.answer() for _ in range(2)]
    assert [answer.status for answer in answers] == [405, status]
    assert [answer.headers.get("connection") for answer in answers] == [None, "close"]
    assert await client.rest() == b""
    assert len(bridge.sink.batches) == (1 if offer.startswith(b"POST") else 0)


@pytest.mark.parametrize("offer", [HTTP_2, WEBSOCKET])
async def test_what_comes_while_such_an_offer_is_worked_on_is_not_answered(bridge: Bridge, offer: bytes) -> None:
    bridge.validator.gate.clear()
    client = await bridge.connect()
    client.send(offer)
    await bridge.validator.is_asked.wait()
    client.send(request(body=BODY))
    await bridge.exchange(request("GET", "/health", key=None))  # by then the server has read it
    bridge.validator.gate.set()
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await client.rest() == b""
    assert len(bridge.sink.batches) == 1


@pytest.mark.parametrize(
    ("version", "header", "connection"),
    [
        ("1.1", "X: y", None),
        ("1.1", "Connection: close", "close"),
        ("1.0", "X: y", "close"),
        ("1.0", "Connection: keep-alive", "keep-alive"),
    ],
)
async def test_a_connection_is_kept_when_the_client_wants_that(
    bridge: Bridge, version: str, header: str, connection: str | None
) -> None:
    client = await bridge.connect()
    client.send(request("POST", "/ingest/logs", header, body=BODY).replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
    answer = await client.answer()
    assert (answer.status, answer.headers.get("connection")) == (200, connection)
    if connection == "close":
        assert await client.rest() == b""
    else:
        client.send(request(body=BODY))
        assert (await client.answer()).status == 200


async def test_a_client_that_closes_its_sending_side_gets_every_answer(bridge: Bridge) -> None:
    bridge.sink.gate.clear()
    client = await bridge.connect()
    client.send(request(body=BODY) * 3)
    client.writer.write_eof()
    await bridge.exchange(request("GET", "/health", key=None))  # by then the server has seen the end, too
    bridge.sink.gate.set()
    answers = [await client.answer() for _ in range(3)]
    assert [answer.status for answer in answers] == [200] * 3
    assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
    assert await client.rest() == b""


async def test_a_body_that_breaks_off_stores_nothing_and_is_no_error(bridge: Bridge, events: list[EventDict]) -> None:
    async with running_bridge() as bridge:
        client = await bridge.connect()
        client.send(request("POST", "/ingest/logs", f"Content-Length: {len(BODY) + 1}") + BODY)
        await bridge.validator.is_asked.wait()
        await client.close()
    assert bridge.sink.batches == []
    assert [event["log_level"] for event in events] == ["debug"]


async def test_a_client_that_goes_away_does_not_undo_its_write(bridge: Bridge) -> None:
    bridge.sink.gate.clear()
    client = await bridge.connect()
    client.send(request(body=BODY))
    await bridge.sink.writing.wait()
    client.writer.transport.abort()
    bridge.sink.gate.set()
    await bridge.server.shutdown(timeout_seconds=5)
    assert len(bridge.sink.batches) == 1


CHUNKED = request("POST", "/ingest/logs", "Transfer-Encoding: chunked")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def test_a_chunked_body_is_taken(bridge: Bridge) -> None:
    pieces = b"".join(chunk(BODY[i : i + 7]) for i in range(0, len(BODY), 7))
    assert (await bridge.exchange(CHUNKED + pieces + b"0\r\nX-Trailer: y\r\n\r\n")).status == 200


async def test_chunks_that_break_off_midway_are_a_400(bridge: Bridge) -> None:
    client = await bridge.connect()
    client.send(CHUNKED + chunk(BODY))
    await bridge.validator.is_asked.wait()
    client.send(b"no size\r\n")
    answer = await client.answer()
    assert (answer.status, answer.body, answer.headers["connection"]) == (400, BAD_REQUEST, "close")
    assert await client.rest() == b""
    assert bridge.sink.batches == []


async def test_chunks_are_counted_while_they_are_read() -> None:
    async with running_bridge(body_bytes_max=LIMIT_BYTES) as bridge:
        client = await bridge.connect()
        client.send(CHUNKED + chunk(bytes(1000)) * (LIMIT_BYTES // 1000 + 1))
        assert (await client.answer()).status == 413


async def test_a_bomb_is_refused_without_being_unpacked() -> None:
    async with running_bridge(body_bytes_max=LIMIT_BYTES) as bridge:
        bomb = gzip.compress(bytes(200 * LIMIT_BYTES))
        answer = await bridge.exchange(request("POST", "/ingest/logs", "Content-Encoding: gzip", body=bomb))
        assert answer.status == 413


LARGE_BODY = b'{"padding": "%b", "logs": [{"level": "info", "message": "hello"}]}' % (b"x" * 4_000_000)


@pytest.mark.parametrize(
    "sent",
    [
        request(body=LARGE_BODY),
        request("POST", "/ingest/logs", "Content-Encoding: gzip", body=gzip.compress(LARGE_BODY)),
    ],
    ids=["as it is", "gzip"],
)
async def test_no_body_is_held_while_the_store_takes_its_time(bridge: Bridge, sent: bytes) -> None:
    bridge.sink.gate.clear()
    client = await bridge.connect()
    tracemalloc.start()
    try:
        client.send(sent)
        await bridge.sink.writing.wait()
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    bridge.sink.gate.set()
    assert (await client.answer()).status == 200
    assert held_bytes < 1024 * 1024


async def test_a_body_that_does_not_arrive_in_time_is_a_503_to_be_sent_again() -> None:
    async with running_bridge(body_timeout_seconds=0.05) as bridge:
        client = await bridge.connect()
        client.send(request("POST", "/ingest/logs", "Content-Length: 10") + b"x")
        answer = await client.answer()
        assert (answer.status, answer.body) == (503, b'{"error": "Request timeout"}')
        assert (answer.headers["connection"], answer.headers["retry-after"]) == ("close", "1")
        assert answer.headers["x-ratelimit-remaining"] == "4999"


async def test_bodies_on_their_way_take_no_more_than_the_budget_all_together(events: list[EventDict]) -> None:
    """What would is a 503, and those on their way go on; one that came along with its headers needs none of it."""
    async with running_bridge(body_budget_bytes=1000) as bridge:
        slow = await bridge.connect()
        body = BODY + b" " * 900
        slow.send(request(body=body)[:-5])
        await bridge.validator.is_asked.wait()
        answers = [await bridge.exchange(request(body=body)[:-5]) for _ in range(3)]
        assert [(answer.status, answer.body) for answer in answers] == [(503, b'{"error": "Overloaded"}')] * 3
        assert answers[0].headers["retry-after"] == "1"
        assert (await bridge.exchange(request(body=body))).status == 200
        slow.send(body[-5:])
        assert (await slow.answer()).status == 200
        gzipped = gzip.compress(body)
        answer = await bridge.exchange(request("POST", "/ingest/logs", "Content-Encoding: gzip", body=gzipped))
        assert answer.status == 200
    assert [event["event"] for event in events if event["log_level"] == "warning"] == ["body_budget_exhausted"]


async def test_slow_bodies_with_one_key_leave_room_for_those_with_others(events: list[EventDict]) -> None:
    async with running_bridge(body_budget_bytes=3000, key_body_budget_bytes=1000) as bridge:
        slow = await bridge.connect()
        body = BODY + b" " * 900
        slow.send(request(body=body)[:-5])
        await bridge.validator.is_asked.wait()
        answer = await bridge.exchange(request(body=body)[:-5])
        assert (answer.status, answer.body) == (503, b'{"error": "Overloaded"}')
        sent = request("POST", "/ingest/logs", "Content-Encoding: gzip", key=SECOND_KEY, body=gzip.compress(body))
        assert (await bridge.exchange(sent)).status == 200
        slow.send(body[-5:])
        assert (await slow.answer()).status == 200
        sent = request("POST", "/ingest/logs", "Content-Encoding: gzip", body=gzip.compress(body))
        assert (await bridge.exchange(sent)).status == 200
    assert [event for event in events if event["log_level"] != "debug"] == []


async def test_headers_that_do_not_arrive_in_time_end_the_connection() -> None:
    async with running_bridge(keepalive_seconds=0.1) as bridge:
        client = await bridge.connect()
        client.send(b"POST /ingest/logs HT")
        assert await client.rest() == b""
        client = await bridge.connect()
        client.send(request(body=BODY))
        assert (await client.answer()).status == 200
        assert await client.rest() == b""


async def test_a_client_that_takes_no_answers_is_cut_off() -> None:
    async with running_bridge(keepalive_seconds=0.2) as bridge:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", bridge.port))
            with suppress(ConnectionError):
                while True:  # ends when the server has had enough
                    await loop.sock_sendall(client, request("GET", "/health", key=None) * 1000)


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
async def test_of_answers_that_are_not_taken_little_is_held(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], is_tls: bool
) -> None:
    server_side, client_side = tls if is_tls else (None, None)
    async with running_bridge(ssl_context=server_side) as bridge:
        bridge.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of those that it accepts
        client, other = await bridge.connect(client_side), await bridge.connect(client_side)
        cast(asyncio.Transport, client.writer.transport).pause_reading()
        client.send(request(key=OTHER_KEY) * 10_000)
        asked = -1
        while len(bridge.validator.asked) != asked:  # until no more of them are answered
            asked = len(bridge.validator.asked)
            for _ in range(20):
                other.send(request("GET", "/health", key=None))
                await other.answer()
        assert asked < 10_000
        client.writer.transport.abort()
        transports = [held.transport for held in gc.get_objects() if isinstance(held, Connection)]
        assert max(held.get_write_buffer_size() for held in transports if held is not None) < 20_000


@pytest.mark.parametrize("end", ["idle", "asked to close", "half closed"])
async def test_a_client_that_takes_no_answers_is_cut_off_once_its_connection_is_closed(end: str) -> None:
    """What waits to be sent is little enough for nothing to wait for it until then."""
    async with running_bridge(keepalive_seconds=0.2) as bridge:
        bridge.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # of those that it accepts
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", bridge.port))
            await loop.sock_sendall(client, request("GET", "/nowhere", key=None) * 120)  # answers of about 15 kB
            if end == "asked to close":
                await loop.sock_sendall(client, request("GET", "/nowhere", "Connection: close", key=None))
            elif end == "half closed":
                client.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(60):
                while not bridge.server._connections:
                    await asyncio.sleep(0)
                while bridge.server._connections:
                    await asyncio.sleep(0)


async def test_a_connection_that_ended_is_let_go_of_without_the_garbage_collector(bridge: Bridge) -> None:
    gc.collect()
    gc.disable()
    try:
        for sent in (
            request("POST", "/ingest/logs", "Connection: close", body=BODY),
            request(body=BODY) + HEAD,
        ):
            client = await bridge.connect()
            client.send(sent)
            assert (await client.answer()).status == 200
            await client.close()
        await bridge.server.shutdown(timeout_seconds=5)
        await asyncio.sleep(0)  # the last callback of the last
        assert [held for held in gc.get_objects() if isinstance(held, Connection)] == []
    finally:
        gc.enable()


async def test_requests_are_taken_over_tls(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server_side, client_side = tls
    async with running_bridge(ssl_context=server_side) as bridge:
        client = await bridge.connect(client_side)
        client.send(request(body=BODY) + request("GET", "/health", "Connection: close", key=None))
        assert [(await client.answer()).status for _ in range(2)] == [200, 200]
        assert await client.rest() == b""


FRAGMENTS = [
    b"POST ",
    b"GET ",
    b"/ingest/logs",
    b"http://",
    b"?",
    b"#",
    b" HTTP/1.1\r\n",
    b"\r\n",
    b"\n",
    b": ",
    b"\0",
    b"[::",
]
FRAGMENTS += [
    b"Host: x",
    b"Content-Length: 3",
    b"Transfer-Encoding: chunked",
    b"Upgrade: websocket",
    b"\xff",
    b"0\r\n\r\n",
]


def test_any_bytes_on_a_connection_are_answered_or_waited_for_and_raise_nothing(
    events: list[EventDict], caplog: pytest.LogCaptureFixture
) -> None:
    answered: list[bool] = []
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        bridge = runner.run(stack.enter_async_context(running_bridge()))

        async def send(pieces: list[bytes]) -> None:
            client = await bridge.connect()
            client.send(b"".join(pieces))
            client.writer.write_eof()
            answers = await client.rest()
            assert not answers or answers.startswith(b"HTTP/1.1 ")
            assert b" 500 " not in answers
            answered.append(bool(answers))

        @given(st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=5), max_size=20))
        def check(pieces: list[bytes]) -> None:
            runner.run(send(pieces))

        try:
            check()
        finally:
            runner.run(stack.aclose())
    assert any(answered)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert {event["log_level"] for event in events} <= {"debug"}


async def test_an_answers_date_is_that_of_the_clock(bridge: Bridge) -> None:
    bridge.clock.advance(24 * 3600)
    answer = await bridge.exchange(request("GET", "/health", key=None))
    assert answer.headers["date"] == "Sat, 03 Jan 2026 03:04:05 GMT"
