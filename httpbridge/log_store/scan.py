"""Looking for entries in the content of a chunk, by its bytes: only what is returned is parsed. Pure.

A chunk of 2,000 entries takes a millisecond or two: to decompress it, and to cut it into lines.
"""

from bisect import bisect_right
from collections.abc import Sequence
from datetime import datetime
from itertools import accumulate
from typing import NamedTuple

import msgspec

from httpbridge.log_store.chunk import (
    LEVEL,
    SERVICE,
    TIMESTAMP,
    Content,
    instant_of,
    instant_text,
    read_line,
)
from httpbridge.log_store.selection import LogFilter, Position, StoredLog
from httpbridge.log_store.summary import CELL_FIRST, CELL_LAST, Summary
from httpbridge.logs import Level

_ENVIRONMENT = b',"environment":'
_encode = msgspec.json.Encoder().encode


class Header(NamedTuple):
    """A stored chunk but for its content; the names are those of the columns."""

    id: int
    span: int
    version: int
    first_at: str
    last_at: str
    entries: int
    summary: Summary


class Found(NamedTuple):
    """A matching entry; they sort as positions do."""

    timestamp: bytes
    id: int
    place: int
    content: Content

    @property
    def position(self) -> Position:
        """Where it stands in its project."""
        return Position(instant(self.timestamp.decode()), self.id)

    def log(self, project_id: str) -> StoredLog:
        """Parse it. Raises ChunkDamagedError."""
        content = self.content
        runs = content.head.runs
        run = runs[bisect_right(list(accumulate(run.entries for run in runs)), self.place)]
        line = read_line(content.lines[self.place])
        return StoredLog(
            self.id, project_id, content.head.keys[run.key], instant_of(run.received_at), line.service,
            line.environment, line.release, line.level, line.message, instant(line.timestamp),
            bytes(line.metadata).decode() or None, line.trace_id, line.span_id, line.request_id, line.vercel_id,
            line.context,
        )  # fmt: skip


def instant(text: str) -> datetime:
    """Read a timestamp as lines have it."""
    return msgspec.convert(text, datetime)


class Scan:
    """A filter, and the positions between which it is asked, ready for many chunks."""

    def __init__(self, selection: LogFilter, begin: Position | None = None, end: Position | None = None) -> None:
        """Narrow the filter's time to what is from `begin` on and before `end`."""
        self.project_id = selection.project_id
        begin = selection.begin if begin is None else max(begin, selection.begin)
        end = selection.end if end is None else min(end, selection.end)
        self.begin, self.end = instant_text(begin.timestamp), instant_text(end.timestamp)
        self._begin, self._end = (self.begin.encode(), begin.id), (self.end.encode(), end.id)
        self._levels = selection.levels if len(selection.levels) < len(Level) else frozenset[Level]()
        self._letters = frozenset(ord(level[0]) for level in self._levels)
        self._service, self._environment = selection.service, selection.environment
        self._service_text = b'"service":%b,' % _encode(selection.service)
        self._environment_text = b"%b%b," % (_ENVIRONMENT, _encode(selection.environment))
        self._needle = selection.text.casefold()
        # As a JSON string has it, and as it stands in the metadata.
        self._needles = sorted({_encode(self._needle)[1:-1].decode().casefold(), self._needle})

    @property
    def has_text(self) -> bool:
        """Whether the entries' texts have to be looked into."""
        return bool(self._needle)

    def spans(self, chunk: Header) -> bool:
        """Say whether all of a chunk is between the positions."""
        return self.begin <= chunk.first_at and chunk.last_at < self.end

    def may_match(self, summary: Summary) -> bool:
        """Say whether a chunk may have anything, by what is known of it."""
        return (
            (not self._levels or any(summary.level(level) for level in self._levels))
            and (self._service is None or not summary.services or self._service in summary.services)
            and (self._environment is None or not summary.environments or self._environment in summary.environments)
        )

    def takes_all(self, header: Header) -> bool:
        """Say whether all of a chunk matches, going by its header; False where that cannot say."""
        summary = header.summary
        return (
            self.spans(header)
            and not self._needle
            and (not self._levels or header.entries == sum(summary.level(level) for level in self._levels))
            and (self._service is None or summary.services == [self._service])
            and (self._environment is None or summary.environments == [self._environment])
        )

    def counts(self, header: Header, edges: Sequence[str]) -> list[tuple[tuple[int, Level], int]] | None:
        """Count what matches by bucket and level, going by the summary; None where it cannot say.

        Bucket n is between edges n and n + 1.
        """
        summary = header.summary
        if self._needle or not summary.cells:
            return None
        if self._service is not None and summary.services != [self._service]:
            return None
        if self._environment is not None and summary.environments != [self._environment]:
            return None
        found = []
        for cell, numbers in summary.cells.items():
            first, last = (
                max(cell + CELL_FIRST[len(cell)], header.first_at),
                min(cell + CELL_LAST[len(cell)], header.last_at),
            )
            bucket = bisect_right(edges, first)
            if bucket != bisect_right(edges, last) or (first < self.begin <= last) or (first < self.end <= last):
                return None
            if self.begin <= first < self.end and 0 < bucket < len(edges):
                found += [
                    ((bucket - 1, level), number)
                    for level, number in zip(Level, numbers, strict=True)
                    if number and (not self._levels or level in self._levels)
                ]
        return found

    def places(self, header: Header, content: Content) -> Sequence[int]:
        """Return which lines of a chunk match, ascending."""
        with_needle = self._with_needle(content) if self._needle else []
        if self._needle and not with_needle:
            return ()  # the lines need not be cut for that
        lines, summary = content.lines, header.summary
        places: Sequence[int] = with_needle if self._needle else range(len(lines))
        if self._levels:
            letters = self._letters
            places = [place for place in places if lines[place][LEVEL] in letters]
        if header.first_at <= self.begin or header.last_at >= self.end:
            places = self._in_time(places, content)
        if self._service is not None and summary.services != [self._service]:
            text = self._service_text
            # The level before it has four letters or five.
            places = [place for place in places if lines[place].startswith((text, b"," + text), SERVICE)]
        if self._environment is not None and summary.environments != [self._environment]:
            text = self._environment_text
            places = [
                place for place in places if lines[place].startswith(text, lines[place].find(_ENVIRONMENT, SERVICE))
            ]
        if self._needle:
            places = [place for place in places if self._contains(content.lines[place])]
        return places

    def found(self, header: Header, content: Content, newest: int | None = None) -> list[Found]:
        """Return what matches, in the order of commits; or only so many of the newest, oldest first."""
        places = self.places(header, content)
        if not places:
            return []
        lines, ids = content.lines, content.ids
        if newest is not None and len(places) > newest:
            # In the order of commits ids ascend, and timestamps nearly do: there is little to sort.
            stamped = sorted([(lines[place][TIMESTAMP], place) for place in places])
            places = [place for _, place in stamped[-newest:]]
        return [Found(lines[place][TIMESTAMP], ids[place], place, content) for place in places]

    def _in_time(self, places: Sequence[int], content: Content) -> Sequence[int]:
        lines, ids = content.lines, content.ids
        begin, end = self._begin, self._end
        return [place for place in places if begin <= (lines[place][TIMESTAMP], ids[place]) < end]

    def _with_needle(self, content: Content) -> list[int]:
        """Return which lines have the text anywhere, ascending."""
        text, places = content.folded, set()
        for needle in self._needles:
            place = start = 0
            while (at := text.find(needle, start)) >= 0:
                place += text.count("\n", start, at)
                places.add(place)
                place += 1
                start = text.index("\n", at) + 1
        return sorted(places)

    def _contains(self, line: bytes) -> bool:
        entry = read_line(line)
        texts = (entry.message, bytes(entry.metadata).decode(), entry.trace_id, entry.request_id)
        return any(text is not None and self._needle in text.casefold() for text in texts)
