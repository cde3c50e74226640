"""`httpbridge logs`: what it shows of a real store, and how."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from httpbridge.cli.log_view import json_line, show_logs, text_line
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.reader import read
from httpbridge.log_store.selection import LogFilter, StoredLog
from httpbridge.logs import Level, LogEntry
from httpbridge.text import parse_since, printable
from tests.contract.test_log_sink import RECEIVED_AT, batch, sink_on
from tests.stored_chunks import COLUMNS, chunk_values

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


async def insert(connection: asyncpg.Connection, message: str) -> None:
    """Store an entry, as another bridge does."""
    await connection.execute(
        f"INSERT INTO chunks ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        *chunk_values(batch(entries=[LogEntry(Level.INFO, message, timestamp=datetime(2026, 12, 1, tzinfo=UTC))])),
    )


def entry(message: str, minute: int = 0, level: Level = Level.INFO) -> LogEntry:
    return LogEntry(level, message, timestamp=NOON + timedelta(minutes=minute))


async def shown(url: str, selection: LogFilter) -> list[str]:
    """List the messages, in order."""
    lines: list[str] = []
    await show_logs(url, selection, follow=False, as_json=True, color=False, write=lines.append)
    return [json.loads(line)["message"] for line in lines]


class Follower:
    """Follows a store; it polls only when the test says so."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.polls: asyncio.Queue[None] = asyncio.Queue()
        self.idle = asyncio.Event()

    async def sleep(self, _seconds: float) -> None:
        self.idle.set()
        await self.polls.get()

    def write(self, line: str) -> None:
        self.messages.append(json.loads(line)["message"])

    async def poll(self) -> list[str]:
        """Let it ask once, and return what it showed because of that."""
        await self.idle.wait()
        self.idle.clear()
        shown_before = len(self.messages)
        self.polls.put_nowait(None)
        await self.idle.wait()
        return self.messages[shown_before:]


@asynccontextmanager
async def following(url: str, selection: LogFilter) -> AsyncIterator[Follower]:
    follower = Follower()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(
            show_logs(
                url, selection, follow=True, as_json=True, color=False, write=follower.write, sleep=follower.sleep
            )
        )
        yield follower
        task.cancel()


async def test_a_follower_is_told_of_what_it_does_not_see(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("httpbridge.log_store.tail.ENTRIES_MAX", 5)
    async with sink_on(database_url) as sink:
        await sink.write(batch("before"))
        async with following(database_url, LogFilter(project_id="demo")) as follower:
            await follower.poll()
            assert capsys.readouterr().err == ""
            for number in range(3):
                await sink.write(batch(*[str(number)] * 3))
            assert await follower.poll() == ["2", "2", "2"]
            assert "some entries are missing here: too many arrived at once" in capsys.readouterr().err


async def test_the_newest_hundred_are_listed_newest_last(database_url: str) -> None:
    """By their timestamp, not by when they arrived; entries of one instant stay in their order."""
    entries = [entry(str(minute), minute) for minute in range(150)]
    async with sink_on(database_url) as sink:
        await sink.write(batch(entries=[*reversed(entries), entry("149 too", 149)]))
        await sink.write(batch("of another project", project_id="other"))
        expected = [str(minute) for minute in range(51, 150)] + ["149 too"]
        assert await shown(database_url, LogFilter(project_id="demo")) == expected
        assert await shown(database_url, LogFilter(project_id="none")) == []


async def test_since_lists_all_from_that_instant_on(database_url: str) -> None:
    """Page after page, the instant itself included."""
    async with sink_on(database_url) as sink:
        for start in range(0, 2500, 1000):
            await sink.write(batch(entries=[entry(str(n), n // 2) for n in range(start, min(start + 1000, 2500))]))
        selection = LogFilter(project_id="demo", since=NOON + timedelta(minutes=50))
        assert await shown(database_url, selection) == [str(number) for number in range(100, 2500)]


async def test_the_first_and_the_last_instant_are_listed(database_url: str) -> None:
    """Where the driver's own codec would know infinities only, and pages would not move on."""
    instants = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
    async with sink_on(database_url) as sink:
        await sink.write(batch(entries=[LogEntry(Level.INFO, str(i), timestamp=t) for i, t in enumerate(instants)]))
        assert await shown(database_url, LogFilter(project_id="demo", since=instants[0])) == ["0", "1"]
        assert await shown(database_url, LogFilter(project_id="demo", since=instants[1])) == ["1"]


async def test_a_level_means_exactly_that_level(database_url: str) -> None:
    async with sink_on(database_url) as sink:
        await sink.write(batch(entries=[entry(level, level=level) for level in Level]))
        for level in Level:
            assert await shown(database_url, LogFilter(project_id="demo", levels=frozenset([Level(level)]))) == [level]


async def test_following_shows_what_arrives_once_each(database_url: str) -> None:
    """The listing first, then every entry of the selection in the order of arrival, however old its timestamp."""
    async with sink_on(database_url) as sink:
        await sink.write(batch(entries=[entry("listed", 1), entry("too low", 2, Level.DEBUG)]))
        async with following(database_url, LogFilter(project_id="demo", levels=frozenset([Level.INFO]))) as follower:
            assert await follower.poll() == []
            assert follower.messages == ["listed"]
            await sink.write(batch(entries=[entry("new", 3), entry("old", -1), entry("low", 4, Level.DEBUG)]))
            await sink.write(batch("of another project", project_id="other"))
            assert await follower.poll() == ["new", "old"]
            assert await follower.poll() == []
            await sink.write(batch(*(str(number) for number in range(1500))))
            assert await follower.poll() == [str(number) for number in range(1500)]


async def test_following_misses_nothing_that_is_committed_late(postgres_url: str) -> None:
    """Ids that PostgreSQL handed out early and committed late are shown, before and after the start of following."""
    async with sink_on(postgres_url) as sink:
        slow = await asyncpg.connect(postgres_url)
        first = slow.transaction()
        await first.start()
        await insert(slow, "before the start")
        await sink.write(batch("listed"))
        async with following(postgres_url, LogFilter(project_id="demo")) as follower:
            assert await follower.poll() == []
            assert follower.messages == ["listed"]
            await first.commit()
            assert await follower.poll() == ["before the start"]
            second = slow.transaction()
            await second.start()
            await insert(slow, "while following")
            await sink.write(batch("quick"))
            assert await follower.poll() == ["quick"]
            await second.commit()
            assert await follower.poll() == ["while following"]
            assert await follower.poll() == []
        await slow.close()


async def test_what_arrives_during_the_listing_is_shown_once(postgres_url: str) -> None:
    """Whether its id is above those at the start, or below them and committed late."""
    async with sink_on(postgres_url) as sink:
        slow = await asyncpg.connect(postgres_url)
        late = slow.transaction()
        await late.start()
        await insert(slow, "late")
        await sink.write(batch(entries=[entry(str(number), number) for number in range(1500)]))
        store = ReadStore(postgres_url)
        polls = 0

        async def pause() -> None:
            nonlocal polls
            polls += 1
            if polls == 3:
                await sink.write(batch("last"))

        messages = []
        async for log in read(store, LogFilter(project_id="demo", since=NOON), pause):
            messages.append(log.message)
            if log.message == "0":  # the next page is still to come
                await late.commit()
                await sink.write(batch(entries=[entry("new", 2000)]))
            if log.message == "last":
                break
        await store.close()
        await slow.close()
    assert sorted(messages) == sorted([*(str(number) for number in range(1500)), "late", "new", "last"])


async def test_reading_leaves_a_store_without_a_bridge_as_it_is(sqlite_url: str) -> None:
    """The bridge need not run, and the file is opened read-only."""
    async with sink_on(sqlite_url) as sink:
        await sink.write(batch("m"))
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    before = await asyncio.to_thread(path.read_bytes)
    assert await shown(sqlite_url, LogFilter(project_id="demo")) == ["m"]
    assert await asyncio.to_thread(path.read_bytes) == before


async def test_a_file_that_does_not_exist_is_one_clear_line_and_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "logs.db"
    with pytest.raises(StoreSetupError, match="there is no log store at"):
        await shown(f"sqlite:///{path}", LogFilter(project_id="demo"))
    assert list(await asyncio.to_thread(lambda: list(tmp_path.iterdir()))) == []


async def test_a_database_without_logs_is_one_clear_line(postgres_url: str) -> None:
    with pytest.raises(StoreSetupError, match="no bridge has run with it yet"):
        await shown(postgres_url, LogFilter(project_id="demo"))


async def test_a_server_out_of_reach_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailableError, match="the log store cannot be read") as refused:
        await shown(f"postgresql://postgres@/x?host={tmp_path}", LogFilter(project_id="demo"))
    assert "\n" not in str(refused.value)


def stored(**changes: Any) -> StoredLog:
    fields: dict[str, Any] = dict.fromkeys(StoredLog.__struct_fields__)
    fields |= {
        "id": 7, "project_id": "demo", "key_id": "key-1", "received_at": RECEIVED_AT, "service": "api",
        "environment": "production", "level": "warn", "message": "slow", "timestamp": NOON,
    }  # fmt: skip
    return StoredLog(**(fields | changes))


def test_json_has_the_contracts_names_and_the_metadata_as_it_came() -> None:
    """Numbers, order and repeated keys are unchanged; line breaks between values become spaces."""
    log = stored(metadata='{"b": 1.0E+2,\n"a": 123456789012345678901234567890, "b": "x y"}', trace_id="t", release="r")
    assert json_line(log) == (
        '{"id":7,"project_id":"demo","key_id":"key-1","received_at":"2026-11-23T20:15:00.123456Z","service":"api",'
        '"environment":"production","release":"r","level":"warn","message":"slow",'
        '"timestamp":"2026-11-23T12:00:00.000000Z",'
        '"metadata":{"b": 1.0E+2, "a": 123456789012345678901234567890, "b": "x y"},"trace_id":"t"}\n'
    )


HOSTILE = "\x1b[2J\x9b31m\u202eevil\u2066\u200b\r\n\t\x00\x7f\u2028\U000e0041"


def test_hostile_text_does_not_act_on_the_terminal() -> None:
    """Not in any field of either format; JSON keeps its meaning."""
    log = stored(service=HOSTILE, message=HOSTILE, environment=HOSTILE, context=HOSTILE, trace_id=HOSTILE,
                 metadata='{"k": "\x9b31m\u202e\U000e0041"}')  # fmt: skip
    for line in (json_line(log), text_line(log, color=False)):
        assert line[:-1].isprintable()
        assert line[-1] == "\n"
    assert json.loads(json_line(log))["message"] == HOSTILE
    assert json.loads(json_line(log))["metadata"] == {"k": "\x9b31m\u202e\U000e0041"}
    assert r"\x1b[2J\x9b31m\u202eevil\u2066\u200b\r\n\t\x00\x7f\u2028\U000e0041" in text_line(log, color=False)


def test_a_line_for_people() -> None:
    line = text_line(stored(environment="test", metadata='{"a":1}', request_id="r-1"), color=False)
    assert line == ('2026-11-23T12:00:00.000000Z WARN  api slow environment=test request_id=r-1 metadata={"a":1}\n')
    assert text_line(stored(), color=False) == "2026-11-23T12:00:00.000000Z WARN  api slow\n"
    assert text_line(stored(), color=True) == "2026-11-23T12:00:00.000000Z \x1b[33mWARN \x1b[0m api slow\n"


def test_long_texts_are_cut_for_people_only() -> None:
    assert printable("x" * 12, 10) == "x" * 10 + "… (2 more characters)"
    assert printable("x" * 10, 10) == "x" * 10
    log = stored(message="x" * 100_000, metadata='{"k":"' + "y" * 100_000 + '"}')
    assert len(text_line(log, color=False)) < 3000
    assert len(json_line(log)) > 200_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOON - timedelta(seconds=90)),
        ("15m", NOON - timedelta(minutes=15)),
        ("2h", NOON - timedelta(hours=2)),
        ("7d", NOON - timedelta(days=7)),
        ("1w", NOON - timedelta(days=7)),
        ("2026-01-31T08:00:00Z", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31T08:00:00.5+02:00", datetime(2026, 1, 31, 6, 0, 0, 500000, tzinfo=UTC)),
        ("2026-01-31 08:00:00", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
    ],
)
def test_a_start_is_an_instant_or_a_duration(text: str, expected: datetime) -> None:
    assert parse_since(text, NOON) == expected


@pytest.mark.parametrize(
    "text", ["", "yesterday", "15", "15 m", "-15m", "1y", "999999999w", "0001-01-01T00:00:00+14:00"]
)
def test_another_start_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a time such as"):
        parse_since(text, NOON)
