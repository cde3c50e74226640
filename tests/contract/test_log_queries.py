"""What the dashboard's log queries promise, on SQLite files and PostgreSQL."""

import asyncio
import gc
import json
import random
import re
import sqlite3
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.activity import Activity
from httpbridge.log_store.chunk import IDS, ChunkDamagedError, Content, instant_text
from httpbridge.log_store.encoding import chunks_of, encode
from httpbridge.log_store.queries import LogQueries, QueryLimits
from httpbridge.log_store.read_store import ReadStore, StoreSlowError
from httpbridge.log_store.reader import read
from httpbridge.log_store.schema import WRITTEN_COLUMNS, chunks
from httpbridge.log_store.selection import ID_MAX, LogFilter, LogRow, Position
from httpbridge.log_store.sink import SqlSink
from httpbridge.log_store.sqlite_reads import Prepared, SqliteReader
from httpbridge.log_store.tail import Cursor, LogTail, newest_cursor
from httpbridge.log_store.zstandard import compress
from httpbridge.logs import Level, LogEntry
from tests.contract.test_export import exported
from tests.contract.test_log_sink import Clock, batch, reading_engine, sink_on
from tests.stored_chunks import chunk_values

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

    def limited(self, **limits: Any) -> LogQueries:
        """Return queries that go less far."""
        return LogQueries(self.reader, monotonic=self.clock, limits=QueryLimits(**limits))

    async def messages(self, page_rows: int = 100, **fields: Any) -> list[str]:
        """Return the messages of all pages, newest first."""
        return [row.log.message for row in await self.rows(page_rows, **fields)]

    async def rows(self, page_rows: int = 100, queries: LogQueries | None = None, **fields: Any) -> list[LogRow]:
        selection = LogFilter(**({"project_id": "demo"} | fields))
        found: list[LogRow] = []
        before: Position | None = None
        while True:
            page = await (queries or self.queries).page(selection, before, page_rows)
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
        ("a\\b", "e"), ("'", "e"), ('"key": "Needle"', "d"), ("needl_", ""), ("%", "c"), ("KEY", "d"),
        ("timestamp", ""),        ("production", ""), ("level", ""), (",", ""), ("{", "d"),
    ],
)  # fmt: skip
async def test_text_is_found_literally_in_message_and_metadata(store: Store, text: str, found: str) -> None:
    """And nowhere else: not in what an entry's line is made of."""
    texts = {"a": "a Needle in", "b": "xneedlex", "c": "100% 1-", "e": "a\\b / '"}
    for minutes, (service, message) in enumerate(texts.items()):
        await store.write(entry(message, minutes), service=service)
    await store.write(entry("m", 10, metadata='{"key": "Needle"}'), service="d")
    assert "".join(row.log.service for row in await store.rows(text=text)) == "".join(sorted(found, key="decba".index))


@pytest.mark.parametrize(
    ("stored", "text", "is_found"),
    [
        ("Ärger", "ärger", True), ("ärger", "ÄRGER", True), ("ärger", "arger", False),
        ("Straße", "STRASSE", True), ("STRASSE", "straße", True), ("STRAẞE", "strasse", True), ("Maße", "mas", True),
        ("\u0130stanbul", "i\u0307stanbul", True), ("i\u0307stanbul", "\u0130STANBUL", True),
        ("ISTANBUL", "istanbul", True),
        ("\u0130stanbul", "istanbul", False), ("ISTANBUL", "\u0131stanbul", False),
        ("ΟΔΥΣΣΕΥΣ", "οδυσσευς", True), ("οδυσσευς", "ΟΔΥΣΣΕΥΣ", True), ("οδυσσευς", "οδυσσευσ", True),
        ("300 \u212a", "300 k", True), ("300 k", "300 \u212a", True), ("\u017fo", "SO", True), ("so", "\u017fO", True),
        ("ДОМ", "дом", True), ("ﬁle", "FILE", True), ("𐐀𐐁", "𐐨𐐩", True), ("日志", "日志", True),
        ("😀 ok", "😀 OK", True),
        ("µ", "μ", True), ("Å", "å", True),
    ],
)  # fmt: skip
async def test_text_is_found_without_regard_to_case_in_all_of_unicode(
    store: Store, stored: str, text: str, is_found: bool
) -> None:
    """By Unicode's full case folding, in whatever field it is looked for."""
    fields: list[dict[str, Any]] = [
        {},
        {"metadata": json.dumps({"k": stored}, ensure_ascii=False)},
        {"trace_id": stored},
        {"request_id": stored},
    ]
    for changes in fields:
        await store.write(LogEntry(Level.INFO, "m" if changes else stored, **changes))
    assert len(await store.rows(text=text)) == (len(fields) if is_found else 0)


async def test_text_is_found_in_trace_and_request_ids_and_not_in_other_fields(store: Store) -> None:
    names = ("trace_id", "request_id", "span_id", "vercel_id", "context", "release")
    for number, name in enumerate(names):
        at = START + number * MINUTE
        await store.write(LogEntry(Level.INFO, name, timestamp=at, **{name: "4bf92F3577"}))
    await store.write(entry("service", 9), service="4bf92F3577", environment="4bf92F3577", project_id="demo")
    assert await store.messages(text="4BF92f35") == ["request_id", "trace_id"]


_ODD = [
    '"', '\\', '\\"', '\\\\n', "\n", "\r\n", "\t", "\x01", "\x1f", "\x7f", "\u2028", "/", "\b", "\f", "u0001",
    '","message":"',
    '\\u0001', "}", '"}', "\ufffd", '\\/', ",", "\u0085",
]  # fmt: skip


async def test_characters_that_lines_escape_are_found_as_they_are(store: Store) -> None:
    """In messages, among others; each text finds just those that have it."""
    texts = [f"a{odd}b" for odd in _ODD]
    await store.write(*(entry(text, number) for number, text in enumerate(texts)))
    for needle in [*_ODD, *texts]:
        expected = [text for text in reversed(texts) if needle in text]
        assert expected
        assert await store.messages(text=needle) == expected, repr(needle)


async def test_metadata_is_searched_as_it_was_sent(store: Store) -> None:
    """Its escapes are not undone; line breaks between its values are spaces."""
    kept = [
        '{"a": "\\u00e9"}', '{"a": "é"}', '{"a":\n1,\r\n"b":2}', r'{"a":"x\n\"y"}',
        '{"x":",\\"environment\\":\\"x\\","}',
        '{"environment":"x","level":"error"}',
    ]  # fmt: skip
    for number, metadata in enumerate(kept):
        await store.write(entry("m", number, metadata=metadata))
    stored = [re.sub("[\r\n]", " ", metadata) for metadata in kept]
    assert [row.log.metadata for row in await store.rows()] == stored[::-1]
    for needle in (
        "\\u00E9",
        "É",
        "1,",
        "1,  ",
        r"x\n\"Y",
        r",\"environment\":\"x\",",
        '"environment":"x"',
        "\\",
        '\\"',
    ):
        found = [row.log.metadata for row in await store.rows(text=needle)]
        assert found == [text for text in stored[::-1] if needle.casefold() in text.casefold()], needle
        assert found
    assert [row.log.metadata for row in await store.rows(environment="x")] == []
    assert [row.log.metadata for row in await store.rows(levels=frozenset({Level.ERROR}))] == []


_AWKWARD = [
    "a", "a,b", 'a"', '"', '\\', 'a\\"', ',"environment":"x",', '"environment":"x"', ",", "x",
    'a","environment":"x","message":"',    "\n", "\x01", "ä", "A", "", "é\u0301", "service", '","', "\u2028",
]  # fmt: skip


@pytest.mark.parametrize("per_commit", [1, len(_AWKWARD) ** 2], ids=["a chunk each", "one chunk of many names"])
async def test_services_and_environments_are_told_apart_whatever_is_in_their_names(
    sqlite_url: str, per_commit: int
) -> None:
    """Quotes, commas, what looks like JSON; also in a chunk of more names than its summary has."""
    async with store_on(sqlite_url) as store:
        pairs = [(service, environment) for service in _AWKWARD for environment in _AWKWARD[:7]]
        writes = [
            store.write(entry(f"{service}|{environment}", number), service=service, environment=environment)
            for number, (service, environment) in enumerate(pairs)
        ]
        for start in range(0, len(writes), per_commit):
            await asyncio.gather(*writes[start : start + per_commit])
        number = (await store.reader.rows(sa.select(sa.func.count()).select_from(chunks)))[0][0]
        assert (number == 1) == (per_commit > 1)
        for service in _AWKWARD:
            expected = [f"{service}|{environment}" for environment in reversed(_AWKWARD[:7])]
            assert await store.messages(service=service) == expected
        for environment in _AWKWARD[:7]:
            expected = [f"{service}|{environment}" for service in reversed(_AWKWARD)]
            assert await store.messages(environment=environment) == expected
        assert await store.messages(service='a"', environment="a,b") == ['a"|a,b']
        assert await store.messages(service="a,", environment="a") == []
        services, environments = await store.queries.facets(LogFilter(project_id="demo"))
        assert (services, environments) == (sorted(_AWKWARD), sorted(_AWKWARD[:7]))
        bars = await store.queries.histogram(LogFilter(project_id="demo", service='a"'), [START, START + 999 * MINUTE])
        assert bars[0].counts == {Level.INFO: 7}


_NAMES = st.sampled_from(["api", "API", "wäb", "%", 'a"b'])
_TEXTS = st.text(st.sampled_from('aAbBäÄſKk\u212aßẞs\u0130i\u0307_%/\\"{}1 \n,'), max_size=6)
_UNITS = st.sampled_from(
    [timedelta(microseconds=1), timedelta(seconds=7), MINUTE, timedelta(hours=5), timedelta(days=300)]
)
_METADATA = st.none() | st.tuples(_TEXTS, st.booleans()).map(
    lambda drawn: json.dumps({"k": drawn[0]}, ensure_ascii=drawn[1])
)
_ENTRIES = st.lists(
    st.tuples(
        st.integers(0, 5), st.sampled_from(Level), _NAMES, st.sampled_from(["production", "x"]), _TEXTS, _METADATA,
        st.none() | _TEXTS,
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
        "text": st.just("") | _TEXTS,
    }
)


async def write_in_commits(store: Store, entries: list[Any], commit_entries: int, unit: timedelta) -> None:
    """Write each entry as a batch, so many to a commit."""
    writes = [
        store.write(
            LogEntry(level, message, timestamp=START + place * unit, metadata=metadata, trace_id=trace_id),
            service=service,
            environment=environment,
        )
        for place, level, service, environment, message, metadata, trace_id in entries
    ]
    for start in range(0, len(writes), commit_entries):
        await asyncio.gather(*writes[start : start + commit_entries])


async def empty(store: Store) -> None:
    engine = reading_engine(store.url)
    async with engine.begin() as connection:
        await connection.execute(chunks.delete())
    await engine.dispose()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    entries=_ENTRIES,
    unit=_UNITS,
    chosen=_FILTERS,
    commit_entries=st.integers(1, 12),
    page_rows=st.integers(1, 8),
    budget=st.integers(1, 9),
)
async def test_pages_and_counts_are_what_a_plain_filter_returns(
    store: Store,
    entries: list[Any],
    unit: timedelta,
    chosen: dict[str, Any],
    commit_entries: int,
    page_rows: int,
    budget: int,
) -> None:
    """Whatever is stored and asked for, in whatever chunks, pages and budgets; nothing is missing or twice."""
    await empty(store)
    await write_in_commits(store, entries, commit_entries, unit)
    since, until = (None if chosen[name] is None else START + chosen[name] * unit for name in ("since", "until"))
    needle = chosen["text"].casefold()
    expected = [
        (place, number)
        for number, (place, level, service, environment, *texts) in enumerate(entries)
        if (since is None or START + place * unit >= since)
        and (until is None or START + place * unit < until)
        and (not chosen["levels"] or level in chosen["levels"])
        and chosen["service"] in (None, service)
        and chosen["environment"] in (None, environment)
        and any(needle in (text or "").casefold() for text in texts)
    ]
    expected.sort(reverse=True)
    queries = store.limited(entries_max=budget)
    fields = chosen | {"since": since, "until": until}
    rows = await store.rows(page_rows, queries, **fields)
    found = [((row.log.timestamp - START) // unit, row.log.message, row.log.metadata, row.log.trace_id) for row in rows]
    assert found == [(place, *entries[number][4:]) for place, number in expected]
    ids = [row.log.id for row in rows]
    assert len(set(ids)) == len(ids)
    for id_, row in zip(ids[:3], rows, strict=False):
        assert await store.queries.row("demo", id_) == row
    selection = LogFilter(project_id="demo", **fields)
    printed = [(log.id, log.message) async for log in read(store.reader, selection)]
    assert printed == [(row.log.id, row.log.message) for row in reversed(rows)]
    edges = [START + place * unit for place in range(-2, 8)]
    wanted: dict[datetime, Counter[Level]] = {edge: Counter() for edge in edges[:-1]}
    for place, number in expected:
        wanted[START + place * unit][entries[number][1]] += 1
    bars = await store.queries.histogram(selection, edges)
    assert [(bar.start, bar.counts, bar.reached) for bar in bars] == [(start, n, None) for start, n in wanted.items()]
    partial = await queries.histogram(selection, edges)
    assert [bar.start for bar in partial] == edges[len(bars) - len(partial) : -1]
    for bar in partial:
        assert bar.counts == wanted[bar.start] or bar.reached is not None
        assert all(number <= wanted[bar.start][level] for level, number in bar.counts.items())
    if partial and (countable_since := await queries.countable_since(selection)) is not None:
        counted = await queries.histogram(msgspec.structs.replace(selection, since=countable_since), edges)
        assert all(bar.reached is None for bar in counted)
    in_time = [place for place, *_ in entries if (since is None or START + place * unit >= since)
               and (until is None or START + place * unit < until)]  # fmt: skip
    assert await store.queries.count(selection) == len(in_time)


@pytest.mark.parametrize("unit", [MINUTE, timedelta(hours=1), timedelta(days=1), timedelta(days=400)])
async def test_bars_are_exact_however_far_apart_the_entries_of_a_chunk_are(store: Store, unit: timedelta) -> None:
    """Its summary counts by minute, hour or day, whichever are few enough, or not at all; edges are anywhere."""
    chance = random.Random(7)
    instants = [START + unit * chance.random() * 300 for _ in range(900)]
    levels = chance.choices(list(Level), k=900)
    for start in range(0, 900, 300):
        some = slice(start, start + 300)
        await store.write(
            *(LogEntry(lv, "m", timestamp=at) for at, lv in zip(instants[some], levels[some], strict=True))
        )
    for step in (unit / 7, unit * 3, unit * 24, unit * 31.5):
        for offset in (timedelta(0), unit / 3):
            edges = [START + offset + step * number for number in range(int(unit * 320 / step) + 2)][-40:]
            for since, chosen in ((None, frozenset[Level]()), (START + unit * 150.5, frozenset({Level.WARN}))):
                selection = LogFilter(project_id="demo", since=since, levels=chosen)
                bars = await store.queries.histogram(selection, edges)
                wanted = [Counter[Level]() for _ in bars]
                for at, level in zip(instants, levels, strict=True):
                    bucket = bisect_right(edges, at) - 1
                    if 0 <= bucket < len(bars) and (since is None or at >= since) and (not chosen or level in chosen):
                        wanted[bucket][level] += 1
                assert [bar.counts for bar in bars] == wanted


async def test_a_search_stops_at_its_budget_says_how_far_it_got_and_goes_on(store: Store) -> None:
    """A text that is nowhere costs `entries_max` entries at a time."""
    for start in range(0, 250, 50):
        await store.write(*(entry("hay", minutes=number) for number in range(start, start + 50)))
    await store.write(entry("needle", -1))
    selection = LogFilter(project_id="demo", text="needle")
    queries = store.limited(entries_max=100)
    first = await queries.page(selection)
    assert (first.rows, first.has_more_to_search, first.searched_rows) == ([], True, 100)
    assert first.older is not None
    assert first.older.timestamp == START + 149 * MINUTE
    second = await queries.page(selection, first.older)
    assert second.older is not None
    assert (second.rows, second.older.timestamp) == ([], START + 49 * MINUTE)
    third = await queries.page(selection, second.older)
    assert [row.log.message for row in third.rows] == ["needle"]
    assert (third.older, third.has_more_to_search) == (None, False)
    assert (await queries.page(LogFilter(project_id="demo", levels=frozenset({Level.ERROR})))).searched_rows == 0
    half = await queries.page(selection, is_counted=True)  # the chart has the other half
    assert half.searched_rows == 50


async def test_a_slow_search_stops_after_a_while(store: Store) -> None:
    """However many entries it may look at: some have 5 MiB."""
    for start in range(0, 1000, 100):
        await store.write(*(entry("hay", minutes=number) for number in range(start, start + 100)))
    store.clock.seconds = 100

    def tick() -> float:
        store.clock.seconds += 1.0
        return store.clock.seconds

    queries = LogQueries(store.reader, monotonic=tick, limits=QueryLimits(search_seconds_max=3.0))
    page = await queries.page(LogFilter(project_id="demo", text="needle"))
    assert page.has_more_to_search
    assert page.searched_rows == 200
    edges = [START, START + 500 * MINUTE, START + 899.5 * MINUTE]
    bars = await queries.histogram(LogFilter(project_id="demo", text="needle"), edges)
    assert [(bar.start, bar.counts, bar.reached and bar.reached.timestamp) for bar in bars] == [
        (edges[1], {}, START + 699 * MINUTE)
    ]


LAST_INSTANT = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)


async def test_chunks_that_all_end_with_the_same_instant_are_searched_whatever_the_budget(store: Store) -> None:
    """A client whose clock is wrong makes many of them; pages go on, and meet without a gap."""
    for number in range(12):
        late = LogEntry(Level.INFO, f"late {number}", timestamp=LAST_INSTANT)
        await store.write(late, entry(f"a {number}", number), entry(f"b {number}", -number))
    expected = [f"late {number}" for number in range(11, -1, -1)] + [
        message
        for _, message in sorted(
            [(number, f"a {number}") for number in range(1, 12)] + [(-number, f"b {number}") for number in range(1, 12)]
            + [(0, "b 0"), (-0.5, "a 0")], reverse=True,
        )
    ]  # fmt: skip
    queries = store.limited(entries_max=1)
    for text in ("", " "):
        for page_rows in (1, 5, 100):
            rows = await store.rows(page_rows, queries, text=text)
            assert [row.log.message for row in rows] == expected
        bars = await queries.histogram(LogFilter(project_id="demo", text=text), [START, START + 6 * MINUTE])
        assert bars[0].counts == {Level.INFO: 7}
    assert await queries.countable_since(LogFilter(project_id="demo", text=" ")) is None


async def test_chunks_that_all_end_with_the_same_instant_and_take_too_long_fail_as_slow(store: Store) -> None:
    """There is no place to go on at; the search takes a few times as long as it may, and no longer."""
    for number in range(12):
        await store.write(LogEntry(Level.INFO, "late", timestamp=LAST_INSTANT), entry("a", number))
    looks = 0

    def tick() -> float:
        nonlocal looks
        looks += 1
        return float(looks)

    queries = LogQueries(store.reader, monotonic=tick, limits=QueryLimits(search_seconds_max=1.0))
    selection = LogFilter(project_id="demo", text="a")
    with pytest.raises(StoreSlowError, match="overlap in time"):
        await queries.page(selection)
    assert looks < 10
    with pytest.raises(StoreSlowError, match="overlap in time"):
        await queries.histogram(selection, [START, START + 20 * MINUTE])


async def test_a_statement_that_takes_too_long_is_stopped(database_url: str) -> None:
    """In the store, where it would go on although nobody waits for it; the next one is answered."""
    endless = sa.text("WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x % 9 + 1 FROM c) SELECT count(*) FROM c")
    reader = ReadStore(database_url, statement_seconds_max=0.1)
    async with sink_on(database_url):
        for _ in range(2):
            assert (await newest_cursor(reader)).id == 0
            with pytest.raises(StoreSlowError, match="too long"):
                async with reader.connection() as connection:
                    await connection.rows(endless)
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


async def test_bars_count_by_level_up_to_the_budget(store: Store) -> None:
    """What was not counted is known. What summaries tell costs nothing of the budget."""
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
    queries = store.limited(entries_max=6)  # a page has the other half of them
    everything = LogFilter(project_id="demo")
    bars = await queries.histogram(everything, edges)
    assert [(sum(bar.counts.values()), bar.reached) for bar in bars] == [(2, None), *[(1, None)] * 3]
    assert await queries.countable_since(everything) is None
    text = LogFilter(project_id="demo", text=" ")
    await store.write(*(entry(" ", number) for number in (0.4, 0.8, 50)))
    bars = await queries.histogram(text, edges)
    reached = Position(START + 50 * MINUTE, ID_MAX)
    assert [(bar.start, bar.counts, bar.reached) for bar in bars] == [(edges[3], {}, reached)]
    assert await queries.countable_since(text) == START + 50 * MINUTE + timedelta(microseconds=1)
    bars = await store.limited(entries_max=12).histogram(text, edges)
    reached = Position(START + 0.5 * MINUTE, ID_MAX)
    assert [(sum(bar.counts.values()), bar.reached) for bar in bars] == [(2, reached), (0, None), (0, None), (1, None)]
    assert await store.limited(entries_max=18).countable_since(text) is None


async def test_long_texts_are_cut(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """And their length is told, in characters."""
    monkeypatch.setattr("httpbridge.log_store.queries.LIST_CHARACTERS_MAX", 10)
    monkeypatch.setattr("httpbridge.log_store.queries.ROW_CHARACTERS_MAX", 20)
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


async def test_names_are_those_of_the_newest_entries(store: Store) -> None:
    for minutes, (service, environment) in enumerate([("old", "x"), ("web", "production"), ("api", "staging")]):
        await store.write(entry("m", minutes), service=service, environment=environment)
    await store.write(entry("m"), project_id="other", service="other")
    everything = LogFilter(project_id="demo", text="filters do not count", service="web")
    assert await store.queries.facets(everything) == (["api", "old", "web"], ["production", "staging", "x"])
    assert await store.queries.facets(LogFilter(project_id="demo", since=START + 2 * MINUTE)) == (["api"], ["staging"])
    queries = store.limited(facet_chunks_max=2)
    assert await queries.facets(everything) == (["api", "web"], ["production", "staging"])
    assert [len(names) for names in await store.limited(facets_max=1).facets(everything)] == [1, 1]
    await store.write(entry("a", 9), entry("b", 11), service="wide")  # not all of it is asked about
    assert await store.queries.facets(LogFilter(project_id="demo", since=START + 10 * MINUTE)) == (
        ["wide"],
        ["production"],
    )
    assert await store.queries.facets(LogFilter(project_id="demo", since=START + 12 * MINUTE)) == ([], [])


async def test_activity_of_many_projects_at_once(store: Store) -> None:
    now = START + 120 * MINUTE
    await store.write(entry("a", 0), entry("b", 61), entry("c", 119), entry("from the future", 60 * 24 * 365))
    await store.write(entry("d", 1), project_id="quiet")
    names = [f"project-{number}" for number in range(1200)]
    activity = await store.queries.activity(["demo", "quiet", *names], now)
    assert activity["demo"] == Activity(2, START + 119 * MINUTE)
    assert activity["quiet"] == Activity(0, START + MINUTE)
    assert [activity[name] for name in names] == [Activity(0, None)] * 1200
    assert await store.queries.activity([], now) == {}
    await store.write(*(entry("e", 119) for _ in range(5)))
    assert (await store.limited(activity_entries_max=1).activity(["demo"], now))["demo"].last_hour_count == 2
    assert (await store.queries.activity(["demo"], now))["demo"].last_hour_count == 7
    assert await store.queries.oldest("demo") == START
    assert await store.queries.oldest("demo", START + MINUTE) == START + 61 * MINUTE
    assert await store.queries.oldest("nobody") is None


async def test_entries_of_a_stretch_of_time_are_numbered_up_to_a_bound(store: Store) -> None:
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
    assert await store.limited(counted_entries_max=3).count(LogFilter(project_id="demo")) == 4


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
        values = chunk_values(batch(entries=[entry(message)]))
        await connection.execute(chunks.insert().values(dict(zip(WRITTEN_COLUMNS, values, strict=True))))
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
    await store.write(entry("a"))
    await store.write(entry("b"))
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
    tail = LogTail(store.reader, LogFilter(project_id="demo"), Cursor(0), entries_max=3)
    for messages in ("01", "234"):
        await store.write(*map(entry, messages))
    first = await tail.poll()
    assert ([row.log.message for row in first.rows], first.is_gap) == (["2", "3", "4"], True)
    await store.write(entry("5"))
    second = await tail.poll()
    assert ([row.log.message for row in second.rows], second.is_gap) == (["5"], False)
    await store.write(*map(entry, "6789"))  # one commit of more than that
    third = await tail.poll()
    assert ([row.log.message for row in third.rows], third.is_gap) == (["7", "8", "9"], True)
    monkeypatch.setattr("httpbridge.log_store.tail.ENTRIES_MAX", 2)
    for message in "abc":
        await store.write(entry(message))
    fourth = await tail.poll()
    assert ([row.log.message for row in fourth.rows], fourth.is_gap) == (["b", "c"], True)
    assert ((await tail.poll()).rows, (await tail.poll()).is_gap) == ([], False)


async def test_a_store_that_no_bridge_has_made_is_one_clear_line(database_url: str) -> None:
    reader = ReadStore(database_url)
    with pytest.raises(StoreSetupError, match="no bridge has run with it yet"):
        await newest_cursor(reader)
    async with sink_on(database_url):
        assert (await newest_cursor(reader)).id == 0  # and found as soon as it is there
    await reader.close()


async def test_a_reader_closed_while_it_reads_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sqlite3.connect(tmp_path / "logs.db").close()
    reader = SqliteReader(tmp_path / "logs.db", statement_seconds_max=5.0)
    assert await reader.rows(sa.text("SELECT 1 FROM sqlite_schema")) == []
    await reader.close()
    gc.collect()
    assert caplog.messages == []


@contextmanager
def statements_of() -> Iterator[list[tuple[str, Any]]]:
    """Note every statement on `chunks` with its parameters: SQLAlchemy's, and those past it on SQLite."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        if "FROM chunks" in statement:
            statements.append((statement, parameters))

    fetch = SqliteReader._fetch

    def noted(reader: SqliteReader, statement: Prepared, parameters: Mapping[str, Any]) -> list[Any]:
        statements.append((statement.sqlite_text, {**statement.sqlite_parameters, **parameters}))
        return fetch(reader, statement, parameters)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    with patch.object(SqliteReader, "_fetch", noted):
        yield statements
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


@asynccontextmanager
async def plans_of(url: str) -> AsyncIterator[list[str]]:
    """Note the plan of every statement on `chunks`, once all were run."""
    plans: list[str] = []
    with statements_of() as statements:
        yield plans
        asked = list(statements)
    engine = reading_engine(url)
    async with engine.connect() as connection:
        prefix = "EXPLAIN " if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN "
        for statement, parameters in asked:
            rows = (await connection.exec_driver_sql(prefix + statement, parameters)).all()
            plans.append("\n".join(str(row[-1]) for row in rows))
    await engine.dispose()


async def test_an_index_serves_every_query(store: Store) -> None:
    """By project and time, or by id: none reads the whole table, or sorts the chunks of a project."""
    engine = reading_engine(store.url)
    for project in range(30):
        values = chunk_values(batch(entries=[entry("m" * 50), entry("m", 1)], project_id=f"p{project}"))
        row = dict(zip(WRITTEN_COLUMNS, values, strict=True))
        times = [START + number * MINUTE for number in range(200)]
        rows = [row | {"first_at": instant_text(at), "last_at": instant_text(at + MINUTE)} for at in times]
        async with engine.begin() as connection:
            await connection.execute(chunks.insert(), rows)
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.exec_driver_sql("ANALYZE" if connection.dialect.name == "sqlite" else "VACUUM ANALYZE chunks")
    await engine.dispose()
    middle = Position(START + 100 * MINUTE, 3000 * IDS)
    asked = [
        LogFilter(project_id="p7"),
        LogFilter(project_id="p7", since=START + 10 * MINUTE, until=START + 150 * MINUTE),
        LogFilter(project_id="p7", levels=frozenset({Level.ERROR}), service="nope", environment="nope"),
        LogFilter(project_id="p7", text="nope"),
    ]
    async with plans_of(store.url) as plans:
        for selection in asked:
            await store.queries.page(selection)
            await store.queries.page(selection, middle)
            await store.queries.histogram(selection, [START + number * 10 * MINUTE for number in range(4)])
            await store.queries.facets(selection)
            await store.queries.countable_since(selection)
            await store.queries.count(selection)
        await store.queries.oldest("p7")
        await store.queries.oldest("p7", START + 10 * MINUTE)
        await store.queries.activity(["p7", "p8"], START + 200 * MINUTE)
        await LogTail(store.reader, LogFilter(project_id="p7", text="m"), Cursor(5_900)).poll()
        await store.queries.row("p7", 1_500 * IDS)
    assert len(plans) > 30
    for plan in plans:
        if "Index" in plan or "Scan" in plan:  # PostgreSQL
            assert "Seq Scan on chunks " not in plan, plan
            assert "chunks_of_project" in plan or "chunks_pkey" in plan or "chunks_id_seq" in plan, plan
        else:
            assert "SCAN chunks" not in plan, plan
            assert "INDEX chunks_of_project (project_id=?" in plan or "USING INTEGER PRIMARY KEY" in plan, plan


async def test_few_entries_of_a_level_are_found_by_their_place_in_a_line(store: Store) -> None:
    """Whatever stands in the metadata of others, and where the first line and the last one are of it."""
    looks_so = msgspec.structs.replace(entry("info", 5), metadata='{"x":{"y":"z","level":"error"}}')
    entries = [entry("first", 0, Level.ERROR), looks_so, *(entry(str(number), number) for number in range(6, 60))]
    await store.write(*entries, entry("last", 99, Level.ERROR))
    page = await store.queries.page(LogFilter(project_id="demo", levels=frozenset({Level.ERROR})))
    assert [row.log.message for row in page.rows] == ["last", "first"]
    for row in page.rows:
        assert await store.queries.row("demo", row.log.id) == row  # it has the id that it has elsewhere


async def test_the_newest_page_reads_few_headers_whatever_the_number_of_chunks(store: Store) -> None:
    for number in range(100):
        await store.write(*(entry(f"{number}.{place}", number) for place in range(10)))
    await store.queries.page(LogFilter(project_id="demo"))
    with statements_of() as statements:
        page = await store.queries.page(LogFilter(project_id="demo"))
    assert (len(page.rows), page.rows[-1].log.message) == (100, "90.0")
    assert 1 < len(statements) <= 1 + 12  # a few headers, and the contents of the newest chunks


async def change(url: str, chunk_id: int | None = None, **values: Any) -> None:
    """Write other values into all chunks, or into one."""
    engine = reading_engine(url)
    statement = chunks.update().values(values)
    async with engine.begin() as connection:
        await connection.execute(statement if chunk_id is None else statement.where(chunks.c.id == chunk_id))
    await engine.dispose()


async def test_a_damaged_chunk_is_told_of_and_the_others_can_be_read(store: Store) -> None:
    for first in (0, 100, 200):
        messages = [entry(f"message {number}", number) for number in range(first, first + 100)]
        await store.write(*messages, service=f"service {first}")
    rows = await store.rows(300)
    damaged_id = rows[150].log.id
    ((content,),) = await store.reader.rows(sa.select(chunks.c.content).where(chunks.c.id == damaged_id // IDS))
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    await change(store.url, damaged_id // IDS, content=flipped)
    selection = LogFilter(project_id="demo", text="message")
    page = await store.queries.page(selection, rows_max=300)
    assert [row.log.message for row in page.rows] == [
        f"message {number}" for number in reversed(range(300)) if not 100 <= number < 200
    ]
    assert page.is_damaged
    assert not (await store.queries.page(selection, rows_max=50)).is_damaged  # it does not reach so far
    (bucket,) = await store.queries.histogram(selection, [START, START + 300 * MINUTE])
    assert sum(bucket.counts.values()) == 200
    arrivals = await LogTail(store.reader, selection, Cursor(0), entries_max=300).poll()
    assert (len(arrivals.rows), arrivals.is_gap) == (200, True)
    since = LogFilter(project_id="demo", since=START + MINUTE * 150)
    assert (await store.queries.facets(since))[0] == ["service 200"]
    assert await store.queries.count(since) == 100
    assert await store.queries.oldest("demo", START + MINUTE * 150) == START + MINUTE * 200
    assert (await store.queries.activity(["demo"], START + MINUTE * 210))["demo"].last_hour_count == 100
    named = f"chunk {damaged_id // IDS} of the log store is damaged"
    for asking in (
        store.queries.row("demo", damaged_id),
        anext(read(store.reader, LogFilter(project_id="demo", since=START))),
    ):
        with pytest.raises(StoreUnavailableError, match=named):
            await asking


async def test_without_a_summary_that_can_be_read_the_content_is(store: Store) -> None:
    """Nothing is missing, and nothing counted that is not there."""
    await store.write(*[entry(f"message {number}", number, level=level) for number, level in enumerate(Level)])
    await store.write(*[entry(f"message {number}", number) for number in range(100, 200)], service="other")
    selections = [
        LogFilter(project_id="demo", since=START),
        LogFilter(project_id="demo", since=START, levels=frozenset({Level.ERROR})),
        LogFilter(project_id="demo", since=START, service="other"),
    ]

    async def asked() -> list[Any]:
        found: list[Any] = []
        for selection in selections:
            found += [
                (await store.queries.page(selection)).rows,
                await store.queries.histogram(selection, [START, START + MINUTE * 50, START + MINUTE * 300]),
                await store.queries.facets(selection),
                [log async for log in read(store.reader, selection)],
                (await LogTail(store.reader, selection, Cursor(0), entries_max=300).poll()).rows,
                await exported(store.reader, selection),
            ]
        return found

    expected = await asked()
    await change(store.url, summary="{")
    assert await asked() == expected


@settings(max_examples=300)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_whatever_bit_of_a_content_flips_nothing_wrong_is_read(place: int, bit: int) -> None:
    """A few bits mean nothing; all others are noticed."""
    written = chunk_of([f"message {number}" for number in range(30)])
    place %= len(written)
    damaged = written[:place] + bytes([written[place] ^ (1 << bit)]) + written[place + 1 :]
    try:
        content = Content(1, damaged)
    except ChunkDamagedError:
        return
    assert (content.head, content.body) == (Content(1, written).head, Content(1, written).body)


def chunk_of(messages: list[str]) -> bytes:
    (chunk,) = chunks_of([encode(batch(*messages))])
    return chunk.content


@pytest.mark.parametrize("size", [0, 1, 10, -1])
def test_a_content_that_was_cut_off_is_damaged(size: int) -> None:
    with pytest.raises(ChunkDamagedError):
        Content(1, chunk_of(["a", "b"])[:size])


@pytest.mark.parametrize(
    "text", [b"", b"\n", b"no head\n", b"{}\n", b'{"keys":[],"runs":[[0,1,0,0]]}', b'{"keys":["k"],"runs":"x"}\n']
)
def test_a_content_without_a_head_is_damaged(text: bytes) -> None:
    with pytest.raises(ChunkDamagedError):
        Content(1, compress(text))
