"""Exports and checks of real stores, while others write and merge."""

import json
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial

import pytest

from httpbridge.log_store.chunk import ChunkDamagedError
from httpbridge.log_store.chunk_writes import replace
from httpbridge.log_store.export import Exporter, Part, Progress, read_parts, work_through
from httpbridge.log_store.inspection import check_chunk, projects, usage
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.reader import read
from httpbridge.log_store.scan import Scan
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.zstandard import compress, zstd
from httpbridge.logs import Level
from tests.contract.stored import AT, change, chunk_rows, made, maintaining, merge, reading, sink_at


async def exported(store: ReadStore, selection: LogFilter) -> list[str]:
    """Return the messages of an export."""
    exporter, text = Exporter(store, selection), bytearray()
    async for parts in exporter.parts():
        for part in parts:
            before = len(text)
            entries, size = exporter.write(part, text.extend)
            assert (text.count(b"\n", before), len(text) - before) == (entries, size)
    assert exporter.progress.share == 1.0
    return messages(bytes(text))


def messages(text: bytes) -> list[str]:
    return [json.loads(line)["message"] for line in text.splitlines()]


async def test_an_export_has_every_entry_once_in_the_order_of_commits(database_url: str) -> None:
    async with sink_at(database_url) as sink:
        for number in range(30):
            await sink.write(made(f"{number} a", f"{number} b", minute=-number))
            await sink.write(made("another project's", project_id="other"))
    async with reading(database_url) as store, maintaining(database_url) as maintained:
        expected = [f"{number} {letter}" for number in range(30) for letter in "ab"]
        assert await exported(store, LogFilter(project_id="demo")) == expected
        await merge(maintained, (await chunk_rows(store))[3:20])
        assert await exported(store, LogFilter(project_id="demo")) == expected
        assert await exported(store, LogFilter(project_id="none")) == []


@pytest.mark.parametrize("seed", range(6))
async def test_merges_and_commits_during_an_export_lose_and_repeat_nothing(
    database_url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time that it reads, the export waits here, and some of the chunks are merged."""
    chance = random.Random(seed)
    monkeypatch.setattr("httpbridge.log_store.export._BYTES", chance.choice([1, 2000]))
    monkeypatch.setattr("httpbridge.log_store.export._HEADERS", chance.choice([1, 3, 64]))
    monkeypatch.setattr("httpbridge.log_store.export._LISTED", chance.choice([2, 7, 4096]))
    async with sink_at(database_url) as sink:
        for number in range(40):
            await sink.write(made(f"{number} a", f"{number} b", minute=number % 7))
            await sink.write(made("another project's", project_id="other"))
        async with reading(database_url) as store, maintaining(database_url) as maintained:
            exporter, text = Exporter(store, LogFilter(project_id="demo")), bytearray()
            async for parts in exporter.parts():
                for part in parts:
                    exporter.write(part, text.extend)
                rows = await chunk_rows(store)
                first = chance.randrange(len(rows))
                if len(some := rows[first : first + chance.randint(2, 5)]) > 1:
                    await merge(maintained, some)
                await sink.write(made("too late", minute=1))
    assert messages(bytes(text)) == [f"{number} {letter}" for number in range(40) for letter in "ab"]


async def test_a_chunk_that_is_dropped_during_an_export_is_no_harm(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httpbridge.log_store.export._BYTES", 1)
    async with sink_at(database_url) as sink:
        for number in range(6):
            await sink.write(made(str(number)))
    async with reading(database_url) as store, maintaining(database_url) as maintained:
        exporter, text = Exporter(store, LogFilter(project_id="demo")), bytearray()
        async for (part,) in exporter.parts():
            if not text:
                row = (await chunk_rows(store))[2]
                assert await maintained.transact(partial(replace, old=[(row.id, row.version)], new=None))
            exporter.write(part, text.extend)
    assert messages(bytes(text)) == ["0", "1", "3", "4", "5"]


async def test_an_export_of_some_has_what_a_reader_finds(database_url: str) -> None:
    async with sink_at(database_url) as sink:
        for number in range(12):
            service = "api" if number % 3 else "web"
            names = [f"{number} good", f"{number} bad ß"] if number % 4 else [f"{number} good"]
            await sink.write(made(*names, service=service, minute=number))
    selections = [
        LogFilter(project_id="demo", levels=frozenset([Level.ERROR])),
        LogFilter(project_id="demo", levels=frozenset([Level.INFO, Level.ERROR])),
        LogFilter(project_id="demo", service="web"),
        LogFilter(project_id="demo", environment="production"),
        LogFilter(project_id="demo", environment="test"),
        LogFilter(project_id="demo", text="SS"),
        LogFilter(project_id="demo", since=AT + timedelta(minutes=4)),
        LogFilter(project_id="demo", until=AT + timedelta(minutes=4), service="api"),
        LogFilter(project_id="demo", since=AT + timedelta(minutes=3), until=AT + timedelta(minutes=9), text="good"),
    ]
    async with reading(database_url) as store, maintaining(database_url) as maintained:
        for _ in range(2):
            for selection in selections:
                found = [log.message async for log in read(store, selection)]
                assert await exported(store, selection) == found
            await merge(maintained, (await chunk_rows(store))[2:7])


async def test_a_damaged_chunk_ends_an_export_and_is_named(database_url: str) -> None:
    async with sink_at(database_url) as sink:
        for number in range(3):
            await sink.write(made(f"{number} " + "x" * 1000))
    async with reading(database_url) as store:
        row = (await chunk_rows(store))[1]
        for content in (b"", b"none", row.content[:-1], row.content[:-2] + b"!!", compress(b"without an end")):
            await change(
                database_url, "UPDATE chunks SET content = :content WHERE id = :id", content=content, id=row.id
            )
            for selection in (LogFilter(project_id="demo"), LogFilter(project_id="demo", text="x")):
                with pytest.raises(ChunkDamagedError, match=f"chunk {row.id} of the log store is damaged: "):
                    await exported(store, selection)


async def check(store: ReadStore) -> list[str]:
    """Return what is wrong with chunks."""
    found = []

    def check_all(parts: list[Part]) -> None:
        for part in parts:
            try:
                check_chunk(part)
            except ChunkDamagedError as error:
                found.append(f"{part.row.id}: {error.reason}")

    for project_id in await projects(store):
        await work_through(read_parts(store, Scan(LogFilter(project_id=project_id)), Progress()), check_all)
    return found


async def test_what_is_not_as_it_was_written_is_found(database_url: str) -> None:
    async with sink_at(database_url) as sink:
        for number in range(6):
            await sink.write(made(f"{number} bad", f"{number} good", service=f"service {number}", minute=number))
            await sink.write(made("another project's", project_id="other"))
    async with reading(database_url) as store, maintaining(database_url) as maintained:
        assert await check(store) == []
        await merge(maintained, (await chunk_rows(store))[1:5])
        assert await check(store) == []
        row = (await chunk_rows(store))[1]
        text = zstd.decompress(row.content)
        damages = [
            ("content", row.content[:-1] + bytes([row.content[-1] ^ 1]), "its content cannot be read: ZstdError"),
            ("content", compress(text + b"no JSON\n"), "an entry cannot be read"),
            ("content", compress(text + text.splitlines(keepends=True)[1]), "its entries are not what its header says"),
            ("content", compress(text.replace(b"1 bad", b"1 dab.")), "its bytes are not what its header says"),
            ("content", compress(text.replace(b"[[0,2,", b"[[0,3,")), "its runs are not what its header says"),
            ("content", compress(text.replace(b"[8192,2,", b"[   1,2,")), "its runs are out of order"),
            ("content", compress(text.replace(b'{"timestamp"', b' {"timestamp"', 1)[:-2] + b"\n"), "an entry cannot"),
            ("entries", row.entries - 1, "its entries are not what its header says"),
            ("first_at", row.last_at, "its first timestamp are not what its header says"),
            ("last_at", row.first_at, "its last timestamp are not what its header says"),
            ("summary", row.summary.replace("[0,4,0,4]", "[0,5,0,3]"), "its levels are not what its header says"),
            ("summary", row.summary[:-1], "its levels are not what its header says"),
            ("summary", row.summary.replace("service 3", "service 9"), "its summary lacks a service"),
            ("summary", row.summary.replace("production", "test"), "its summary lacks an environment"),
            ("summary", row.summary.replace("T20:16", "T20:59"), "its counts over time are not what its header says"),
        ]
        for column, value, expected in damages:
            statement = f"UPDATE chunks SET {column} = :value WHERE id = :id"
            assert value != getattr(row, column), expected
            await change(database_url, statement, value=value, id=row.id)
            assert [found.startswith(f"{row.id}: {expected}") for found in await check(store)] == [True], expected
            await change(database_url, statement, value=getattr(row, column), id=row.id)
        assert await check(store) == []


async def test_usage_is_by_project(database_url: str) -> None:
    async with reading(database_url) as store:
        async with sink_at(database_url) as sink:
            assert await usage(store) == []
            await sink.write(made("a", "b", minute=1))
            await sink.write(made("c" * 10_000, minute=0))
            await sink.write(made("d", project_id="other"))
        demo, other = await usage(store)
        assert await usage(store, "demo") == [demo]
        assert await usage(store, "none") == []
        rows = await chunk_rows(store)
    assert (demo.project_id, demo.entries, demo.chunks) == ("demo", 3, 2)
    assert (demo.oldest, demo.newest) == ("2026-11-23T20:15:00.000000Z", "2026-11-23T20:16:00.000000Z")
    assert demo.bytes_of_entries == sum(row.size for row in rows)
    assert demo.bytes_stored == sum(len(row.content) + 512 for row in rows)
    assert demo.ratio < 0.2
    assert (other.project_id, other.entries) == ("other", 1)


async def test_work_is_done_in_order_and_its_failure_ends_it() -> None:
    done: list[int] = []

    async def read_some() -> AsyncIterator[list[Part]]:
        for number in range(5):
            yield [Part("demo", number, b"", 0, 0)]

    def work(parts: list[Part]) -> None:
        if parts[0].row == 3:
            raise OSError("full")
        done.append(parts[0].row)

    with pytest.raises(OSError, match="full"):
        await work_through(read_some(), work)
    assert done == [0, 1, 2]
