"""What is erased is gone, also from the bytes of a SQLite file and its WAL; nothing else is."""

import asyncio
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from authsvc.runtime.database_url import sqlite_url
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.erasure import Erasure, Receipt, erasures_of
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.log_store.merging import MergeLimits, Merger
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import erasures
from httpbridge.log_store.second_writer import SecondWriter
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.sink import MaintainedStore, SqlSink, open_sink, store_at
from httpbridge.logs import Level, LogEntry
from tests.contract.test_log_sink import RECEIVED_AT, Clock, batch, query, stored_entries, stored_messages
from tests.stored_chunks import incompressible

ALL = LogFilter(project_id="demo")


class Erasable:
    """A store that a bridge has open, and somebody who erases in it."""

    def __init__(self, url: str, store: MaintainedStore, sink: SqlSink, reader: ReadStore) -> None:
        self.url, self.store, self.sink, self.reader = url, store, sink, reader
        self.second = SecondWriter(url)
        limits = MergeLimits(chunks_min=2, age_seconds=-9)
        self.merger = Merger(store, reader, monotonic=Clock(), limits=limits)

    async def write(self, *messages: str, **changes: Any) -> None:
        """Store each as a chunk of its own."""
        for message in messages:
            await self.sink.write(batch(message, **changes))

    async def merge(self) -> None:
        await self.merger.merge(is_last=True)

    async def erase(self, selection: LogFilter = ALL, by: str = "a test") -> Receipt:
        return await Erasure(self.second, self.reader, selection, sleep=no_sleep).run(by)

    async def left(self) -> list[str]:
        return sorted(await stored_messages(self.url))


async def no_sleep(_seconds: float) -> None:
    return None


@asynccontextmanager
async def erasable_at(url: str) -> AsyncIterator[Erasable]:
    store = store_at(url)
    sink = await open_sink(store, monotonic=Clock())
    reader = ReadStore(url, connections_max=2)
    erasable = Erasable(url, store, sink, reader)
    try:
        yield erasable
    finally:
        await erasable.second.close()
        await reader.close()
        await sink.close()


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Erasable]:
    async with erasable_at(database_url) as store:
        yield store


def entries(*kinds: str) -> list[LogEntry]:
    """Make entries of levels, a minute apart."""
    return [
        LogEntry(Level(kind), f"{kind} {number}", timestamp=RECEIVED_AT + timedelta(minutes=number))
        for number, kind in enumerate(kinds)
    ]


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({}, []),
        ({"service": "api"}, ["other service"]),
        ({"environment": "test"}, ["error 2", "info 0", "other service", "warn 1"]),
        ({"text": "ERR"}, ["info 0", "other service", "test", "warn 1"]),
        ({"levels": frozenset([Level.WARN])}, ["error 2", "info 0", "other service", "test"]),
        ({"since": RECEIVED_AT + timedelta(minutes=1)}, ["info 0", "other service", "test"]),
        ({"until": RECEIVED_AT + timedelta(minutes=1)}, ["error 2", "warn 1"]),
        ({"service": "nobody"}, ["error 2", "info 0", "other service", "test", "warn 1"]),
    ],
)
@pytest.mark.parametrize("is_merged", [False, True])
async def test_what_is_selected_goes(store: Erasable, fields: dict[str, Any], left: list[str], is_merged: bool) -> None:
    await store.sink.write(batch(entries=entries("info", "warn", "error")))
    await store.write("other service", service="web")
    await store.write("test", environment="test")
    await store.write("another project's error", project_id="other")
    if is_merged:
        await store.merge()
    before = await stored_entries(store.url)
    selection = LogFilter(project_id="demo", **fields)
    count = await Erasure(store.second, store.reader, selection).count()
    receipt = await store.erase(selection)
    assert await store.left() == sorted([*left, "another project's error"])
    assert receipt.entries == count == 5 - len(left)
    assert receipt.is_scrubbed
    kept = [entry for entry in before if entry["message"] in [*left, "another project's error"]]
    assert await stored_entries(store.url) == kept  # with their ids and all


async def test_a_receipt_and_a_row_say_what_went(store: Erasable) -> None:
    await store.write("a", "b", "<b>")
    first = await store.erase(LogFilter(project_id="demo", text="<B>", service="api"), by="cli:ann")
    second = await store.erase(by="dashboard:Bob")
    third = await store.erase(LogFilter(project_id="other"))
    assert (first.project_id, first.selection, first.entries) == ("demo", "service api; with the text '<B>'", 1)
    assert (second.selection, second.entries, third.entries) == ("everything", 2, 0)
    found = await erasures_of(store.reader, "demo", 10)
    assert [one[1:] for one in found] == [
        ("dashboard:Bob", "everything", 2, True),
        ("cli:ann", "service api; with a text of 3 characters", 1, True),
    ]
    assert found[0].erased_at == second.erased_at.timestamp()
    assert [one.by for one in await erasures_of(store.reader, "demo", 1)] == ["dashboard:Bob"]


async def keys_of(store: Erasable) -> list[str]:
    return [row["key"] for row in await query(store.url, sa.text("SELECT key FROM idempotency_keys ORDER BY key"))]


async def test_with_a_whole_project_its_idempotency_keys_go(store: Erasable) -> None:
    """Then a batch that is sent again is stored again; with a part of it they stay."""
    key = IdempotencyKey("one", sha256(b"a").digest())
    await store.sink.write(batch("a"), key)
    await store.sink.write(batch("a", project_id="other"), IdempotencyKey("others", b""))
    await store.erase(LogFilter(project_id="demo", service="api"))
    assert await keys_of(store) == ["one", "others"]
    await store.sink.write(batch("a"), key)
    assert await store.left() == ["a"]
    await store.erase()
    assert await keys_of(store) == ["others"]
    await store.sink.write(batch("a"), key)
    assert await store.left() == ["a", "a"]


async def test_a_neighbour_writes_between_any_two_steps(store: Erasable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between chunks, and between some of the project's keys and others."""
    monkeypatch.setattr("httpbridge.log_store.erasure.FORGOTTEN_MAX", 2)
    for name in "abcde":
        await store.sink.write(batch(name), IdempotencyKey(name, b"body"))
    written: list[str] = []
    transact = store.second.transact

    async def write_before(work: Callable[[sa.Connection], Any]) -> Any:
        written.append(f"neighbour {len(written)}")
        await store.sink.write(batch(written[-1], project_id="other"), IdempotencyKey(written[-1], b"body"))
        return await transact(work)

    store.second.transact = write_before  # type: ignore[method-assign]
    assert (await store.erase()).entries == 5
    assert await store.left() == await keys_of(store) == written
    assert len(written) == 1 + 5 + 3 + 1  # it begins, takes each chunk, forgets keys two at a time, and notes its end


@pytest.mark.parametrize("is_merged", [False, True])
async def test_what_arrives_meanwhile_stays(store: Erasable, is_merged: bool) -> None:
    await store.write("a", "b", "c")
    waits = 0
    transact = store.second.transact

    async def write_before(work: Callable[[sa.Connection], Any]) -> Any:
        nonlocal waits
        waits += 1
        if waits == 3:  # the second chunk's turn
            await store.write("new")
            if is_merged:
                await store.merge()
        return await transact(work)

    store.second.transact = write_before  # type: ignore[method-assign]
    assert (await store.erase()).entries == 3
    assert await store.left() == ["new"]


@pytest.mark.parametrize("turn", range(2, 7))
async def test_merging_meanwhile_neither_saves_nor_repeats(store: Erasable, turn: int) -> None:
    """Whenever chunks are merged: what was looked at is looked at again."""
    await store.write(*(f"{kind} {number}" for number in range(3) for kind in ("gone", "kept")))
    waits = 0
    transact = store.second.transact

    async def merge_before(work: Callable[[sa.Connection], Any]) -> Any:
        nonlocal waits
        waits += 1
        if waits == turn:
            await store.merge()
        return await transact(work)

    store.second.transact = merge_before  # type: ignore[method-assign]
    receipt = await store.erase(LogFilter(project_id="demo", text="gone"))
    assert await store.left() == ["kept 0", "kept 1", "kept 2"]
    assert receipt.entries == 3
    assert (await erasures_of(store.reader, "demo", 1))[0].entries == 3


async def test_erasing_meanwhile_is_no_harm_to_a_merge(store: Erasable) -> None:
    await store.write(*(f"{kind} {number}" for number in range(3) for kind in ("gone", "kept")))
    transact = store.store.transact
    is_first = True

    async def erase_before(work: Callable[[sa.Connection], Any]) -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            await store.erase(LogFilter(project_id="demo", text="gone"))
        return await transact(work)

    store.store.transact = erase_before  # type: ignore[method-assign]
    await store.merge()
    await store.merge()
    assert await store.left() == ["kept 0", "kept 1", "kept 2"]


async def test_two_who_erase_at_once_count_each_entry_once(store: Erasable) -> None:
    await store.write(*map(str, range(12)))
    other = SecondWriter(store.url)
    try:
        first, second = await asyncio.gather(store.erase(), Erasure(other, store.reader, ALL).run("another"))
    finally:
        await other.close()
    assert first.entries + second.entries == 12
    assert await store.left() == []


async def test_an_erasure_that_breaks_off_is_noted_as_far_as_it_came(store: Erasable) -> None:
    await store.write("a", "b", "c")
    waits = 0
    transact = store.second.transact

    async def break_off(work: Callable[[sa.Connection], Any]) -> Any:
        nonlocal waits
        waits += 1
        if waits == 4:
            raise ConnectionError
        return await transact(work)

    store.second.transact = break_off  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        await store.erase(by="the first")
    store.second.transact = transact  # type: ignore[method-assign]
    assert len(await store.left()) == 1
    await store.erase(by="the second")
    found = await erasures_of(store.reader, "demo", 10)
    assert [(one.by, one.entries, one.is_scrubbed) for one in found] == [
        ("the second", 1, True), ("the first", 2, None)
    ]  # fmt: skip


# Erases in its own time: a line before each transaction, which waits for one in return.
ERASE_IN_STEPS = """
import asyncio, sys
from httpbridge.log_store import chunk_writes, erasure
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import erasures
from httpbridge.log_store.second_writer import SecondWriter
from httpbridge.log_store.selection import LogFilter

erasure.FORGOTTEN_MAX = 2

async def main(url, text, killed_at):
    writer = SecondWriter(url)
    begun, transact = 0, writer.transact

    async def stepped(work):
        nonlocal begun
        begun += 1
        if begun < killed_at:
            return await transact(work)

        def step(connection):
            work(connection)
            print("in a transaction", flush=True)
            sys.stdin.read()

        return await transact(step)

    writer.transact = stepped
    await erasure.Erasure(writer, ReadStore(url), LogFilter(project_id="demo", text=text)).run("killed")

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


@pytest.mark.parametrize("text", ["", "gone"])
@pytest.mark.parametrize("database_url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)], indirect=True)
async def test_killed_in_a_transaction_it_has_done_those_before_and_the_next_one_finishes(
    store: Erasable, text: str, is_long: bool
) -> None:
    """With a whole project and with a part, in chunks and in keys; the killed one's last transaction did nothing."""
    selection = LogFilter(project_id="demo", text=text)
    # By way of a key each is a chunk of its own, and forgotten two at a time.
    number = 5
    transactions = 1 + number + (0 if text else number // 2 + 1)
    for killed_at in range(1, transactions + 1) if is_long else (3, transactions):
        for place in range(number):
            entries = [LogEntry(Level.INFO, f"{kind} {place}") for kind in ("gone", "kept")]
            await store.sink.write(batch(entries=entries), IdempotencyKey(f"{place}", b"body"))
        await store.sink.write(batch("other", project_id="other"), IdempotencyKey("others", b"body"))
        before = await stored_entries(store.url)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ERASE_IN_STEPS, store.url, text, str(killed_at), stdin=PIPE, stdout=PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"in a transaction\n"
        process.kill()
        await process.wait()

        chunks_gone = min(killed_at - 2, number) if killed_at > 1 else 0
        gone = [f"gone {place}" for place in range(chunks_gone)]
        if not text:
            gone += [f"kept {place}" for place in range(chunks_gone)]

        def stays(entry: dict[str, Any], gone: list[str] = gone) -> bool:
            return entry["project_id"] == "other" or entry["message"] not in gone

        assert await stored_entries(store.url) == [entry for entry in before if stays(entry)]
        keys_gone = 0 if text else max(0, killed_at - 2 - number) * 2
        assert len(await keys_of(store)) == 1 + number - keys_gone
        left = await erasures_of(store.reader, "demo", 1)
        assert [one.entries for one in left if one.by == "killed"] == ([len(gone)] if killed_at > 1 else [])

        receipt = await store.erase(selection)
        assert receipt.entries + len(gone) == (number if text else 2 * number)
        is_kept = [entry for entry in before if entry["project_id"] == "other" or (text and "kept" in entry["message"])]
        assert await stored_entries(store.url) == is_kept
        assert len(await keys_of(store)) == (1 + number if text else 1)
        await store.erase()
        await store.erase(LogFilter(project_id="other"))
        await clear_erasures(store)


async def clear_erasures(store: Erasable) -> None:
    await store.store.transact(lambda connection: connection.execute(sa.delete(erasures)))


async def test_nothing_is_made_where_there_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    writer, reader = SecondWriter(sqlite_url(path)), ReadStore(sqlite_url(path))
    try:
        with pytest.raises(StoreSetupError, match="cannot be used"):
            await Erasure(writer, reader, ALL).run("a test")
        with pytest.raises(StoreSetupError, match="there is no log store"):
            await Erasure(writer, reader, ALL).count()
    finally:
        await writer.close()
        await reader.close()
    assert not path.exists()


# What lies in the bytes of a SQLite store.

PIECE = 24
"""Bytes of a text or a compressed content that nothing else has by chance."""


class Traces:
    """What was stored, to look for it in the files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.pieces: set[bytes] = set()

    def note(self, *texts: str) -> None:
        """Note the texts, and the content of all chunks as they are now, piece by piece."""
        for text in texts:
            self._add(text.encode())
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as connection:
            for (content,) in connection.execute("SELECT content FROM chunks"):
                self._add(content)

    def _add(self, content: bytes) -> None:
        # Without what the contents of chunks have in common.
        self.pieces |= {content[at : at + PIECE] for at in range(160, len(content) - PIECE, 8)}

    def keep(self) -> None:
        """Look no more for what is in the chunks now: another text's, or the same merged, may have the same bytes."""
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as connection:
            for (content,) in connection.execute("SELECT content FROM chunks"):
                self.pieces -= windows(content)

    def found(self) -> set[bytes]:
        """Return what is in the files still."""
        files = [self._path.with_name(f"{self._path.name}{suffix}") for suffix in ("", "-wal", "-shm")]
        return self.pieces & set().union(*(windows(file.read_bytes()) for file in files if file.exists()))


def windows(content: bytes) -> set[bytes]:
    return {content[at : at + PIECE] for at in range(len(content) - PIECE + 1)}


def texts(count: int, characters: int) -> list[str]:
    return [incompressible(characters) for _ in range(count)]


@pytest.mark.parametrize("characters", [300, 3000, 30_000])
@pytest.mark.parametrize("is_partial", [False, True])
async def test_nothing_of_it_is_left_in_the_bytes(tmp_path: Path, characters: int, is_partial: bool) -> None:
    """Not after merges, more writes, more merges and a restart, in small chunks, and such as fill many pages."""
    path = tmp_path / "logs.db"
    traces = Traces(path)
    gone = texts(12, characters)
    async with erasable_at(sqlite_url(path)) as store:
        await store.write(*gone[:4], service="gone")
        traces.note(*gone[:4])
        await store.write(*texts(3, characters), project_id="other")
        await store.merge()
        traces.note()
    async with erasable_at(sqlite_url(path)) as store:
        await store.sink.write(batch(*gone[4:8], service="gone"))
        await store.write(*gone[8:], service="gone")
        if is_partial:
            await store.write(*texts(2, characters), service="kept")
        traces.note(*gone[4:])
        await store.merge()
        traces.note()
        await store.store.scrub()
        kept = await store.left()
        assert traces.found()
        selection = LogFilter(project_id="demo", service="gone") if is_partial else ALL
        receipt = await store.erase(selection)
        assert (receipt.entries, receipt.is_scrubbed) == (12, True)
        left = await store.left()
        assert left == sorted(set(kept) - set(gone))
        traces.keep()
        assert traces.found() == set()
        await store.write(*texts(5, characters))
        traces.keep()
        await store.merge()
        traces.keep()
        assert traces.found() == set()
    assert traces.found() == set()


async def test_a_text_that_was_looked_for_is_not_noted(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    async with erasable_at(sqlite_url(path)) as store:
        (name,) = texts(1, 60)
        await store.write(f"order of {name}")
        receipt = await store.erase(LogFilter(project_id="demo", text=name))
        assert (receipt.entries, receipt.selection) == (1, f"with the text '{name}'")
        files = [file.read_bytes() for file in await asyncio.to_thread(lambda: list(tmp_path.iterdir()))]
        assert not any(name.encode() in content for content in files)


async def test_a_reader_that_holds_the_wal_is_told_of(tmp_path: Path) -> None:
    """And it keeps nobody from storing; afterwards another erasure leaves nothing."""
    path = tmp_path / "logs.db"
    traces = Traces(path)
    async with erasable_at(sqlite_url(path)) as store:
        gone = texts(3, 3000)
        await store.write(*gone)
        traces.note(*gone)
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM chunks").fetchone() == (3,)
            receipt = await store.erase()
            assert (receipt.entries, receipt.is_scrubbed) == (3, False)
            assert await store.left() == []
            await store.write("meanwhile", project_id="other")
            assert reader.execute("SELECT count(*) FROM chunks").fetchone() == (3,)
        assert traces.found()
        again = await store.erase()
        assert (again.entries, again.is_scrubbed) == (0, True)
        assert traces.found() == set()
        assert await store.left() == ["meanwhile"]
