"""Request bodies within bounds: which encodings, how much to read, how far to inflate. Called by `ingest`.

Every limit holds while reading and while inflating, so neither a body without a length nor a
bomb takes more memory than the limit and one step.
"""

import asyncio
import zlib
from enum import Enum

from aiohttp import hdrs
from aiohttp.streams import StreamReader
from multidict import MultiMapping

from httpbridge.errors import BodyRefusedError, BodyTooLargeError, UnsupportedEncodingError

_INPUT_STEP_BYTES = 16 * 1024
"""Inflated at a time. zlib hands back what it did not use as a copy: over the whole body that would be quadratic."""
_OUTPUT_STEP_BYTES = 64 * 1024
_TURN_BYTES = 256 * 1024
"""Inflated or taken in before other requests have their turn: about half a millisecond."""

_GZIP_WINDOW_BITS = 31
_ZLIB_WINDOW_BITS = 15
_RAW_DEFLATE_WINDOW_BITS = -15


class Encoding(Enum):
    """How a body is encoded (RFC 9110, 8.4)."""

    IDENTITY = "identity"
    GZIP = "gzip"
    DEFLATE = "deflate"


_ENCODINGS = {"gzip": Encoding.GZIP, "x-gzip": Encoding.GZIP, "deflate": Encoding.DEFLATE}


def encoding(headers: MultiMapping[str]) -> Encoding:
    """Return the body's encoding; raise UnsupportedEncodingError for another one, and for several at once."""
    values = headers.getall(hdrs.CONTENT_ENCODING, ())
    if not values:
        return Encoding.IDENTITY
    names = [name for value in values for part in value.split(",") if (name := part.strip().lower())]
    applied = [name for name in names if name != "identity"]
    if not applied:
        return Encoding.IDENTITY
    if len(applied) > 1 or applied[0] not in _ENCODINGS:
        raise UnsupportedEncodingError("Unsupported content encoding")
    return _ENCODINGS[applied[0]]


def refuse_declared_length(headers: MultiMapping[str], bytes_max: int) -> None:
    """Raise BodyTooLargeError if the headers announce more than that; the HTTP parser has checked the number's form."""
    declared = headers.get(hdrs.CONTENT_LENGTH)
    if declared is not None and int(declared) > bytes_max:
        raise BodyTooLargeError("Request body too large")


async def read(payload: StreamReader, bytes_max: int) -> bytes:
    """Return the whole raw body; raise BodyTooLargeError as soon as it is over the limit.

    Raises what the connection does to a body that breaks off (ConnectionError, `MalformedBodyError`).
    """
    if payload.is_eof():  # the usual case: it came along with the headers
        body = payload.read_nowait()
        if len(body) > bytes_max:
            raise BodyTooLargeError("Request body too large")
        return body
    buffer = bytearray()  # not a list of pieces: a body may come byte by byte
    while piece := await payload.readany():
        buffer += piece
        if len(buffer) > bytes_max:
            raise BodyTooLargeError("Request body too large")
    return bytes(buffer)


async def decode(body: bytes, encoding: Encoding, bytes_max: int) -> bytes:
    """Return the body inflated; raise BodyTooLargeError beyond the limit and BodyRefusedError for what is not whole."""
    if encoding is Encoding.IDENTITY:
        return body
    try:
        return await _inflate(body, encoding, bytes_max)
    except zlib.error:
        raise BodyRefusedError(f"The body is not valid {encoding.value}") from None


async def _inflate(body: bytes, encoding: Encoding, bytes_max: int) -> bytes:
    window_bits = _GZIP_WINDOW_BITS if encoding is Encoding.GZIP else _deflate_window_bits(body)
    inflater = zlib.decompressobj(window_bits)
    output = bytearray()
    turn_bytes = 0
    for start in range(0, len(body), _INPUT_STEP_BYTES):
        pending = body[start : start + _INPUT_STEP_BYTES]
        piece = b""
        while pending or (len(piece) == _OUTPUT_STEP_BYTES and not inflater.eof):
            if inflater.eof:
                if encoding is not Encoding.GZIP:
                    raise BodyRefusedError("The body goes on after the end of its deflate stream")
                inflater = zlib.decompressobj(window_bits)  # RFC 1952, 2.2: members simply follow each other
            piece = inflater.decompress(pending, _OUTPUT_STEP_BYTES)
            turn_bytes += len(piece) + len(pending)
            pending = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            output += piece
            if len(output) > bytes_max:
                raise BodyTooLargeError("Request body too large")
            if turn_bytes >= _TURN_BYTES:
                turn_bytes = 0
                await asyncio.sleep(0)
    if not inflater.eof:
        raise BodyRefusedError(f"The body's {encoding.value} stream ends too early")
    return bytes(output)


def _deflate_window_bits(body: bytes) -> int:
    """Return zlib's name for the format: RFC 9110 means zlib's, and some clients send the bare stream."""
    header = int.from_bytes(body[:2], "big")
    is_zlib = len(body) >= 2 and (body[0] & 0x0F) == zlib.DEFLATED and header % 31 == 0  # RFC 1950, 2.2
    return _ZLIB_WINDOW_BITS if is_zlib else _RAW_DEFLATE_WINDOW_BITS
