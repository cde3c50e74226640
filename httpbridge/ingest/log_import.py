"""What `httpbridge import` reads: lines of NDJSON, as exports have them, become batches under the rules of requests.

Lines are taken in windows, whose bounds do not depend on whether a line is in order: so the same file makes the same
batches, each with its idempotency key, and what an interrupted import has stored is not stored again by the next one.
"""

from collections.abc import Generator, Iterator
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec
from msgspec import Raw

from httpbridge.errors import BodyRefusedError
from httpbridge.ingest import log_parser
from httpbridge.ingest.log_fields import NULL
from httpbridge.ingest.mending import mended_bytes, mended_escapes
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.logs import LOGS_MAX, LogBatch

T = TypeVar("T")

KEY_ID = "import"
"""What stands for the key of imported entries."""

_WINDOW_LINES, _WINDOW_BYTES = 4 * LOGS_MAX, 4 * 1024 * 1024


class Line(NamedTuple):
    """A line of the file that is not empty."""

    number: int
    """From 1 on."""
    text: bytes


class BadLine(NamedTuple):
    """A line that is refused."""

    number: int
    reason: str


class Window(NamedTuple):
    """Lines that are read together."""

    batches: list[tuple[LogBatch, IdempotencyKey]]
    bad: list[BadLine]
    last: int
    """The number of the last line."""


class _Names(msgspec.Struct, gc=False):
    service: Raw = NULL
    environment: Raw = NULL


_names_decoder = msgspec.json.Decoder(_Names)


def windows(stream: BinaryIO, line_bytes_max: int) -> Iterator[list[Line]]:
    """Cut what is read into windows; of a longer line so much is in one, and the rest is skipped.

    Raises what reading raises; of the window that it breaks off in nothing comes.
    """
    window: list[Line] = []
    number = size = 0
    while text := stream.readline(line_bytes_max + 1):
        number += 1
        rest = text
        while len(rest) > line_bytes_max and not rest.endswith(b"\n"):
            rest = stream.readline(line_bytes_max + 1)
        if text := text.strip():
            window.append(Line(number, text))
            size += len(text)
        if len(window) == _WINDOW_LINES or size > _WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def read_window(lines: list[Line], project_id: str, received_at: datetime, line_bytes_max: int) -> Window:
    """Make batches of a window: of each service and environment those of all of its entries, in their order."""
    groups: dict[tuple[bytes, bytes], list[Line]] = {}
    bad: list[BadLine] = []
    for line in lines:
        try:
            if len(line.text) > line_bytes_max:
                raise BodyRefusedError(f"has more than {line_bytes_max:,} bytes")
            names, text = _read(line.text)
        except BodyRefusedError as error:
            bad.append(BadLine(line.number, str(error)))
        else:
            groups.setdefault((bytes(names.service), bytes(names.environment)), []).append(Line(line.number, text))
    batches = []
    for (service, environment), group in groups.items():
        for start in range(0, len(group), LOGS_MAX):
            some = group[start : start + LOGS_MAX]
            batch, refused = _batch(service, environment, some, project_id, received_at)
            bad += refused
            if batch is not None:
                numbers = {one.number for one in refused}
                digest = sha256(b"\n".join([line.text for line in some if line.number not in numbers]))
                key = f"import:{some[0].number}:{digest.hexdigest()}"
                batches.append((batch, IdempotencyKey(key, digest.digest())))
    return Window(batches, sorted(bad), lines[-1].number)


def _read(text: bytes) -> tuple[_Names, bytes]:
    """Check that a line is one JSON object, and return what it is grouped by and its text, mended where that helps."""
    try:
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            if not text.isascii():
                text.decode()  # msgspec lets bad bytes through in what it skips
            return _names_decoder.decode(text), text
        text = _finished(mended_escapes(_finished(mended_bytes(text))))
        return _names_decoder.decode(text), text
    except UnicodeDecodeError:
        reason = "is not UTF-8"
    except msgspec.ValidationError:
        reason = "must be an object"
    except msgspec.DecodeError:
        reason = "is not valid JSON"
    except RecursionError:
        reason = "is nested too deeply"
    raise BodyRefusedError(reason)


def _batch(
    service: bytes, environment: bytes, lines: list[Line], project_id: str, received_at: datetime
) -> tuple[LogBatch | None, list[BadLine]]:
    """Return a batch of the lines that are in order, if any are, and the others."""
    try:
        return _parsed(service, environment, lines, project_id, received_at), []
    except BodyRefusedError as error:
        if len(lines) == 1:
            name = error.path.removeprefix("logs[0]").removeprefix(".")
            return None, [BadLine(lines[0].number, f"{name} {error}".strip())]
    good: list[Line] = []
    bad: list[BadLine] = []
    for line in lines:
        batch, refused = _batch(service, environment, [line], project_id, received_at)
        bad += refused
        good += [line] * (batch is not None)
    return (_parsed(service, environment, good, project_id, received_at) if good else None), bad


def _parsed(service: bytes, environment: bytes, lines: list[Line], project_id: str, received_at: datetime) -> LogBatch:
    logs = b",".join([line.text for line in lines])
    body = b'{"service":%b,"environment":%b,"logs":[%b]}' % (service, environment, logs)
    return _finished(log_parser.parse(body, project_id, KEY_ID, received_at))


def _finished(steps: Generator[None, None, T]) -> T:
    """Take all steps at once: there is no event loop that others use."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
