"""Whatever is done to a store, it has what a list in memory has: entries, order, identity, counts."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from authsvc.runtime.database_url import sqlite_url
from httpbridge.errors import IdempotencyConflictError
from httpbridge.log_store.erasure import Erasure
from httpbridge.log_store.export import Exporter
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.log_store.merging import MergeLimits, Merger
from httpbridge.log_store.queries import LogQueries, QueryLimits
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.reader import read
from httpbridge.log_store.retention import NO_LIMITS, Retainer, set_retention
from httpbridge.log_store.selection import LogFilter, Position
from httpbridge.log_store.sink import open_sink, store_at
from httpbridge.log_store.tail import Cursor, LogTail, newest_cursor
from httpbridge.logs import Level, LogBatch, LogEntry
from tests.postgres import PostgresServer, fresh_database

START = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
EDGES = [START + minutes * MINUTE for minutes in (-60, 0, 1, 2, 5, 60, 24 * 60)]

projects = st.sampled_from(["shop", "blog"])
services = st.sampled_from(["web", "api", 'a "b", c'])
instants = st.one_of(
    st.none(),
    st.integers(0, 360).map(lambda seconds: START + timedelta(seconds=seconds)),
    st.sampled_from([START, START + 2 * MINUTE, datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]),
)
entries = st.tuples(st.sampled_from(Level), instants, st.sampled_from(["Straße", "order 1", "order 2", "x" * 500]))
commits = st.lists(st.lists(st.lists(entries, min_size=1, max_size=4), min_size=1, max_size=3), min_size=3, max_size=6)
filters = st.fixed_dictionaries(
    {"project_id": projects},
    optional={
        "since": st.sampled_from(EDGES),
        "until": st.sampled_from(EDGES),
        "levels": st.frozensets(st.sampled_from(Level)),
        "service": services,
        "text": st.sampled_from(["ORDER", "strasse", "nowhere", ".1"]),
    },
).map(lambda fields: msgspec.convert(fields, LogFilter))


class Entry:
    """One that should be there."""

    def __init__(self, batch: LogBatch, entry: LogEntry) -> None:
        self.project_id, self.service, self.level, self.message = (
            batch.project_id,
            batch.service,
            entry.level,
            entry.message,
        )
        self.key_id = batch.key_id
        self.timestamp = entry.timestamp or batch.received_at
        self.id = 0

    @property
    def position(self) -> Position:
        return Position(self.timestamp, self.id)

    def matches(self, selection: LogFilter) -> bool:
        return (
            self.project_id == selection.project_id
            and (selection.since is None or self.timestamp >= selection.since)
            and (selection.until is None or self.timestamp < selection.until)
            and (not selection.levels or self.level in selection.levels)
            and (selection.service is None or self.service == selection.service)
            and selection.text.casefold() in self.message.casefold()
        )


class StoreMachine(RuleBasedStateMachine):
    """The store, and the list."""

    fresh_database: Callable[[], AbstractContextManager[str]]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.database = self.fresh_database()
        self.url = self.database.__enter__()
        self.number = 0
        self.keys: dict[tuple[str, str], str] = {}
        """By project and key: the body that it was first sent with."""
        self.list: list[Entry] = []
        """In the order of commits."""
        self.tails: list[tuple[Cursor, LogFilter, list[Entry]]] = []
        """Cursors, and what arrived in their filters since."""
        self.run(self.open())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def open(self) -> None:
        self.store = store_at(self.url)
        self.sink = await open_sink(self.store, monotonic=lambda: 0.0)
        self.reader = ReadStore(self.url)
        self.merger = Merger(
            self.store, self.reader, monotonic=lambda: 0.0, limits=MergeLimits(chunks_min=3, age_seconds=-9)
        )

    async def close(self) -> None:
        await self.reader.close()
        await self.sink.close()

    def teardown(self) -> None:
        self.run(self.close())
        self.runner.close()
        self.database.__exit__(None, None, None)

    @rule(project=projects, service=services, commits=commits)
    def write(self, project: str, service: str, commits: list[list[list[tuple[Level, datetime | None, str]]]]) -> None:
        """Write some batches, those of a commit at once."""
        for texts in commits:
            self.commit(project, service, texts)
        self.check_ids()

    def commit(self, project: str, service: str, texts: list[list[tuple[Level, datetime | None, str]]]) -> None:
        batches = []
        for some in texts:
            self.number += 1
            made = [
                LogEntry(level, f"{text} {self.number}.{place}", at) for place, (level, at, text) in enumerate(some)
            ]
            received_at = START + self.number * timedelta(seconds=7)
            batches.append(LogBatch(project, f"key {self.number % 3}", received_at, service, "test", None, made))
        self.send([(batch, None) for batch in batches])
        self.note(batches)

    def send(self, writes: Sequence[tuple[LogBatch, IdempotencyKey | None]]) -> list[bool]:
        """Write at once; return which are conflicts."""

        async def write_all() -> list[BaseException | None]:
            return await asyncio.gather(*(self.sink.write(*write) for write in writes), return_exceptions=True)

        outcomes = self.run(write_all())
        assert {type(outcome) for outcome in outcomes} <= {type(None), IdempotencyConflictError}
        return [outcome is not None for outcome in outcomes]

    def note(self, batches: Sequence[LogBatch]) -> None:
        new = [Entry(batch, entry) for batch in batches for entry in batch.entries]
        self.list += new
        for _, selection, arrived in self.tails:
            arrived += [entry for entry in new if entry.matches(selection)]

    @rule(
        sent=st.lists(st.tuples(projects, st.sampled_from(["", "k1", "k2", "k3"]), st.sampled_from("ab")), min_size=1)
    )
    def write_with_keys(self, sent: list[tuple[str, str, str]]) -> None:
        """Write batches at once, by project, key and body: a key stores once, and only a body of its own conflicts."""
        writes: list[tuple[LogBatch, IdempotencyKey | None]] = []
        conflicts = []
        stored: list[tuple[bool, LogBatch]] = []
        for project, name, body in sent:
            self.number += 1
            entry = LogEntry(Level.INFO, f"{body} {self.number}", None)
            received_at = START + self.number * timedelta(seconds=7)
            batch = LogBatch(project, f"key {self.number % 3}", received_at, "web", "test", None, [entry])
            writes.append((batch, IdempotencyKey(name, body.encode()) if name else None))
            is_new = not name or (project, name) not in self.keys
            if is_new:
                stored.append((not name, batch))
                if name:
                    self.keys[project, name] = body
            conflicts.append(bool(name) and self.keys[project, name] != body)
        assert self.send(writes) == conflicts
        # Of a commit, those with a key come first: each is a chunk of its own.
        self.note([batch for _, batch in sorted(stored, key=itemgetter(0))])
        self.check_ids()

    @rule(project=projects, service=services, commits=commits, is_last=st.booleans())
    def write_and_merge(self, project: str, service: str, commits: Any, is_last: bool) -> None:
        self.write(project, service, commits)
        self.merge(is_last)

    @rule(is_last=st.booleans())
    def merge(self, is_last: bool) -> None:
        self.run(self.merger.merge(is_last=is_last))
        self.check_ids()

    @rule()
    def restart(self) -> None:
        self.run(self.close())
        self.run(self.open())

    @rule(selection=filters)
    def erase(self, selection: LogFilter) -> None:
        expected = [entry for entry in self.list if entry.matches(selection)]
        erasure = Erasure(self.store, self.reader, selection)
        assert self.run(erasure.count()) == len(expected)
        receipt = self.run(erasure.run("a test"))
        assert receipt.entries == len(expected)
        if selection == LogFilter(project_id=selection.project_id):
            self.keys = {key: body for key, body in self.keys.items() if key[0] != selection.project_id}
        self.forget(expected)

    @rule()
    def erase_all(self) -> None:
        """Erase one project, and leave the other one for the other rules."""
        self.write_with_keys([("blog", "k1", "a")])
        self.erase(LogFilter(project_id="blog"))
        self.write_with_keys([("blog", "k1", "b")])  # it is new again

    def export(self, selection: LogFilter) -> None:
        """Write what matches: all of it, once."""
        exporter = Exporter(self.reader, selection)
        lines = BytesIO()

        async def write() -> int:
            return sum([exporter.write(part, lines.write)[0] async for parts in exporter.parts() for part in parts])

        number = self.run(write())
        expected = [entry for entry in self.list if entry.matches(selection)]
        found = [msgspec.json.decode(line) for line in lines.getvalue().splitlines()]
        assert number == len(expected)
        assert sorted(line["message"] for line in found) == sorted(entry.message for entry in expected)

    @rule(project=projects, bytes_max=st.sampled_from([1, 1500, 4000]))
    def retain(self, project: str, bytes_max: int) -> None:
        """Drop the oldest, some or all."""

        async def drop() -> None:
            async def pause() -> None:
                return None

            for most in (bytes_max, None):
                await self.store.transact(partial(set_retention, project_id=project, days=None, bytes_max=most))
                await Retainer(self.store, self.reader, NO_LIMITS, pause=pause).run()

        self.run(drop())
        mine = [entry for entry in self.list if entry.project_id == project]
        left = {log.message for log in self.logs(LogFilter(project_id=project, since=datetime(1, 1, 1, tzinfo=UTC)))}
        gone = [entry for entry in mine if entry.message not in left]
        assert gone == mine[: len(gone)]
        self.forget(gone)

    def forget(self, gone: list[Entry]) -> None:
        self.list = [entry for entry in self.list if entry not in gone]
        for _, _, arrived in self.tails:
            arrived[:] = [entry for entry in arrived if entry not in gone]
        self.check_ids()

    def check_ids(self) -> None:
        """Every entry is there, and has the id that it had from the beginning, in the order of commits."""
        for project in ("shop", "blog"):
            mine = {entry.message: entry for entry in self.list if entry.project_id == project}
            logs = self.logs(LogFilter(project_id=project, since=datetime(1, 1, 1, tzinfo=UTC)))
            assert {log.message for log in logs} == set(mine)
            for log in logs:
                entry = mine[log.message]
                entry.id = entry.id or log.id
                assert (log.id, log.timestamp, log.key_id) == (entry.id, entry.timestamp, entry.key_id)
            ids = [entry.id for entry in mine.values()]
            assert ids == sorted(ids)

    def logs(self, selection: LogFilter) -> list[Any]:
        async def listed() -> list[Any]:
            return [log async for log in read(self.reader, selection)]

        return list(self.run(listed()))

    @rule(selection=filters)
    def begin_tail(self, selection: LogFilter) -> None:
        self.tails.append((self.run(newest_cursor(self.reader)), selection, []))

    @rule(most=st.sampled_from([3, 100]))
    def follow(self, most: int) -> None:
        """Ask for what arrived: it comes in the order of commits; of more than a poll returns, the newest."""
        for cursor, selection, arrived in self.tails:
            found = self.run(LogTail(self.reader, selection, cursor, entries_max=most).poll())
            assert [row.log.message for row in found.rows] == [entry.message for entry in arrived[-most:]]
            assert found.is_gap == (len(arrived) > most)
        self.tails = []

    @rule(selection=filters, rows=st.sampled_from([1, 3, 100]), entries_max=st.sampled_from([1, 10, 10**6]))
    def ask(self, selection: LogFilter, rows: int, entries_max: int) -> None:
        """Everything that matches is on the pages, once, in order, with the ids that it always had."""
        queries = LogQueries(self.reader, monotonic=lambda: 0.0, limits=QueryLimits(entries_max=entries_max))
        expected = [entry for entry in self.list if entry.matches(selection)]
        found = []
        before: Position | None = None
        while True:
            page = self.run(queries.page(selection, before, rows))
            assert len(page.rows) <= rows
            found += page.rows
            if page.older is None:
                break
            assert before is None or page.older < before
            before = page.older
        positions = [row.position for row in found]
        assert positions == sorted(positions, reverse=True)
        by_message = {entry.message: entry for entry in expected}
        assert {row.log.message for row in found} == set(by_message)
        assert len(found) == len(expected)
        for row in found:
            entry = by_message[row.log.message]
            entry.id = entry.id or row.log.id
            assert (row.log.id, row.log.timestamp, row.log.level) == (entry.id, entry.timestamp, entry.level)
            alone = self.run(queries.row(selection.project_id, row.log.id))
            assert alone is not None
            assert alone.log == row.log
        assert [log.message for log in self.logs(selection)] == [
            entry.message for entry in sorted(expected, key=lambda entry: entry.position)
        ][-100:]
        self.export(selection)

    @rule(selection=filters)
    def count(self, selection: LogFilter) -> None:
        queries = LogQueries(self.reader, monotonic=lambda: 0.0)
        expected = [entry for entry in self.list if entry.matches(selection)]
        buckets = self.run(queries.histogram(selection, EDGES))
        for bucket, (start, end) in zip(buckets, pairwise(EDGES), strict=True):
            assert bucket.counts == Counter(entry.level for entry in expected if start <= entry.timestamp < end)
        of_time = LogFilter(project_id=selection.project_id, since=selection.since, until=selection.until)
        in_time = [entry for entry in self.list if entry.matches(of_time)]
        assert self.run(queries.count(selection)) == len(in_time)
        assert self.run(queries.facets(selection))[0] == sorted({entry.service for entry in in_time})
        for since in (None, START):
            instants = [e.timestamp for e in self.list if e.project_id == selection.project_id]
            oldest = min((at for at in instants if since is None or at >= since), default=None)
            assert self.run(queries.oldest(selection.project_id, since)) == oldest


@contextmanager
def fresh_file() -> Iterator[str]:
    with TemporaryDirectory(dir=Path("/dev/shm") if Path("/dev/shm").is_dir() else None) as directory:
        yield sqlite_url(Path(directory) / "logs.db")


def check_model(fresh: Callable[[], AbstractContextManager[str]], examples: int, *, is_long: bool) -> None:
    class Machine(StoreMachine):
        fresh_database = staticmethod(fresh)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            phases=[phase for phase in Phase if phase is not Phase.explain],  # it traces each line: too slow to end
            derandomize=not is_long,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_store_is_a_list(is_long: bool) -> None:
    check_model(fresh_file, 200 if is_long else 15, is_long=is_long)


def test_a_store_on_postgresql_is_a_list(postgres_server: PostgresServer, is_long: bool) -> None:
    check_model(partial(fresh_database, postgres_server, "template1"), 60 if is_long else 3, is_long=is_long)
