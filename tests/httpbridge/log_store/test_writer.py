"""The log store of several workers: what each of them stores by way of the one writer of a SQLite file."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop

from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.chunk import Chunk
from httpbridge.log_store.encoding import chunks_of, encode
from httpbridge.log_store.group_commit import GroupCommit
from httpbridge.log_store.idempotency import IdempotencyKey
from httpbridge.log_store.origin_store import OriginCount, OriginStore
from httpbridge.log_store.sink import SqlSink, store_at
from httpbridge.log_store.writer import Writer, serve_writer
from httpbridge.log_store.writer_client import ANSWER_SECONDS_MAX, RemoteStore
from httpbridge.logs import Level, LogBatch, LogEntry
from tests.contract.test_log_sink import counted
from tests.httpbridge.log_store.test_sqlite_store import noise
from tests.stored_chunks import SELECT, entries_of

NOW = datetime(2026, 11, 23, 20, 15, 0, 123456, tzinfo=UTC)


class Clock:
    """Moves on at each look, so that every check is a probe."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        self.seconds += 10
        return self.seconds


@dataclass
class Files:
    """Where the store is, and where its writer listens."""

    store: Path
    socket: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.store}"

    def entries(self) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.store)) as connection:
            return entries_of(connection.execute(SELECT))

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.entries()]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """Name the files; the socket's path is relative, as long ones cannot be bound."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("httpbridge.log_store.sqlite_writes.BUSY_SECONDS_MAX", 0.1)
    return Files(tmp_path / "logs.db", Path("log-writer"))


@asynccontextmanager
async def writing(files: Files) -> AsyncIterator[asyncio.Task[None]]:
    """Run the writer; give its task, to cancel for a sudden end."""
    stop, started = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(serve_writer(files.url, files.socket, stop, started.set))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    try:
        yield task
    finally:
        stop.set()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


@asynccontextmanager
async def worker(
    files: Files, store: RemoteStore | None = None, answer_seconds_max: float = ANSWER_SECONDS_MAX
) -> AsyncIterator[SqlSink]:
    store = store or RemoteStore(files.socket, answer_seconds_max)
    sink = SqlSink(store, monotonic=Clock(), bounds=None)
    try:
        yield sink
    finally:
        await sink.close()


def batch(*messages: str, project_id: str = "demo", **fields: Any) -> LogBatch:
    entries = [LogEntry(Level.INFO, message, **fields) for message in messages]
    return LogBatch(project_id, "key-1", NOW, "api", "production", None, entries)


async def test_batches_of_all_workers_are_stored_whole(files: Files) -> None:
    stores = [RemoteStore(files.socket) for _ in range(2)]
    groups = [counted(store) for store in stores]
    async with writing(files), worker(files, stores[0]) as first, worker(files, stores[1]) as second:
        batches = [[f"{number} {part}" for part in "abc"] for number in range(300)]
        await asyncio.gather(
            *((first, second)[number % 2].write(batch(*messages)) for number, messages in enumerate(batches))
        )
        await first.check()
    stored = files.messages()
    assert sorted(stored[i : i + 3] for i in range(0, len(stored), 3)) == sorted(batches)
    assert [len(sizes) < 20 for sizes in groups] == [True, True]


async def test_the_largest_batch_fits(files: Files) -> None:
    message = noise(5_242_880)
    async with writing(files), worker(files) as sink:
        await sink.write(batch(message, *("y" * 999)))
    assert files.messages() == [message, *("y" * 999)]


async def test_a_store_that_is_locked_is_unavailable_to_every_worker_until_it_is_back(files: Files) -> None:
    async with writing(files), worker(files) as first, worker(files) as second:
        with closing(sqlite3.connect(files.store, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            outcomes = await asyncio.gather(first.write(batch("a")), second.write(batch("b")), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [StoreUnavailableError] * 2
            with pytest.raises(StoreUnavailableError, match="locked"):
                await first.check()
        await first.write(batch("a"))
        await second.check()
    assert files.messages() == ["a"]


async def test_a_store_that_was_moved_is_unavailable_to_every_worker_until_it_is_back(files: Files) -> None:
    """Neither a log nor a count of origins makes another one in its place."""
    moved = files.store.with_name("old.db")
    async with writing(files), worker(files) as first, worker(files) as second:
        await first.write(batch("before"))
        files.store.rename(moved)
        for sink in (first, second):
            with pytest.raises(StoreUnavailableError, match="moved, removed or replaced"):
                await sink.write(batch("refused"))
            with pytest.raises(StoreUnavailableError, match=str(files.store)):
                await sink.check()
        origins = RemoteStore(files.socket)
        with pytest.raises(StoreUnavailableError):
            await origins.add([OriginCount("demo", NOW, "https://a.example", 2, 1)], NOW)
        await origins.close()
        assert not files.store.exists()
        moved.rename(files.store)
        await second.write(batch("after"))
        await first.check()
    assert files.messages() == ["before", "after"]


async def test_without_a_writer_all_is_unavailable_and_the_next_writer_is_found(files: Files) -> None:
    async with worker(files) as sink:
        with pytest.raises(StoreUnavailableError, match="not running"):
            await sink.write(batch("too early"))
        async with writing(files) as task:
            await sink.write(batch("first"))
            task.cancel()
        with pytest.raises(StoreUnavailableError, match="not running"):
            await sink.check()
        with pytest.raises(StoreUnavailableError, match="not running"):
            await sink.write(batch("between"))
        async with writing(files):
            await sink.write(batch("second"))
            await sink.check()
            await sink.close()
    assert files.messages() == ["first", "second"]


async def test_what_waits_when_the_writer_ends_is_unavailable(files: Files) -> None:
    """The commit is held by a lock meanwhile, and so is the writer's end."""
    store = RemoteStore(files.socket)
    groups = counted(store)
    async with worker(files, store) as sink, writing(files) as task:
        await sink.check()
        with closing(sqlite3.connect(files.store, isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            writes = [asyncio.create_task(sink.write(batch(str(number)))) for number in range(3)]
            while not groups:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait(writes)
    for write in writes:
        assert isinstance(write.exception(), StoreUnavailableError)


# A log writer in a process of its own.
WRITER = """
import asyncio, sys
from pathlib import Path
from httpbridge.log_store.writer import serve_writer
asyncio.run(serve_writer(sys.argv[1], Path(sys.argv[2]), asyncio.Event(), lambda: print("listens", flush=True)))
"""


async def test_a_writer_that_hangs_is_unavailable_in_time_until_it_goes_on(files: Files) -> None:
    command = [sys.executable, "-c", WRITER, files.url, str(files.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:  # noqa: ASYNC220 - it begins at once
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"listens\n"
            async with worker(files) as patient, worker(files, answer_seconds_max=0.2) as hasty:
                await patient.check()
                writer.send_signal(signal.SIGSTOP)
                async with asyncio.timeout(20):
                    writes = [hasty.write(batch(str(number))) for number in range(3)]
                    outcomes = await asyncio.gather(*writes, hasty.check(), return_exceptions=True)
                assert [str(outcome) for outcome in outcomes] == ["no answer from the log writer in 0.2 s"] * 4
                writer.send_signal(signal.SIGCONT)
                await patient.write(batch("afterwards"))
        finally:
            writer.kill()
    assert "afterwards" in files.messages()


async def test_origins_are_counted_by_way_of_the_writer(files: Files) -> None:
    hour = NOW.replace(minute=0, second=0, microsecond=0)
    stores = [RemoteStore(files.socket) for _ in range(2)]
    async with writing(files):
        for store in stores:
            await store.add([OriginCount("demo", hour, "https://a.example", 2, 1)], NOW)
            await store.close()
    with closing(sqlite3.connect(files.store)) as connection:
        counts = connection.execute("SELECT origin, allowed, blocked FROM origin_counts").fetchall()
    assert counts == [("https://a.example", 4, 2)]
    with pytest.raises(StoreUnavailableError):
        await stores[0].add([], NOW)


async def test_a_store_that_cannot_be_used_ends_the_writer(files: Files) -> None:
    files.store.write_text("not a database, and long enough to be taken for one " * 20)
    with pytest.raises(StoreSetupError):
        async with writing(files):
            pass


async def test_a_worker_that_breaks_off_disturbs_nobody(files: Files) -> None:
    async with writing(files), worker(files) as sink:
        for data in (b"\0\0", b"\0\0\0\7half", b""):
            _, torn = await asyncio.open_unix_connection(files.socket)
            torn.write(data)
            torn.close()
            await torn.wait_closed()
        await sink.write(batch("whole"))
    assert files.messages() == ["whole"]


HEAVY = noise(1_000_000)


async def test_a_light_batch_goes_past_heavy_ones_of_its_worker_and_of_others(files: Files) -> None:
    """Here the heavy ones are never committed, until it is."""
    store = store_at(files.url)
    await store.open()
    commit, gate = store.commit, asyncio.Event()
    committing: asyncio.Queue[None] = asyncio.Queue()

    async def held(chunks: list[Chunk]) -> list[int]:
        if chunks[0].size >= len(HEAVY):
            committing.put_nowait(None)
            await gate.wait()
        return await commit(chunks)

    store.commit = held  # type: ignore[method-assign]
    writer = Writer(store, OriginStore(files.url, store.probe))
    listener = await asyncio.start_unix_server(writer.serve, files.socket)
    async with worker(files) as first, worker(files) as second:
        heavy = [
            asyncio.create_task(sink.write(batch(HEAVY, project_id="greedy")))
            for sink in (first, second)
            for _ in range(3)
        ]
        await committing.get()
        for number, sink in enumerate((first, second)):
            await sink.write(batch(str(number)))
            await sink.check()
        assert files.messages() == ["0", "1"]
        gate.set()
        await asyncio.gather(*heavy)
    listener.close()
    await writer.close()
    assert len(files.messages()) == 8


async def test_a_project_has_one_turn_whatever_the_number_of_workers_that_bring_its_batches(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker brings of several projects together has a turn of that worker's."""
    owners: list[str] = []
    submit = GroupCommit.submit

    def noted(group_commit: GroupCommit[list[Chunk]], item: list[Chunk], weight: int, owner: str) -> Any:
        owners.append(owner)
        return submit(group_commit, item, weight, owner)

    async with writing(files):
        stores = [RemoteStore(files.socket) for _ in range(2)]
        chunks = {name: chunks_of([encode(batch("x", project_id=name))]) for name in ("a", "b")}
        monkeypatch.setattr(GroupCommit, "submit", noted)
        for store in stores:
            await store.commit(chunks["a"] * 2)
            await store.commit(chunks["a"] + chunks["b"])
            await store.commit(chunks["b"])
            await store.close()
    assert [owner for owner in owners if owner in chunks] == ["a", "b", "a", "b"]
    assert len(owners) == 6
    assert len(set(owners) - set(chunks)) == 2


async def test_conflicts_of_one_commit_reach_the_workers_that_sent_them(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their places in what each of them sent; everything else of the commit is stored."""
    store = store_at(files.url)
    await store.open()
    commit, gate = store.commit, asyncio.Event()
    commits: list[int] = []

    async def held(chunks: list[Chunk]) -> list[int]:
        commits.append(len(chunks))
        await gate.wait()
        return await commit(chunks)

    submit = GroupCommit.submit
    submitted: asyncio.Queue[None] = asyncio.Queue()

    def noted(*arguments: Any) -> Any:
        submitted.put_nowait(None)
        return submit(*arguments)

    store.commit = held  # type: ignore[method-assign]
    monkeypatch.setattr(GroupCommit, "submit", noted)
    writer = Writer(store, OriginStore(files.url, store.probe))
    listener = await asyncio.start_unix_server(writer.serve, files.socket)
    workers = [RemoteStore(files.socket) for _ in range(3)]

    async def send(worker: RemoteStore, *messages: str) -> list[int]:
        """Each with its first character as its key, and with none if that is a dash."""
        keys = [None if message[0] == "-" else IdempotencyKey(message[0], message.encode()) for message in messages]
        return await worker.commit(
            [chunks_of([encode(batch(m), key)])[0] for m, key in zip(messages, keys, strict=True)]
        )

    sent = [
        ("a", "b"),
        ("-1", "c", "a again", "d"),
        ("b", "c", "c again", "-2", "b again", "e"),
    ]
    sending = []
    for worker, messages in zip(workers, sent, strict=True):
        sending.append(asyncio.create_task(send(worker, *messages)))
        await submitted.get()
    gate.set()
    assert await asyncio.gather(*sending) == [[], [2], [2, 4]]
    assert commits == [2, 10]
    for worker in workers:
        await worker.close()
    listener.close()
    await writer.close()
    assert files.messages() == ["a", "b", "-1", "c", "d", "-2", "e"]


def test_a_writer_that_stops_during_a_commit_stores_it_and_leaves_no_error(files: Files) -> None:
    """On the event loop that the product runs on: asyncio's own forgives who writes to a worker that was hung up on."""
    errors: list[dict[str, Any]] = []

    async def stop() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        store = store_at(files.url)
        await store.open()
        committing, gate = asyncio.Event(), asyncio.Event()
        commit = store.commit

        async def held(chunks: list[Chunk]) -> list[int]:
            committing.set()
            await gate.wait()
            return await commit(chunks)

        store.commit = held  # type: ignore[method-assign]
        writer = Writer(store, OriginStore(files.url, store.probe))
        listener = await asyncio.start_unix_server(writer.serve, files.socket)
        async with worker(files) as sink:
            write = asyncio.create_task(sink.write(batch("a")))
            await committing.wait()
            closing = asyncio.create_task(writer.close())
            with pytest.raises(StoreUnavailableError):
                await write
            gate.set()
            await closing
        listener.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(stop())
    assert errors == []
    assert files.messages() == ["a"]
