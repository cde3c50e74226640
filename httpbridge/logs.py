"""The body of POST /ingest/logs: bytes to a typed batch, with its limits. Pure.

Called by `ingest` with a decoded body; its types are what the sinks store. Field
names, defaults and limits are the public contract's.
"""

import re
from datetime import UTC, datetime, time
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from httpbridge.errors import BodyRefusedError


class Level(StrEnum):
    """How severe an entry is."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry as it came; the sinks fill in what the batch says for all of them."""

    level: Level
    message: str
    timestamp: datetime | None = None
    """Aware and in UTC; None stands for the time of receipt."""
    metadata: str | None = None
    """The text of a JSON object, numbers unchanged."""
    trace_id: str | None = None
    span_id: str | None = None
    request_id: str | None = None
    vercel_id: str | None = None
    context: str | None = None
    release: str | None = None


class LogBatch(msgspec.Struct, frozen=True, gc=False):
    """What one request carries, and whom it belongs to."""

    project_id: str
    key_id: str
    received_at: datetime
    """Aware, UTC."""
    service: str
    environment: str
    release: str | None
    """For entries that name none."""
    entries: list[LogEntry]


LOGS_MAX = 1000
"""Entries a batch may have (docs/http-api.md)."""

SMALL_BYTES_MAX = 16 * 1024
"""A body up to this size is parsed at once; a larger one waits for its turn (`turns`)."""

_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Release = Annotated[str, Meta(max_length=128)]


class _WireEntry(msgspec.Struct, gc=False):
    level: Level
    message: str
    timestamp: datetime | None = None
    # Never decoded, so that numbers stay as they were written. msgspec checks the grammar of what it skips, escapes
    # and surrogate pairs included; a union with None would refuse every object.
    metadata: msgspec.Raw = msgspec.Raw(b"null")
    trace_id: str | None = None
    span_id: str | None = None
    request_id: str | None = None
    vercel_id: str | None = None
    context: str | None = None
    release: _Release | None = None


class _WireBatch(msgspec.Struct, gc=False):
    logs: Annotated[list[_WireEntry], Meta(min_length=1, max_length=LOGS_MAX)]
    service: _Name | None = None
    environment: _Name | None = None
    release: _Release | None = None


# The same with timestamps as text, for batches with a leap second: there is none in a datetime.
class _TextEntry(_WireEntry, gc=False):
    timestamp: str | None = None  # type: ignore[assignment]


class _TextBatch(_WireBatch, gc=False):
    logs: Annotated[list[_TextEntry], Meta(min_length=1, max_length=LOGS_MAX)]  # type: ignore[assignment]


_DECODER = msgspec.json.Decoder(_WireBatch)
_TEXT_DECODER = msgspec.json.Decoder(_TextBatch)
_RARE_TIMESTAMP = re.compile(rb":60|9999-12-31")
"""A leap second, or an instant that would be rounded up into the year 10000."""
_RARE_CHARACTERS_MAX = 64
"""Of such a timestamp; looking into a longer one would cost much, and is not worth it."""
_LEAP_SECOND = re.compile(r":60(\.\d+)?(?=[Zz+-]|\Z)")
_FRACTION = re.compile(r"(\.\d{6})\d+")
_TEXTS_OF_BATCH = ("service", "environment", "release")
_TEXTS_OF_ENTRY = ("message", "trace_id", "span_id", "request_id", "vercel_id", "context", "release")


def parse(body: bytes, *, project_id: str, key_id: str, received_at: datetime) -> LogBatch:
    """Read the decoded body of a request; the ids and the time of receipt (aware, UTC) are passed through.

    Raises BodyRefusedError naming the first problem. Its text tells the rule that was
    broken and where, and repeats nothing of the body. Costs about 8 ms a MiB.
    """
    wire = _decode(body)
    if rb"\u0000" in body:  # rare, so that the careful look costs nobody else
        _refuse_nul(wire)
    entries = []
    for index, entry in enumerate(wire.logs):
        timestamp, text = entry.timestamp, str(entry.metadata, "utf-8")
        metadata = text if text[0] == "{" else None
        if metadata is None and text != "null":
            raise BodyRefusedError("must be an object", f"logs[{index}].metadata")
        if timestamp is not None and timestamp.tzinfo is not UTC:
            timestamp = _utc(timestamp, index)
        entries.append(
            LogEntry(
                entry.level,
                entry.message,
                timestamp,
                metadata,
                entry.trace_id,
                entry.span_id,
                entry.request_id,
                entry.vercel_id,
                entry.context,
                entry.release,
            )
        )
    return LogBatch(
        project_id,
        key_id,
        received_at,
        "unknown" if wire.service is None else wire.service,
        "production" if wire.environment is None else wire.environment,
        wire.release,
        entries,
    )


def _decode(body: bytes) -> _WireBatch:
    try:
        if not body.isascii():
            body.decode()  # msgspec lets bad bytes through in what it skips
        return _DECODER.decode(body)
    except msgspec.ValidationError as error:
        refusal = _refusal(str(error))
        if refusal.path.endswith(".timestamp") and _RARE_TIMESTAMP.search(body):
            return _decode_rare_timestamps(body)
        raise refusal from None
    except msgspec.DecodeError as error:
        raise BodyRefusedError(_malformed(body, str(error))) from None
    except UnicodeDecodeError as error:
        raise BodyRefusedError(f"The body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise BodyRefusedError("The body is nested too deeply") from None


def _decode_rare_timestamps(body: bytes) -> _WireBatch:
    """Decode a batch that may have a timestamp which is none for msgspec, and is for RFC 3339."""
    try:
        wire = _TEXT_DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    for index, entry in enumerate(wire.logs):
        if entry.timestamp is not None:
            entry.timestamp = _rare_timestamp(entry.timestamp, index)  # type: ignore[assignment]
    return wire


def _rare_timestamp(text: str, index: int) -> datetime:
    """Read a timestamp; a leap second (RFC 3339, 5.6) becomes the last microsecond before it."""
    leaps = 0
    if len(text) <= _RARE_CHARACTERS_MAX:
        text, leaps = _LEAP_SECOND.subn(":59.999999", text)
    timestamp = _datetime(text)
    if timestamp is None:
        is_rounded = len(text) <= _RARE_CHARACTERS_MAX and _datetime(_FRACTION.sub(r"\1", text)) is not None
        raise BodyRefusedError(_YEARS if is_rounded else _TIMESTAMP, f"logs[{index}].timestamp")
    if leaps and _utc(timestamp, index).time() != time.max:
        raise BodyRefusedError(_TIMESTAMP, f"logs[{index}].timestamp")  # leap seconds end a day in UTC
    return timestamp


def _datetime(text: str) -> datetime | None:
    try:
        return msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        return None


def _utc(timestamp: datetime, index: int) -> datetime:
    if timestamp.tzinfo is None:
        return timestamp.replace(tzinfo=UTC)
    try:
        return timestamp.astimezone(UTC)
    except OverflowError:
        raise BodyRefusedError(_YEARS, f"logs[{index}].timestamp") from None


def _refuse_nul(wire: _WireBatch) -> None:
    for name in _TEXTS_OF_BATCH:
        if "\0" in (getattr(wire, name) or ""):
            raise BodyRefusedError("must not contain U+0000", name)
    for index, entry in enumerate(wire.logs):
        for name in _TEXTS_OF_ENTRY:
            if "\0" in (getattr(entry, name) or ""):
                raise BodyRefusedError("must not contain U+0000", f"logs[{index}].{name}")
        # An escaped backslash may stand before `u0000`, so those go first.
        if r"\u0000" in str(entry.metadata, "utf-8").replace(r"\\", ""):
            raise BodyRefusedError("must not contain U+0000", f"logs[{index}].metadata")


# What msgspec's messages look like. One of them quotes the value that it refuses, so that anything may stand before the
# place, which comes last; nothing but the place is taken over.
_PLACE = re.compile(r" - at `\$\.?([a-z_]+(?:\[\d+\](?:\.[a-z_]+)?)?)`\Z")
_MESSAGE_CHARACTERS_MAX = 200
"""Of the end of a message, in which its place is."""
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_LENGTH = re.compile(r"Expected `(str|array)` of length ([<>])= (\d+)")
_NULL = re.compile(r"Expected `\w+`, got `null`")

_TIMESTAMP = "must be an RFC 3339 timestamp"
_YEARS = "leaves the years 1 to 9999 in UTC"
_RULES = {
    "logs": "must be an array",
    "level": f"must be one of {', '.join(Level)}",
    "timestamp": _TIMESTAMP,
}
"""Of the fields that are no strings, by their names."""


def _refusal(text: str) -> BodyRefusedError:
    """Say which rule was broken, where, instead of msgspec's message."""
    place = _PLACE.search(text[-_MESSAGE_CHARACTERS_MAX:])
    path = place[1] if place else ""
    if match := _MISSING.match(text):
        return BodyRefusedError("is required", f"{path}.{match[1]}".lstrip("."))
    if match := _LENGTH.match(text):
        unit = "characters" if match[1] == "str" else "entries"
        return BodyRefusedError(
            "must not be empty" if match[2] == ">" else f"must have at most {match[3]} {unit}", path
        )
    if not path:
        return BodyRefusedError("The body must be an object")
    if path.endswith("]"):
        return BodyRefusedError("must be an object", path)
    if _NULL.match(text):  # only a required field says no to it, and an explicit null is the same as absent
        return BodyRefusedError("is required", path)
    return BodyRefusedError(_RULES.get(path.rpartition(".")[2], "must be a string"), path)


_BYTE = re.compile(r"\(byte \d+\)")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")


def _malformed(body: bytes, text: str) -> str:
    if not body:
        return "The body is empty"
    if "surrogate" in text or "hex escape" in text or _LONE_SURROGATE.search(body):
        return "The body has a string with half of a surrogate pair"
    place = _BYTE.search(text)
    return f"The body is not valid JSON {place[0]}" if place else "The body is not valid JSON: it ends too early"
