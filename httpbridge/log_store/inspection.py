"""What a store holds, and whether each chunk of it is in order."""

from collections import Counter
from typing import Any

import msgspec
import sqlalchemy as sa

from httpbridge.log_store.chunk import IDS, LEVEL, TIMESTAMP, ChunkDamagedError, Content
from httpbridge.log_store.export import Part
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import STORED_BYTES, chunks
from httpbridge.log_store.summary import LEVELS, Summary
from httpbridge.logs import Level


class Usage(msgspec.Struct, frozen=True):
    """What is stored of a project."""

    project_id: str
    entries: int
    bytes_stored: int
    """About what retention counts, too."""
    bytes_of_entries: int
    """Before they were compressed."""
    chunks: int
    oldest: str
    """The earliest timestamp of an entry, as entries have it."""
    newest: str

    @property
    def ratio(self) -> float:
        """How much room they take, of what they would uncompressed."""
        return self.bytes_stored / max(1, self.bytes_of_entries)


async def usage(store: ReadStore, project_id: str | None = None) -> list[Usage]:
    """Return what is stored of each project that has any, by project, or of one. Raises as ReadStore does."""
    columns = chunks.c
    by_project = sa.select(
        columns.project_id,
        sa.cast(sa.func.sum(columns.entries), sa.BigInteger),
        sa.cast(sa.func.sum(STORED_BYTES), sa.BigInteger),
        sa.cast(sa.func.sum(columns.size), sa.BigInteger),
        sa.func.count(),
        sa.func.min(columns.first_at),
        sa.func.max(columns.last_at),
    )
    if project_id is not None:
        by_project = by_project.where(columns.project_id == project_id)
    rows = await store.rows(by_project.group_by(columns.project_id).order_by(columns.project_id))
    return [Usage(*row) for row in rows]


async def projects(store: ReadStore) -> list[str]:
    """Return the projects of which something is stored. Raises as ReadStore does."""
    ids: Any = sa.select(chunks.c.project_id).distinct().order_by(chunks.c.project_id)
    return [row.project_id for row in await store.rows(ids)]


class _Checked(msgspec.Struct, gc=False):
    """What of a line is known of a chunk without it."""

    timestamp: str
    level: Level
    service: str
    environment: str


_decode_lines = msgspec.json.Decoder(_Checked).decode_lines


def check_chunk(part: Part) -> None:
    """Compare all that is known of a chunk with its content; for any thread. Raises ChunkDamagedError."""
    header = part.header
    content = Content(header.id, part.compressed)
    try:
        entries = _decode_lines(content.body)
    except msgspec.DecodeError:
        raise ChunkDamagedError("an entry cannot be read") from None
    _compare("entries", len(entries), header.entries, len(content.lines), content.body.count(b"\n"))
    _compare("bytes", content.size, part.row.size)
    _check_head(content, header.span)
    if not entries:
        raise ChunkDamagedError("it has no entries")
    timestamps = [entry.timestamp for entry in entries]
    letters = [ord(entry.level[0]) for entry in entries]
    # Readers look at fixed places in a line.
    if [line[TIMESTAMP] for line in content.lines] != [timestamp.encode() for timestamp in timestamps]:
        raise ChunkDamagedError("a timestamp is not where it belongs")
    if [line[LEVEL] for line in content.lines] != letters:
        raise ChunkDamagedError("a level is not where it belongs")
    _compare("first timestamp", min(timestamps), header.first_at)
    _compare("last timestamp", max(timestamps), header.last_at)
    _check_summary(header.summary, entries)


def _compare(what: str, *values: object) -> None:
    if any(value != values[0] for value in values):
        raise ChunkDamagedError(f"its {what} are not what its header says")


def _check_head(content: Content, span: int) -> None:
    place = 0
    _compare("runs", sum(run.entries for run in content.head.runs), len(content.lines))
    for run in content.head.runs:
        if run.first_id < place or run.entries < 1 or not 0 <= run.key < len(content.head.keys):
            raise ChunkDamagedError("its runs are out of order")
        place = run.first_id + run.entries
    if place > (span + 1) * IDS:
        raise ChunkDamagedError("its runs have ids of other chunks")


def _check_summary(summary: Summary, entries: list[_Checked]) -> None:
    counts = Counter(entry.level for entry in entries)
    _compare("levels", summary.levels, [counts[level] for level in LEVELS])
    if summary.services and not {entry.service for entry in entries}.issubset(summary.services):
        raise ChunkDamagedError("its summary lacks a service")
    if summary.environments and not {entry.environment for entry in entries}.issubset(summary.environments):
        raise ChunkDamagedError("its summary lacks an environment")
    if summary.cells:
        length = len(next(iter(summary.cells)))
        cells: dict[str, list[int]] = {}
        for (cell, level), number in Counter((entry.timestamp[:length], entry.level) for entry in entries).items():
            cells.setdefault(cell, [0] * len(LEVELS))[LEVELS.index(level)] = number
        _compare("counts over time", summary.cells, cells)
