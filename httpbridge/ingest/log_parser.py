"""The decoded body of POST /ingest/logs: bytes to a typed batch, with its limits. Pure.

Nearly all are small and in order: `parse_small` reads these at once. `parse` reads any other in steps, as far as the
JSON of a body can be taken apart: msgspec skips what is in an entry, and may hold the interpreter for 5 ms a MiB; all
else is a few milliseconds at a time.
"""

from collections.abc import Generator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from httpbridge.errors import BodyRefusedError
from httpbridge.http.bodies import likeness
from httpbridge.ingest import log_fields
from httpbridge.ingest.json_text import (
    NESTING_MAX,
    MalformedError,
    NotObjectError,
    members,
    nested_too_deeply,
    refusal,
    refuse_deep_nesting,
    refuse_many_containers,
)
from httpbridge.ingest.log_fields import NAME_CHARACTERS_MAX, NULL, RELEASE_CHARACTERS_MAX, Issues, utc
from httpbridge.ingest.mending import NUL_ESCAPE, PIECE_BYTES, mended_bytes, mended_escapes
from httpbridge.logs import LOGS_MAX, Level, LogBatch, LogEntry

SMALL_BYTES_MAX = 16 * 1024
"""Of a body that is read at once: about a millisecond at the most, with as many entries as fit in."""

_GROUP_BYTES_MAX = PIECE_BYTES
_GROUP_ENTRIES_MAX = 64
"""Entries that are read in one step, unless one alone is larger: about a millisecond if each has something rare."""

_SERVICE, _ENVIRONMENT = "unknown", "production"
"""Where a batch names none; neither is ever empty."""

_Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
_Release = Annotated[str, Meta(max_length=RELEASE_CHARACTERS_MAX)]


class _WireEntry(msgspec.Struct, gc=False):
    level: Level
    message: str
    timestamp: datetime | None = None
    # Never decoded, so that numbers stay as they were written. msgspec checks the grammar of what it skips, escapes
    # and surrogate pairs included; a union with None would refuse every object.
    metadata: Raw = NULL
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


class _Outline(msgspec.Struct, gc=False):
    logs: Raw = NULL
    service: Raw = NULL
    environment: Raw = NULL
    release: Raw = NULL


# An array as a struct: the one kind of array that msgspec refuses as soon as it has too many members. Five MiB of
# `0,0,0` are two and a half million.
_LOGS = msgspec.defstruct(
    "_LOGS",
    [(f"entry_{index}", Raw, Raw(b"")) for index in range(LOGS_MAX)],
    array_like=True,
    forbid_unknown_fields=True,
    gc=False,
)

_NAMES = frozenset(_Outline.__struct_fields__)
_BATCH_DECODER = msgspec.json.Decoder(_WireBatch)
_LOGS_DECODER = msgspec.json.Decoder(_LOGS)
_ENTRIES_DECODER = msgspec.json.Decoder(list[_WireEntry])


def parse_small(body: bytes, project_id: str, key_id: str, received_at: datetime) -> LogBatch | None:
    """Read a small body that is in order in every respect. None says that `parse` has to have a look at it.

    The ids and the time of receipt (aware, UTC) are passed through.
    """
    size = len(body)
    if size > SMALL_BYTES_MAX or NUL_ESCAPE in body:
        return None
    if size > NESTING_MAX and body.count(b"{") + body.count(b"[") >= NESTING_MAX:
        return None
    try:
        if not body.isascii():
            body.decode()  # msgspec lets bad bytes through in what it skips
        wire = _BATCH_DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    entries = _entries(wire.logs)
    if entries is None:
        return None
    service, environment = wire.service or _SERVICE, wire.environment or _ENVIRONMENT
    return LogBatch(project_id, key_id, received_at, service, environment, wire.release, entries)


def parse(body: bytes, project_id: str, key_id: str, received_at: datetime) -> Generator[None, None, LogBatch]:
    """Read any body; each `next` is a step, before the last of which the batch is complete.

    Raises BodyRefusedError naming the first problems. Their texts tell the rule that was broken and where, and repeat
    nothing of the body.
    """
    outline = yield from _outline(body)
    issues = Issues()
    service = yield from log_fields.name(outline.service, "service", issues)
    environment = yield from log_fields.name(outline.environment, "environment", issues)
    release = yield from log_fields.release(outline.release, "release", issues)
    yield
    raws = _raw_entries(outline.logs, issues)
    del outline
    entries: list[LogEntry] = []
    first = 0
    for group in _groups(raws):
        yield
        entries += yield from _read(group, first, issues)
        first += len(group)
    issues.refuse()
    yield
    service, environment = service or _SERVICE, environment or _ENVIRONMENT
    return LogBatch(project_id, key_id, received_at, service, environment, release, entries)


def _outline(body: bytes) -> Generator[None, None, _Outline]:
    """Return the parts of a body that is a JSON object, mended where that helps."""
    try:
        body = yield from mended_bytes(body)
    except UnicodeDecodeError as error:
        text = likeness(body) or f"The body is not UTF-8 (byte {error.start})"
        raise BodyRefusedError(text) from None
    yield from refuse_many_containers(body)
    is_mended = NUL_ESCAPE in body
    if is_mended:
        body = yield from mended_escapes(body)
    while True:
        yield
        try:
            outline = _Outline(**(yield from members(body, _NAMES)))
            break
        except NotObjectError:
            raise BodyRefusedError("The body must be an object") from None
        except MalformedError as error:
            mended = body if is_mended else (yield from mended_escapes(body))
            if mended == body:
                raise refusal(body, error) from None
            body, is_mended = mended, True
    if len(body) - len(outline.logs) > NESTING_MAX:
        yield from refuse_deep_nesting(body)
    return outline


def _raw_entries(logs: Raw, issues: Issues) -> list[Raw]:
    try:
        raws = [raw for raw in msgspec.structs.astuple(_LOGS_DECODER.decode(logs)) if len(raw)]
    except msgspec.ValidationError as error:
        if bytes(logs) == b"null":
            issues.add("logs", "is required")
        else:
            is_array = "of at most length" in str(error)
            issues.add("logs", f"must have at most {LOGS_MAX} entries" if is_array else "must be an array")
        return []
    except RecursionError:
        raise nested_too_deeply() from None
    if not raws:
        issues.add("logs", "must not be empty")
    return raws


def _groups(raws: list[Raw]) -> Iterator[list[Raw]]:
    group: list[Raw] = []
    size = 0
    for raw in raws:
        if group and (size + len(raw) > _GROUP_BYTES_MAX or len(group) == _GROUP_ENTRIES_MAX):
            yield group
            group, size = [], 0
        group.append(raw)
        size += len(raw)
    if group:
        yield group


def _read(group: list[Raw], first: int, issues: Issues) -> Generator[None, None, list[LogEntry]]:
    """Return the entries of a group, the first of which has this index; of those with problems only these are noted."""
    size = 0
    for raw in group:
        size += len(raw)
        if len(raw) > NESTING_MAX:
            yield from refuse_deep_nesting(bytes(raw), levels_above=2)
    if size <= _GROUP_BYTES_MAX:
        with suppress(msgspec.ValidationError):
            entries = _entries(_ENTRIES_DECODER.decode(b"[%b]" % b",".join(group)))
            if entries is not None:
                return entries
    entries = []
    for index, raw in enumerate(group, first):
        entry = yield from log_fields.entry(raw, f"logs[{index}]", issues)
        if entry is not None:
            entries.append(entry)
    return entries


def _entries(wires: list[_WireEntry]) -> list[LogEntry] | None:
    """Return entries that are in order, or None where one is not."""
    entries = []
    for wire in wires:
        timestamp, text = wire.timestamp, str(wire.metadata, "utf-8")
        metadata = text if text[0] == "{" else None
        if metadata is None and text != "null":
            return None
        if timestamp is not None and timestamp.tzinfo is not UTC:
            try:
                timestamp = utc(timestamp)
            except OverflowError:
                return None
        entries.append(
            LogEntry(
                wire.level, wire.message, timestamp, metadata, wire.trace_id, wire.span_id, wire.request_id,
                wire.vercel_id, wire.context, wire.release,
            )
        )  # fmt: skip
    return entries
