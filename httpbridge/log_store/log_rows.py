"""What the dashboard's queries select by and return: filters, positions, rows cut to size.

Used by `queries`, `tail` and `reader`, and by the dashboard's pages of logs.

A stored text may have 5 MiB, and a page a hundred rows, so texts are cut in the database.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from httpbridge.log_store.schema import logs
from httpbridge.logs import Level

UNBOUNDED_COLUMNS = ("message", "metadata", "trace_id", "span_id", "request_id", "vercel_id", "context")
"""Those without a limit in the contract but that of the body."""

_ID_MAX = 2**63 - 1


class StoredLog(msgspec.Struct, frozen=True):
    """A row of `logs`; the names are the columns'. Instants are aware and in UTC, `metadata` is JSON text."""

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
"""Before every entry; ids begin at 1."""

LAST = Position(datetime.max.replace(tzinfo=UTC), _ID_MAX)


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
    """What the message or the text of the metadata contains; `A` to `Z` are the same as `a` to `z`, nothing else is."""

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


def between(project_id: str, begin: Position, end: Position) -> tuple[sa.ColumnElement[bool], ...]:
    """Select a stretch of a project, the end left out: exactly what the index `logs_newest_of_project` is for."""
    position = sa.tuple_(logs.c.timestamp, logs.c.id)
    # One bound each way: of two, SQLite might give the index the wider one.
    return logs.c.project_id == project_id, position >= tuple(begin), position < tuple(end)


def matches(selection: LogFilter) -> list[sa.ColumnElement[bool]]:
    """Everything of the filter but project and time, which the index does not know."""
    conditions: list[sa.ColumnElement[bool]] = []
    if selection.levels:
        conditions.append(logs.c.level.in_(sorted(str(level) for level in selection.levels)))
    if selection.service is not None:
        conditions.append(logs.c.service == selection.service)
    if selection.environment is not None:
        conditions.append(logs.c.environment == selection.environment)
    if selection.text:
        conditions.append(sa.or_(*(_contains(column, selection.text) for column in (logs.c.message, logs.c.metadata))))
    return conditions


class _Contains(FunctionElement[bool]):
    """A text contains a pattern of LIKE, without regard to the case of ASCII letters, and of these alone."""

    type = sa.Boolean()
    inherit_cache = True


@compiles(_Contains, "sqlite")
def _in_sqlite(element: _Contains, compiler: SQLCompiler, **options: Any) -> str:
    text, pattern = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({text} LIKE {pattern} ESCAPE '/')"  # folds ASCII alone


@compiles(_Contains, "postgresql")
def _in_postgresql(element: _Contains, compiler: SQLCompiler, **options: Any) -> str:
    text, pattern = (compiler.process(clause, **options) for clause in element.clauses)
    return f"({text} COLLATE \"C\" ILIKE {pattern} ESCAPE '/')"  # with another collation it folds more, and slower


def _contains(column: sa.Column[Any], text: str) -> sa.ColumnElement[bool]:
    escaped = text.replace("/", "//").replace("%", "/%").replace("_", "/_")
    return sa.func.coalesce(_Contains(column, sa.literal(f"%{escaped}%", sa.Text)), sa.false())


def cut_columns(characters_max: int) -> list[sa.ColumnElement[Any]]:
    """Select all columns of `logs`, long texts cut, and then the lengths of the UNBOUNDED_COLUMNS."""
    columns: list[sa.ColumnElement[Any]] = [
        sa.func.substr(column, 1, characters_max).label(column.name) if column.name in UNBOUNDED_COLUMNS else column
        for column in logs.columns
    ]
    return [*columns, *(sa.func.length(logs.c[name]) for name in UNBOUNDED_COLUMNS)]


def row_of(values: Any, characters_max: int) -> LogRow:
    """Make a row of what `cut_columns` selected."""
    count = len(UNBOUNDED_COLUMNS)
    lengths = zip(UNBOUNDED_COLUMNS, values[-count:], strict=True)
    return LogRow(
        StoredLog(*values[:-count]),
        {name: length for name, length in lengths if length is not None and length > characters_max},
    )
