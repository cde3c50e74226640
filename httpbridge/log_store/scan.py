"""Looking for entries in the content of a chunk, by its bytes: only what is returned is parsed. Pure.

Where few entries may match, by their level or by a text, only their lines are cut out.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import starmap
from typing import AnyStr, NamedTuple

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
from httpbridge.log_store.summary import CELL_FIRST, CELL_LAST, LEVELS, Summary
from httpbridge.logs import Level

_ENVIRONMENT = b',"environment":'
_END = ord("\n")
_FEW = 8
"""Of so many lines one that matches is sooner looked for than all are cut."""
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


class Place(NamedTuple):
    """A line of a content."""

    number: int
    """How many are before it."""
    line: bytes


class Found(NamedTuple):
    """A matching entry, with nothing else of its chunk; they sort as positions do."""

    timestamp: bytes
    id: int
    line: bytes
    received_at: int
    """Microseconds since 1970."""
    key_id: str

    @property
    def position(self) -> Position:
        """Where it stands in its project."""
        return Position(instant(self.timestamp.decode()), self.id)

    def log(self, project_id: str) -> StoredLog:
        """Parse it. Raises ChunkDamagedError."""
        line = read_line(self.line)
        return StoredLog(
            self.id, project_id, self.key_id, instant_of(self.received_at), line.service, line.environment,
            line.release, line.level, line.message, instant(line.timestamp), bytes(line.metadata).decode() or None,
            line.trace_id, line.span_id, line.request_id, line.vercel_id, line.context,
        )  # fmt: skip


def found_at(content: Content, place: Place) -> Found:
    """Return an entry of a content."""
    run = content.run_of(place.number)
    id_ = content.ids[place.number]
    return Found(place.line[TIMESTAMP], id_, place.line, run.received_at, content.head.keys[run.key])


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
                    for level, number in zip(LEVELS, numbers, strict=True)
                    if number and (not self._levels or level in self._levels)
                ]
        return found

    def places(self, header: Header, content: Content) -> list[Place]:
        """Return which lines of a chunk match, ascending."""
        summary = header.summary
        places = self._candidates(header, content)
        if self._levels:
            letters = self._letters
            places = [place for place in places if place.line[LEVEL] in letters]
        if header.first_at <= self.begin or header.last_at >= self.end:
            ids, begin, end = content.ids, self._begin, self._end
            places = [place for place in places if begin <= (place.line[TIMESTAMP], ids[place.number]) < end]
        if self._service is not None and summary.services != [self._service]:
            text = self._service_text
            # The level before it has four letters or five.
            places = [place for place in places if place.line.startswith((text, b"," + text), SERVICE)]
        if self._environment is not None and summary.environments != [self._environment]:
            text = self._environment_text
            places = [place for place in places if place.line.startswith(text, place.line.find(_ENVIRONMENT, SERVICE))]
        if self._needle:
            places = [place for place in places if self._contains(place.line)]
        return places

    def found(self, header: Header, content: Content, newest: int | None = None) -> list[Found]:
        """Return what matches, in the order of commits; or only so many of the newest, oldest first."""
        places = self.places(header, content)
        if newest is not None and len(places) > newest:
            # In the order of commits ids ascend, and timestamps nearly do: there is little to sort.
            places = sorted(places, key=_timestamp)[-newest:]
        return [found_at(content, place) for place in places]

    def _candidates(self, header: Header, content: Content) -> list[Place]:
        """Return the lines that the others need not be cut out for; all, where these are not few."""
        if self._needle:
            return self._with_needle(content)
        if self._levels and _FEW * sum(map(header.summary.level, self._levels)) < header.entries:
            starts = sorted(start for level in self._levels for start in _starts(content.body, level))
            return _lines_at(content.body, starts)
        return list(starmap(Place, enumerate(content.lines)))

    def _with_needle(self, content: Content) -> list[Place]:
        """Return which lines have the text anywhere, ascending."""
        body = content.body
        if body.isascii():  # to lower its case is to fold it, and moves nothing
            text = body.lower()
            return _lines_at(body, sorted({
                text.rfind(b"\n", 0, at) + 1
                for needle in self._needles for at in _in_lines(text.find, needle.encode(), b"\n")
            }))  # fmt: skip
        folded = body.decode().casefold()  # no letter becomes the end of a line
        numbers = set()
        for needle in self._needles:
            number = before = 0
            for at in _in_lines(folded.find, needle, "\n"):
                number += folded.count("\n", before, at)
                before = at
                numbers.add(number)
        return [Place(number, content.lines[number]) for number in sorted(numbers)]

    def _contains(self, line: bytes) -> bool:
        entry = read_line(line)
        texts = (entry.message, bytes(entry.metadata).decode(), entry.trace_id, entry.request_id)
        return any(text is not None and self._needle in text.casefold() for text in texts)


def _timestamp(place: Place) -> bytes:
    return place.line[TIMESTAMP]


def _in_lines(find: Callable[[AnyStr, int], int], needle: AnyStr, end: AnyStr) -> Iterator[int]:
    """Yield where the first of each line is."""
    at = find(needle, 0)
    while at >= 0:
        yield at
        at = find(needle, find(end, at) + 1)


def _starts(body: bytes, level: Level) -> Iterator[int]:
    """Yield where the lines of a level begin."""
    text = b'","level":"%b"' % level.encode()
    at = body.find(text)
    while at >= 0:
        start = at - TIMESTAMP.stop
        if start == 0 or body[start - 1] == _END:  # else it is in somebody's metadata
            yield start
        at = body.find(text, at + len(text))


def _lines_at(body: bytes, starts: Sequence[int]) -> list[Place]:
    places = []
    number = before = 0
    for start in starts:
        number += body.count(b"\n", before, start)
        before = start
        places.append(Place(number, body[start : body.index(b"\n", start)]))
    return places
