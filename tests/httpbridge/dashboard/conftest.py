"""The dashboard in this process, on a free port, against a real key service and a log store that a real sink made."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest
from yarl import URL

from authsvc.runtime import clock
from authsvc.runtime.environment import Address
from httpbridge.config import Config
from httpbridge.dashboard import app
from httpbridge.dashboard.connections import CONNECTION_LIMITS, ConnectionLimits
from httpbridge.log_store.queries import QUERY_LIMITS, QueryLimits
from tests.authsvc.conftest import running as running_key_service

TOKEN = "the-token-of-the-dashboard-of-tests"
_FORM_TOKEN = re.compile(r'name="csrf_token" value="([0-9a-f]+)"')
_RAW_KEY = re.compile(r"dt_[0-9a-f]{24}")


class Answer:
    """A response that was read."""

    def __init__(self, response: aiohttp.ClientResponse, text: str) -> None:
        self.status = response.status
        self.headers = response.headers
        self.location = response.headers.get("Location", "")
        self.text = text

    @property
    def words(self) -> str:
        """What a person reads, roughly: without tags, white space made one."""
        return " ".join(re.sub(r"<[^>]+>", " ", self.text).split())

    @property
    def csrf_token(self) -> str:
        match = _FORM_TOKEN.search(self.text)
        assert match, self.text
        return match[1]

    @property
    def api_key(self) -> str:
        match = _RAW_KEY.search(self.text)
        assert match, self.text
        return match[0]

    @property
    def key_id(self) -> str:
        """The key that a page offers to revoke."""
        match = re.search(r'name="key_id" value="(\w+)"', self.text)
        assert match, self.text
        return match[1]


class Browser:
    """A client with cookies that follows nothing by itself."""

    def __init__(self, url: str, address: str = "127.0.0.1") -> None:
        """Come from that address of this machine."""
        self.url = url
        self.headers: dict[str, str] = {}
        """Sent with every request, as a proxy would."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(local_addr=(address, 0)),
            cookie_jar=aiohttp.CookieJar(unsafe=True),  # an IP address
        )

    async def close(self) -> None:
        """Close all connections; cookies stay."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, path: str, **headers: str) -> Answer:
        url = URL(self.url + path, encoded=True)
        async with self._session.get(url, allow_redirects=False, headers=self.headers | headers) as response:
            return Answer(response, await response.text())

    async def head(self, path: str) -> int:
        """Return the status alone."""
        async with self._session.head(URL(self.url + path, encoded=True), allow_redirects=False) as response:
            return response.status

    async def beginning(self, path: str, text: str) -> str:
        """Return the beginning of an answer that does not end, up to the line with a text."""
        received = ""
        async with self._session.get(self.url + path, allow_redirects=False) as response:
            while text not in received:
                line = await response.content.readline()
                assert line, f"it ended after {received!r}"
                received += line.decode()
        return received

    async def post(self, path: str, **fields: Any) -> Answer:
        """Send a form; a field that is a list is sent as often."""
        pairs = [
            (name, one) for name, value in fields.items() for one in (value if isinstance(value, list) else [value])
        ]
        return await self.post_from("none", path, pairs)

    async def post_from(self, site: str, path: str, pairs: Sequence[tuple[str, str]], origin: str = "") -> Answer:
        """Send a form, saying whose page it stands on as browsers do; where that is empty, without a word of it."""
        said = {"Sec-Fetch-Site": site, "Origin": origin}
        headers = self.headers | {name: value for name, value in said.items() if value}
        async with self._session.post(self.url + path, data=pairs, headers=headers, allow_redirects=False) as response:
            return Answer(response, await response.text())

    async def post_raw(self, path: str, body: bytes, **headers: str) -> Answer:
        """Send bytes, on a connection of their own."""
        headers["Connection"] = "close"
        async with self._session.post(self.url + path, data=body, headers=headers, allow_redirects=False) as response:
            return Answer(response, await response.text())

    async def submit(self, page: str, path: str, **fields: Any) -> Answer:
        """Send a form with the token of the page it stands on."""
        return await self.post(path, csrf_token=(await self.get(page)).csrf_token, **fields)

    async def sign_in(self, name: str = "Ann", token: str = TOKEN, next_path: str = "") -> Answer:
        return await self.submit("/sign-in", "/sign-in", name=name, token=token, next=next_path)

    async def create(self, project_id: str) -> Answer:
        return await self.submit("/projects/new", "/projects/new", project_id=project_id)

    @property
    def cookies(self) -> dict[str, str]:
        return {cookie.key: cookie.value for cookie in self._session.cookie_jar}

    def forget(self) -> None:
        """Lose all cookies."""
        self._session.cookie_jar.clear()

    @property
    def session(self) -> str | None:
        """The session's cookie, whatever it is called here."""
        return next((value for name, value in self.cookies.items() if "dashboard_session" in name), None)

    def set_session(self, value: str | None) -> None:
        """Take another browser's session, of a dashboard with the same token."""
        assert value is not None
        cookies = {f"dashboard_session_{URL(self.url).port}": value}
        self._session.cookie_jar.update_cookies(cookies, URL(self.url))

    async def follow(self, link: str) -> Answer:
        """Open a sign-in link, without the host, up to the page that it leads to."""
        redirect = await self.get(link)
        assert (redirect.status, redirect.location) == (303, "/sign-in/link")
        return await self.get(redirect.location)

    async def use(self, link: str) -> Answer:
        """Open a sign-in link, and press the button of its page."""
        page = await self.follow(link)
        match = re.search(r'name="link" value="([^"]+)"', page.text)
        return await self.post("/sign-in/link", csrf_token=page.csrf_token, link=match[1]) if match else page


class Dashboard:
    """A running dashboard."""

    def __init__(self, url: str, state_dir: Path, stack: AsyncExitStack, stop: asyncio.Event) -> None:
        self.url = url
        self.state_dir = state_dir
        self._stack = stack
        self.stop = stop
        """Ends it."""

    async def browser(self, *, is_signed_in: bool = True, name: str = "Ann") -> Browser:
        """Open a browser of its own."""
        browser = await self._stack.enter_async_context(Browser(self.url))
        if is_signed_in:
            assert (await browser.sign_in(name)).status == 303
        return browser


@asynccontextmanager
async def running(
    state_dir: Path,
    key_service: Address,
    now: Callable[[], datetime] = clock.now,
    limits: ConnectionLimits = CONNECTION_LIMITS,
    query_limits: QueryLimits = QUERY_LIMITS,
    /,
    **variables: str,
) -> AsyncIterator[Dashboard]:
    """Run a dashboard with this environment; raise what stops it from starting."""
    environ = {
        "HTTPBRIDGE_DASHBOARD_LISTEN": "127.0.0.1:0",
        "HTTPBRIDGE_STATE_DIR": str(state_dir),
        "HTTPBRIDGE_KEY_SERVICE": str(key_service),
        "HTTPBRIDGE_DASHBOARD_TOKEN": TOKEN,
    } | variables
    stop = asyncio.Event()
    started: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
    config = Config.from_environment(environ)
    serving = app.serve(config, stop, started.set_result, now=now, limits=limits, query_limits=query_limits)
    task = asyncio.create_task(serving)
    waiting: list[asyncio.Future[Any]] = [task, started]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    async with AsyncExitStack() as stack:
        try:
            yield Dashboard(f"http://{started.result()}", state_dir, stack, stop)
        finally:
            await stack.aclose()
            stop.set()
            await task


@pytest.fixture
def query_limits() -> QueryLimits:
    """For a test to parametrize."""
    return QUERY_LIMITS


@pytest.fixture
async def dashboard(tmp_path: Path, query_limits: QueryLimits) -> AsyncIterator[Dashboard]:
    """Run a key service and a dashboard."""
    state_dir = tmp_path / "state"
    async with (
        running_key_service(state_dir) as service,
        running(state_dir, service.address, clock.now, CONNECTION_LIMITS, query_limits) as dashboard,
    ):
        yield dashboard


@pytest.fixture
async def browser(dashboard: Dashboard) -> Browser:
    """Sign in as Ann."""
    return await dashboard.browser()
