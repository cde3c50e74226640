"""The stream behind live tail, over HTTP: what it sends, and when it ends."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
import sqlalchemy as sa
from aiohttp import web

from httpbridge.config import Config
from httpbridge.dashboard.app import open_sessions
from httpbridge.dashboard.log_page.stream import LogStreams, StreamLimits
from httpbridge.dashboard.pages import Pages
from httpbridge.log_store.chunk import IDS
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.sink import SqlSink
from httpbridge.log_store.tail import Arrivals, Cursor, LogTail
from httpbridge.logs import Level, LogEntry
from tests.contract.test_log_sink import Clock, batch, reading_engine, sink_on
from tests.httpbridge.dashboard.conftest import Dashboard

LARGE = [LogEntry(Level.INFO, "x" * 4000, metadata="{" + '"k":1,' * 600 + '"k":1}') for _ in range(100)]
"""More than a connection takes of which nothing is read, if it is sent a few times."""


def headlines(event: dict[str, str]) -> list[str]:
    """Return the lines of the entries of an event, the newest first."""
    return re.findall(r'<bdi class="headline">(.*?)</bdi>', json.loads(event["data"])["html"])


class Events:
    """An open stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> dict[str, str]:
        """Return the fields of the next event, those without data, too; empty at the end of the stream."""
        fields: dict[str, str] = {}
        while line := (await self.response.content.readline()).decode():
            if line == "\n":
                return fields
            name, _, value = line.rstrip("\n").partition(": ")
            fields[name] = value
        assert not fields
        return {}

    async def messages(self) -> list[str]:
        """Return the messages of the next event with entries."""
        while True:
            event = await self.next()
            assert event, "the stream ended"
            if "data" in event:
                return headlines(event)

    async def ended(self) -> list[dict[str, str]]:
        """Wait for the end; return what came before it."""
        events = []
        while event := await self.next():
            events.append(event)
        return events


class Streams:
    """The streams behind a server of their own, with what the dashboard gives them."""

    def __init__(self, store: ReadStore, **options: Any) -> None:
        self.clock = Clock()
        self.is_signed_in = True
        self.ended = asyncio.Semaphore(0)
        """Released for each that was answered to its end, refused ones included."""
        self.transport: asyncio.Transport | None = None
        """Of the newest request."""
        sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_DASHBOARD_TOKEN": "x" * 32}))
        self.served = LogStreams(
            store,
            session_id=self._session_id,
            markup=Pages(sessions, "http://bridge", lambda: datetime.now(UTC)).macro("log_parts.html", "entry"),
            monotonic=self.clock,
            limits=StreamLimits(**({"poll_seconds": 0.005} | options)),
        )
        self.url = ""
        self._stack = AsyncExitStack()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.transport = request.transport
        try:
            return await self.served.serve(request, LogFilter(project_id="demo"), Cursor(int(request.query["after"])))
        finally:
            self.ended.release()

    def _session_id(self, request: web.Request) -> str | None:
        return request.query.get("session", "Ann") if self.is_signed_in else None

    async def open(self, after: int = 0, session_id: str = "Ann") -> Events:
        session = await self._stack.enter_async_context(aiohttp.ClientSession())
        response = await self._stack.enter_async_context(session.get(f"{self.url}/?after={after}&session={session_id}"))
        return Events(response)

    async def open_reading_nothing(self, session_id: str = "Ann") -> None:
        """Open a stream whose reader takes its headers at most."""
        host, port = self.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        self._stack.callback(writer.close)
        writer.write(f"GET /?after=0&session={session_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await reader.readline()

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def streams_on(url: str, **options: Any) -> AsyncIterator[Streams]:
    store = ReadStore(url)
    streams = Streams(store, **options)
    application = web.Application()
    application.router.add_get("/", streams.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=10)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        streams.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield streams
    finally:
        await streams.close()
        await streams.served.close()
        await runner.cleanup()
        await store.close()


@pytest.fixture
async def sink(sqlite_url: str) -> AsyncIterator[SqlSink]:
    async with sink_on(sqlite_url) as sink:
        yield sink


async def test_entries_arrive_once_and_a_new_stream_goes_on_where_the_last_one_ended(
    sqlite_url: str, sink: SqlSink
) -> None:
    await sink.write(batch("before"))
    async with streams_on(sqlite_url) as streams:
        events = await streams.open(after=1)
        assert events.response.headers["Content-Type"] == "text/event-stream"
        assert (await events.next())["retry"].isdigit()
        await sink.write(batch("a", "b\x1b[31m<b>"))
        event = await events.next()
        assert headlines(event) == ["b\\x1b[31m&lt;b&gt;", "a"]
        html = json.loads(event["data"])["html"]
        assert (re.findall(r'data-id="(\d+)"', html), event["id"]) == ([str(2 * IDS + 1), str(2 * IDS)], "2")
        named = {"time", "message", "service", "environment", "key_id", "received"}
        assert set(re.findall(r"<dt>(.*?)</dt>", html)) == named
        await sink.write(batch("c"))
        assert await events.messages() == ["c"]
        again = await streams.open(after=int(event["id"]))
        assert await again.messages() == ["c"]


async def test_an_event_is_bounded_to_its_newest_entries_and_says_that_there_are_more(
    sqlite_url: str, sink: SqlSink
) -> None:
    """One entry is shown, however long it is; the next event goes on after all of them."""
    async with streams_on(sqlite_url, event_characters_max=10_000) as streams:
        events = await streams.open()
        await events.next()
        await sink.write(batch("a", "b" * 4000, "c" * 4000))
        event = await events.next()
        assert [line[0] for line in headlines(event)] == ["c"]
        assert (json.loads(event["data"])["is_gap"], event["id"]) == (True, "1")
        await sink.write(batch("d"))
        event = await events.next()
        assert (headlines(event), json.loads(event["data"])["is_gap"]) == (["d"], False)
    async with streams_on(sqlite_url, event_characters_max=1) as streams:
        assert await (await streams.open()).messages() == ["d"]


async def test_a_quiet_stream_gives_signs_of_life_that_move_its_id(sqlite_url: str, sink: SqlSink) -> None:
    async with streams_on(sqlite_url) as streams:
        events = await streams.open()
        await events.next()
        await sink.write(batch("of another project", project_id="other"))
        streams.clock.seconds += 20
        event = await events.next()
        if event == {"id": "0"}:  # it had looked before there was anything
            streams.clock.seconds += 20
            event = await events.next()
        assert event == {"id": "1"}


async def test_streams_are_few(sqlite_url: str, sink: SqlSink) -> None:
    """One too many is refused; one that its reader closed makes room."""
    async with streams_on(sqlite_url, streams_max=2, heartbeat_seconds=0) as streams:
        first, _ = await streams.open(), await streams.open()
        refused = await streams.open()
        assert (refused.response.status, refused.response.headers["Retry-After"]) == (503, "5")
        await streams.ended.acquire()
        first.response.close()
        await streams.ended.acquire()
        assert streams.served.open == 1
        assert (await streams.open()).response.status == 200


async def test_one_stream_too_many_of_a_session_ends_its_oldest_and_nobody_elses(
    sqlite_url: str, sink: SqlSink
) -> None:
    """At once, with a word that tells the page not to come back; also where there is no room for another session's."""
    async with streams_on(sqlite_url, streams_max=3, streams_of_session_max=2, poll_seconds=1000) as streams:
        other = await streams.open(session_id="Bob")
        first, second = await streams.open(), await streams.open()
        third = await streams.open()
        assert (await first.ended())[-1] == {"event": "displaced", "data": ""}
        await streams.ended.acquire()
        assert (third.response.status, streams.served.open) == (200, 3)
        fourth = await streams.open()
        assert (await second.ended())[-1] == {"event": "displaced", "data": ""}
        assert (await streams.open(session_id="Cyd")).response.status == 503
        await streams.served.close()
        for stream in (other, third, fourth):
            assert [event.keys() for event in await stream.ended()] == [{"retry"}]


async def test_a_stream_ends_with_the_session_of_its_cookie(sqlite_url: str, sink: SqlSink) -> None:
    """Without a word: the browser comes again, with the cookie that it has by then, and is told by the guard."""
    async with streams_on(sqlite_url) as streams:
        events = await streams.open()
        await events.next()
        streams.is_signed_in = False
        await sink.write(batch("secret"))
        assert "over" not in [event.get("event") for event in await events.ended()]
        assert streams.served.open == 0


async def test_streams_end_when_the_dashboard_does(sqlite_url: str, sink: SqlSink) -> None:
    async with streams_on(sqlite_url, poll_seconds=1000) as streams:
        events = [await streams.open() for _ in range(3)]
        await streams.served.close()
        for stream in events:
            await stream.ended()
        assert streams.served.open == 0


async def test_a_reader_who_takes_nothing_is_disconnected(sqlite_url: str, sink: SqlSink) -> None:
    """And nothing piles up for it meanwhile."""
    async with streams_on(sqlite_url, write_seconds_max=0.05) as streams:
        await streams.open_reading_nothing()
        disconnecting = asyncio.create_task(streams.ended.acquire())
        while not disconnecting.done():
            await sink.write(batch(entries=LARGE))
        assert streams.served.open == 0


async def test_readers_who_take_nothing_are_displaced_at_once(sqlite_url: str, sink: SqlSink) -> None:
    """Whatever they were sent and did not take: a session keeps no place but its own."""
    async with streams_on(sqlite_url, streams_max=3, streams_of_session_max=2, write_seconds_max=1000) as streams:
        for number in range(6):
            await streams.open_reading_nothing()
            assert streams.transport is not None
            while not streams.transport.get_write_buffer_size():
                await sink.write(batch(entries=LARGE))
            if number >= 2:
                async with asyncio.timeout(60):
                    await streams.ended.acquire()
            assert streams.served.open == min(number + 1, 2)
        assert (await streams.open(session_id="Bob")).response.status == 200


async def test_a_displaced_stream_that_has_not_ended_yet_takes_a_place(
    sqlite_url: str, sink: SqlSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them, as it makes room; the next one is refused, and displaces nothing."""
    answering = asyncio.Event()

    async def poll(tail: LogTail) -> Arrivals:
        await answering.wait()
        return Arrivals([], Cursor(0), is_gap=False)

    monkeypatch.setattr(LogTail, "poll", poll)
    async with streams_on(sqlite_url, streams_max=1, streams_of_session_max=1, poll_seconds=1000) as streams:
        first, second, third = [await streams.open() for _ in range(3)]
        assert [one.response.status for one in (first, second, third)] == [200, 200, 503]
        answering.set()
        assert (await first.ended())[-1] == {"event": "displaced", "data": ""}
        await streams.ended.acquire()
        await streams.ended.acquire()
        assert streams.served.open == 1


async def test_trouble_with_the_store_is_said_once_and_then_it_goes_on(sqlite_url: str, sink: SqlSink) -> None:
    async with streams_on(sqlite_url) as streams:
        events = await streams.open()
        await events.next()
        await sink.write(batch("a"))
        assert await events.messages() == ["a"]
        engine = reading_engine(sqlite_url)
        async with engine.begin() as connection:
            await connection.execute(sa.text("ALTER TABLE chunks RENAME TO away"))
        trouble = await events.next()
        assert trouble["event"] == "trouble"
        async with engine.begin() as connection:
            await connection.execute(sa.text("ALTER TABLE away RENAME TO chunks"))
        await engine.dispose()
        assert headlines(await events.next()) == []  # it is back
        await sink.write(batch("b"))
        assert await events.messages() == ["b"]


async def test_the_dashboard_streams_what_the_filter_admits_until_one_signs_out(dashboard: Dashboard) -> None:
    """From where the browser says that it was; nothing without a session."""
    browser = await dashboard.browser()
    await browser.create("demo")
    async with sink_on(f"sqlite:///{dashboard.state_dir / 'logs.db'}") as sink:
        now = datetime.now(UTC)

        async def write(*messages: str, level: Level = Level.ERROR, **changes: Any) -> None:
            await sink.write(batch(entries=[LogEntry(level, message, now) for message in messages], **changes))

        for message in "12":
            await write(message)
        page = (await browser.get("/projects/demo/logs?level=error")).text
        assert 'data-stream="/projects/demo/logs/stream?level=error&amp;after=2"' in page
        assert "data-stream" not in (await browser.get("/projects/demo/logs?until=1h&since=2h")).text
        path = dashboard.url + "/projects/demo/logs/stream?level=error&after=1"
        async with aiohttp.ClientSession(cookies=browser.cookies, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            async with session.get(path) as response:
                events = Events(response)
                assert response.headers["Cache-Control"] == "no-store"
                assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
                assert await events.messages() == ["2"]
            async with session.get(path, headers={"Last-Event-ID": "2"}) as response:
                events = Events(response)
                await write("other project", project_id="other")
                await write("other level", level=Level.INFO)
                await write("3")
                assert await events.messages() == ["3"]
                assert (await browser.submit("/projects", "/sign-out")).status == 303
                await write("4")
                assert "html" not in str(await events.ended())
            async with session.get(path, headers={"Last-Event-ID": "3"}) as response:
                assert await Events(response).ended() == [{"event": "over", "data": ""}]
        async with aiohttp.ClientSession() as session, session.get(path, allow_redirects=False) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
            assert await Events(response).ended() == [{"event": "over", "data": ""}]


async def test_the_dashboard_ends_at_once_while_streams_are_open(dashboard: Dashboard) -> None:
    """In order, and not when it loses its patience."""
    browser = await dashboard.browser()
    await browser.create("demo")
    path = dashboard.url + "/projects/demo/logs/stream"
    async with (
        sink_on(f"sqlite:///{dashboard.state_dir / 'logs.db'}"),
        aiohttp.ClientSession(cookies=browser.cookies, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
        session.get(path) as response,
    ):
        assert response.status == 200
        dashboard.stop.set()
        assert (await Events(response).ended())[0].keys() == {"retry"}
