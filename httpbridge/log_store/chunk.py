"""A chunk: what one commit stores of one project, compressed. Pure.

Its content is NDJSON in a zstd frame with a checksum. The first line says where its entries came from (`Origin`s of
runs), each further one is an entry as `httpbridge export` writes it: first the timestamp, always as long, then the
level, the service and the environment, so that most questions are answered without parsing JSON. Its summary has what a
reader skips chunks by.

An entry's id never changes. A chunk takes its own id at its commit, and gives each entry `id * IDS + place`; where
chunks are merged, their runs keep these ids.
"""

import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import chain
from typing import Any

import msgspec

from httpbridge.log_store.idempotency import IdempotencyKey, KeyRow
from httpbridge.log_store.summary import merged_summary, summary_of
from httpbridge.log_store.zstandard import zstd
from httpbridge.logs import Level, LogBatch

IDS = 4096
"""So many ids a chunk has for its entries; a commit makes several chunks of more."""

TIMESTAMP = slice(14, 41)
"""Where a line has its timestamp, `2026-11-23T20:15:00.123456Z`; these sort as the instants do."""
LEVEL = 52
"""Where a line has the first letter of its level, which no other one has."""
SERVICE = 58
"""Where a line has the member `service`, or one further."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NO_METADATA = msgspec.Raw()
_ZSTD_OPTIONS = {int(zstd.CompressionParameter.compression_level): 1, int(zstd.CompressionParameter.checksum_flag): 1}
"""A higher level costs three times as much and gains nothing on logs, measured."""


class ChunkDamagedError(Exception):
    """A stored chunk is not what was written; the text says in what respect, and nothing of its entries."""


class Line(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An entry as chunks and exports have it: what the client sent, with what its batch said for all."""

    timestamp: str
    level: Level
    service: str
    environment: str
    message: str
    release: str | None = None
    metadata: msgspec.Raw = _NO_METADATA
    """The JSON object as it came, but without line breaks, which it has between values only."""
    trace_id: str | None = None
    span_id: str | None = None
    request_id: str | None = None
    vercel_id: str | None = None
    context: str | None = None


class Run(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Entries that were committed together, one after the other."""

    first_id: int
    """The id of the first one, less that of the chunk's first entry."""
    entries: int
    received_at: int
    """Microseconds since 1970."""
    key: int
    """Which of the head's keys they came with."""


class Head(msgspec.Struct, frozen=True, gc=False):
    """The first line of a content."""

    keys: list[str]
    runs: list[Run]

    def ids(self, chunk_id: int) -> Sequence[int]:
        """Return the ids of all entries, in their order."""
        first = chunk_id * IDS
        ranges = [range(first + run.first_id, first + run.first_id + run.entries) for run in self.runs]
        return ranges[0] if len(ranges) == 1 else list(chain.from_iterable(ranges))


class Chunk(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A chunk as it is stored; its id is the store's. The names are those of the columns."""

    project_id: str
    first_at: str
    """The earliest timestamp, as in a line."""
    last_at: str
    entries: int
    size: int
    """Bytes of the content before it was compressed."""
    summary: str
    """JSON of a Summary."""
    content: bytes
    idempotency: IdempotencyKey | None = None
    """Of a batch that is a chunk of its own, and is stored once. No column."""

    @property
    def key_row(self) -> KeyRow:
        """The row of its idempotency key."""
        assert self.idempotency is not None  # noqa: S101 - for the type checker
        return (self.project_id, self.idempotency.key, self.idempotency.body)

    @property
    def columns(self) -> tuple[Any, ...]:
        """The values of the columns."""
        return (self.project_id, self.first_at, self.last_at, self.entries, self.size, self.summary, self.content)


class StoredChunk(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A chunk that takes the place of others in the store. The names are those of the columns."""

    id: int
    span: int
    version: int
    stored_at: int
    chunk: Chunk


def without_repeats(chunks: Sequence[Chunk], noted: Iterable[bytes | None]) -> tuple[list[Chunk], list[int]]:
    """Return what is to be stored, and the places of what has another body than its key was noted with.

    `noted` has the bodies that the keys of those with one were noted with before, in their order.
    """
    new: list[Chunk] = []
    conflicts: list[int] = []
    bodies = iter(noted)
    for place, chunk in enumerate(chunks):
        body = None if chunk.idempotency is None else next(bodies)
        if body is None:
            new.append(chunk)
        elif chunk.idempotency is not None and body != chunk.idempotency.body:
            conflicts.append(place)
    return new, conflicts


class Entries(msgspec.Struct, frozen=True, gc=False):
    """The entries of one batch, as lines, before they are part of a chunk."""

    project_id: str
    key_id: str
    received_at: int
    """Microseconds since 1970."""
    lines: bytes
    levels: bytes
    """A letter an entry."""
    timestamps: list[str]
    service: str
    environment: str
    idempotency: IdempotencyKey | None

    @property
    def weight(self) -> int:
        """About how many bytes it takes."""
        return 256 + len(self.lines)


_encoder = msgspec.json.Encoder()
_encode_lines = _encoder.encode_lines
_head_decoder = msgspec.json.Decoder(Head)
_local = threading.local()


def instant_text(instant: datetime) -> str:
    """Write an aware UTC instant as lines have it."""
    text: str = msgspec.to_builtins(instant)  # RFC 3339; seven times as fast as `isoformat`
    return text if instant.microsecond else f"{text[:19]}.000000Z"


def microseconds(instant: datetime) -> int:
    """Return an aware instant as microseconds since 1970."""
    return (instant - _EPOCH) // _MICROSECOND


def instant_of(microseconds_: int) -> datetime:
    """Return it back."""
    return _EPOCH + microseconds_ * _MICROSECOND


def encode(batch: LogBatch, idempotency: IdempotencyKey | None = None) -> Entries:
    """Make the lines of a batch, with what it says for all of its entries."""
    service, environment, release = batch.service, batch.environment, batch.release
    received_at = instant_text(batch.received_at)
    lines = []
    for entry in batch.entries:
        metadata = entry.metadata
        lines.append(
            Line(
                received_at if entry.timestamp is None else instant_text(entry.timestamp),
                entry.level, service, environment, entry.message,
                release if entry.release is None else entry.release,
                _NO_METADATA if metadata is None else _one_line(metadata),
                entry.trace_id, entry.span_id, entry.request_id, entry.vercel_id, entry.context,
            )
        )  # fmt: skip
    return Entries(
        batch.project_id,
        batch.key_id,
        microseconds(batch.received_at),
        _encode_lines(lines),
        "".join([line.level[0] for line in lines]).encode(),
        [line.timestamp for line in lines],
        service,
        environment,
        idempotency,
    )


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
            chunks.append(_chunk(batch.project_id, [batch], batch.idempotency))
            continue
        parts = of_projects.setdefault(batch.project_id, [[]])
        if sum(len(one.timestamps) for one in parts[-1]) + len(batch.timestamps) > IDS:
            parts.append([])
        parts[-1].append(batch)
    return chunks + [_chunk(project_id, part) for project_id, parts in of_projects.items() for part in parts]


def _chunk(project_id: str, batches: list[Entries], idempotency: IdempotencyKey | None = None) -> Chunk:
    keys: dict[str, int] = {}
    runs: list[Run] = []
    place = 0
    for batch in batches:
        key = keys.setdefault(batch.key_id, len(keys))
        if runs and runs[-1].key == key and runs[-1].received_at == batch.received_at:
            runs[-1] = msgspec.structs.replace(runs[-1], entries=runs[-1].entries + len(batch.timestamps))
        else:
            runs.append(Run(place, len(batch.timestamps), batch.received_at, key))
        place += len(batch.timestamps)
    timestamps = [timestamp for batch in batches for timestamp in batch.timestamps]
    services, environments = {batch.service for batch in batches}, {batch.environment for batch in batches}
    summary = summary_of(timestamps, b"".join([batch.levels for batch in batches]), services, environments)
    text = b"%b\n%b" % (_encoder.encode(Head(list(keys), runs)), b"".join([batch.lines for batch in batches]))
    return Chunk(
        project_id, min(timestamps), max(timestamps), place, len(text), summary, compress(text), idempotency
    )  # fmt: skip


def merged(parts: Sequence[tuple[int, Chunk]]) -> Chunk:
    """Make one chunk of several of a project, in the order of their ids, which are given. It has the id of the first.

    Raises ChunkDamagedError.
    """
    keys: dict[str, int] = {}
    runs: list[Run] = []
    bodies: list[bytes] = []
    first_id = parts[0][0]
    for id_, part in parts:
        content = Content(id_, part.content)
        bodies.append(content.body)
        for run in content.head.runs:
            key = keys.setdefault(content.head.keys[run.key], len(keys))
            runs.append(Run((id_ - first_id) * IDS + run.first_id, run.entries, run.received_at, key))
    text = b"%b\n%b" % (_encoder.encode(Head(list(keys), runs)), b"".join(bodies))
    chunks = [part for _, part in parts]
    return Chunk(
        chunks[0].project_id,
        min(chunk.first_at for chunk in chunks),
        max(chunk.last_at for chunk in chunks),
        sum(chunk.entries for chunk in chunks),
        len(text),
        merged_summary(chunk.summary for chunk in chunks),
        compress(text),
    )


def compress(text: bytes) -> bytes:
    """Compress the content of a chunk; for any thread."""
    compressor: zstd.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:
        # Kept, as to make one costs as much as to compress a small chunk.
        compressor = _local.compressor = zstd.ZstdCompressor(options=_ZSTD_OPTIONS)
    return compressor.compress(text, mode=zstd.ZstdCompressor.FLUSH_FRAME)


class Content:
    """The content of a stored chunk, taken apart as far as it is asked for."""

    def __init__(self, chunk_id: int, compressed: bytes) -> None:
        """Raise ChunkDamagedError for what is not as it was written."""
        try:
            text = zstd.decompress(compressed)
            end = text.index(b"\n")
            self.head = _head_decoder.decode(memoryview(text)[:end])
        except (zstd.ZstdError, ValueError, msgspec.DecodeError) as error:
            raise ChunkDamagedError(f"its content cannot be read: {type(error).__name__}") from None
        self.id = chunk_id
        self.size = len(text)
        self.body = text[end + 1 :]
        """All lines, each with its end."""

    @cached_property
    def lines(self) -> list[bytes]:
        """All of them, without their ends."""
        return self.body.split(b"\n")[:-1]

    @cached_property
    def ids(self) -> Sequence[int]:
        """Those of the entries."""
        return self.head.ids(self.id)

    @cached_property
    def folded(self) -> str:
        """The lines without regard to case."""
        return self.body.decode().casefold()

    @cached_property
    def folded_lines(self) -> list[str]:
        """Each of them; no letter becomes the end of a line."""
        return self.folded.split("\n")
