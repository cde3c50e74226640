"""Whatever the dashboard does, and whatever becomes of it, concerns no client of the bridge."""

import asyncio
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from httpbridge.config import Config
from httpbridge.dashboard.app import open_sessions
from httpbridge.log_store.chunk import IDS
from httpbridge.logs import Level, LogBatch, LogEntry
from tests.e2e.processes import Service, System
from tests.e2e.traffic import Ring, Traffic
from tests.httpbridge.dashboard.conftest import Browser
from tests.stored_chunks import COLUMNS, chunk_values
from tests.waiting import until

STORED_ENTRIES, STORED_ENTRIES_LONG = 50_000, 150_000
REQUESTS, REQUESTS_LONG = 100, 300
"""Ingested in each situation."""

SEARCH = "/projects/shop/logs?range=all&text=%25no_such_text%25"
PAGES = (
    "/projects", "/projects?q=sh", "/projects/shop/logs", SEARCH, "/projects/shop/logs?range=all&service=nope",
    f"/projects/shop/logs/{IDS}", "/projects/shop/settings/keys", "/projects/shop/settings/origins",
    "/projects/shop/audit",
    "/audit", "/nowhere", "/static/dashboard.css", "/projects/unknown/logs",
)  # fmt: skip
TAILS = ("/projects/shop/logs/stream?after=0", "/projects/shop/logs/stream?after=0&text=no_such_text")


class Hammer:
    """A dashboard user who opens everything at once, again and again."""

    def __init__(self, url: str, browser: Browser) -> None:
        self._url = url
        self._browser = browser
        self.answers: Counter[tuple[str, int]] = Counter()
        """By page and status."""
        self.tails = 0
        """Live tails that have begun."""

    @asynccontextmanager
    async def hammering(self) -> AsyncIterator[None]:
        """Open pages and live tails meanwhile; a dashboard that is gone is tried again."""
        tasks = [asyncio.create_task(self._open(PAGES[number:] + PAGES[:number])) for number in (0, 3, 6)]
        tasks += [asyncio.create_task(self._tail(path)) for path in TAILS for _ in range(4)]
        tasks.append(asyncio.create_task(self._edit()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes

    def has_seen(self, *statuses: int) -> bool:
        """Whether every page was answered with one of these."""
        return all(any(self.answers[page, status] for status in statuses) for page in PAGES)

    async def _open(self, pages: tuple[str, ...]) -> None:
        while True:
            for page in pages:
                with suppress(aiohttp.ClientError):
                    self.answers[page, (await self._browser.get(page)).status] += 1
                await asyncio.sleep(0.001)  # also where connecting fails at once

    async def _edit(self) -> None:
        path = "/projects/shop/settings/origins"
        while True:
            with suppress(aiohttp.ClientError, AssertionError):  # no form on a page that says what is unavailable
                answer = await self._browser.submit(path, path, action="review", entry=["a.example"] * 99, base="")
                self.answers["review", answer.status] += 1
            await asyncio.sleep(0.001)

    async def _tail(self, path: str) -> None:
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookies=self._browser.cookies, cookie_jar=jar) as session:
            while True:
                with suppress(aiohttp.ClientError):
                    async with session.get(self._url + path) as response:
                        self.tails += response.status == 200
                        async for _ in response.content:
                            pass
                await asyncio.sleep(0.001)


class Situation:
    """A bridge that ingests, and a dashboard."""

    def __init__(self, system: System, *, is_long: bool) -> None:
        self.system = system
        self.stored_entries, self.requests = (
            (STORED_ENTRIES_LONG, REQUESTS_LONG) if is_long else (STORED_ENTRIES, REQUESTS)
        )
        self.traffic = Traffic()
        self.bridge: Service
        self.key_service: Service
        self.key = ""

    async def start(self) -> None:
        self.key_service = await self.system.key_service()
        self.bridge = await self.system.bridge(HTTPBRIDGE_RATE_LIMIT_PER_MINUTE="100000000")
        self.key = self.system.issue("shop")
        started = datetime(2026, 1, 1, tzinfo=UTC)
        entries = [
            LogEntry(
                Level.INFO,
                f"message {number} " + "x" * 100,
                timestamp=started + timedelta(minutes=number // 3000),
                metadata=f'{{"n": {number}}}',
            )
            for number in range(self.stored_entries)
        ]
        batches = (
            LogBatch("shop", "k", started, "s", "production", None, entries[start : start + 1000])
            for start in range(0, self.stored_entries, 1000)
        )
        with closing(sqlite3.connect(self.system.state_dir / "logs.db")) as store, store:
            store.executemany(
                f"INSERT INTO chunks ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", map(chunk_values, batches)
            )

    @asynccontextmanager
    async def ingesting(self) -> AsyncIterator[None]:
        """Ingest before, meanwhile and after; every request is answered, and with 200."""
        count = len(self.traffic.attempts)
        async with self.traffic.flowing([self.bridge.address], Ring(self.key), senders=3, pause_seconds=0.002):
            await self.more()
            yield
            await self.more()
        finished = [attempt for attempt in self.traffic.attempts[count:] if attempt.status is not None]
        assert len(finished) >= 2 * self.requests
        assert {attempt.status for attempt in finished} == {200}
        unfinished = len(self.traffic.attempts) - count - len(finished)
        assert unfinished <= 3, "those that were under way when the senders stopped"

    async def more(self) -> None:
        """Wait until so many more are ingested."""
        enough = self.traffic.count(self.bridge.address, self.key, 200) + self.requests
        await until("more is ingested", lambda: self.traffic.count(self.bridge.address, self.key, 200) >= enough)


@asynccontextmanager
async def user_of(system: System, dashboard: Service) -> AsyncIterator[Hammer]:
    """Sign in."""
    url = f"http://{dashboard.address}"
    link = open_sessions(Config.from_environment(system.environment())).link("Ann")
    async with Browser(url) as browser:
        assert (await browser.use(f"/sign-in/link?t={link}")).status == 303
        yield Hammer(url, browser)


@pytest.fixture
async def situation(system: System, is_long: bool) -> Situation:
    situation = Situation(system, is_long=is_long)
    await situation.start()
    return situation


async def test_a_dashboard_user_who_opens_everything_costs_no_client_anything(situation: Situation) -> None:
    """Every page at once, a search that finds nothing in a large store, and live tails."""
    dashboard = await situation.system.dashboard()
    async with situation.ingesting(), user_of(situation.system, dashboard) as user, user.hammering():
        await until(
            "every page was answered, and tails are open",
            lambda: user.has_seen(200, 404) and user.tails >= len(TAILS) and user.answers["review", 200] > 0,
        )
        await situation.more()
    assert {status for _, status in user.answers} <= {200, 404, 503}  # 503: too much at once for the store's readers


async def test_a_dashboard_that_is_stopped_killed_or_cut_off_costs_no_client_anything(situation: Situation) -> None:
    """Paused in the middle of its queries, killed, without its key service, and without a key service anywhere."""
    system = situation.system
    async with situation.ingesting(), AsyncExitStack() as stack:
        dashboard = await system.dashboard()
        user = await stack.enter_async_context(user_of(system, dashboard))
        async with user.hammering():
            await until("tails are open, and it searches", lambda: user.tails >= 1 and user.answers[SEARCH, 200] > 0)
            dashboard.send(signal.SIGSTOP)
            await situation.more()
            dashboard.send(signal.SIGCONT)
            await situation.more()
            await dashboard.kill()
            await situation.more()
        cut_off = await system.dashboard(HTTPBRIDGE_KEY_SERVICE="127.0.0.1:1")
        user = await stack.enter_async_context(user_of(system, cut_off))
        async with user.hammering():
            await until("its pages say so", lambda: user.answers["/projects", 503] > 0 and user.tails >= 1)
            await situation.more()
            await situation.key_service.stop()  # the bridge knows the key
            await situation.more()
        await cut_off.stop()
