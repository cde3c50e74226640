"""Inflating: what is taken, what is refused, and that nobody waits long for somebody else's body."""

import asyncio
import gzip
import zlib

import pytest
from multidict import CIMultiDict

from httpbridge.errors import (
    BodyRefusedError,
    BodyTooLargeError,
    OverloadedError,
    RateLimitedError,
    UnsupportedEncodingError,
)
from httpbridge.http import bodies
from httpbridge.http.bodies import Budget, Reservation
from httpbridge.ingest.handler import RateLimit
from tests.clocks import Clock

LIMIT_BYTES = 256 * 1024
STEP_BYTES = 64 * 1024


def uncounted(_count: int) -> None:
    """Whoever needs no rate limit."""


def reservation(budget_bytes: int = 2**30) -> Reservation:
    return Reservation(Budget(budget_bytes, budget_bytes), "key", uncounted)


async def take_turn() -> None:
    """Give everybody else a turn of the event loop."""
    await asyncio.sleep(0)


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize("size", [0, 1, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, LIMIT_BYTES])
@pytest.mark.parametrize(
    ("encoding", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)],
)
async def test_a_whole_body_up_to_the_limit_comes_back(encoding: str, encode: object, size: int) -> None:
    assert callable(encode)
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assert await bodies.decode(encode(data), encoding, LIMIT_BYTES, reservation(), take_turn) == data


async def test_gzip_members_follow_each_other() -> None:
    members = [b"", b"a", bytes(STEP_BYTES), b"", b"b" * 100_000, b"c"]
    encoded = b"".join(gzip.compress(member) for member in members)
    assert await bodies.decode(encoded, "gzip", LIMIT_BYTES, reservation(), take_turn) == b"".join(members)


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("gzip", b"", id="empty gzip"),
        pytest.param("deflate", b"", id="empty deflate"),
        pytest.param("gzip", b'{"logs": []}', id="not gzip"),
        pytest.param("gzip", zlib.compress(b"x"), id="zlib as gzip"),
        pytest.param("deflate", gzip.compress(b"x"), id="gzip as deflate"),
        pytest.param("gzip", gzip.compress(b"x" * 100)[:-1], id="gzip cut"),
        pytest.param("gzip", gzip.compress(b"x") + gzip.compress(b"y")[:9], id="second member cut"),
        pytest.param("gzip", gzip.compress(b"x") + b"y", id="garbage after gzip"),
        pytest.param("gzip", gzip.compress(b"x") + b"garbage, and more", id="much after gzip"),
        pytest.param("gzip", gzip.compress(b"x")[:-8] + bytes(8), id="checksum"),
        pytest.param("deflate", zlib.compress(b"x" * 100)[:-1], id="zlib cut"),
        pytest.param("deflate", zlib.compress(b"x") + b"y", id="garbage after zlib"),
        pytest.param("deflate", raw_deflate(b"x") + b"y", id="garbage after deflate"),
    ],
)
async def test_what_is_not_whole_is_refused(encoding: str, body: bytes) -> None:
    with pytest.raises(BodyRefusedError):
        await bodies.decode(body, encoding, LIMIT_BYTES, reservation(), take_turn)


@pytest.mark.parametrize("encoded", [gzip.compress(bytes(LIMIT_BYTES + 1)), gzip.compress(bytes(LIMIT_BYTES)) * 2])
async def test_one_byte_over_the_limit_is_too_large(encoded: bytes) -> None:
    with pytest.raises(BodyTooLargeError):
        await bodies.decode(encoded, "gzip", LIMIT_BYTES, reservation(), take_turn)


async def test_a_large_body_is_inflated_in_turns_and_a_small_one_waits_for_none() -> None:
    turns = 0

    async def counted_turn() -> None:
        nonlocal turns
        turns += 1

    small, large = gzip.compress(bytes(60 * 1024)), gzip.compress(bytes(5 * 1024 * 1024))
    await bodies.decode(small, "gzip", 5 * 1024 * 1024, reservation(), counted_turn)
    assert turns == 0
    await bodies.decode(large, "gzip", 5 * 1024 * 1024, reservation(), counted_turn)
    assert 4 * 5 - 1 <= turns <= 4 * 5 + 1  # one for each 256 KiB


async def test_what_is_inflated_is_taken_from_the_budget_and_given_back() -> None:
    budget = Budget(LIMIT_BYTES, LIMIT_BYTES)
    encoded = gzip.compress(bytes(STEP_BYTES))
    with Reservation(budget, "key", uncounted) as first, Reservation(budget, "key", uncounted) as second:
        for _ in range(3):
            await bodies.decode(encoded, "gzip", LIMIT_BYTES, first, take_turn)
        await bodies.decode(encoded, "gzip", LIMIT_BYTES, second, take_turn)
        with pytest.raises(OverloadedError):
            await bodies.decode(encoded, "gzip", LIMIT_BYTES, second, take_turn)
    with Reservation(budget, "key", uncounted) as third:
        await bodies.decode(gzip.compress(bytes(LIMIT_BYTES)), "gzip", LIMIT_BYTES, third, take_turn)


async def test_what_is_inflated_counts_against_the_keys_minute_also_of_what_is_refused() -> None:
    limit = RateLimit(10, 2 * LIMIT_BYTES, Clock().wall)
    limit.take("key")  # the minute begins
    budget = Budget(2**30, 2**30)

    async def decode(encoded: bytes, key_id: str = "key") -> None:
        with Reservation(budget, key_id, limit.body(key_id)) as reserved:
            await bodies.decode(encoded, "gzip", LIMIT_BYTES, reserved, take_turn)

    with pytest.raises(BodyRefusedError):
        await decode(gzip.compress(bytes(LIMIT_BYTES))[:-1])
    assert limit.take("key").admitted
    with pytest.raises(BodyTooLargeError):
        await decode(gzip.compress(bytes(2 * LIMIT_BYTES)))
    assert not limit.take("key").admitted
    with pytest.raises(RateLimitedError):
        await decode(gzip.compress(b"x"))
    await decode(gzip.compress(b"x"), "another key")


async def test_a_body_that_has_begun_is_inflated_to_its_end_whatever_other_bodies_use_up() -> None:
    """And those that wait until then are refused: however many there are, no more of them are inflated."""
    body = bytes(4 * LIMIT_BYTES)
    limit = RateLimit(10, len(body), Clock().wall)
    budget = Budget(2**30, 2**30)
    encoded = gzip.compress(body)

    async def decode() -> bytes:
        with Reservation(budget, "key", limit.body("key")) as reserved:
            return await bodies.decode(encoded, "gzip", len(body), reserved, take_turn)

    outcomes = await asyncio.gather(*(decode() for _ in range(40)), return_exceptions=True)
    inflated = [outcome for outcome in outcomes if not isinstance(outcome, RateLimitedError)]
    assert inflated == [body] * len(inflated)
    assert 2 <= len(inflated) <= len(body) // STEP_BYTES


async def test_gzip_members_are_bounded() -> None:
    """200,000 empty ones fit into a body, and would cost ten times what any other body does."""
    most = gzip.compress(b"") * (bodies.MEMBERS_MAX - 1) + gzip.compress(b"x")
    assert await bodies.decode(most, "gzip", LIMIT_BYTES, reservation(), take_turn) == b"x"
    with pytest.raises(BodyRefusedError, match=r"^The body has more than 4,096 gzip members$"):
        await bodies.decode(most + gzip.compress(b""), "gzip", LIMIT_BYTES, reservation(), take_turn)


JSON = b' {"logs": []}'


@pytest.mark.parametrize(
    ("encoding", "body", "sentence"),
    [
        ("gzip", JSON, "not valid gzip: it looks like JSON, which needs no Content-Encoding"),
        ("deflate", JSON, "not valid deflate: it looks like JSON, which needs no Content-Encoding"),
        ("deflate", JSON[1:], "not valid deflate: it looks like JSON, which needs no Content-Encoding"),
        ("gzip", zlib.compress(JSON), "not valid gzip: it looks like deflate, as which the header should"),
        ("deflate", gzip.compress(JSON, mtime=0), "not valid deflate: it looks like gzip, as which the header should"),
        ("gzip", b"\x28\xb5\x2f\xfd....", "not valid gzip: it looks like zstd, which is not decoded here"),
        ("gzip", b"what is this", "not valid gzip"),
        ("gzip", gzip.compress(gzip.compress(JSON, mtime=0), mtime=0), "gzip within gzip: compress it once"),
        ("gzip", gzip.compress(zlib.compress(JSON), mtime=0), "deflate within gzip: compress it once"),
        ("deflate", zlib.compress(b"\x28\xb5\x2f\xfd...."), "zstd within deflate: compress it once"),
    ],
)
async def test_what_is_encoded_otherwise_than_announced_is_named(encoding: str, body: bytes, sentence: str) -> None:
    with pytest.raises(BodyRefusedError, match=f"^The body is {sentence}"):
        await bodies.decode(body, encoding, LIMIT_BYTES, reservation(), take_turn)


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        ([], ""),
        ([""], ""),
        (["identity"], ""),
        (["GZip"], "gzip"),
        (["x-gzip"], "gzip"),
        (["Deflate"], "deflate"),
        (["identity, gzip"], "gzip"),
        (["br"], None),
        (["gzip, gzip"], None),
        (["gzip", "deflate"], None),
        (["gzip;q=1"], None),
    ],
)
def test_encodings_by_name(values: list[str], encoding: str | None) -> None:
    headers = CIMultiDict([("Content-Encoding", value) for value in values])
    if encoding is None:
        with pytest.raises(UnsupportedEncodingError):
            bodies.encoding(headers)
    else:
        assert bodies.encoding(headers) == encoding
