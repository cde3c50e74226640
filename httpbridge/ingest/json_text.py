"""JSON as text: taking objects apart, how deeply they may nest, and what is wrong with what is not JSON. Pure.

Used by `log_parser` and `log_fields`. Yields between steps, each of which is a few milliseconds, or as much as msgspec
takes to skip one value: up to 5 ms a MiB.
"""

import re
from collections.abc import Container, Generator
from itertools import accumulate
from operator import add

import msgspec
from msgspec import Raw

from httpbridge.errors import BodyRefusedError
from httpbridge.http.bodies import likeness
from httpbridge.ingest.mending import PIECE_BYTES, pieces

NESTING_MAX = 500
"""Objects and arrays within each other, the body itself counted (docs/http-api.md).

Of our own, since what decodes JSON stops where Python's recursion does: below a thousand on one version, at ten times
as much on another.
"""

CONTAINERS_MAX = 1_000_000
"""Objects and arrays in a body (docs/http-api.md): nothing costs as much as to skip millions of these."""

FIELDS_MAX = 4000
"""Of an object that is taken apart (docs/http-api.md): more than fit into a body that is not."""

_NESTING_PIECE_BYTES = 64 * 1024
_FIELDS_A_STEP = 250
_SPACES = b" \t\r\n"
_WHITE_SPACE = re.compile(rb"[ \t\r\n]*+")
_KEY_BYTES_MAX = 2 + 6 * 16
"""Of a key that may be one of ours, with each letter escaped, and a little white space."""


class _Object(msgspec.Struct):
    """Any object."""


_SKIPPER = msgspec.json.Decoder(Raw)
_KEY_DECODER = msgspec.json.Decoder(str)
_OBJECT_DECODER = msgspec.json.Decoder(_Object)
_TRAILING = re.compile(r"trailing characters \(byte (\d+)\)")
_BYTE = re.compile(r"\(byte (\d+)\)\Z")


class MalformedError(Exception):
    """A text is not JSON: at this byte, or, where there is none, because it ends too early."""

    def __init__(self, byte: int | None, *, is_document: bool = False) -> None:
        """`is_document` says that another document begins there."""
        super().__init__(byte)
        self.byte = byte
        self.is_document = is_document


class NotObjectError(Exception):
    """A text begins like JSON, and is no object."""


def members(text: bytes, names: Container[str], path: str = "") -> Generator[None, None, dict[str, Raw]]:
    """Take an object apart: return its values with these names, of repeated ones the last.

    Raises MalformedError; NotObjectError for other JSON; and BodyRefusedError for more than FIELDS_MAX, which names
    `path`, and for nesting. Yields between large values, but each is skipped in one step: up to 5 ms a MiB.
    """
    found: dict[str, Raw] = {}
    view = memoryview(text)
    at = stepped_at = _after_brace(text)
    count = 0
    while count or text[at : at + 1] != b"}":
        if count == FIELDS_MAX:
            raise BodyRefusedError(f"must have at most {FIELDS_MAX:,} fields", path)
        count += 1
        _expect(text, at, b'"')
        colon_at = _after_value(view, at)
        _expect(text, colon_at, b":")
        name = _KEY_DECODER.decode(text[at:colon_at]) if colon_at - at <= _KEY_BYTES_MAX else ""
        at = _after_white_space(text, colon_at + 1)
        if count % _FIELDS_A_STEP == 0 or at - stepped_at > PIECE_BYTES:
            yield
        end = stepped_at = _after_value(view, at)
        if end - at > PIECE_BYTES:
            yield
        if name in names:  # decoded again where white space has to be left out
            found[name] = _SKIPPER.decode(view[at:end]) if text[end - 1] in _SPACES else Raw(view[at:end])
        if text[end : end + 1] == b"}":
            at = end
            break
        _expect(text, end, b",")
        at = _after_white_space(text, end + 1)
    at = _after_white_space(text, at + 1)
    if at < len(text):
        raise MalformedError(at, is_document=text[at : at + 1] in (b"{", b"["))
    return found


def _after_brace(text: bytes) -> int:
    at = _after_white_space(text, 0)
    if text[at : at + 1] != b"{":
        try:
            _OBJECT_DECODER.decode(text)  # looks no further than it has to
        except msgspec.ValidationError:
            raise NotObjectError from None
        except msgspec.DecodeError as error:
            raise _malformed(error) from None
    return _after_white_space(text, at + 1)


def _after_value(view: memoryview, at: int) -> int:
    """Return the place of what follows the value there, white space aside."""
    try:
        _SKIPPER.decode(view[at:])
    except msgspec.DecodeError as error:
        # The one way to learn where a value ends: msgspec says where it did not expect to go on.
        if place := _TRAILING.search(str(error)):
            return at + int(place[1]) - 1
        raise _malformed(error, at) from None
    except RecursionError:
        raise nested_too_deeply() from None
    return len(view)


def _malformed(error: msgspec.DecodeError, at: int = 0) -> MalformedError:
    """Translate msgspec's error about the text from a place on."""
    place = _BYTE.search(str(error))
    return MalformedError(at + int(place[1]) if place else None)


def _after_white_space(text: bytes, at: int) -> int:
    match = _WHITE_SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: bytes, at: int, character: bytes) -> None:
    if text[at : at + 1] != character:
        raise MalformedError(at if at < len(text) else None)


def refusal(body: bytes, error: MalformedError) -> BodyRefusedError:
    """Return the refusal of a body that is not JSON; nothing of it is repeated."""
    if not body:
        return BodyRefusedError("The body is empty")
    if (text := likeness(body)) is not None:
        return BodyRefusedError(text)
    if error.byte is None:
        return BodyRefusedError("The body is not valid JSON: it ends too early")
    if error.is_document:
        return BodyRefusedError(
            f"The body is more than one JSON document, the next of which begins at byte {error.byte}: "
            'send all entries in one, as {"logs": [...]}'
        )
    return BodyRefusedError(f"The body is not valid JSON (byte {error.byte})")


def refuse_many_containers(text: bytes) -> Generator[None, None, None]:
    """Raise BodyRefusedError if a text has more than CONTAINERS_MAX; brackets in strings count."""
    if len(text) <= 2 * CONTAINERS_MAX:
        return
    count = 0
    for start in range(0, len(text), PIECE_BYTES):
        yield
        piece = text[start : start + PIECE_BYTES]
        count += piece.count(b"{") + piece.count(b"[")
        if count > CONTAINERS_MAX:
            raise BodyRefusedError(f"The body has more than {CONTAINERS_MAX:,} objects and arrays")


# Eight brackets are one number, 1 for each that opens: how far it leads down in all, and at the most.
_IS_OPEN = bytes.maketrans(b"{[}]", b"1100")
_NO_BRACKETS = bytes(set(range(256)) - set(b"{[}]"))
_LEVELS = [list(accumulate(1 if number >> bit & 1 else -1 for bit in range(7, -1, -1))) for number in range(256)]
_LEVELS_DOWN = [levels[-1] for levels in _LEVELS]
_LEVELS_MOST = [max(levels) for levels in _LEVELS]


def refuse_deep_nesting(text: bytes, levels_above: int = 0) -> Generator[None, None, None]:
    """Raise BodyRefusedError if a valid JSON text nests beyond NESTING_MAX; the levels around it count."""
    if not _may_nest_deeply(text):
        return
    levels, is_string = levels_above, 0
    for _, piece in pieces(text, _NESTING_PIECE_BYTES):
        yield
        parts = piece.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')
        brackets = b"".join(parts[is_string::2]).translate(_IS_OPEN, _NO_BRACKETS)
        is_string = (is_string + len(parts) - 1) % 2
        if not brackets:
            continue
        eights = -(-len(brackets) // 8)
        numbers = int(brackets.ljust(8 * eights, b"0"), 2).to_bytes(eights, "big")
        before = accumulate(map(_LEVELS_DOWN.__getitem__, numbers), initial=levels)
        if max(map(add, before, map(_LEVELS_MOST.__getitem__, numbers))) > NESTING_MAX:
            raise nested_too_deeply()
        levels += 2 * brackets.count(b"1") - len(brackets)


def _may_nest_deeply(text: bytes) -> bool:
    """Return whether there are enough brackets for it, those in strings counted; looks no further than at so many."""
    if len(text) < NESTING_MAX:
        return False
    for bracket in b"{[":
        at = -1
        for _ in range(NESTING_MAX // 2):
            at = text.find(bracket, at + 1)
            if at < 0:
                break
        else:
            return True
    return False


def nested_too_deeply() -> BodyRefusedError:
    """Return the refusal of a body for its nesting."""
    return BodyRefusedError(f"The body is nested more than {NESTING_MAX} levels deep")
