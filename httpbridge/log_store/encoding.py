"""Batches as chunks: the lines of one when it arrives, and the chunks of all that are committed together. Pure."""

from collections.abc import Iterable
from datetime import datetime

import msgspec

from httpbridge.log_store.chunk import (
    IDS,
    NO_METADATA,
    TIMESTAMP,
    Chunk,
    Head,
    Line,
    Run,
    built,
    instant_text,
    microseconds,
)
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.log_store.summary import Summary, cells_of, combined, summary_of
from httpbridge.logs import Level, LogBatch

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
    summary: Summary
    idempotency: IdempotencyKey | None

    @property
    def weight(self) -> int:
        """About how many bytes it takes."""
        return 256 + len(self.lines)


def encode(batch: LogBatch, idempotency: IdempotencyKey | None = None) -> Entries:
    """Make the lines of a batch, with what it says for all of its entries."""
    service, environment, release = batch.service, batch.environment, batch.release
    instants: list[datetime] = []
    levels: list[Level] = []
    lines: list[Line] = []
    for entry in batch.entries:
        instant, level, metadata = entry.timestamp or batch.received_at, entry.level, entry.metadata
        instants.append(instant)
        levels.append(level)
        lines.append(
            Line(
                # Most have a fraction of a second: they are written in one go with the others.
                instant if instant.microsecond else instant_text(instant),  # type: ignore[arg-type]
                level, service, environment, entry.message,
                release if entry.release is None else entry.release,
                NO_METADATA if metadata is None else _one_line(metadata),
                entry.trace_id, entry.span_id, entry.request_id, entry.vercel_id, entry.context,
            )
        )  # fmt: skip
    text = _encode_lines(lines)
    first_at, last_at = instant_text(min(instants)), instant_text(max(instants))
    cells = cells_of(first_at, last_at, levels, lambda: [line[TIMESTAMP].decode() for line in text.split(b"\n")[:-1]])
    return Entries(
        batch.project_id, batch.key_id, microseconds(batch.received_at), text, len(lines), first_at, last_at,
        summary_of(levels, cells, [service], [environment]), idempotency,
    )  # fmt: skip


def _one_line(json: str) -> msgspec.Raw:
    if "\n" in json or "\r" in json:  # between two values: in a string each is an escape
        json = json.replace("\n", " ").replace("\r", " ")
    return msgspec.Raw(json.encode())


def chunks_of(group: Iterable[Entries]) -> list[Chunk]:
    """Make the chunks of a commit: one for each project, and before them one for each idempotency key."""
    of_projects: dict[str, list[list[Entries]]] = {}
    chunks: list[Chunk] = []
    for batch in group:
        if batch.idempotency is not None:
            chunks.append(_chunk(batch.project_id, [batch]))
            continue
        parts = of_projects.setdefault(batch.project_id, [[]])
        if sum(one.number for one in parts[-1]) + batch.number > IDS:
            parts.append([])
        parts[-1].append(batch)
    return chunks + [_chunk(project_id, part) for project_id, parts in of_projects.items() for part in parts]


def _chunk(project_id: str, batches: list[Entries]) -> Chunk:
    keys: dict[str, int] = {}
    runs: list[Run] = []
    place = 0
    for batch in batches:
        key = keys.setdefault(batch.key_id, len(keys))
        runs.append(Run(place, batch.number, batch.received_at, key))
        place += batch.number
    return built(
        project_id, Head(list(keys), runs), [batch.lines for batch in batches],
        min([batch.first_at for batch in batches]), max([batch.last_at for batch in batches]), place,
        combined([batch.summary for batch in batches]), batches[0].idempotency,
    )  # fmt: skip
