"""How many bytes a key may send in a minute, as a client sees it: like the number of its requests."""

import gzip
import zlib

import pytest

from tests.http_exchange import Answer
from tests.httpbridge.conftest import BLOCKED_ORIGIN, BODY, SECOND_KEY, request, running_bridge

ORIGIN = "https://shop.example"
GZIP = "Content-Encoding: gzip"
CHUNKED = request("POST", "/ingest/logs", "Transfer-Encoding: chunked", origin=ORIGIN) + (
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
)


def encoded(encoding: str, body: bytes) -> bytes:
    return request("POST", "/ingest/logs", f"Content-Encoding: {encoding}", origin=ORIGIN, body=body)


WAYS = {
    "as it is": request(origin=ORIGIN, body=BODY),
    "chunked": CHUNKED,
    "gzip": encoded("gzip", gzip.compress(BODY)),
    "deflate": encoded("deflate", zlib.compress(BODY)),
}


def whole(answer: Answer) -> bytes:
    return answer.head + answer.body


@pytest.mark.parametrize("way", WAYS)
async def test_over_its_bytes_a_key_gets_what_it_gets_over_its_requests(way: str) -> None:
    """To the byte, until the minute is over; nothing is stored of what is refused, and other keys are served."""
    async with running_bridge(rate_limit=1) as bridge:
        await bridge.exchange(request(body=BODY))
        over_requests = whole(await bridge.exchange(request(origin=ORIGIN, body=BODY)))
    async with running_bridge(rate_limit=5, bytes_per_minute=3 * len(BODY) - 1) as bridge:
        served = [await bridge.exchange(WAYS[way]) for _ in range(3)]
        assert [(answer.status, answer.headers["x-ratelimit-remaining"]) for answer in served] == [
            (200, "4"), (200, "3"), (200, "2"),
        ]  # fmt: skip
        for sent in WAYS.values():
            refused = whole(await bridge.exchange(sent))
            assert refused == over_requests.replace(b"X-RateLimit-Limit: 1", b"X-RateLimit-Limit: 5")
        of_other_origin = await bridge.exchange(request(origin=BLOCKED_ORIGIN, body=BODY))
        assert (of_other_origin.status, of_other_origin.headers["x-ratelimit-remaining"]) == (403, "0")
        assert (await bridge.exchange(request(key=SECOND_KEY, body=BODY))).status == 200
        assert len(bridge.sink.batches) == 4
        bridge.clock.advance(60)
        assert (await bridge.exchange(WAYS[way])).headers["x-ratelimit-remaining"] == "4"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(request(body=b"{" * 1000), 400, id="no JSON"),
        pytest.param(encoded("gzip", gzip.compress(b"{" * 1000)), 400, id="no JSON, inflated"),
        pytest.param(encoded("gzip", gzip.compress(b"{" * 1000)[:-1]), 400, id="cut"),
        pytest.param(encoded("gzip", gzip.compress(bytes(10_000))), 413, id="bomb"),
    ],
)
async def test_what_came_out_of_a_refused_body_counts(sent: bytes, status: int) -> None:
    async with running_bridge(bytes_per_minute=1000, body_bytes_max=5000) as bridge:
        assert (await bridge.exchange(sent)).status == status
        assert (await bridge.exchange(request(body=BODY))).status == 429


async def test_what_is_refused_unread_does_not_count() -> None:
    async with running_bridge(bytes_per_minute=1, body_bytes_max=5000) as bridge:
        for sent, status in (
            (request("POST", "/ingest/logs", "Content-Length: 5001"), 413),
            (request("POST", "/ingest/logs", "Content-Encoding: br", body=BODY), 415),
            (request(origin=BLOCKED_ORIGIN, body=BODY), 403),
            (request(body=BODY), 200),
        ):
            assert (await bridge.exchange(sent)).status == status


async def test_over_its_bytes_a_key_is_refused_before_its_body_is_asked_for() -> None:
    async with running_bridge(bytes_per_minute=1) as bridge:
        assert (await bridge.exchange(request(body=BODY))).status == 200
        for expecting in ("Content-Length: 5", "Content-Length: 9437184"):
            sent = request("POST", "/ingest/logs", "Expect: 100-continue", expecting)
            assert (await bridge.exchange(sent)).status == 429


@pytest.mark.parametrize("header", ["X-Encoding: none", GZIP])
async def test_a_body_that_comes_after_others_used_up_the_bytes_is_refused_undecoded(header: str) -> None:
    """However many bodies were on their way by then."""
    body = gzip.compress(BODY) if header == GZIP else BODY
    sent = request("POST", "/ingest/logs", header, origin=ORIGIN, body=body)
    async with running_bridge(bytes_per_minute=1) as bridge:
        slow = await bridge.connect()
        slow.send(sent[:-5])
        await bridge.validator.is_asked.wait()
        assert (await bridge.exchange(request(body=BODY))).status == 200
        slow.send(sent[-5:])
        answer = await slow.answer()
        assert (answer.status, answer.headers["x-ratelimit-remaining"]) == (429, "0")
        assert answer.headers["retry-after"] == "55"
        assert len(bridge.sink.batches) == 1
        slow.send(request(body=BODY))  # the connection goes on
        assert (await slow.answer()).status == 429


@pytest.mark.parametrize("header", ["X-Encoding: none", GZIP])
async def test_a_body_that_comes_in_the_next_minute_counts_there(header: str) -> None:
    """Although no request has begun in it yet, and the bytes of the last one are used up."""
    body = gzip.compress(BODY) if header == GZIP else BODY
    sent = request("POST", "/ingest/logs", header, origin=ORIGIN, body=body)
    async with running_bridge(bytes_per_minute=1) as bridge:
        slow = await bridge.connect()
        slow.send(sent[:-5])
        await bridge.validator.is_asked.wait()
        assert (await bridge.exchange(request(body=BODY))).status == 200
        bridge.clock.advance(60)
        slow.send(sent[-5:])
        assert (await slow.answer()).status == 200
        assert (await bridge.exchange(request(body=BODY))).status == 429
