"""What the dashboard's log queries promise, on SQLite files and PostgreSQL."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from httpbridge.log_store import StoreSetupError
from httpbridge.log_store import queries as log_queries
from httpbridge.log_store.queries import Activity, LogQueries
from httpbridge.log_store.read_store import ReadStore, StoreSlowError
from httpbridge.log_store.schema import logs
from httpbridge.log_store.selection import LogFilter, LogRow, Position
from httpbridge.log_store.sink import SqlSink
from httpbridge.log_store.tail import Cursor, LogTail, newest_cursor
from httpbridge.logs import Level, LogEntry
from tests.contract.test_log_sink import Clock, batch, reading_engine, sink_on
from tests.postgres import PostgresServer

START = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@dataclass
class Store:
    """A store, the sink that writes it, and the queries that read it."""

    url: str
    sink: SqlSink
    reader: ReadStore
    queries: LogQueries
    clock: Clock

    async def write(self, *entries: LogEntry, **changes: Any) -> None:
        await self.sink.write(batch(entries=list(entries), **changes))

    async def messages(self, page_rows: int = 100, **fields: Any) -> list[str]:
        """Return the messages of all pages, newest first."""
        return [row.log.message for row in await self.rows(page_rows, **fields)]

    async def rows(self, page_rows: int = 100, **fields: Any) -> list[LogRow]:
        selection = LogFilter(**({"project_id": "demo"} | fields))
        found: list[LogRow] = []
        before: Position | None = None
        while True:
            page = await self.queries.page(selection, before, page_rows)
            assert len(page.rows) <= page_rows
            assert page.older is None or before is None or page.older < before, "no progress"
            found += page.rows
            if page.older is None:
                return found
            before = page.older


@asynccontextmanager
async def store_on(url: str) -> AsyncIterator[Store]:
    clock = Clock()
    async with sink_on(url) as sink:
        reader = ReadStore(url, connections_max=2)
        try:
            yield Store(url, sink, reader, LogQueries(reader, monotonic=clock), clock)
        finally:
            await reader.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with store_on(database_url) as store:
        yield store


def entry(message: str, minutes: float = 0, level: Level = Level.INFO, **fields: Any) -> LogEntry:
    return LogEntry(level, message, timestamp=START + minutes * MINUTE, **fields)


async def test_pages_are_newest_first_and_meet_without_a_gap(store: Store) -> None:
    """Entries of the same instant, too, which are in the order of arrival."""
    await store.write(*(entry(str(number), minutes=number // 4) for number in range(40)))
    await store.write(entry("other"), project_id="other")
    expected = [str(number) for number in range(39, -1, -1)]
    for page_rows in (1, 3, 4, 39, 40, 41):
        assert await store.messages(page_rows) == expected


async def test_a_page_does_not_move_when_newer_entries_arrive(store: Store) -> None:
    """Keyset, not offset."""
    await store.write(*(entry(str(number), minutes=number) for number in range(6)))
    first = await store.queries.page(LogFilter(project_id="demo"), rows_max=3)
    await store.write(*(entry("new", minutes=100) for _ in range(5)))
    second = await store.queries.page(LogFilter(project_id="demo"), first.older, rows_max=3)
    assert [row.log.message for row in (*first.rows, *second.rows)] == ["5", "4", "3", "2", "1", "0"]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, "dcba"),
        ({"since": START + MINUTE}, "dcb"),
        ({"until": START + 2 * MINUTE}, "ba"),
        ({"since": START + MINUTE, "until": START + 2 * MINUTE}, "b"),
        ({"since": START + 2 * MINUTE, "until": START + MINUTE}, ""),
        ({"levels": frozenset({Level.ERROR})}, "b"),
        ({"levels": frozenset({Level.ERROR, Level.DEBUG})}, "db"),
        ({"levels": frozenset(Level)}, "dcba"),
        ({"service": "web"}, "dc"),
        ({"service": "WEB"}, ""),
        ({"environment": "staging"}, "d"),
        ({"service": "web", "environment": "production"}, "c"),
        ({"project_id": "other"}, ""),
    ],
)
async def test_filters(store: Store, fields: dict[str, Any], found: str) -> None:
    await store.write(entry("a"), entry("b", 1, Level.ERROR))
    await store.write(entry("c", 2), service="web")
    await store.write(entry("d", 3, Level.DEBUG), service="web", environment="staging")
    assert "".join(await store.messages(**fields)) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("needle", "dba"), ("NEEDLE", "dba"), ("nEedle in", "a"), ("100%", "c"), ("1%", ""), ("_ne", ""), ("/", "e"),
        ("a\\b", "e"), ("'", "e"), ("ä", "f"), ("Ä", ""), ('"key": "Needle"', "d"), ("needl_", ""), ("%", "c"),
    ],
)  # fmt: skip
async def test_text_is_found_literally_in_message_and_metadata(store: Store, text: str, found: str) -> None:
    """Whatever its ASCII case; LIKE's own signs mean nothing."""
    texts = {"a": "a Needle in", "b": "xneedlex", "c": "100% 1-", "e": "a\\b / '", "f": "ä"}
    for minutes, (service, message) in enumerate(texts.items()):
        await store.write(entry(message, minutes), service=service)
    await store.write(entry("m", 10, metadata='{"key": "Needle"}'), service="d")
    assert "".join(row.log.service for row in await store.rows(text=text)) == "".join(sorted(found, key="dfecba".index))


async def test_postgresql_folds_the_same_letters_whatever_its_locale(postgres_server: PostgresServer) -> None:
    """Those of ASCII, as SQLite does: what is found does not depend on where it is stored."""
    options = "TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
    postgres_server.sql(f"CREATE DATABASE folding {options}")
    async with store_on(postgres_server.url("folding")) as store:
        await store.write(entry("Ä Needle"))
        assert await store.messages(text="needle") == ["Ä Needle"]
        assert await store.messages(text="Ä needle") == ["Ä Needle"]
        assert await store.messages(text="ä needle") == []
    postgres_server.sql("DROP DATABASE folding WITH (FORCE)")


_NAMES = st.sampled_from(["api", "API", "wäb", "%", ""])
_TEXTS = st.text(st.sampled_from('aAbBäÄſKK_%/\\"{}1 \n'), max_size=6)
_ENTRIES = st.lists(
    st.tuples(
        st.integers(0, 5), st.sampled_from(Level), st.sampled_from(["api", "API", "%"]),
        st.sampled_from(["production", "x"]), _TEXTS, st.none() | _TEXTS,
    ),
    max_size=25,
)  # fmt: skip
_FILTERS = st.fixed_dictionaries(
    {
        "since": st.none() | st.integers(-1, 6),
        "until": st.none() | st.integers(-1, 6),
        "levels": st.frozensets(st.sampled_from(Level), max_size=2),
        "service": st.none() | _NAMES,
        "environment": st.none() | st.sampled_from(["production", "x", "y"]),
        "text": _TEXTS,
    }
)


def ascii_lower(text: str) -> str:
    return "".join(char.lower() if char.isascii() else char for char in text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=_ENTRIES, chosen=_FILTERS, page_rows=st.integers(1, 8), stretch=st.integers(1, 6), budget=st.integers(1, 9)
)
async def test_pages_and_counts_are_what_a_plain_filter_returns(
    store: Store, entries: list[Any], chosen: dict[str, Any], page_rows: int, stretch: int, budget: int
) -> None:
    """Whatever is stored and asked for, in whatever pages and stretches; nothing is left out and nothing twice."""
    engine = reading_engine(store.url)
    async with engine.begin() as connection:
        await connection.execute(logs.delete())
    await engine.dispose()
    for minutes, level, service, environment, message, metadata in entries:
        await store.write(entry(message, minutes, level, metadata=metadata), service=service, environment=environment)
    since, until = (None if chosen[name] is None else START + chosen[name] * MINUTE for name in ("since", "until"))
    needle = ascii_lower(chosen["text"])
    expected = [
        (minutes, number)
        for number, (minutes, level, service, environment, message, metadata) in enumerate(entries)
        if (since is None or START + minutes * MINUTE >= since)
        and (until is None or START + minutes * MINUTE < until)
        and (not chosen["levels"] or level in chosen["levels"])
        and chosen["service"] in (None, service)
        and chosen["environment"] in (None, environment)
        and (needle in ascii_lower(message) or needle in ascii_lower(metadata or ""))
    ]
    expected.sort(reverse=True)
    with pytest.MonkeyPatch.context() as patch:
        for names, value in (("STRETCH_ROWS_MIN STRETCH_ROWS_MAX", stretch), ("ROWS_MAX TEXT_ROWS_MAX", budget)):
            for name in names.split():
                patch.setattr(log_queries, name, value)
        fields = chosen | {"since": since, "until": until}
        rows = await store.rows(page_rows, **fields)
        found = [(int((row.log.timestamp - START) / MINUTE), row.log.message, row.log.metadata) for row in rows]
    assert found == [(minutes, entries[number][4], entries[number][5]) for minutes, number in expected]
    ids = [row.log.id for row in rows]
    assert len(set(ids)) == len(ids)
    edges = [START + minutes * MINUTE for minutes in range(-2, 8)]
    bars = await store.queries.histogram(LogFilter(project_id="demo", **(fields | {"until": None})), edges)
    if until is None:
        counted = {(int((bar.start - START) / MINUTE), level): n for bar in bars for level, n in bar.counts.items()}
        wanted: dict[tuple[int, Level], int] = {}
        for minutes, number in expected:
            key = (minutes, entries[number][1])
            wanted[key] = wanted.get(key, 0) + 1
        assert counted == wanted


async def test_a_search_stops_at_its_budget_says_how_far_it_got_and_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that is nowhere costs TEXT_ROWS_MAX rows at a time."""
    monkeypatch.setattr(log_queries, "TEXT_ROWS_MAX", 100)
    monkeypatch.setattr(log_queries, "STRETCH_ROWS_MIN", 30)
    await store.write(*(entry("hay", minutes=number) for number in range(250)))
    await store.write(entry("needle"))
    selection = LogFilter(project_id="demo", text="needle")
    first = await store.queries.page(selection)
    assert (first.rows, first.has_more_to_search, first.searched_rows) == ([], True, 100)
    assert first.older is not None
    assert first.older.timestamp == START + 150 * MINUTE
    second = await store.queries.page(selection, first.older)
    assert second.older is not None
    assert (second.rows, second.older.timestamp) == ([], START + 50 * MINUTE)
    third = await store.queries.page(selection, second.older)
    assert [row.log.message for row in third.rows] == ["needle"]
    assert (third.older, third.has_more_to_search) == (None, False)
    monkeypatch.setattr(log_queries, "ROWS_MAX", 100)
    assert (await store.queries.page(LogFilter(project_id="demo", service="no"))).has_more_to_search


async def test_a_slow_search_stops_after_a_while(store: Store) -> None:
    """However many rows it may look at: some have 5 MiB."""
    await store.write(*(entry("hay", minutes=number) for number in range(1000)))
    store.clock.seconds = 100

    def tick() -> float:
        store.clock.seconds += log_queries.SEARCH_SECONDS_MAX
        return store.clock.seconds

    queries = LogQueries(store.reader, monotonic=tick)
    page = await queries.page(LogFilter(project_id="demo", text="needle"))
    assert page.has_more_to_search
    assert page.searched_rows == log_queries.STRETCH_ROWS_MIN
    edges = [START, START + 500 * MINUTE, START + 900 * MINUTE]
    assert await queries.histogram(LogFilter(project_id="demo", text="needle"), edges) == []


async def test_stretches_grow_while_they_are_quick(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row after which a search stops tells how far each stretch went."""
    monkeypatch.setattr(log_queries, "STRETCH_ROWS_MIN", 10)
    await store.write(*(entry("hay", minutes=number) for number in range(1000)))
    for stretch_seconds, searched in ((0.9, 10 + 20 + 40), (1.1, 10 + 10 + 10)):
        store.clock.seconds = 0
        looks = 0

        def tick(seconds: float = stretch_seconds) -> float:
            nonlocal looks
            looks += 1  # at the begin of the search, then before and after each stretch
            return (looks - 1) // 2 * seconds

        monkeypatch.setattr(log_queries, "STRETCH_SECONDS_MAX", 1.0)
        monkeypatch.setattr(log_queries, "SEARCH_SECONDS_MAX", 2.5 * stretch_seconds)
        page = await LogQueries(store.reader, monotonic=tick).page(LogFilter(project_id="demo", text="needle"))
        assert page.searched_rows == searched


async def test_a_statement_that_takes_too_long_is_stopped(database_url: str) -> None:
    """In the store, where it would go on although nobody waits for it; the next one is answered."""
    endless = sa.text("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x % 9 + 1 FROM c) SELECT count(*) FROM c")
    reader = ReadStore(database_url, statement_seconds_max=0.1)
    async with sink_on(database_url):
        for _ in range(2):
            assert (await newest_cursor(reader)).id == 0
            with pytest.raises(StoreSlowError, match="too long"):
                async with reader.connection() as connection:
                    await connection.execute(endless)
        assert (await newest_cursor(reader)).id == 0
    await reader.close()


async def test_who_waits_too_long_for_a_connection_is_told_that_the_store_is_slow(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httpbridge.log_store.read_store.WAIT_SECONDS_MAX", 0.05)
    monkeypatch.setattr("httpbridge.log_store.database.CONNECT_SECONDS_MAX", 0.5)
    reader = ReadStore(database_url)
    async with sink_on(database_url), reader.connection():
        with pytest.raises(StoreSlowError):
            await newest_cursor(reader)
    await reader.close()


async def test_where_the_look_for_what_can_be_counted_is_slow_that_is_unknown(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httpbridge.log_store.read_store.WAIT_SECONDS_MAX", 0.05)
    monkeypatch.setattr("httpbridge.log_store.database.CONNECT_SECONDS_MAX", 0.5)
    monkeypatch.setattr(log_queries, "ROWS_MAX", 1)
    reader = ReadStore(database_url)
    queries = LogQueries(reader, monotonic=Clock())
    async with sink_on(database_url) as sink:
        await sink.write(batch(entries=[entry("a"), entry("b", 1)]))
        async with reader.connection():
            assert await queries.countable_since(LogFilter(project_id="demo")) is None
        assert await queries.countable_since(LogFilter(project_id="demo")) == START + MINUTE
    await reader.close()


async def test_bars_count_by_level_up_to_the_budget(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not counted is known."""
    await store.write(entry("a", -1), entry("b", 0), entry("c", 0.5, Level.ERROR))
    await store.write(entry("d", 1), entry("e", 2, Level.WARN), entry("f", 99))
    edges = [*(START + number * MINUTE for number in range(4)), START + 200 * MINUTE]
    selection = LogFilter(project_id="demo", since=START + 0.2 * MINUTE)
    bars = await store.queries.histogram(selection, edges)
    assert [(bar.start, bar.end, bar.counts, bar.reached) for bar in bars] == [
        (edges[0], edges[1], {Level.ERROR: 1}, None),
        (edges[1], edges[2], {Level.INFO: 1}, None),
        (edges[2], edges[3], {Level.WARN: 1}, None),
        (edges[3], edges[4], {Level.INFO: 1}, None),
    ]
    ended = await store.queries.histogram(LogFilter(project_id="demo", until=START + 99 * MINUTE), edges)
    assert [sum(bar.counts.values()) for bar in ended] == [2, 1, 1, 0]
    monkeypatch.setattr(log_queries, "ROWS_MAX", 3)
    monkeypatch.setattr(log_queries, "TEXT_ROWS_MAX", 4)
    bars = await store.queries.histogram(LogFilter(project_id="demo"), edges)
    assert [(bar.start, sum(bar.counts.values()), bar.reached) for bar in bars] == [
        (edges[1], 1, None), (edges[2], 1, None), (edges[3], 1, None),
    ]  # fmt: skip
    await store.write(*(entry("many", 0.1) for _ in range(20)))
    monkeypatch.setattr(log_queries, "ROWS_MAX", 4)
    bars = await store.queries.histogram(LogFilter(project_id="demo"), edges)
    assert [bar.reached and bar.reached.timestamp for bar in bars] == [START + 0.5 * MINUTE, None, None, None]
    assert sum(bars[0].counts.values()) == 1  # what was left of the budget
    assert await store.queries.countable_since(LogFilter(project_id="demo")) == START + 0.5 * MINUTE
    assert await store.queries.countable_since(selection) is None
    assert await store.queries.countable_since(LogFilter(project_id="demo", text="x")) == START + 2 * MINUTE
    monkeypatch.setattr(log_queries, "ROWS_MAX", 25)
    monkeypatch.setattr(log_queries, "STRETCH_ROWS_MIN", 1)  # several stretches a bar
    bars = await store.queries.histogram(LogFilter(project_id="demo"), edges)
    assert [(sum(bar.counts.values()), bar.reached) for bar in bars] == [(22, None), *[(1, None)] * 3]
    text = LogFilter(project_id="demo", text="x")  # a page has the other half of its rows
    assert len(await store.queries.histogram(text, edges)) == 2
    assert (await store.queries.page(text, is_counted=True)).searched_rows == 2
    assert (await store.queries.page(text)).searched_rows == 4


async def test_long_texts_are_cut_in_the_database(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And their length is told, in characters."""
    monkeypatch.setattr(log_queries, "LIST_CHARACTERS_MAX", 10)
    monkeypatch.setattr(log_queries, "ROW_CHARACTERS_MAX", 20)
    await store.write(entry("ä" * 30, metadata='{"a": "' + "b" * 30 + '"}', context="c" * 11, trace_id="t" * 10))
    (row,) = await store.rows()
    assert row.log.message == "ä" * 10
    assert row.log.metadata == '{"a": "bbb'
    assert row.characters == {"message": 30, "metadata": 39, "context": 11}
    alone = await store.queries.row("demo", row.log.id)
    assert alone is not None
    assert (alone.log.message, alone.characters) == ("ä" * 20, {"message": 30, "metadata": 39})


async def test_an_entry_is_found_in_its_own_project_only(store: Store) -> None:
    await store.write(entry("m"))
    (row,) = await store.rows()
    assert await store.queries.row("demo", row.log.id) == row
    assert await store.queries.row("other", row.log.id) is None
    assert await store.queries.row("demo", row.log.id + 1) is None


async def test_names_are_those_of_the_newest_entries(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for minutes, (service, environment) in enumerate([("old", "x"), ("web", "production"), ("api", "staging")]):
        await store.write(entry("m", minutes), service=service, environment=environment)
    await store.write(entry("m"), project_id="other", service="other")
    everything = LogFilter(project_id="demo", text="filters do not count", service="web")
    assert await store.queries.facets(everything) == (["api", "old", "web"], ["production", "staging", "x"])
    assert await store.queries.facets(LogFilter(project_id="demo", since=START + 2 * MINUTE)) == (["api"], ["staging"])
    monkeypatch.setattr(log_queries, "FACET_ROWS_MAX", 2)
    assert await store.queries.facets(everything) == (["api", "web"], ["production", "staging"])
    monkeypatch.setattr(log_queries, "FACETS_MAX", 1)
    assert [len(names) for names in await store.queries.facets(everything)] == [1, 1]


async def test_activity_of_many_projects_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = START + 120 * MINUTE
    await store.write(entry("a", 0), entry("b", 61), entry("c", 119), entry("from the future", 60 * 24 * 365))
    await store.write(entry("d", 1), project_id="quiet")
    names = [f"project-{number}" for number in range(1200)]
    activity = await store.queries.activity(["demo", "quiet", *names], now)
    assert activity["demo"] == Activity(2, START + 119 * MINUTE)
    assert activity["quiet"] == Activity(0, START + MINUTE)
    assert [activity[name] for name in names] == [Activity(0, None)] * 1200
    assert await store.queries.activity([], now) == {}
    monkeypatch.setattr(log_queries, "ACTIVITY_LOGS_MAX", 1)
    await store.write(*(entry("e", 119) for _ in range(5)))
    assert (await store.queries.activity(["demo"], now))["demo"].last_hour_count == 2
    assert await store.queries.oldest("demo") == START
    assert await store.queries.oldest("demo", START + MINUTE) == START + 61 * MINUTE
    assert await store.queries.oldest("nobody") is None


async def test_entries_of_a_stretch_of_time_are_numbered_up_to_a_bound(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.write(*(entry("a", minutes) for minutes in range(6)))
    await store.write(entry("b", 2), project_id="other")
    for fields, number in [
        ({}, 6),
        ({"since": START + 2 * MINUTE}, 4),
        ({"until": START + 2 * MINUTE}, 2),
        ({"since": START + 9 * MINUTE}, 0),
        ({"text": "not looked at"}, 6),
    ]:
        assert await store.queries.count(LogFilter(project_id="demo", **fields)) == number  # type: ignore[arg-type]
    monkeypatch.setattr(log_queries, "ENTRIES_COUNTED_MAX", 3)
    assert await store.queries.count(LogFilter(project_id="demo")) == 4


async def test_a_tail_returns_what_arrives_once_and_can_go_on_elsewhere(store: Store) -> None:
    await store.write(entry("before"))
    selection = LogFilter(project_id="demo", levels=frozenset({Level.INFO}), since=START)
    tail = LogTail(store.reader, selection, await newest_cursor(store.reader))
    assert (await tail.poll()).rows == []
    await store.write(entry("a", 1), entry("b", 0), entry("no", 0, Level.ERROR), entry("too old", -1))
    await store.write(entry("other"), project_id="other")
    first = await tail.poll()
    assert [row.log.message for row in first.rows] == ["a", "b"]
    assert not first.is_gap
    assert (await tail.poll()).rows == []
    await store.write(entry("c"))
    assert [row.log.message for row in (await tail.poll()).rows] == ["c"]
    again = LogTail(store.reader, selection, first.cursor)
    assert [row.log.message for row in (await again.poll()).rows] == ["c"]


@asynccontextmanager
async def committing_late(url: str, message: str) -> AsyncIterator[None]:
    """Insert an entry on a connection of its own, as another bridge does; commit it at the end."""
    engine = reading_engine(url)
    async with engine.begin() as connection:
        row = dict.fromkeys(("key_id", "service", "environment", "level"), "x")
        values = row | {"project_id": "demo", "received_at": START, "timestamp": START, "message": message}
        await connection.execute(logs.insert().values(values))
        yield
    await engine.dispose()


async def test_a_tail_sees_what_became_visible_late_and_so_does_one_that_goes_on(postgres_url: str) -> None:
    """With several bridges a lower id may be committed after a higher one: each tail returns it once, all the same."""
    async with store_on(postgres_url) as store:

        async def found(tail: LogTail) -> list[str]:
            return [row.log.message for row in (await tail.poll()).rows]

        def tail_from(cursor: Cursor | None) -> LogTail:
            assert cursor is not None
            return LogTail(store.reader, LogFilter(project_id="demo"), cursor)

        await store.write(entry("before"))
        tail = tail_from(await newest_cursor(store.reader))
        async with committing_late(postgres_url, "slow"), committing_late(postgres_url, "slower"):
            await store.write(entry("quick"))
            page = await newest_cursor(store.reader)  # as of a page that shows `quick`, and the slow ones not
            first = await tail.poll()
            assert [row.log.message for row in first.rows] == ["quick"]
        await store.write(entry("after"))
        for going_on in (tail, tail_from(first.cursor), tail_from(Cursor.read(str(first.cursor))), tail_from(page)):
            assert await found(going_on) == ["slow", "slower", "after"]
            assert await found(going_on) == []
        assert await found(tail_from(await newest_cursor(store.reader))) == []


async def test_a_tail_sees_what_was_under_way_at_several_looks(postgres_url: str) -> None:
    async with store_on(postgres_url) as store:
        tail = LogTail(store.reader, LogFilter(project_id="demo"), await newest_cursor(store.reader))
        async with committing_late(postgres_url, "slow"):
            for message in ("quick", "later"):
                await store.write(entry(message))
                assert [row.log.message for row in (await tail.poll()).rows] == [message]
        assert [row.log.message for row in (await tail.poll()).rows] == ["slow"]


async def test_a_mark_of_too_many_transactions_repeats_rather_than_misses(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httpbridge.log_store.tail.RUNNING_MAX", 0)
    async with store_on(postgres_url) as store:
        async with committing_late(postgres_url, "slow"):
            await store.write(entry("quick"))
            cursor = await newest_cursor(store.reader)
        tail = LogTail(store.reader, LogFilter(project_id="demo"), cursor)
        assert [row.log.message for row in (await tail.poll()).rows] == ["slow", "quick"]


async def test_a_tail_goes_on_by_id_where_the_mark_is_of_another_server(store: Store) -> None:
    """One that was set up anew from a backup, or SQLite that became PostgreSQL."""
    await store.write(entry("a"), entry("b"))
    for cursor in (Cursor(1), Cursor(1, 10**17), Cursor(1, 10**17, (10**16,))):
        tail = LogTail(store.reader, LogFilter(project_id="demo"), cursor)
        assert [row.log.message for row in (await tail.poll()).rows] == ["b"]


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "1_", "_1", "1__2", "1_x", "1.5", "١", "1" * 19, "1_" + "1" * 19, "_".join("1" * 300)]
)
def test_what_is_no_mark_is_none(text: str) -> None:
    assert Cursor.read(text) is None


@pytest.mark.parametrize("cursor", [Cursor(0), Cursor(7, 8), Cursor(7, 8, (5, 6)), Cursor(7, 8, tuple(range(200)))])
def test_a_cursor_is_read_back(cursor: Cursor) -> None:
    assert Cursor.read(str(cursor)) == cursor


async def test_a_tail_is_bounded_and_says_what_it_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpbridge.log_store.tail.ARRIVALS_MAX", 3)
    tail = LogTail(store.reader, LogFilter(project_id="demo"), Cursor(0))
    await store.write(*(entry(str(number)) for number in range(5)))
    first = await tail.poll()
    assert ([row.log.message for row in first.rows], first.is_gap) == (["2", "3", "4"], True)
    await store.write(entry("5"))
    second = await tail.poll()
    assert ([row.log.message for row in second.rows], second.is_gap) == (["5"], False)
    monkeypatch.setattr("httpbridge.log_store.tail.IDS_MAX", 2)
    await store.write(entry("6"), entry("7"), entry("8"))
    third = await tail.poll()
    assert ([row.log.message for row in third.rows], third.is_gap) == (["7", "8"], True)


async def test_a_store_that_no_bridge_has_made_is_one_clear_line(database_url: str) -> None:
    reader = ReadStore(database_url)
    with pytest.raises(StoreSetupError, match="no bridge has run with it yet"):
        await newest_cursor(reader)
    async with sink_on(database_url):
        assert (await newest_cursor(reader)).id == 0  # and found as soon as it is there
    await reader.close()


@asynccontextmanager
async def plans_of(reader: ReadStore) -> AsyncIterator[list[str]]:
    """Note the plan of every statement that the reader runs on `logs`."""
    plans: list[str] = []
    engine = reader._engine.sync_engine
    is_explaining = False

    def note(
        connection: sa.Connection, cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool
    ) -> None:
        nonlocal is_explaining
        if is_explaining or "FROM logs" not in statement:
            return
        is_explaining = True
        prefix = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        rows: Sequence[Any] = connection.exec_driver_sql(prefix + statement, parameters).all()
        plans.append("\n".join(str(row[-1]) for row in rows))
        is_explaining = False

    sa.event.listen(engine, "before_cursor_execute", note)
    yield plans
    sa.event.remove(engine, "before_cursor_execute", note)


async def test_an_index_bounds_every_query(store: Store) -> None:
    """By project and time, or by id: no query reads the table, or all of a project, or sorts what it did not bound."""
    for project in range(20):
        for start in range(0, 3000, 1000):
            await store.write(
                *(entry("m" * 50, minutes=number) for number in range(start, start + 1000)), project_id=f"p{project}"
            )
    engine = reading_engine(store.url)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql("ANALYZE" if connection.dialect.name == "sqlite" else "VACUUM ANALYZE logs")
    await engine.dispose()
    middle = Position(START + 1500 * MINUTE, 30_000)
    asked = [
        LogFilter(project_id="p7"),
        LogFilter(project_id="p7", since=START + 100 * MINUTE, until=START + 2000 * MINUTE),
        LogFilter(project_id="p7", levels=frozenset({Level.ERROR}), service="nope", environment="nope"),
        LogFilter(project_id="p7", text="nope"),
    ]
    async with plans_of(store.reader) as plans:
        for selection in asked:
            await store.queries.page(selection)
            await store.queries.page(selection, middle)
            await store.queries.histogram(selection, [START + number * 100 * MINUTE for number in range(4)])
            await store.queries.facets(selection)
            await store.queries.countable_since(selection)
            await store.queries.count(selection)
        await store.queries.oldest("p7")
        await store.queries.oldest("p7", START + 100 * MINUTE)
        await store.queries.activity(["p7", "p8"], START + 3000 * MINUTE)
    assert len(plans) > 30
    for plan in plans:
        if "Index" in plan:  # PostgreSQL
            assert "Seq Scan on logs" not in plan
            assert "logs_newest_of_project" in plan
            assert "Index Cond: ((project_id = " in plan or "Index Cond: (project_id = " in plan, plan
        else:
            assert "SCAN logs" not in plan
            assert "SEARCH logs USING" in plan
            assert "INDEX logs_newest_of_project (project_id=?" in plan
            assert "TEMP B-TREE FOR ORDER BY" not in plan
    async with plans_of(store.reader) as plans:
        await LogTail(store.reader, LogFilter(project_id="p7", text="m"), Cursor(59_000)).poll()
        await store.queries.row("p7", 30_000)
    assert len(plans) >= 3
    for plan in plans:
        is_max_of_id = plan == "SEARCH logs"  # as SQLite says it
        assert "logs_pkey" in plan or "USING INTEGER PRIMARY KEY" in plan or is_max_of_id, plan
