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
"""Entries a batch may have (http-contract.md)."""

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
class _LeapEntry(_WireEntry, gc=False):
    timestamp: str | None = None  # type: ignore[assignment]


class _LeapBatch(_WireBatch, gc=False):
    logs: Annotated[list[_LeapEntry], Meta(min_length=1, max_length=LOGS_MAX)]  # type: ignore[assignment]


_DECODER = msgspec.json.Decoder(_WireBatch)
_LEAP_DECODER = msgspec.json.Decoder(_LeapBatch)
_LEAP_SECOND = re.compile(r":60(\.\d+)?(?=[Zz+-]|\Z)")
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
        if refusal.path.endswith(".timestamp") and b":60" in body:
            return _decode_leap_seconds(body)
        raise refusal from None
    except msgspec.DecodeError as error:
        raise BodyRefusedError(_malformed(body, str(error))) from None
    except UnicodeDecodeError as error:
        raise BodyRefusedError(f"The body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise BodyRefusedError("The body is nested too deeply") from None


def _decode_leap_seconds(body: bytes) -> _WireBatch:
    """Decode a batch in which a leap second (RFC 3339, 5.6) may be: it becomes the last microsecond before it."""
    try:
        wire = _LEAP_DECODER.decode(body)
    except msgspec.ValidationError as error:
        raise _refusal(str(error)) from None
    for index, entry in enumerate(wire.logs):
        if entry.timestamp is not None:
            text, leaps = _LEAP_SECOND.subn(":59.999999", entry.timestamp)
            try:
                timestamp = msgspec.convert(text, datetime)
            except msgspec.ValidationError:
                raise BodyRefusedError(_TIMESTAMP, f"logs[{index}].timestamp") from None
            if leaps and _utc(timestamp, index).time() != time.max:
                raise BodyRefusedError(_TIMESTAMP, f"logs[{index}].timestamp")  # leap seconds end a day in UTC
            entry.timestamp = timestamp  # type: ignore[assignment]
    return wire


def _utc(timestamp: datetime, index: int) -> datetime:
    if timestamp.tzinfo is None:
        return timestamp.replace(tzinfo=UTC)
    try:
        return timestamp.astimezone(UTC)
    except OverflowError:
        raise BodyRefusedError("leaves the years 1 to 9999 in UTC", f"logs[{index}].timestamp") from None


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


# What msgspec's messages look like, and what is said instead; the first that matches counts. Nothing of the value is
# taken over. Order matters where a null stands for an absent field.
_TYPES = {
    "str": "a string",
    "datetime": "an RFC 3339 timestamp",
    "object": "an object",
    "array": "an array",
    "int": "a number",
    "float": "a number",
    "bool": "a boolean",
}
_LEVELS = f"must be one of {', '.join(Level)}"
_TIMESTAMP = "must be an RFC 3339 timestamp"
_PLACE = re.compile(r" - at `\$\.?(.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_LENGTH = re.compile(r"Expected `(str|array)` of length ([<>])= (\d+)")
_TYPE = re.compile(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`")


def _refusal(text: str) -> BodyRefusedError:
    place = _PLACE.search(text)
    path = place[1] if place else ""
    if match := _MISSING.match(text):
        return BodyRefusedError("is required", f"{path}.{match[1]}".lstrip("."))
    if match := _LENGTH.match(text):
        unit = "characters" if match[1] == "str" else "entries"
        return BodyRefusedError(
            "must not be empty" if match[2] == ">" else f"must have at most {match[3]} {unit}", path
        )
    if match := _TYPE.match(text):
        if match[2] == "null" and path:
            # Only a required field says no to null, and an explicit null is the same as absent.
            return BodyRefusedError("must be an object" if path.endswith("]") else "is required", path)
        wanted = f"must be {_TYPES.get(match[1], 'of another type')}"
        if path.endswith(".level"):
            wanted = _LEVELS
        return BodyRefusedError(wanted if path else f"The body {wanted}", path)
    if path.endswith(".level"):
        return BodyRefusedError(_LEVELS, path)
    if path.endswith(".timestamp"):
        return BodyRefusedError(_TIMESTAMP, path)
    return BodyRefusedError("is not valid" if path else "The body is not valid", path)


_BYTE = re.compile(r"\(byte \d+\)")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")


def _malformed(body: bytes, text: str) -> str:
    if not body:
        return "The body is empty"
    if "surrogate" in text or "hex escape" in text or _LONE_SURROGATE.search(body):
        return "The body has a string with half of a surrogate pair"
    place = _BYTE.search(text)
    return f"The body is not valid JSON {place[0]}" if place else "The body is not valid JSON: it ends too early"
