"""Batches as chunks: the lines of one when it arrives, and the chunks of all that are committed together."""

import asyncio
from collections.abc import Iterable

import msgspec

from httpbridge.log_store.chunk import (
    IDS,
    NO_METADATA,
    Chunk,
    Head,
    Line,
    Run,
    built,
    instant_text,
    microseconds,
)
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.log_store.summary import add_cells, cells_of, summary_of
from httpbridge.logs import LogBatch, LogEntry

_NAMES_CHARACTERS_MAX = 64 * 1024
_STEP_ENTRIES = 64
"""Half a millisecond, with the longest names, each character of which becomes six."""

_encode_lines = msgspec.json.Encoder().encode_lines


class Entries(msgspec.Struct, frozen=True, gc=False):
    """The entries of one batch, as lines, before they are part of a chunk."""

    project_id: str
    key_id: str
    received_at: int
    """Microseconds since 1970."""
    lines: bytes
    number: int
    first_at: str
    last_at: str
    cells: dict[str, list[int]]
    """How many there are by minute, of each of LEVELS."""
    service: str
    environment: str
    idempotency: IdempotencyKey | None

    @property
    def weight(self) -> int:
        """About how many bytes it takes."""
        return 256 + len(self.lines)


def encode(batch: LogBatch, idempotency: IdempotencyKey | None = None) -> Entries:
    """Make the lines of a batch, with what it says for all of its entries."""
    return _entries(batch, _text(batch, batch.entries), idempotency)


def is_long(batch: LogBatch) -> bool:
    """Say whether its lines may be much longer than what was sent: each repeats the names of the batch."""
    names = len(batch.service) + len(batch.environment) + len(batch.release or "")
    return len(batch.entries) * names > _NAMES_CHARACTERS_MAX


async def encode_in_steps(batch: LogBatch, idempotency: IdempotencyKey | None = None) -> Entries:
    """Do the same, and give others their turn after each of some entries."""
    texts = []
    for start in range(0, len(batch.entries), _STEP_ENTRIES):
        texts.append(_text(batch, batch.entries[start : start + _STEP_ENTRIES]))
        await asyncio.sleep(0)
    return _entries(batch, b"".join(texts), idempotency)


def _text(batch: LogBatch, entries: list[LogEntry]) -> bytes:
    text = _encode_lines(_lines(batch, entries))
    if text.count(b"\n") != len(entries):
        text = _encode_lines(map(_without_line_breaks, _lines(batch, entries)))
    return text


def _entries(batch: LogBatch, text: bytes, idempotency: IdempotencyKey | None) -> Entries:
    received_at, entries = batch.received_at, batch.entries
    instants = [received_at if entry.timestamp is None else entry.timestamp for entry in entries]
    levels = [entry.level for entry in entries]
    first_at = last_at = instant_text(min(instants))
    if len(instants) > 1:
        last_at = instant_text(max(instants))
    cells = cells_of(first_at, last_at, levels, lambda: list(map(instant_text, instants)))
    return Entries(
        batch.project_id, batch.key_id, microseconds(received_at), text, len(entries), first_at, last_at, cells,
        batch.service, batch.environment, idempotency,
    )  # fmt: skip


def _lines(batch: LogBatch, entries: list[LogEntry]) -> list[Line]:
    service, environment, release, received_at = batch.service, batch.environment, batch.release, batch.received_at
    lines = []
    for entry in entries:
        instant = received_at if entry.timestamp is None else entry.timestamp
        metadata = entry.metadata
        lines.append(
            Line(
                # Most have a fraction of a second: they are written in one go with the others.
                instant if instant.microsecond else instant_text(instant),  # type: ignore[arg-type]
                entry.level, service, environment, entry.message,
                release if entry.release is None else entry.release,
                NO_METADATA if metadata is None else msgspec.Raw(metadata.encode()),
                entry.trace_id, entry.span_id, entry.request_id, entry.vercel_id, entry.context,
            )
        )  # fmt: skip
    return lines


def _without_line_breaks(line: Line) -> Line:
    """Make those of the metadata spaces: they stand between two values, as in a string each is an escape."""
    metadata = bytes(line.metadata).replace(b"\n", b" ").replace(b"\r", b" ")
    return msgspec.structs.replace(line, metadata=msgspec.Raw(metadata) if metadata else NO_METADATA)


def chunks_of(group: Iterable[Entries]) -> list[Chunk]:
    """Make the chunks of a commit: one for each project, and before them one for each idempotency key."""
    of_projects: dict[str, list[Entries]] = {}
    numbers: dict[str, int] = {}
    keyed: list[Chunk] = []
    full: list[Chunk] = []
    for batch in group:
        project_id = batch.project_id
        if batch.idempotency is not None:
            keyed.append(_chunk([batch]))
            continue
        number = numbers.get(project_id, 0) + batch.number
        if number > IDS and project_id in of_projects:
            full.append(_chunk(of_projects.pop(project_id)))
            number = batch.number
        numbers[project_id] = number
        of_projects.setdefault(project_id, []).append(batch)
    return keyed + full + list(map(_chunk, of_projects.values()))


def _chunk(batches: list[Entries]) -> Chunk:
    keys: dict[str, int] = {}
    runs: list[Run] = []
    cells: dict[str, list[int]] = {}
    place = 0
    for batch in batches:
        key = keys.setdefault(batch.key_id, len(keys))
        runs.append(Run(place, batch.number, batch.received_at, key))
        place += batch.number
        add_cells(cells, batch.cells)
    summary = summary_of(cells, {batch.service for batch in batches}, {batch.environment for batch in batches})
    return built(
        batches[0].project_id, Head(list(keys), runs), [batch.lines for batch in batches],
        min([batch.first_at for batch in batches]), max([batch.last_at for batch in batches]), place,
        summary, batches[0].idempotency,
    )  # fmt: skip
