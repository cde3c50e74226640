"""The SQL sink on SQLite: its durability settings, locks, full disks and its WAL."""

import asyncio
import base64
import errno
import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog

from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.chunk import Chunk
from httpbridge.log_store.encoding import chunks_of, encode
from httpbridge.log_store.origin_store import OriginCount, OriginStore
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.schema import chunks, create_tables
from httpbridge.log_store.sink import open_sql_sink
from httpbridge.log_store.sqlite_store import SqliteStore
from httpbridge.log_store.sqlite_writes import connect, engine_of, insert_chunks, is_one_statement
from tests.contract.test_log_sink import Clock, batch, sink_on, stored_messages
from tests.stored_chunks import entries_of

# Holds the file's lock until its standard input ends.
LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another process holds the file's lock."""
    command = [sys.executable, "-c", LOCKER, url.removeprefix("sqlite:///")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as locker:
        assert locker.stdin is not None
        assert locker.stdout is not None
        assert locker.stdout.readline() == b"locked\n"
        yield
        locker.stdin.close()


async def test_another_processes_lock_is_unavailable_until_it_ends(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A locked file is neither waited for without end nor fatal, and what was refused is not stored."""
    monkeypatch.setattr("httpbridge.log_store.sqlite_writes.BUSY_SECONDS_MAX", 0.1)
    clock = Clock()
    async with sink_on(sqlite_url, monotonic=clock) as sink:
        await sink.write(batch("before"))
        with locked(sqlite_url):
            with pytest.raises(StoreUnavailableError, match="locked"):
                await sink.write(batch("refused"))
            clock.seconds += 10
            with pytest.raises(StoreUnavailableError, match="locked"):
                await sink.check()
        clock.seconds += 10
        await sink.check()
        await sink.write(batch("after"))
    assert await stored_messages(sqlite_url) == ["before", "after"]


async def test_the_bridge_may_start_while_the_file_is_locked(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpbridge.log_store.sqlite_writes.BUSY_SECONDS_MAX", 0.1)
    with locked(sqlite_url):
        sink = await open_sql_sink(sqlite_url, monotonic=Clock())
        with pytest.raises(StoreUnavailableError, match="locked"):
            await sink.check()
    await sink.write(batch("first"))
    await sink.close()
    assert await stored_messages(sqlite_url) == ["first"]


# Writes until the file size limit of its own process refuses, which SQLite sees as an
# error of the disk; then has the limit lifted, and writes again.
FULL_DISK = """
import asyncio, resource, signal, sys
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store.sink import open_sql_sink
from tests.contract.test_log_sink import batch
from tests.httpbridge.log_store.test_sqlite_store import noise

async def main():
    seconds = 0.0
    sink = await open_sql_sink(sys.argv[1], monotonic=lambda: seconds)
    await sink.write(batch("before"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    for text in (noise(300_000), "small"):
        try:
            await sink.write(batch(text))
        except StoreUnavailableError as error:
            print("refused", error)
        else:
            print("stored")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    seconds += 10
    try:
        await sink.check()
    except StoreUnavailableError:
        print("check refused")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    seconds += 10
    await sink.check()
    await sink.write(batch("after"))
    await sink.close()

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
asyncio.run(main())
"""


async def test_a_full_disk_is_unavailable_until_there_is_room(sqlite_url: str) -> None:
    """A batch that does not fit is refused whole; `check` notices by writing; room is all that is needed to go on."""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", FULL_DISK, sqlite_url], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("refused", "stored", "check"))]
    assert lines[0].startswith("refused")
    assert lines[1:] == ["stored", "check refused"]
    assert await stored_messages(sqlite_url) == ["before", "small", "after"]


@pytest.mark.parametrize(
    "fault", [OSError(errno.EIO, "Input/output error"), sqlite3.OperationalError("disk I/O error")]
)
async def test_a_disk_that_fails_is_unavailable_until_it_is_read_again(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """Nobody can tell then whether somebody overwrote the file."""

    def fail(*_: object) -> bytes:
        raise fault

    clock = Clock()
    async with sink_on(sqlite_url, monotonic=clock) as sink:
        await sink.write(batch("before"))
        with monkeypatch.context() as disk:
            disk.setattr("authsvc.runtime.sqlite_files.os.pread", fail)
            with pytest.raises(StoreUnavailableError, match=r"/output error|disk I/O error"):
                await sink.write(batch("refused"))
            clock.seconds += 10
            with pytest.raises(StoreUnavailableError, match=r"/output error|disk I/O error"):
                await sink.check()
        clock.seconds += 10
        await sink.check()
        await sink.write(batch("after"))
    assert await stored_messages(sqlite_url) == ["before", "after"]


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
async def test_a_store_in_memory_is_refused(url: str) -> None:
    with pytest.raises(StoreSetupError, match="needs a file"):
        await open_sql_sink(url, monotonic=Clock())


async def test_a_path_that_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "logs.db"
    with pytest.raises(StoreSetupError) as refused:
        await open_sql_sink(f"sqlite:///{path}", monotonic=Clock())
    assert str(path) in str(refused.value)
    assert "unable to open database file" in str(refused.value)
    assert "\n" not in str(refused.value)


async def test_a_file_that_is_no_database_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "logs.db").write_text("this is no database, and long enough to be seen as none" * 20)
    with pytest.raises(StoreSetupError, match="file is not a database"):
        await open_sql_sink(f"sqlite:///{tmp_path / 'logs.db'}", monotonic=Clock())


async def test_the_wal_stays_bounded_under_writes_without_a_pause(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 MB go through a WAL of a few; a clean end leaves none."""
    monkeypatch.setattr("httpbridge.log_store.sqlite_store.CHECKPOINT_BYTES", 2_000_000)
    path = sqlite_url.removeprefix("sqlite:///") + "-wal"
    async with sink_on(sqlite_url) as sink:
        for _ in range(150):
            await sink.write(batch(noise(200_000)))
        assert 0 < size(path) < 6_000_000
    assert size(path) == 0


@contextmanager
def held_checkpoints() -> Iterator[threading.Event]:
    """Hold what copies the WAL where it connects, as a disk does that is slow, until the event is set."""
    go_on = threading.Event()
    connect = sqlite3.connect

    def hold(*arguments: Any, **options: Any) -> Any:
        if threading.current_thread().name.startswith("checkpoint"):
            go_on.wait()
        return connect(*arguments, **options)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sqlite3, "connect", hold)
        try:
            yield go_on
        finally:
            go_on.set()


async def test_commits_wait_for_a_checkpoint_that_they_are_far_ahead_of(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httpbridge.log_store.sqlite_store.CHECKPOINT_BYTES", 100_000)
    path = sqlite_url.removeprefix("sqlite:///") + "-wal"
    async with sink_on(sqlite_url) as sink:

        async def write() -> None:
            for _ in range(60):
                await sink.write(batch(noise(20_000)))

        with held_checkpoints() as go_on:
            writing = asyncio.create_task(write())
            await asyncio.wait([writing], timeout=2.0)
            assert not writing.done()
            assert 100_000 < size(path) < 600_000
            go_on.set()
            await writing
    assert len(await stored_messages(sqlite_url)) == 60


async def test_who_makes_the_wal_grow_waits_for_its_checkpoint_and_nobody_else(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else others would wait while what large batches brought during the checkpoint is copied after it."""
    monkeypatch.setattr("httpbridge.log_store.sqlite_store.CHECKPOINT_BYTES", 1_000_000)
    large = batch(noise(1_600_000))
    async with sink_on(sqlite_url) as sink:
        with held_checkpoints() as go_on:
            await sink.write(large)
            waiting = asyncio.create_task(sink.write(large))
            for number in range(3):
                await sink.write(batch(str(number)))
            assert not waiting.done()
            go_on.set()
            await waiting
    assert [len(message) for message in await stored_messages(sqlite_url)] == [1_600_000, 1, 1, 1, 1_600_000]


def reader(url: str) -> sqlite3.Connection:
    """Begin to read: what is committed from now on cannot be copied out of the WAL before this ends."""
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT count(*) FROM chunks").fetchall()
    return connection


@pytest.mark.parametrize("takes_turns", [False, True], ids=["one", "one after the other"])
async def test_a_wal_that_readers_keep_growing_is_told_of_once_and_once_that_it_is_small_again(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, takes_turns: bool
) -> None:
    """Readers that overlap keep it, too, though each of them ends."""
    monkeypatch.setattr("httpbridge.log_store.sqlite_store.CHECKPOINT_BYTES", 100_000)
    path = sqlite_url.removeprefix("sqlite:///") + "-wal"
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("first"))
        readers = [reader(sqlite_url)]
        with structlog.testing.capture_logs() as lines:
            for _ in range(100):
                await sink.write(batch(noise(50_000)))
                readers.append(reader(sqlite_url))
                readers.pop(0 if takes_turns and len(readers) > 2 else -1).close()
            assert [line["event"] for line in lines] == ["log_wal_held"]
            assert lines[0]["file"] == path
            assert 800_000 < lines[0]["bytes"] <= size(path)
            for left in readers:
                left.close()
            for _ in range(50):
                await sink.write(batch(noise(50_000)))
            assert [line["event"] for line in lines] == ["log_wal_held", "log_wal_released"]


def noise(characters: int) -> str:
    """Return a text that takes about three quarters as many bytes compressed, always the same one."""
    return base64.b64encode(random.Random(characters).randbytes(characters)).decode()[:characters]


def size(path: str) -> int:
    return Path(path).stat().st_size if Path(path).exists() else 0


Files = tuple[Path, Path]
"""The store, and its WAL."""


def unlink(files: Files) -> None:
    for path in files:
        path.unlink()


def unlink_wal(files: Files) -> None:
    files[1].unlink()


def unlink_shm(files: Files) -> None:
    Path(f"{files[0]}-shm").unlink()


def overwrite(files: Files) -> None:
    """As `cp` does: it is the same file afterwards."""
    other = files[0].with_name("other.db")
    with closing(sqlite3.connect(other)) as connection:
        connection.executescript("PRAGMA journal_mode = WAL; CREATE TABLE other (text TEXT)")
    files[0].write_bytes(other.read_bytes())
    other.unlink()


def truncate(files: Files) -> None:
    files[0].write_bytes(b"")


def overwrite_wal(files: Files) -> None:
    files[1].write_bytes(b"\0" * files[1].stat().st_size)


def move(files: Files) -> None:
    files[0].rename(files[0].with_name("old.db"))


def replace(files: Files) -> None:
    """Move the store away, and put another one in its place, which has a WAL of its own."""
    for path in files:
        path.rename(path.with_name(f"old-{path.name}"))
    Path(f"{files[0]}-shm").unlink()
    with closing(sqlite3.connect(files[0])) as other:
        other.executescript("PRAGMA journal_mode = WAL; CREATE TABLE other (text TEXT)")


def files_of(url: str) -> Files:
    path = url.removeprefix("sqlite:///")
    return Path(path), Path(f"{path}-wal")


LOSSES = [unlink, unlink_wal, unlink_shm, move, replace, overwrite, truncate, overwrite_wal]


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_store_that_is_no_longer_where_it_was_takes_nothing(
    sqlite_url: str, lose: Callable[[Files], None]
) -> None:
    """Neither a write nor a check is answered as if it were, no file is made in its place, and the log says why."""
    clock = Clock()
    files = files_of(sqlite_url)
    async with sink_on(sqlite_url, monotonic=clock) as sink:
        await sink.write(batch("before"))
        lose(files)
        left = sorted(path.name for path in files[0].parent.iterdir())
        clock.seconds += 10
        with structlog.testing.capture_logs() as lines:
            with pytest.raises(StoreUnavailableError, match=r"moved, removed or replaced|was overwritten"):
                await sink.check()
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match=str(files[0])):
                    await sink.write(batch("refused"))
        assert [line["event"] for line in lines] == ["log_store_lost"]
        assert str(files[0]) in lines[0]["reason"]
        assert sorted(path.name for path in files[0].parent.iterdir()) == left


def test_any_number_of_chunks_is_inserted_by_a_few_statements(tmp_path: Path) -> None:
    """A connection keeps statements, and SQLite what each was given last: megabytes with one for each number."""
    path = tmp_path / "logs.db"
    with closing(connect(path)) as connection, engine_of(connection).begin() as begun:
        create_tables(begun)
    texts: list[str] = []

    class Noting(sqlite3.Connection):
        def execute(self, text: str, *parameters: Any) -> sqlite3.Cursor:
            texts.append(text)
            return super().execute(text, *parameters)

    (chunk,) = chunks_of([encode(batch("x"))])
    with closing(sqlite3.connect(path, factory=Noting, isolation_level=None)) as connection:
        statements: set[str] = set()
        for number in range(1, 200):
            insert_chunks(connection, [chunk] * number)
            assert is_one_statement(number) == (len(texts) == 1)
            statements.update(texts)
            ((stored,),) = connection.execute("SELECT count(*) FROM chunks")
            assert stored == number * (number + 1) // 2
            texts.clear()
    assert len(statements) == 7


async def test_a_store_that_is_moved_back_goes_on_with_all_it_had(sqlite_url: str) -> None:
    files = files_of(sqlite_url)
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("before"))
        move(files)
        with pytest.raises(StoreUnavailableError):
            await sink.write(batch("refused"))
        files[0].with_name("old.db").rename(files[0])
        with structlog.testing.capture_logs() as lines:
            await sink.write(batch("after"))
        assert [line["event"] for line in lines] == ["log_store_back"]
    assert await stored_messages(sqlite_url) == ["before", "after"]


async def test_a_batch_whose_store_goes_while_it_is_written_is_not_acknowledged(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was in its place as the commit began. Once it is back, the batch is there, whole."""
    files = files_of(sqlite_url)

    def insert_and_lose(connection: sqlite3.Connection, chunks: list[Chunk]) -> None:
        insert_chunks(connection, chunks)
        move(files)

    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("before"))
        monkeypatch.setattr("httpbridge.log_store.sqlite_store.insert_chunks", insert_and_lose)
        with pytest.raises(StoreUnavailableError, match="moved, removed or replaced"):
            await sink.write(batch("meanwhile"))
        monkeypatch.undo()
        files[0].with_name("old.db").rename(files[0])
        await sink.write(batch("after"))
    assert await stored_messages(sqlite_url) == ["before", "meanwhile", "after"]


async def test_a_store_that_took_anothers_place_is_not_spoilt_by_the_others_wal(sqlite_url: str) -> None:
    """Which goes to its own file, when the bridge ends."""
    files = files_of(sqlite_url)
    old, new = files[0].with_name("old.db"), files[0].with_name("new.db")
    async with sink_on(f"sqlite:///{new}") as other:
        await other.write(batch("new"))
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("old"))
        files[0].rename(old)
        new.rename(files[0])
        with pytest.raises(StoreUnavailableError, match="moved, removed or replaced"):
            await sink.write(batch("refused"))
    assert await stored_messages(sqlite_url) == ["new"]
    assert await stored_messages(f"sqlite:///{old}") == ["old"]


async def test_who_reads_a_store_reads_the_one_that_is_there_now(sqlite_url: str) -> None:
    """Not the one that was, over a connection that is kept."""
    files = files_of(sqlite_url)
    new = files[0].with_name("new.db")
    for url, text in ((sqlite_url, "old"), (f"sqlite:///{new}", "new")):
        async with sink_on(url) as sink:
            await sink.write(batch(text))
    store = ReadStore(sqlite_url)
    read = sa.select(chunks.c.id, chunks.c.project_id, chunks.c.content)
    assert [entry["message"] for entry in entries_of(await store.rows(read))] == ["old"]
    new.rename(files[0])
    assert [entry["message"] for entry in entries_of(await store.rows(read))] == ["new"]
    await store.close()


async def test_what_only_a_removed_wal_has_is_in_the_store_once_it_is_closed(sqlite_url: str) -> None:
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("in the WAL"))
        unlink_wal(files_of(sqlite_url))
    assert await stored_messages(sqlite_url) == ["in the WAL"]


async def test_another_store_in_its_place_keeps_its_wal_when_the_old_one_is_closed(sqlite_url: str) -> None:
    """And the next start opens it."""
    files = files_of(sqlite_url)
    with ExitStack() as stack:
        async with sink_on(sqlite_url) as sink:
            await sink.write(batch("before"))
            replace(files)
            other = stack.enter_context(closing(sqlite3.connect(files[0])))
            other.execute("INSERT INTO other VALUES ('in the WAL')")
            other.commit()
            wal_bytes = size(str(files[1]))
        assert size(str(files[1])) == wal_bytes > 0
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("after"))
        with closing(sqlite3.connect(files[0])) as other:
            assert other.execute("SELECT text FROM other").fetchall() == [("in the WAL",)]
    assert await stored_messages(sqlite_url) == ["after"]


async def test_counts_of_origins_leave_a_store_alone_that_took_the_others_place(sqlite_url: str) -> None:
    """Opening it beside the WAL of the old one would put that into it."""
    files, clock = files_of(sqlite_url), Clock()
    new = files[0].with_name("new.db")
    async with sink_on(f"sqlite:///{new}") as other:
        await other.write(batch("new"))
    content = new.read_bytes()
    async with sink_on(sqlite_url, monotonic=clock) as sink:
        await sink.write(batch("old, in the WAL"))
        new.rename(files[0])
        origins = OriginStore(sqlite_url, sink.check)
        now = datetime(2026, 1, 31, 8, tzinfo=UTC)
        with pytest.raises(StoreUnavailableError, match="moved, removed or replaced"):
            await origins.add([OriginCount("demo", now, "https://a.example", 1, 0)], now)
        await origins.close()
        assert files[0].read_bytes() == content
        assert size(str(files[1])) > 0


async def test_no_checkpoint_makes_a_file_in_the_place_of_one_that_is_released(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httpbridge.log_store.sqlite_store.CHECKPOINT_BYTES", 0)
    copy_wal = SqliteStore._copy_wal
    files = files_of(sqlite_url)

    def lose_and_copy(store: SqliteStore) -> None:
        move(files)
        copy_wal(store)

    monkeypatch.setattr(SqliteStore, "_copy_wal", lose_and_copy)
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("before"))
    assert not files[0].exists()


@pytest.mark.parametrize("is_disconnected", [False, True])
async def test_a_store_that_was_moved_is_not_made_anew_after_an_error_either(
    sqlite_url: str, is_disconnected: bool
) -> None:
    files = files_of(sqlite_url)
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("before"))
        if is_disconnected:
            with closing(sqlite3.connect(files[0])) as other:
                other.execute("ALTER TABLE chunks RENAME TO elsewhere")
            with pytest.raises(StoreUnavailableError, match="no such table"):
                await sink.write(batch("refused"))
        move(files)
        with pytest.raises(StoreUnavailableError, match="moved, removed or replaced"):
            await sink.write(batch("refused"))
        assert not files[0].exists()


async def test_a_store_is_not_made_where_the_wal_of_a_moved_one_has_its_last_rows(sqlite_url: str) -> None:
    """SQLite would delete it. Once the file is back, all of it is."""
    files = files_of(sqlite_url)
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("in the WAL"))
        move(files)
    with pytest.raises(StoreSetupError, match=r"\.db is missing, and .*\.db-wal has what was stored"):
        await open_sql_sink(sqlite_url, monotonic=Clock())
    files[0].with_name("old.db").rename(files[0])
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("after"))
    assert await stored_messages(sqlite_url) == ["in the WAL", "after"]


async def test_the_file_may_be_behind_a_link(tmp_path: Path) -> None:
    """Its WAL is where the file is."""
    (tmp_path / "disk").mkdir()
    link = tmp_path / "logs.db"
    link.symlink_to(tmp_path / "disk" / "stored.db")
    async with sink_on(f"sqlite:///{link}") as sink:
        await sink.write(batch("first"))
        await sink.write(batch("second"))
        link.unlink()
        with pytest.raises(StoreUnavailableError, match="moved, removed or replaced"):
            await sink.write(batch("refused"))
    assert await stored_messages(f"sqlite:///{tmp_path / 'disk' / 'stored.db'}") == ["first", "second"]


async def test_a_store_that_was_lost_heals_and_says_so_once(sqlite_url: str) -> None:
    """Tables are made anew; the loss and the return are a log line each, without a row's content."""
    async with sink_on(sqlite_url) as sink:
        with structlog.testing.capture_logs() as lines:
            await sink.write(batch("before"))
            other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
            other.execute("ALTER TABLE chunks DROP COLUMN size")
            for _ in range(2):
                with pytest.raises(StoreUnavailableError, match="no column named size"):
                    await sink.write(batch("secret"))
            other.execute("DROP TABLE chunks")
            other.close()
            with pytest.raises(StoreUnavailableError):
                await sink.check()
            await sink.write(batch("after"))
            await sink.write(batch("and on"))
    assert await stored_messages(sqlite_url) == ["after", "and on"]
    assert [line["event"] for line in lines] == ["log_store_lost", "log_store_back"]
    assert "no column named size" in lines[0]["reason"]
    assert "secret" not in str(lines)
