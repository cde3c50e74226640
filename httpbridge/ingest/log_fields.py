"""The fields of a batch and its entries, one by one, each with what is wrong with it. Pure.

Used by `log_parser` where a whole batch could not be decoded at once, and for what is large in one. Every value comes
as its JSON text, which is known to be valid.
"""

import re
from collections.abc import Generator
from datetime import UTC, datetime, time
from functools import partial

import msgspec
from msgspec import Raw

from httpbridge.errors import BodyRefusedError, Issue
from httpbridge.ingest.json_text import NotObjectError, members
from httpbridge.ingest.mending import PIECE_BYTES, pieces
from httpbridge.logs import Level, LogEntry

ISSUES_MAX = 20
"""Of a refused batch that are named."""

NAME_CHARACTERS_MAX = 256
RELEASE_CHARACTERS_MAX = 128
_CHARACTER_BYTES_MAX = 12
"""As two escapes; what is longer than so much has too many characters, and is not decoded for that."""
_LEVEL_BYTES_MAX = 2 + 5 * 6
"""With each letter escaped."""

NULL = Raw(b"null")

_LEVELS = f"must be one of {', '.join(Level)}"
_TIMESTAMP = "must be an RFC 3339 timestamp"
_YEARS = "leaves the years 1 to 9999 in UTC"
_RARE_BYTES_MAX = 80
"""Of a timestamp that is looked into for a leap second; of a longer one it would cost much, and is not worth it."""
_LEAP_SECOND = re.compile(r":60(\.\d+)?(?=[Zz+-]|\Z)")
_FRACTION = re.compile(r"(\.\d{6})\d+")

_LEVEL_DECODER = msgspec.json.Decoder(Level)
_TEXT_DECODER = msgspec.json.Decoder(str)
_TIMESTAMP_DECODER = msgspec.json.Decoder(datetime)


class Issues:
    """The first ISSUES_MAX problems of a batch, in order."""

    def __init__(self) -> None:
        self._issues: list[Issue] = []

    def __bool__(self) -> bool:
        return bool(self._issues)

    def add(self, path: str, message: str) -> None:
        """Note a problem; raise BodyRefusedError with all of them when no more are named."""
        self._issues.append(Issue(path, message))
        if len(self._issues) == ISSUES_MAX:
            self.refuse()

    def refuse(self) -> None:
        """Raise BodyRefusedError with all problems, if there are any."""
        if self._issues:
            first, *others = self._issues
            raise BodyRefusedError(first.message, first.path, *others)


class _Fields(msgspec.Struct, gc=False):
    level: Raw = NULL
    message: Raw = NULL
    timestamp: Raw = NULL
    metadata: Raw = NULL
    trace_id: Raw = NULL
    span_id: Raw = NULL
    request_id: Raw = NULL
    vercel_id: Raw = NULL
    context: Raw = NULL
    release: Raw = NULL


_NAMES = frozenset(_Fields.__struct_fields__)
_FIELDS_DECODER = msgspec.json.Decoder(_Fields)


def entry(raw: Raw, path: str, issues: Issues) -> Generator[None, None, LogEntry | None]:
    """Return an entry, or None once all of its problems are noted; yields before what is dear."""
    try:
        if len(raw) > PIECE_BYTES:
            fields = _Fields(**(yield from members(bytes(raw), _NAMES, path)))
            yield
        else:
            fields = _FIELDS_DECODER.decode(raw)
    except (NotObjectError, msgspec.ValidationError):
        issues.add(path, "must be an object")
        return None
    level = _level(fields.level, f"{path}.level", issues)
    message = yield from text(fields.message, f"{path}.message", issues, is_required=True)
    read = LogEntry(
        level,
        message or "",
        _timestamp(fields.timestamp, f"{path}.timestamp", issues),
        (yield from _metadata(fields.metadata, f"{path}.metadata", issues)),
        (yield from text(fields.trace_id, f"{path}.trace_id", issues)),
        (yield from text(fields.span_id, f"{path}.span_id", issues)),
        (yield from text(fields.request_id, f"{path}.request_id", issues)),
        (yield from text(fields.vercel_id, f"{path}.vercel_id", issues)),
        (yield from text(fields.context, f"{path}.context", issues)),
        (yield from release(fields.release, f"{path}.release", issues)),
    )
    return None if issues else read


def text(
    raw: Raw,
    path: str,
    issues: Issues,
    *,
    is_required: bool = False,
    characters_min: int = 0,
    characters_max: int | None = None,
) -> Generator[None, None, str | None]:
    """Return a string, or None where it is null or has a problem, which is noted; yields before what is dear."""
    json = bytes(raw)
    if json == b"null":
        if is_required:
            issues.add(path, "is required")
        return None
    if json[:1] != b'"':
        issues.add(path, "must be a string")
        return None
    if len(json) > PIECE_BYTES and characters_max is None:
        parts = []
        for _, piece in pieces(json[1:-1]):
            yield
            parts.append(_TEXT_DECODER.decode(b'"%b"' % piece))
        yield
        return "".join(parts)
    if characters_max is not None and len(json) > 2 + characters_max * _CHARACTER_BYTES_MAX:
        read = None
    else:
        read = _TEXT_DECODER.decode(json)
    if read is None or (characters_max is not None and len(read) > characters_max):
        issues.add(path, f"must have at most {characters_max} characters")
    elif len(read) < characters_min:
        issues.add(path, "must not be empty")
    return read


name = partial(text, characters_min=1, characters_max=NAME_CHARACTERS_MAX)
"""Returns what is in a field like `service`."""
release = partial(text, characters_max=RELEASE_CHARACTERS_MAX)


def _level(raw: Raw, path: str, issues: Issues) -> Level:
    json = bytes(raw) if len(raw) <= _LEVEL_BYTES_MAX else b'""'
    try:
        return _LEVEL_DECODER.decode(json)
    except msgspec.ValidationError:
        issues.add(path, "is required" if json == b"null" else _LEVELS)
        return Level.INFO


def _metadata(raw: Raw, path: str, issues: Issues) -> Generator[None, None, str | None]:
    json = bytes(raw)
    if json[:1] == b"{":
        parts = []
        for start, piece in pieces(json):
            if start:
                yield
            parts.append(piece.decode())
        return "".join(parts)
    if json != b"null":
        issues.add(path, "must be an object")
    return None


def _timestamp(raw: Raw, path: str, issues: Issues) -> datetime | None:
    json = bytes(raw) if len(raw) <= PIECE_BYTES else b'""'
    if json == b"null":
        return None
    try:
        return utc(_TIMESTAMP_DECODER.decode(json))
    except OverflowError:
        issues.add(path, _YEARS)
    except msgspec.ValidationError:
        read = _rare_timestamp(json)
        if isinstance(read, datetime):
            return read
        issues.add(path, read)
    return None


def utc(timestamp: datetime) -> datetime:
    """Return the instant in UTC, which it is in without a zone; raise OverflowError if it leaves the years there."""
    if timestamp.tzinfo is UTC:
        return timestamp
    return timestamp.replace(tzinfo=UTC) if timestamp.tzinfo is None else timestamp.astimezone(UTC)


def _rare_timestamp(json: bytes) -> datetime | str:
    """Read what msgspec refuses, or say what is wrong with it.

    A leap second (RFC 3339, 5.6) becomes the last microsecond before it: there is none in a datetime.
    """
    try:
        text = _TEXT_DECODER.decode(json) if len(json) <= _RARE_BYTES_MAX else ""
    except msgspec.ValidationError:
        return _TIMESTAMP
    without_leap, leaps = _LEAP_SECOND.subn(":59.999999", text)
    if not leaps:
        is_rounded = _is_timestamp(_FRACTION.sub(r"\1", text))  # up into the year 10000
        return _YEARS if is_rounded else _TIMESTAMP
    try:
        timestamp = utc(msgspec.convert(without_leap, datetime))
    except OverflowError:
        return _YEARS
    except msgspec.ValidationError:
        return _TIMESTAMP
    return timestamp if timestamp.time() == time.max else _TIMESTAMP  # leap seconds end a day in UTC


def _is_timestamp(text: str) -> bool:
    try:
        msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        return False
    return True
