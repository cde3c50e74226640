"""Request bodies within bounds: which encodings, how much to read, how far to inflate. Called by `ingest`.

Every limit holds while reading and while inflating: neither a body without a length nor a bomb takes more memory than
the limit and one step; and all of them together take no more than the process's budget.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable
from typing import Self

import structlog
from aiohttp import hdrs
from multidict import MultiMapping

from httpbridge.errors import (
    BodyRefusedError,
    BodyTimeoutError,
    BodyTooLargeError,
    OverloadedError,
    UnsupportedEncodingError,
)
from httpbridge.http.request import Request

BUDGET_BYTES = 256 * 1024 * 1024
"""For bodies that are being read, inflated and parsed, all together: fifty of the largest, as they come and inflated.

What came along with its headers takes none of them before it is inflated: the connection bounds it.
"""

KEY_BUDGET_BYTES = BUDGET_BYTES // 8
"""Of them for the bodies with one key: keys that browsers send are public, and whoever has one can send slowly."""

_INPUT_STEP_BYTES = 16 * 1024
"""Inflated at a time. zlib hands back what it did not use as a copy: over the whole body that would be quadratic."""
_OUTPUT_STEP_BYTES = 64 * 1024
_TURN_BYTES = 256 * 1024
"""Inflated or taken in, in one turn: about half a millisecond."""
_FREE_BYTES = 64 * 1024
"""Before the first turn: small bodies wait for nobody."""

MEMBERS_MAX = 4096
"""Of a gzip body (docs/http-api.md): with one for each entry, or each 64 KiB, there are far fewer.

Each costs an inflater, even if there is nothing in it.
"""

_GZIP_WINDOW_BITS = 31
_ZLIB_WINDOW_BITS = 15
_RAW_DEFLATE_WINDOW_BITS = -15
_ENCODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}

# Of other formats than JSON, the numbers that they begin with.
_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
    (b"PK\x03\x04", "zip"),
    (b"\xff\x06\0\0sNaPpY", "snappy"),
)
_DECODED = ("gzip", "deflate")
_UTF_16_AND_32 = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"\0\0\0{", b"\0\0\xfe\xff")

_log = structlog.get_logger("httpbridge")


class Budget:
    """Bytes that the bodies being read, inflated and parsed may take, all together and for each key.

    `event` is logged, once, when they are taken. `inbound` counts by callers instead of keys.
    """

    def __init__(self, bytes_max: int, key_bytes_max: int, event: str = "body_budget_exhausted") -> None:
        self._event = event
        self._bytes_max = bytes_max
        self._key_bytes_max = key_bytes_max
        self._taken_bytes = 0
        self._taken_bytes_by_key: dict[str, int] = {}
        self._is_logged = False

    def take(self, count: int, key_id: str) -> None:
        """Take so many bytes, or give them back, where `count` is negative.

        Raises OverloadedError when fewer are left for all or for the key.
        """
        key_bytes = self._taken_bytes_by_key.get(key_id, 0) + count
        if count > 0 and key_bytes > self._key_bytes_max:  # not logged, like other limits of a key
            raise OverloadedError
        if count > 0 and self._taken_bytes + count > self._bytes_max:
            if not self._is_logged:
                self._is_logged = True
                _log.warning(self._event, bytes=self._taken_bytes)
            raise OverloadedError
        self._taken_bytes += count
        self._taken_bytes_by_key[key_id] = key_bytes
        if not key_bytes:
            del self._taken_bytes_by_key[key_id]
        if self._taken_bytes < self._bytes_max // 2:
            self._is_logged = False


class Reservation:
    """What one request has taken of the budget: nothing at first. A context manager, which releases it.

    `count_decoded` is told of the bytes that come out of the body, and raises RateLimitedError where it should not be
    decoded.
    """

    __slots__ = ("_budget", "_key_id", "_taken_bytes", "count_decoded")

    def __init__(self, budget: Budget, key_id: str, count_decoded: Callable[[int], None]) -> None:
        self._budget = budget
        self._key_id = key_id
        self.count_decoded = count_decoded
        self._taken_bytes = 0

    def take(self, count: int) -> None:
        """Take so many bytes more; raise OverloadedError when fewer are left."""
        self._budget.take(count, self._key_id)
        self._taken_bytes += count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.take(-self._taken_bytes, self._key_id)


async def read(
    request: Request, bytes_max: int, reservation: Reservation, take_turn: Callable[[], Awaitable[None]]
) -> bytes:
    """Return a whole body, decoded, after asking for it where the client waits to be asked; see `decode` for the turns.

    Raises BodyTooLargeError as soon as it is over the limit, as it comes or decoded; UnsupportedEncodingError,
    OverloadedError, RateLimitedError, BodyTimeoutError, BodyRefusedError; and what the connection does to a body that
    breaks off: MalformedRequestError (its framing is broken), ClientGoneError.
    """
    name = encoding(request.headers)
    declared = request.headers.get(hdrs.CONTENT_LENGTH)
    # The parser takes numbers below 2^64 only, but with any zeros before them; `int` refuses more than 4,300 digits.
    if declared is not None and int(declared[-20:]) > bytes_max:
        raise BodyTooLargeError
    if request.payload.is_eof():
        body = request.payload.read_nowait()
        if len(body) > bytes_max:
            raise BodyTooLargeError
    else:
        body = await _receive(request, bytes_max, reservation)
    if name:
        return await decode(body, name, bytes_max, reservation, take_turn)
    reservation.count_decoded(len(body))
    return body


async def _receive(request: Request, bytes_max: int, reservation: Reservation) -> bytes:
    request.ask_for_body()
    buffer = bytearray()  # not a list of pieces: a body may come byte by byte
    try:
        async with asyncio.timeout(request.body_timeout_seconds):
            while piece := await request.payload.readany():
                reservation.take(len(piece))
                buffer += piece
                if len(buffer) > bytes_max:
                    raise BodyTooLargeError
    except TimeoutError:
        raise BodyTimeoutError from None
    return bytes(buffer)


def encoding(headers: MultiMapping[str]) -> str:
    """Return how a body is encoded (RFC 9110, 8.4): `gzip`, `deflate`, or empty where it is not.

    Raises UnsupportedEncodingError for another encoding, and for several at once.
    """
    values = headers.getall(hdrs.CONTENT_ENCODING, ())
    names = [name for value in values for part in value.split(",") if (name := part.strip().lower())]
    applied = [name for name in names if name != "identity"]
    if not applied:
        return ""
    if len(applied) > 1 or applied[0] not in _ENCODINGS:
        raise UnsupportedEncodingError
    return _ENCODINGS[applied[0]]


async def decode(
    body: bytes, encoding: str, bytes_max: int, reservation: Reservation, take_turn: Callable[[], Awaitable[None]]
) -> bytes:
    """Return a body inflated; `take_turn` waits for the next turn (see `BodyTurn`), and a large body takes many.

    Raises BodyTooLargeError beyond the limit, OverloadedError, RateLimitedError, and BodyRefusedError for what is not
    whole.
    """
    try:
        inflated = await _inflate(body, encoding, bytes_max, reservation, take_turn)
    except zlib.error:
        raise BodyRefusedError(_misencoded(body, encoding) or f"The body is not valid {encoding}") from None
    if (name := compression(inflated)) is not None:
        raise BodyRefusedError(f"The body is {name} within {encoding}: compress it once")
    return inflated


async def _inflate(
    body: bytes, encoding: str, bytes_max: int, reservation: Reservation, take_turn: Callable[[], Awaitable[None]]
) -> bytes:
    is_gzip = encoding == "gzip"
    window_bits = _GZIP_WINDOW_BITS if is_gzip else _deflate_window_bits(body)
    inflater = zlib.decompressobj(window_bits)
    members = 1
    output = bytearray()
    turn_bytes = _TURN_BYTES - _FREE_BYTES
    for start in range(0, len(body), _INPUT_STEP_BYTES):
        pending = body[start : start + _INPUT_STEP_BYTES]
        piece = b""
        while pending or (len(piece) == _OUTPUT_STEP_BYTES and not inflater.eof):
            if inflater.eof:
                if not is_gzip:
                    raise BodyRefusedError("The body goes on after the end of its deflate stream")
                members += 1
                if members > MEMBERS_MAX:
                    raise BodyRefusedError(f"The body has more than {MEMBERS_MAX:,} gzip members")
                inflater = zlib.decompressobj(window_bits)  # RFC 1952, 2.2: members simply follow each other
            piece = inflater.decompress(pending, _OUTPUT_STEP_BYTES)
            turn_bytes += len(piece) + len(pending)
            pending = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            reservation.count_decoded(len(piece))
            reservation.take(len(piece))
            output += piece
            if len(output) > bytes_max:
                raise BodyTooLargeError
            if turn_bytes >= _TURN_BYTES:
                turn_bytes = 0
                await take_turn()
    if not inflater.eof:
        text = _misencoded(body, encoding) or f"The body's {encoding} stream ends too early"
        raise BodyRefusedError(text)
    return bytes(output)


def _deflate_window_bits(body: bytes) -> int:
    """Return zlib's name for the format: RFC 9110 means zlib's, and some clients send the bare stream."""
    header = int.from_bytes(body[:2], "big")
    is_zlib = len(body) >= 2 and (body[0] & 0x0F) == zlib.DEFLATED and header % 31 == 0  # RFC 1950, 2.2
    return _ZLIB_WINDOW_BITS if is_zlib else _RAW_DEFLATE_WINDOW_BITS


def likeness(body: bytes) -> str | None:
    """Say what a body looks like that came without Content-Encoding and is not JSON; None where nothing shows."""
    name = compression(body)
    if name in _DECODED:
        return f"The body looks like {name}, and the header Content-Encoding: {name} is missing"
    if name is not None:
        return f"The body looks like {name}, which is not decoded here: send it as gzip, as deflate, or as it is"
    if body.startswith(_UTF_16_AND_32):
        return "The body looks like UTF-16 or UTF-32: send it in UTF-8"
    return None


def _misencoded(body: bytes, announced: str) -> str | None:
    """Say what a body looks like that is not encoded as Content-Encoding announces; None where nothing shows."""
    name = compression(body)
    if name == announced:
        return None
    if name in _DECODED:
        return f"The body is not valid {announced}: it looks like {name}, as which the header should announce it"
    if name is not None:
        return f"The body is not valid {announced}: it looks like {name}, which is not decoded here"
    if body[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return f"The body is not valid {announced}: it looks like JSON, which needs no Content-Encoding"
    return None


def compression(body: bytes) -> str | None:
    """Return the name of the format whose number a body begins with."""
    for number, name in _COMPRESSED:
        if body.startswith(number):
            return name
    # RFC 1950, 2.2: the usual window of 32 KiB, and a check. `x` alone begins no JSON.
    if body[:1] == b"\x78" and len(body) > 1 and int.from_bytes(body[:2], "big") % 31 == 0:
        return "deflate"
    return None
