"""What readers ask for and what they get: filters, positions, stored entries. Pure.

Used by `queries`, `tail` and `reader`, by the command `logs` and by the dashboard's pages of logs.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from httpbridge.logs import Level

UNBOUNDED_FIELDS = ("message", "metadata", "trace_id", "span_id", "request_id", "vercel_id", "context")
"""Those without a limit in the contract but that of the body."""

ID_MAX = 10**18 - 1


class StoredLog(msgspec.Struct, frozen=True):
    """An entry of the store. Instants are aware and in UTC, `metadata` is JSON text."""

    id: int
    project_id: str
    key_id: str
    received_at: datetime
    service: str
    environment: str
    release: str | None
    level: str
    message: str
    timestamp: datetime
    metadata: str | None
    trace_id: str | None
    span_id: str | None
    request_id: str | None
    vercel_id: str | None
    context: str | None


class Position(NamedTuple):
    """A place in the order of a project's entries, which is by `timestamp`, then by `id`."""

    timestamp: datetime
    """Aware, UTC."""
    id: int


FIRST = Position(datetime.min.replace(tzinfo=UTC), 0)
"""Before every entry; ids are larger."""

LAST = Position(datetime.max.replace(tzinfo=UTC), ID_MAX)


class LogFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which entries of a project. What is None or empty admits all."""

    project_id: str
    since: datetime | None = None
    """The first instant, aware and UTC; of the entry's own `timestamp`."""
    until: datetime | None = None
    """The first instant after."""
    levels: frozenset[Level] = frozenset()
    service: str | None = None
    environment: str | None = None
    text: str = ""
    """What the message, the text of the metadata, a trace's or a request's id contains, without regard to case."""

    @property
    def begin(self) -> Position:
        """The first position that may match."""
        return FIRST if self.since is None else Position(self.since, 0)

    @property
    def end(self) -> Position:
        """The first position after all that may match."""
        return LAST if self.until is None else Position(self.until, 0)


class LogRow(msgspec.Struct, frozen=True):
    """An entry whose long texts are cut; `characters` has the whole length of each that is."""

    log: StoredLog
    characters: Mapping[str, int]

    @property
    def position(self) -> Position:
        """Where it stands in its project."""
        return Position(self.log.timestamp, self.log.id)


def cut(log: StoredLog, characters_max: int) -> LogRow:
    """Cut its long texts."""
    characters = {}
    for name in UNBOUNDED_FIELDS:
        text = getattr(log, name)
        if text is not None and len(text) > characters_max:
            characters[name] = len(text)
    if characters:
        log = msgspec.structs.replace(log, **{name: getattr(log, name)[:characters_max] for name in characters})
    return LogRow(log, characters)
