"""What `httpbridge logs` prints: stored entries as lines for people, or as JSON.

Entries come from anyone with a key, so none may control the terminal that shows it: what does not print is escaped.
"""

import asyncio
import codecs
import json
from collections.abc import Awaitable, Callable

import msgspec

from authsvc.runtime.commands import note
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.reader import read
from httpbridge.log_store.selection import LogFilter, StoredLog
from httpbridge.text import printable, rfc3339

FOLLOW_SECONDS = 0.25
"""How often a follower asks for what is new."""

MESSAGE_CHARACTERS_MAX = 2000
FIELD_CHARACTERS_MAX = 500
"""Longer texts are cut in lines for people, never in JSON."""

_LEVEL_COLORS = {"debug": "\x1b[2m", "info": "\x1b[32m", "warn": "\x1b[33m", "error": "\x1b[31m"}
_RESET = "\x1b[0m"

JSON_ESCAPES = "json-escapes"
"""For the `errors` of a stream of JSON, which has other letters than ASCII's in strings alone."""

_EXTRA_FIELDS = ("release", "trace_id", "span_id", "request_id", "vercel_id", "context", "metadata")


async def show_logs(
    url: str,
    selection: LogFilter,
    *,
    follow: bool,
    as_json: bool,
    color: bool,
    write: Callable[[str], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> bool:
    """Write the selected entries of the store at `url`, a line each with its newline, newest last; return whether any.

    With `follow`, go on until cancelled. `color` is for terminals. Raises StoreSetupError
    when there is no store, and StoreUnavailableError when it cannot be read.
    """
    store = ReadStore(url)
    is_any = False
    try:
        async for log in read(store, selection, (lambda: sleep(FOLLOW_SECONDS)) if follow else None, _missed):
            is_any = True
            write(json_line(log) if as_json else text_line(log, color=color))
        return is_any
    finally:
        await store.close()


def _missed() -> None:
    note("some entries are missing here: too many arrived at once, or a chunk is damaged (`httpbridge store check`)")


def _json_escaped(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - for the type checker
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


codecs.register_error(JSON_ESCAPES, _json_escaped)


def json_line(log: StoredLog) -> str:
    """One JSON object, with the contract's field names; absent fields are left out.

    Metadata is the JSON that came, its numbers, order and repeated keys as they were; only
    its line breaks (which JSON has between values alone) become spaces, and characters
    that a terminal would act on become escapes of the same value.
    """
    fields = {name: value for name in log.__struct_fields__ if (value := getattr(log, name)) is not None}
    for name in ("timestamp", "received_at"):
        fields[name] = rfc3339(fields[name])
    if log.metadata is not None:
        fields["metadata"] = msgspec.Raw(log.metadata.encode())
    text = msgspec.json.encode(fields).decode()
    if not text.isprintable():
        text = "".join(char if char.isprintable() else _json_escape(char) for char in text)
    return text + "\n"


def text_line(log: StoredLog, *, color: bool) -> str:
    """One line for people: time, level, service, message, then what else the entry has."""
    level = f"{log.level.upper():5}"
    if color:
        level = f"{_LEVEL_COLORS.get(log.level, '')}{level}{_RESET}"
    words = [rfc3339(log.timestamp), level, printable(log.service, FIELD_CHARACTERS_MAX)]
    words.append(printable(log.message, MESSAGE_CHARACTERS_MAX))
    if log.environment != "production":
        words.append(f"environment={printable(log.environment, FIELD_CHARACTERS_MAX)}")
    words.extend(
        f"{name}={printable(value, FIELD_CHARACTERS_MAX)}"
        for name in _EXTRA_FIELDS
        if (value := getattr(log, name)) is not None
    )
    return " ".join(words) + "\n"


def _json_escape(char: str) -> str:
    if char in " \t\n\r":  # between values; within strings JSON has them escaped already
        return " "
    return json.dumps(char)[1:-1]
