"""What a client sees, to the byte. The golden files hold whole answers, with line feeds for CR LF."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from authsvc.client import KeyServiceUnavailableError
from httpbridge.errors import BridgeError, StoreUnavailableError
from httpbridge.http.responses import Response, ready
from tests.httpbridge.conftest import (
    BLOCKED_ORIGIN,
    BODY,
    KEY_ID,
    OTHER_KEY,
    PROJECT_ID,
    Bridge,
    request,
    running_bridge,
)

GOLDEN = Path(__file__).parent / "golden"
ORIGIN = "https://shop.example"
PREFLIGHT = "Access-Control-Request-Method: POST"
ASKED = "Access-Control-Request-Headers"

REQUESTS = {
    "200-stored": request(body=BODY),
    "200-stored-cross-origin": request(origin=ORIGIN, body=BODY),
    "200-health": request("GET", "/health", key=None),
    "200-ready": request("GET", "/ready", key=None),
    "204-preflight": request(
        "OPTIONS", "/ingest/logs", PREFLIGHT, f"{ASKED}: authorization,baggage, Sentry-Trace", key=None, origin=ORIGIN
    ),
    "204-preflight-elsewhere": request("OPTIONS", "/nowhere", PREFLIGHT, key=None, origin=ORIGIN),
    "204-preflight-health": request("OPTIONS", "/health", PREFLIGHT, key=None, origin=ORIGIN),
    "400-body": request(origin=ORIGIN, body=b'{"logs": [{"level": "loud", "message": "hello"}]}'),
    "400-not-http": b"nonsense\r\n\r\n",
    "401-no-key": request(key=None, body=BODY),
    "401-unknown-key-cross-origin": request(key=OTHER_KEY, origin=ORIGIN, body=BODY),
    "403-origin": request(origin=BLOCKED_ORIGIN, body=BODY),
    "404-path": request("GET", "/", key=None, origin=ORIGIN),
    "405-ingest": request("GET", "/ingest/logs", key=None, origin=ORIGIN),
    "405-health": request("POST", "/health", key=None),
    "413-declared": request("POST", "/ingest/logs", "Content-Length: 5242881", origin=ORIGIN),
    "415-encoding": request("POST", "/ingest/logs", "Content-Encoding: br", origin=ORIGIN, body=BODY),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_answer_is_the_golden_one(bridge: Bridge, name: str) -> None:
    answer = await bridge.exchange(REQUESTS[name])
    check_golden(name, answer.head + answer.body)


def check_golden(name: str, answer: bytes) -> None:
    assert answer.count(b"\n") == answer.count(b"\r\n")
    assert answer.replace(b"\r\n", b"\n").decode() + "\n" == (GOLDEN / f"{name}.http").read_text()


async def test_rate_limited_answer_is_the_golden_one() -> None:
    async with running_bridge(rate_limit=0) as bridge:
        answer = await bridge.exchange(request(origin=ORIGIN, body=BODY))
    check_golden("429-rate", answer.head + answer.body)


async def test_key_service_away_is_the_golden_503_and_never_a_401(bridge: Bridge) -> None:
    bridge.validator.is_away = True
    answer = await bridge.exchange(request(origin=ORIGIN, body=BODY))
    check_golden("503-key-service", answer.head + answer.body)


async def test_store_away_is_the_golden_503(bridge: Bridge) -> None:
    bridge.sink.failure = StoreUnavailableError("disk full")
    answer = await bridge.exchange(request(origin=ORIGIN, body=BODY))
    check_golden("503-store", answer.head + answer.body)


async def test_unexpected_error_is_the_golden_503_with_cors_and_rate_headers(bridge: Bridge) -> None:
    bridge.sink.failure = ZeroDivisionError("secret")
    answer = await bridge.exchange(request(origin=ORIGIN, body=BODY))
    check_golden("503-unexpected", answer.head + answer.body)


@pytest.mark.parametrize(
    ("base", "status"), [(StoreUnavailableError, 503), (KeyServiceUnavailableError, 503), (BridgeError, 503)]
)
async def test_an_error_that_has_no_answer_of_its_own_has_that_of_its_base(
    bridge: Bridge, base: type[Exception], status: int
) -> None:
    class LaterError(base):  # type: ignore[misc, valid-type]
        pass

    bridge.sink.failure = LaterError("of a later version")
    answer = await bridge.exchange(request(origin=ORIGIN, body=BODY))
    assert answer.status == status
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_a_200_is_the_whole_batch_stored_under_the_key_that_sent_it(bridge: Bridge) -> None:
    await bridge.exchange(request(body=BODY))
    (batch,) = bridge.sink.batches
    assert (batch.project_id, batch.key_id, batch.received_at) == (PROJECT_ID, KEY_ID, bridge.clock.wall())
    assert [entry.message for entry in batch.entries] == ["hello"]


async def test_logs_are_received_when_their_request_is_not_when_its_body_is_whole(bridge: Bridge) -> None:
    received_at = bridge.clock.wall()
    client = await bridge.connect()
    client.send(request(body=BODY)[:-5])
    await bridge.validator.is_asked.wait()
    bridge.clock.advance(5)
    client.send(BODY[-5:])
    assert (await client.answer()).status == 200
    assert bridge.sink.batches[0].received_at == received_at


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(request(target="//ingest/logs", body=BODY), 200, id="doubled slash"),
        pytest.param(request(target="/ingest/logs?key=1&x#y", body=BODY), 200, id="query"),
        pytest.param(request(target="http://bridge.example/ingest/logs?x", body=BODY), 200, id="absolute form"),
        pytest.param(request(target="https://bridge.example/ingest/logs?x", body=BODY), 200, id="absolute form, https"),
        pytest.param(request("OPTIONS", "/health", PREFLIGHT, key=None, origin=ORIGIN), 204, id="preflight elsewhere"),
        pytest.param(request(target="///ingest//logs", body=BODY), 200, id="more slashes"),
        pytest.param(request("GET", "//health", key=None), 200, id="doubled slash elsewhere"),
        pytest.param(request(target="/ingest/logs/", body=BODY), 200, id="trailing slash"),
        pytest.param(request(target="/ingest/logs/?a=/b/", body=BODY), 200, id="trailing slash before a query"),
        pytest.param(request(target="http://bridge.example//ingest/logs/", body=BODY), 200, id="all in absolute form"),
        pytest.param(request("GET", "/ready/", key=None), 200, id="trailing slash elsewhere"),
        pytest.param(request(target="/%69ngest/lo%67%73", body=BODY), 200, id="escaped plain characters"),
        pytest.param(request(target="/%2569ngest/logs", body=BODY), 404, id="escaped twice"),
        pytest.param(request(target="/ingest/logs%00", body=BODY), 404, id="escaped zero"),
        pytest.param(request(target="/ingest/logs%", body=BODY), 404, id="half an escape"),
        pytest.param(request(target="/ingest/logs/x", body=BODY), 404, id="below"),
        pytest.param(request(target="/ingest", body=BODY), 404, id="above"),
        pytest.param(request(target="/INGEST/logs", body=BODY), 404, id="case"),
        pytest.param(request(target="/ingest%2Flogs", body=BODY), 404, id="escaped"),
        pytest.param(request("OPTIONS", "*", key=None), 404, id="asterisk"),
        pytest.param(request("PUT", body=BODY), 405, id="put"),
        pytest.param(request("OPTIONS", key=None), 405, id="no preflight: no origin"),
        pytest.param(request("OPTIONS", key=None, origin=ORIGIN), 405, id="no preflight: no method"),
        pytest.param(
            request("OPTIONS", "/nowhere", PREFLIGHT, key=None, origin=ORIGIN), 204, id="preflight before path"
        ),
        pytest.param(request("GET", key=None), 405, id="method before key"),
        pytest.param(
            request("POST", "/ingest/logs", "Content-Encoding: br", key=None, body=BODY), 401, id="key before encoding"
        ),
        pytest.param(
            request("POST", "/ingest/logs", "Content-Encoding: br", origin=BLOCKED_ORIGIN, body=BODY),
            403,
            id="origin before encoding",
        ),
        pytest.param(
            request("POST", "/ingest/logs", "Content-Encoding: br", "Content-Length: 9999999"),
            415,
            id="encoding before size",
        ),
        pytest.param(
            request("POST", "/ingest/logs", "Content-Type: text/plain", body=BODY), 200, id="type not enforced"
        ),
        pytest.param(request(), 400, id="no body"),
        pytest.param(request("POST", "/ingest/logs", "Content-Encoding: Identity", body=BODY), 200, id="identity"),
    ],
)
async def test_path_method_and_order_of_checks(bridge: Bridge, sent: bytes, status: int) -> None:
    assert (await bridge.exchange(sent)).status == status


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(request("POST", "/ingest/logs", "Content-Encoding: br", body=BODY), id="encoding"),
        pytest.param(request("POST", "/ingest/logs", "Content-Length: 9437184"), id="size"),
        pytest.param(request(body=b"{"), id="body"),
        pytest.param(request("POST", "/ingest/logs", "Expect: 100-continue", "Content-Length: 5"), id="expectation"),
    ],
)
async def test_the_rate_comes_before_all_that_is_asked_of_the_body(sent: bytes) -> None:
    """The first answer is no 100 either."""
    async with running_bridge(rate_limit=0) as bridge:
        assert (await bridge.exchange(sent)).status == 429


@pytest.mark.parametrize(("path", "status"), [("/health", 200), ("/ready", 200), ("/ingest/logs", 405), ("/", 404)])
async def test_head_is_answered_without_a_body(bridge: Bridge, path: str, status: int) -> None:
    """As load balancers send it, to health and readiness only."""
    client = await bridge.connect()
    client.send(request("HEAD", path, key=None) + request("GET", "/health", key=None))
    answer = await client.answer(has_body=False)
    assert answer.status == status
    assert int(answer.headers["content-length"]) > 0
    assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Authorization: Bearer {key}", 200),
        ("authorization: bEARER {key}", 200),
        ("Authorization: Bearer   {key}", 200),
        ("Authorization: Bearer {key} ", 200),
        ("Authorization: Bearer", 401),
        ("Authorization: {key}", 401),
        ("Authorization: Basic {key}", 401),
        ("Authorization: Bearer {key}x", 401),
        ("Authorization: Bearer {key} x", 401),
        ("Authorization: Bearer {key}, Bearer {key}", 401),
        ("Authorization: Bearer DT_0123456789ABCDEF01234567", 401),
        ("Authorization: Bearer {key}\r\nAuthorization: Bearer {key}", 401),
        ("Authorization: Bearer \xff", 401),
        ("X-Api-Key: {key}", 401),
    ],
)
async def test_what_counts_as_a_key_and_a_malformed_one_never_reaches_the_key_service(
    bridge: Bridge, authorization: str, status: int
) -> None:
    header = authorization.format(key="dt_0123456789abcdef01234567")
    answer = await bridge.exchange(request("POST", "/ingest/logs", header, key=None, body=BODY))
    assert answer.status == status
    assert bool(bridge.validator.asked) == (status == 200)


async def test_a_remembered_verdict_is_used_without_asking(bridge: Bridge) -> None:
    bridge.validator.remembers = True
    assert (await bridge.exchange(request(body=BODY))).status == 200
    assert bridge.validator.asked == []


@pytest.mark.parametrize(
    ("headers", "origin"),
    [
        ((), None),
        (("Origin: https://shop.example",), "https://shop.example"),
        (("Origin: null",), "null"),
        (("Origin:",), ""),
        (("Origin: https://shop.example", "Origin: https://shop.example"), "null"),
        (("Origin: https://shop.example", "Origin: https://other.example"), "null"),
    ],
)
async def test_the_origin_that_is_asked_about_is_the_headers_and_several_are_null(
    bridge: Bridge, headers: tuple[str, ...], origin: str | None
) -> None:
    answer = await bridge.exchange(request("POST", "/ingest/logs", *headers, body=BODY))
    assert [asked for _, asked in bridge.validator.asked] == [origin]
    assert ("access-control-allow-origin" in answer.headers) == bool(headers)


async def test_an_origin_that_is_not_utf8_is_one_that_no_entry_admits(bridge: Bridge) -> None:
    sent = request(body=BODY).replace(b"Host:", b"Origin: https://\xff.example\r\nHost:")
    assert (await bridge.exchange(sent)).status == 403


async def test_rate_headers_on_every_answer_to_a_valid_key_and_only_admitted_origins_count() -> None:
    async with running_bridge(rate_limit=3) as bridge:
        steps = [
            (request(body=BODY), 200, "2"),
            (request(origin=BLOCKED_ORIGIN, body=BODY), 403, "2"),
            (request("POST", "/ingest/logs", "Content-Encoding: br", body=BODY), 415, "1"),
            (request(body=b"{"), 400, "0"),
            (request(body=BODY), 429, "0"),
            (request(origin=BLOCKED_ORIGIN, body=BODY), 403, "0"),
        ]
        for sent, status, remaining in steps:
            answer = await bridge.exchange(sent)
            assert (answer.status, answer.headers["x-ratelimit-remaining"]) == (status, remaining)
            assert answer.headers["x-ratelimit-limit"] == "3"
            assert answer.headers["x-ratelimit-reset"] == str(int(datetime(2026, 1, 2, 3, 5, tzinfo=UTC).timestamp()))
        bridge.clock.advance(60)
        assert (await bridge.exchange(request(body=BODY))).status == 200
        assert (await bridge.exchange(request(key=OTHER_KEY, body=BODY))).headers.get("x-ratelimit-limit") is None


@pytest.mark.parametrize(
    ("readiness", "status", "content"),
    [
        (ready("ok"), 200, {"status": "ok"}),
        (
            ready("degraded", "key service unavailable"),
            200,
            {"status": "degraded", "reason": "key service unavailable"},
        ),
        (
            ready("unavailable", "log store unavailable"),
            503,
            {"status": "unavailable", "reason": "log store unavailable"},
        ),
    ],
)
async def test_ready_tells_what_the_parts_say(
    bridge: Bridge, readiness: Response, status: int, content: dict[str, str]
) -> None:
    bridge.readiness = readiness
    answer = await bridge.exchange(request("GET", "/ready", key=None))
    assert (answer.status, json.loads(answer.body)) == (status, content)


@pytest.mark.parametrize(
    ("asked", "allowed"),
    [
        ("", None),
        ("b3", "b3"),
        ("authorization, x-request-id,,baggage", "authorization, x-request-id, baggage"),
        ("a b, c, d:e, \u00e4, f", "c, f"),
        (", ".join(f"x-{number}" for number in range(100)), ", ".join(f"x-{number}" for number in range(64))),
        (f"{'x' * 3000}, b3", "x" * 2048),
    ],
)
async def test_a_preflight_allows_the_headers_that_it_asks_for_within_bounds(
    bridge: Bridge, asked: str, allowed: str | None
) -> None:
    lines = [f"{ASKED}: {asked}"] if asked else []
    answer = await bridge.exchange(request("OPTIONS", "/ingest/logs", PREFLIGHT, *lines, key=None, origin=ORIGIN))
    assert answer.status == 204
    assert answer.headers.get("access-control-allow-headers") == allowed


async def test_several_lines_of_asked_headers_are_one_list(bridge: Bridge) -> None:
    lines = [f"{ASKED}: a", f"{ASKED}: b"]
    answer = await bridge.exchange(request("OPTIONS", "/ingest/logs", PREFLIGHT, *lines, key=None, origin=ORIGIN))
    assert answer.headers["access-control-allow-headers"] == "a, b"


@pytest.mark.parametrize(("asked", "allowed"), [("true", "true"), ("TRUE", "true"), ("false", None), (None, None)])
async def test_a_page_of_another_network_is_let_in_where_it_asks(
    bridge: Bridge, asked: str | None, allowed: str | None
) -> None:
    lines = [] if asked is None else [f"Access-Control-Request-Private-Network: {asked}"]
    answer = await bridge.exchange(request("OPTIONS", "/ingest/logs", PREFLIGHT, *lines, key=None, origin=ORIGIN))
    assert answer.headers.get("access-control-allow-private-network") == allowed
