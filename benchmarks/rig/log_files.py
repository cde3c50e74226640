"""Entries that differ, as the questions about the store need them; and log stores full of them, made at once.

All is the same in every run: what seems to be chance is a multiple of a large number.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from httpbridge.ingest.log_parser import parse
from httpbridge.log_store.chunk import Chunk, Content, built, instant_text
from httpbridge.log_store.encoding import chunks_of, encode
from httpbridge.log_store.merging import FULL_ENTRIES
from httpbridge.log_store.sqlite_store import SqliteStore
from httpbridge.log_store.summary import read_summary
from httpbridge.logs import LOGS_MAX, LogBatch

PROJECTS = 20
RARE = "certificate"
"""A word that one entry of RARE_EACH has in its message."""
RARE_EACH = 5_000

CHUNK_ENTRIES = FULL_ENTRIES // LOGS_MAX * LOGS_MAX
"""Of a merged chunk."""

_CHUNKS_A_COMMIT = 64
_CHANCE = 0x9E3779B97F4A7C15F39CC0605CEDC835
_SERVICES = ("checkout", "catalogue", "mail", "search")
_MESSAGES = (
    "order {n} was paid by card; the receipt went out",
    "GET /catalogue/{n} was answered with 200",
    "cache miss for customer {n}, who is asked for anew",
    "message {n} was handed to the mail server",
    "session {n} began on a phone",
    "query {n} took longer than expected; the plan has a sequential scan of the table of orders",
    "connection {n} to the payment service was closed by the other side",
    "job {n} starts",
)


def project(number: int) -> str:
    """Return the id of a project."""
    return f"project-{number:07}"


def entry(number: int, at: datetime) -> dict[str, Any]:
    """Return the entry with that number as an SDK sends it, about 230 bytes, some of which no other one has."""
    chance = number * _CHANCE % 2**128
    share = chance >> 64 & 0xFF
    message = _MESSAGES[chance >> 96 & 7].format(n=chance >> 104)
    if number % RARE_EACH == RARE_EACH // 2:
        message = f"the {RARE} of shop {number} ends soon"
    return {
        "level": "error" if share < 8 else "warn" if share < 24 else "debug" if share < 80 else "info",
        "message": message,
        "timestamp": instant_text(at),
        "metadata": {"customer": chance >> 72 & 0xFFFF, "milliseconds": (chance >> 80 & 0xFFFF) / 10, "region": "eu"},
        "trace_id": f"{chance:032x}",
    }


def compact_body(first: int, entries: int, at: datetime, step: timedelta) -> bytes:
    """Return a batch with the entries from that number on, the first at an instant, in JSON without a space."""
    logs = [entry(first + number, at + number * step) for number in range(entries)]
    service = _SERVICES[first // max(1, entries) % len(_SERVICES)]
    return msgspec.json.encode({"service": service, "environment": "production", "logs": logs})


def batch(number: int, first: int, entries: int, at: datetime, step: timedelta) -> LogBatch:
    """Return the same as the bridge reads it, for the project with that number; received when its last entry is."""
    steps = parse(compact_body(first, entries, at, step), project(number), "key_0123456789abcdef", at + entries * step)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            read: LogBatch = end.value
            return read


def spread(entries: int, start: datetime, span: timedelta) -> Iterator[LogBatch]:
    """Yield the batches of all projects, of LOGS_MAX entries or what is left, each project's evenly over the time."""
    each = entries // PROJECTS
    step = span / each
    for first in range(0, each, LOGS_MAX):
        for number in range(PROJECTS):
            yield batch(number, number * each + first, min(LOGS_MAX, each - first), start + first * step, step)


def merged_chunks(batches: Iterator[LogBatch]) -> Iterator[Chunk]:
    """Make chunks of what `spread` yields, as large as merging makes them."""
    waiting: dict[str, list[LogBatch]] = {}
    for one in batches:
        mine = waiting.setdefault(one.project_id, [])
        mine.append(one)
        if len(mine) == CHUNK_ENTRIES // LOGS_MAX:
            yield from chunks_of(map(encode, waiting.pop(one.project_id)))
    for rest in waiting.values():
        yield from chunks_of(map(encode, rest))


def hourly_chunks(entries: int, start: datetime) -> Iterator[Chunk]:
    """Make merged chunks fast: a chunk of each project for each hour from a whole one on, as far as the entries go.

    Those of an hour are all the hours', but for the time.
    """
    step = timedelta(hours=1) / CHUNK_ENTRIES
    batches = spread(PROJECTS * CHUNK_ENTRIES, start, CHUNK_ENTRIES * step)
    first_hour = instant_text(start)[:13]
    templates = []
    for chunk in merged_chunks(batches):
        content = Content(0, chunk.content)
        templates.append((chunk, content.head, content.body.split(b'"timestamp":"%b' % first_hour.encode())))
    for hour in range(entries // (PROJECTS * CHUNK_ENTRIES)):
        this_hour = instant_text(start + timedelta(hours=hour))[:13]
        stamp = b'"timestamp":"%b' % this_hour.encode()
        for chunk, head, parts in templates:
            summary = read_summary(chunk.summary)
            cells = {cell.replace(first_hour, this_hour): counts for cell, counts in summary.cells.items()}
            first_at, last_at = (at.replace(first_hour, this_hour) for at in (chunk.first_at, chunk.last_at))
            yield built(
                chunk.project_id, head, [stamp.join(parts)], first_at, last_at, chunk.entries,
                msgspec.structs.replace(summary, cells=cells),
            )  # fmt: skip


async def fill(path: Path, chunks: Iterator[Chunk]) -> int:
    """Make a store of these; return how many entries it has."""
    store = SqliteStore(path)
    await store.open()
    entries = 0
    try:
        group: list[Chunk] = []
        for chunk in chunks:
            entries += chunk.entries
            group.append(chunk)
            if len(group) == _CHUNKS_A_COMMIT:
                await store.commit(group)
                group = []
        await store.commit(group)
    finally:
        await store.close()
    return entries
