"""The public HTTP contract, held over both real processes, with the stored logs looked at afterwards."""

import asyncio
import gzip
import json
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.e2e.processes import Service, System
from tests.e2e.stored_logs import messages, stored_logs
from tests.http_exchange import BODY, Answer, Connection, exchange, get, post, request

ADMITTED = "https://shop.example"
BLOCKED = "https://evil.example"
UNKNOWN_KEY = "dt_" + "0" * 24
PREFLIGHT = "Access-Control-Request-Method: POST"
MIB = 1024 * 1024
EXPOSED = "Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset"


@dataclass(frozen=True, slots=True)
class Running:
    """Both services, and keys of three projects."""

    system: System
    bridge: Service
    open_key: str
    """Of a project that admits every origin."""
    listed_key: str
    """Of one that admits `ADMITTED` and hosts under it."""
    revoked_key: str

    def key(self, name: str) -> str | None:
        return {
            "open": self.open_key,
            "listed": self.listed_key,
            "revoked": self.revoked_key,
            "unknown": UNKNOWN_KEY,
            "malformed": self.open_key.upper(),
            "short": self.open_key[:-1],
            "none": None,
        }[name]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    system = System(tmp_path_factory.mktemp("contract"))
    try:
        yield asyncio.run(_start(system))
    finally:
        system.close()


async def _start(system: System) -> Running:
    await system.key_service()
    bridge = await system.bridge()
    keys = system.issue("open"), system.issue("listed", ADMITTED, "*.shop.example")
    revoked = system.issue("revoked")
    assert system.run("authsvc", "revoke", "revoked", "--yes").returncode == 0
    return Running(system, bridge, *keys, revoked)


def error(message: str) -> dict[str, str]:
    return {"error": message}


INVALID_KEY = error("Missing or invalid API key")
TOO_LARGE = error("Request body too large")
STORED = {"ok": True, "count": 1}
NOT_FOUND = error("Not found")


def issue(path: str, message: str) -> dict[str, Any]:
    return {"error": f"{path} {message}".strip(), "issues": [{"path": path, "message": message}]}


def batch(**fields: Any) -> bytes:
    return json.dumps({"logs": [{"level": "info", "message": "x"} | fields]}).encode()


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


BOMB = gzip.compress(bytes(64 * MIB), 9)

# Key, request without key and origin, status, body.
TABLE: list[Any] = [
    pytest.param("open", {"body": BODY}, (), 200, STORED, id="stored"),
    pytest.param("open", {"body": BODY, "target": "//ingest/logs"}, (), 200, STORED, id="doubled slash"),
    pytest.param("open", {"body": BODY, "target": "/ingest/logs?a=b"}, (), 200, STORED, id="query"),
    pytest.param("open", {"body": BODY}, ("Content-Type: text/plain",), 200, STORED, id="beacon"),
    pytest.param("open", {"body": gzip.compress(BODY)}, ("Content-Encoding: gzip",), 200, STORED, id="gzip"),
    pytest.param("open", {"body": zlib.compress(BODY)}, ("Content-Encoding: deflate",), 200, STORED, id="deflate"),
    pytest.param("open", {"body": raw_deflate(BODY)}, ("Content-Encoding: deflate",), 200, STORED, id="raw deflate"),
    pytest.param("none", {"body": BODY}, (), 401, INVALID_KEY, id="no key"),
    pytest.param("malformed", {"body": BODY}, (), 401, INVALID_KEY, id="malformed key"),
    pytest.param("short", {"body": BODY}, (), 401, INVALID_KEY, id="short key"),
    pytest.param("unknown", {"body": BODY}, (), 401, INVALID_KEY, id="unknown key"),
    pytest.param("revoked", {"body": BODY}, (), 401, INVALID_KEY, id="revoked key"),
    pytest.param("open", {"target": "/", "body": BODY}, (), 404, NOT_FOUND, id="path"),
    pytest.param("open", {"target": "/ingest/logs/", "body": BODY}, (), 200, STORED, id="trailing slash"),
    pytest.param("none", {"method": "PUT", "target": "/x"}, (), 404, NOT_FOUND, id="path before method"),
    pytest.param("none", {"method": "GET"}, (), 405, error("Method not allowed"), id="method before key"),
    pytest.param("none", {"method": "PUT", "body": BODY}, (), 405, error("Method not allowed"), id="method"),
    pytest.param("none", {"body": b"{"}, ("Content-Encoding: br",), 401, INVALID_KEY, id="key before encoding"),
    pytest.param(
        "open",
        {},
        ("Content-Encoding: br", f"Content-Length: {9 * MIB}"),
        415,
        error("Unsupported content encoding"),
        id="encoding before size",
    ),
    pytest.param("open", {}, (f"Content-Length: {5 * MIB + 1}",), 413, TOO_LARGE, id="declared size"),
    pytest.param("open", {"body": BOMB}, ("Content-Encoding: gzip",), 413, TOO_LARGE, id="gzip bomb"),
    pytest.param("unknown", {"body": BOMB}, ("Content-Encoding: gzip",), 401, INVALID_KEY, id="bomb without a key"),
    pytest.param("open", {"body": b"\xff{}"}, (), 400, issue("", "The body is not UTF-8 (byte 0)"), id="not UTF-8"),
    pytest.param("open", {"body": b'{"logs": []}'}, (), 400, issue("logs", "must not be empty"), id="no entries"),
    pytest.param(
        "open",
        {"body": batch(level="loud")},
        (),
        400,
        issue("logs[0].level", "must be one of debug, info, warn, error"),
        id="level",
    ),
    pytest.param(
        "open", {"body": batch(metadata=[])}, (), 400, issue("logs[0].metadata", "must be an object"), id="metadata"
    ),
    pytest.param(
        "open",
        {"body": batch(timestamp="yesterday")},
        (),
        400,
        issue("logs[0].timestamp", "must be an RFC 3339 timestamp"),
        id="timestamp",
    ),
    pytest.param("none", {"method": "GET", "target": "/ready"}, (), 200, {"status": "ok"}, id="ready"),
]


@pytest.mark.parametrize("origin", [None, ADMITTED])
@pytest.mark.parametrize(("key", "sent", "headers", "status", "body"), TABLE)
async def test_table(
    running: Running,
    origin: str | None,
    key: str,
    sent: dict[str, Any],
    headers: tuple[str, ...],
    status: int,
    body: dict[str, Any],
) -> None:
    """Status, body and headers of each case; with an Origin, page code may read all of it."""
    api_key = running.key(key)
    answer = await exchange(running.bridge.address, request(*headers, key=api_key, origin=origin, **sent))
    assert (answer.status, answer.json) == (status, body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("access-control-allow-origin") == (origin and "*")
    assert answer.headers.get("access-control-expose-headers") == (origin and EXPOSED)
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)
    has_valid_key = key in ("open", "listed") and status not in (404, 405)
    assert ("x-ratelimit-limit" in answer.headers) == has_valid_key


async def test_a_body_without_a_length_is_refused_at_the_limit_and_the_status_is_readable(running: Running) -> None:
    async with Connection(running.bridge.address) as connection:
        connection.send(request("Transfer-Encoding: chunked", key=running.open_key))
        chunk = b"%x\r\n" % MIB + bytes(MIB) + b"\r\n"
        connection.send(chunk * 6 + b"0\r\n\r\n")
        assert (await connection.answer()).status == 413


async def test_the_four_invalid_keys_are_indistinguishable(running: Running) -> None:
    answers = []
    for name in ("none", "malformed", "unknown", "revoked"):
        answer = await exchange(running.bridge.address, request(key=running.key(name), body=BODY))
        answers.append((answer.status, answer.body, answer.headers | {"date": ""}))
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 200),
        (ADMITTED, 200),
        ("https://SHOP.example", 200),
        ("https://www.shop.example", 200),
        ("http://shop.example", 403),
        ("https://shop.example:8443", 403),
        ("https://evilshop.example", 403),
        ("https://shop.example.evil.example", 403),
        ("https://shop.example@evil.example", 403),
        (BLOCKED, 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_the_origin_list_decides_on_origins_that_are_sent(
    running: Running, origin: str | None, status: int
) -> None:
    answer = await exchange(running.bridge.address, request(key=running.listed_key, origin=origin, body=BODY))
    assert answer.status == status
    if status == 403:
        assert answer.json == error("Origin not allowed")
        assert answer.headers["access-control-allow-origin"] == "*"


async def test_preflight_needs_no_key(running: Running) -> None:
    asked = "Access-Control-Request-Headers: authorization, baggage"
    answer = await exchange(running.bridge.address, request(PREFLIGHT, asked, method="OPTIONS", origin=BLOCKED))
    assert (answer.status, answer.body) == (204, b"")
    cors = {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}
    assert cors == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": "authorization, baggage",
        "access-control-max-age": "86400",
    }


async def test_what_is_not_http_is_a_json_400_that_page_code_can_read(running: Running) -> None:
    answer = await exchange(running.bridge.address, b"\x16\x03\x01 nonsense\r\n\r\n")
    assert (answer.status, answer.json) == (400, error("Bad request"))
    assert answer.headers["access-control-allow-origin"] == "*"


async def test_health_needs_no_key_and_tells_the_time(running: Running) -> None:
    answer = await get(running.bridge.address, "/health")
    assert answer.status == 200
    assert answer.json["status"] == "ok"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer.json["timestamp"])


async def test_a_body_is_asked_for_only_after_the_key_was_checked(running: Running) -> None:
    expecting = request("Expect: 100-continue", f"Content-Length: {len(BODY)}", key=running.open_key)
    async with Connection(running.bridge.address) as connection:
        connection.send(expecting)
        assert (await connection.answer()).status == 100
        connection.send(BODY)
        assert (await connection.answer()).json == STORED
    refused = expecting.replace(running.open_key.encode(), UNKNOWN_KEY.encode())
    assert (await exchange(running.bridge.address, refused)).status == 401


async def test_every_field_is_stored_as_the_contract_says(running: Running) -> None:
    body = b"""{"service": "checkout", "environment": "staging", "release": "r1", "product": "ignored", "logs": [
        {"level": "warn", "message": "all", "timestamp": "2026-01-02T03:04:05.678+02:00",
         "metadata": {"n": 1.10, "big": 123456789012345678901234567890}, "trace_id": "t", "span_id": "s",
         "request_id": "r", "vercel_id": "v", "context": "c", "release": "r2"},
        {"level": "debug", "message": "defaults \\u2713", "timestamp": null, "other": {}}]}"""
    answer = await post(running.bridge.address, running.open_key, body)
    assert (answer.status, answer.json) == (200, {"ok": True, "count": 2})
    first, second = stored_logs(running.system.state_dir, "open")[-2:]
    kept = {name: value for name, value in first.items() if name not in ("id", "key_id", "received_at")}
    assert kept == {
        "project_id": "open", "service": "checkout", "environment": "staging", "release": "r2", "level": "warn",
        "message": "all", "timestamp": datetime(2026, 1, 2, 1, 4, 5, 678000, tzinfo=UTC),
        "metadata": '{"n": 1.10, "big": 123456789012345678901234567890}',
        "trace_id": "t", "span_id": "s", "request_id": "r", "vercel_id": "v", "context": "c",
    }  # fmt: skip
    assert (second["message"], second["release"]) == ("defaults \u2713", "r1")
    assert second["timestamp"] == second["received_at"]
    assert second["metadata"] is None


async def test_nothing_of_a_refused_batch_is_stored(running: Running) -> None:
    entries = [{"level": "info", "message": "half"}, {"level": "info"}]
    answer = await post(running.bridge.address, running.open_key, json.dumps({"logs": entries}).encode())
    assert (answer.status, answer.json) == (400, issue("logs[1].message", "is required"))
    assert "half" not in messages(running.system.state_dir)


async def test_the_rate_limit_counts_per_key_what_is_past_the_origin_check(running: Running) -> None:
    bridge = await running.system.bridge(HTTPBRIDGE_RATE_LIMIT_PER_MINUTE="3")
    steps = [
        (None, BODY, 200, "2"),
        (BLOCKED, BODY, 403, "2"),
        (None, b"{", 400, "1"),
        (ADMITTED, BODY, 200, "0"),
        (ADMITTED, BODY, 429, "0"),
        (BLOCKED, BODY, 403, "0"),
    ]

    async def take() -> list[Answer]:
        return [
            await exchange(bridge.address, request(key=running.listed_key, origin=origin, body=body))
            for origin, body, _, _ in steps
        ]

    answers = await take()
    if len({answer.headers["x-ratelimit-reset"] for answer in answers}) > 1:  # the minute ended in between
        bridge = await running.system.bridge(HTTPBRIDGE_RATE_LIMIT_PER_MINUTE="3")
        answers = await take()
    found = [(answer.status, answer.headers["x-ratelimit-remaining"]) for answer in answers]
    assert found == [(status, remaining) for _, _, status, remaining in steps]
    assert {answer.headers["x-ratelimit-limit"] for answer in answers} == {"3"}
    reset = int(answers[0].headers["x-ratelimit-reset"])
    assert reset % 60 == 0
    assert 0 < reset - time.time() <= 60
    limited = answers[4]
    assert limited.json == error("Rate limit exceeded")
    assert 1 <= int(limited.headers["retry-after"]) <= 60
    assert (await post(bridge.address, running.open_key)).status == 200


async def test_a_revoked_key_is_refused_once_its_verdict_expired_and_its_logs_stay(system: System) -> None:
    await system.key_service()
    bridge = await system.bridge(HTTPBRIDGE_CACHE_TTL_SECONDS="0.2")
    old = system.issue("demo")
    assert (await post(bridge.address, old)).status == 200
    new = system.run("authsvc", "revoke", "demo", "--yes").stdout.strip()
    deadline = time.monotonic() + 5
    while (status := (await post(bridge.address, old)).status) == 200:
        assert time.monotonic() < deadline
    assert status == 401
    assert (await post(bridge.address, new)).status == 200
    stored = stored_logs(system.state_dir)
    assert {row["project_id"] for row in stored} == {"demo"}
    assert stored[0]["key_id"] != stored[-1]["key_id"]
