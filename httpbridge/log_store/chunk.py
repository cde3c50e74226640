"""A chunk: what one commit stores of one project, compressed. Pure.

Its content is NDJSON in a zstd frame with a checksum. The first line says where its entries came from (`Origin`s of
runs), each further one is an entry as `httpbridge export` writes it: first the timestamp, always as long, then the
level, the service and the environment, so that most questions are answered without parsing JSON. Its summary has what a
reader skips chunks by.

An entry's id never changes. A chunk takes its own id at its commit, and gives each entry `id * IDS + place`; where
chunks are merged, their runs keep these ids.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate, chain, groupby
from typing import Any

import msgspec

from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store.idempotency import IdempotencyKey, KeyRow
from httpbridge.log_store.summary import Summary, cells_of, combined, read_summary, summary_of
from httpbridge.log_store.zstandard import compress, zstd
from httpbridge.logs import Level

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
NO_METADATA = msgspec.Raw()
_PIECE_BYTES = 64 * 1024


class ChunkDamagedError(StoreUnavailableError):
    """A stored chunk is not what was written; the text says in what respect, and nothing of its entries."""

    def __init__(self, reason: str, chunk_id: int | None = None) -> None:
        which = "a chunk" if chunk_id is None else f"chunk {chunk_id}"
        super().__init__(f"{which} of the log store is damaged: {reason}")
        self.reason = reason


class Line(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An entry as chunks and exports have it: what the client sent, with what its batch said for all."""

    timestamp: str
    level: Level
    service: str
    environment: str
    message: str
    release: str | None = None
    metadata: msgspec.Raw = NO_METADATA
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


_encoder = msgspec.json.Encoder()
_line_decoder = msgspec.json.Decoder(Line)
_head_decoder = msgspec.json.Decoder(Head)


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


def built(
    project_id: str, head: Head, lines: Sequence[bytes], first_at: str, last_at: str, entries: int, summary: Summary,
    idempotency: IdempotencyKey | None = None,
) -> Chunk:  # fmt: skip
    """Make a chunk of lines, each with its end, and of what is known of them."""
    text = b"%b\n%b" % (_encoder.encode(head), b"".join(lines))
    written = _encoder.encode(summary).decode()
    return Chunk(project_id, first_at, last_at, entries, len(text), written, compress(text), idempotency)


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
    chunks = [part for _, part in parts]
    try:
        summaries = [read_summary(chunk.summary) for chunk in chunks]
    except msgspec.DecodeError:
        raise ChunkDamagedError("a summary cannot be read") from None
    return built(
        chunks[0].project_id, Head(list(keys), runs), bodies,
        min(chunk.first_at for chunk in chunks), max(chunk.last_at for chunk in chunks),
        sum(chunk.entries for chunk in chunks), combined(summaries),
    )  # fmt: skip


def without(project_id: str, content: "Content", places: Iterable[int]) -> Chunk:
    """Make a chunk of what a content has, less the entries at these places. The others keep their ids.

    Raises ChunkDamagedError.
    """
    gone = set(places)
    runs: list[Run] = []
    lines: list[bytes] = []
    start = 0
    for run in content.head.runs:
        kept = [place for place in range(run.entries) if start + place not in gone]
        for _, row in groupby(enumerate(kept), lambda numbered: numbered[1] - numbered[0]):
            neighbours = [place for _, place in row]
            runs.append(Run(run.first_id + neighbours[0], len(neighbours), run.received_at, run.key))
        lines += [content.lines[start + place] for place in kept]
        start += run.entries
    entries = [read_line(line) for line in lines]
    timestamps, levels = [entry.timestamp for entry in entries], [entry.level for entry in entries]
    first_at, last_at = min(timestamps), max(timestamps)
    summary = summary_of(
        cells_of(first_at, last_at, levels, lambda: timestamps),
        {entry.service for entry in entries},
        {entry.environment for entry in entries},
    )
    ended = [line + b"\n" for line in lines]
    return built(project_id, Head(content.head.keys, runs), ended, first_at, last_at, len(entries), summary)


def read_line(line: bytes) -> Line:
    """Parse a line. Raises ChunkDamagedError."""
    try:
        return _line_decoder.decode(line)
    except msgspec.DecodeError:
        raise ChunkDamagedError("an entry cannot be read") from None


class Content:
    """The content of a stored chunk, taken apart as far as it is asked for."""

    def __init__(self, chunk_id: int, compressed: bytes) -> None:
        """Raise ChunkDamagedError for what is not as it was written."""
        try:
            text = b"".join(decompressed(compressed))
            end = text.index(b"\n")
            self.head = _head_decoder.decode(memoryview(text)[:end])
        except (ValueError, msgspec.DecodeError) as error:
            raise ChunkDamagedError(f"its content cannot be read: {type(error).__name__}", chunk_id) from None
        except ChunkDamagedError as error:
            raise ChunkDamagedError(error.reason, chunk_id) from None
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

    def run_of(self, place: int) -> Run:
        """Return the one that an entry came with."""
        return self.head.runs[bisect_right(self._run_ends, place)]

    @cached_property
    def _run_ends(self) -> list[int]:
        return list(accumulate(run.entries for run in self.head.runs))


def decompressed(compressed: bytes) -> Iterator[bytes]:
    """Yield a content piece by piece. Raises ChunkDamagedError, at the latest at the end.

    In pieces, as to get pages of memory for a whole content costs twice as much as to decompress it.
    """
    decompressor = zstd.ZstdDecompressor()
    while not decompressor.eof:
        try:
            piece = decompressor.decompress(compressed, _PIECE_BYTES)
        except zstd.ZstdError as error:
            raise ChunkDamagedError(f"its content cannot be read: {type(error).__name__}") from None
        if not piece and decompressor.needs_input and not decompressor.eof:
            raise ChunkDamagedError("its content ends too early")
        compressed = b""
        yield piece
    if decompressor.unused_data:
        raise ChunkDamagedError("its content goes on after its end")
