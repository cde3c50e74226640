r"""What is mended in the text of a body, so that no byte of one entry costs the others. Pure. Used by `log_parser`.

Half of a surrogate pair is what is left where JavaScript cuts a string within an emoji, and what Python's
`surrogateescape` makes of a byte; neither PostgreSQL nor UTF-8 has a place for it, nor PostgreSQL for U+0000. Each
becomes U+FFFD. Whole bodies are gone through in pieces, with a yield before each: a step is a few milliseconds at most.
"""

import re
from collections.abc import Generator, Iterator

PIECE_BYTES = 256 * 1024
"""Of a text that is gone through at some nanoseconds a byte, in one step."""
_MENDED_BYTES = 64 * 1024
"""Where each escape may have to be replaced."""

NUL_ESCAPE = rb"\u0000"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_REPLACEMENT = "\ufffd".encode()
_REPLACEMENT_ESCAPE = rb"\ufffd"
_HALF_BYTES = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
"""Half of a surrogate pair as Python's `surrogatepass` and Java's modified UTF-8 write it."""

_ESCAPE_BYTES = 6
_HIGH = rb"\\u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HIGH_HALF = re.compile(_HIGH)
_LONE_HALF = re.compile(
    rb"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!%b)|[c-fC-F][0-9a-fA-F]{2}(?<!%b%b))" % (_LOW, _HIGH, _LOW)
)
"""Without its other half; where no backslash is itself escaped."""


def pieces(text: bytes, bytes_max: int = PIECE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Cut a text between two characters, with escapes and their pairs kept whole; each piece with where it begins.

    What is not JSON is cut somewhere.
    """
    start = 0
    while start < len(text):
        end = start + bytes_max
        if end < len(text):
            end = _between_escapes(text, start, end)
            for _ in range(3):
                end -= text[end] & 0xC0 == 0x80  # the character goes on
        yield start, text[start:end]
        start = end


def _between_escapes(text: bytes, start: int, end: int) -> int:
    """Return the nearest place up to `end` where no escape and no pair of them is under way, as none is at `start`."""
    backslash = text.rfind(b"\\", end - 2 * _ESCAPE_BYTES, end)
    if backslash < 0:
        return end
    # Where backslashes begin, there an escape does. If those before it end in a high half, theirs does.
    first = start + len(text[start : backslash + 1].rstrip(b"\\"))
    if first - _ESCAPE_BYTES > start and _HIGH_HALF.match(text, first - _ESCAPE_BYTES):
        first = start + len(text[start : first - _ESCAPE_BYTES + 1].rstrip(b"\\"))
    if first > start:
        return first
    return start + (backslash + 1 - start) // 2 * 2  # there is nothing but backslashes


def mended_bytes(body: bytes) -> Generator[None, None, bytes]:
    """Return a body without its byte order mark, and with U+FFFD for what encodes half of a surrogate pair.

    Raises UnicodeDecodeError for what is not UTF-8; its `start` is the place in the body.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    if body.isascii():
        return body
    mended: list[bytes] = []
    is_changed = False
    for start, piece in pieces(body):
        yield
        try:
            piece.decode()
            mended.append(piece)
        except UnicodeDecodeError:
            is_changed = True
            mended.append((yield from _mended_bytes(piece, start)))
    return b"".join(mended) if is_changed else body


def _mended_bytes(text: bytes, place: int) -> Generator[None, None, bytes]:
    mended = []
    for start, piece in pieces(text, _MENDED_BYTES):
        yield
        mended.append(_HALF_BYTES.sub(_REPLACEMENT, piece))
        try:
            mended[-1].decode()
        except UnicodeDecodeError as error:
            error.start += place + start
            raise
    return b"".join(mended)


def mended_escapes(body: bytes) -> Generator[None, None, bytes]:
    r"""Return a body with `\ufffd` for each `\u0000` and each escape of half a surrogate pair; all else stays.

    Of the same length. What is not JSON is none afterwards either.
    """
    mended = []
    for _, piece in pieces(body, _MENDED_BYTES):
        yield
        mended.append(_mended_escapes(piece) if b"\\u" in piece and b"\0" not in piece else piece)
    return b"".join(mended)


def _mended_escapes(piece: bytes) -> bytes:
    # An escaped backslash may stand before `u0000`, and next to another escape. In JSON there is no byte 0.
    mended = piece.replace(rb"\\", b"\0\0").replace(NUL_ESCAPE, _REPLACEMENT_ESCAPE)
    if rb"\ud" in mended or rb"\uD" in mended:
        mended = _LONE_HALF.sub(rb"\\ufffd", mended)
    return mended.replace(b"\0\0", rb"\\")
