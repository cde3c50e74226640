"""A real browser, Debian's Chromium, on the real processes, and what the tests and the pictures share of them."""

import asyncio
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from aiohttp import web
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, ViewportSize, async_playwright

from httpbridge.config import Config
from httpbridge.dashboard.app import open_sessions
from tests.e2e.processes import Service, System

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = "Chromium is missing, so the dashboard is not tested in a browser: apt-get install chromium"
_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# A refusal that a page shows is no fault of the page, though the browser's console mentions it.
_EXPECTED_ON_CONSOLE = re.compile(r"Failed to load resource: the server responded with a status of (4\d\d|503)")
RAW_KEY = re.compile(r"dt_[0-9a-f]{24}")


FORMS: dict[str, tuple[Literal["light", "dark"], ViewportSize]] = {
    "light": ("light", ViewportSize(width=1200, height=800)),
    "dark": ("dark", ViewportSize(width=1200, height=800)),
    "narrow": ("light", ViewportSize(width=360, height=740)),
}
"""What every page is looked at in."""


class Stack:
    """Key service, bridge and dashboard as processes, a browser, and a web page of somebody else's."""

    def __init__(self, system: System, browser: Browser, stack: AsyncExitStack) -> None:
        self.system = system
        self.key_service: Service
        self.bridge: Service
        self.dashboard: Service
        self.problems: list[str] = []
        """What the pages of the dashboard complained about on the console."""
        self._browser = browser
        self._stack = stack

    async def start(self) -> None:
        self.system.variables |= {"AUTHSVC_LOG_LEVEL": "debug", "HTTPBRIDGE_LOG_LEVEL": "debug"}
        self.key_service = await self.system.key_service()
        self.bridge = await self.system.bridge()
        self.system.variables["HTTPBRIDGE_PUBLIC_URL"] = self.logs_url
        self.dashboard = await self.system.dashboard()

    @property
    def url(self) -> str:
        return f"http://{self.dashboard.address}"

    @property
    def logs_url(self) -> str:
        return f"http://{self.bridge.address}"

    async def context(self, **options: Any) -> BrowserContext:
        """Open a window of its own: cookies, clipboard, settings."""
        context = await self._browser.new_context(**options)
        context.set_default_timeout(10_000)
        self._stack.push_async_callback(context.close)
        return context

    async def page(self, *, is_signed_in: bool = True, name: str = "Ann", **options: Any) -> Page:
        """Open a page in a window of its own, signed in by a link."""
        page = await (await self.context(**options)).new_page()

        def note(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not _EXPECTED_ON_CONSOLE.search(message.text):
                self.problems.append(message.text)

        page.on("console", note)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        if is_signed_in:
            await self.follow(page, self.link(name))
            assert page.url == self.url + "/projects"
        return page

    async def follow(self, page: Page, link: str) -> None:
        """Open a sign-in link, and press its button."""
        await page.goto(link)
        await page.get_by_role("button", name="Sign in", exact=True).click()

    def link(self, name: str = "Ann") -> str:
        """Return what `httpbridge sign-in-link` prints, without the time that a process takes to start."""
        sessions = open_sessions(Config.from_environment(self.system.environment()))
        return f"{self.url}/sign-in/link?t={sessions.link(name)}"

    async def create(self, page: Page, project_id: str = "shop") -> str:
        """Make a project, and return the key that the page shows; the page is left."""
        await page.goto(self.url + "/projects/new")
        await page.get_by_label("Name").fill(project_id)
        await page.get_by_role("button", name="Make project and key").click()
        key = (await page.locator("#api-key").inner_text()).strip()
        await page.wait_for_load_state()  # its script has run
        assert RAW_KEY.fullmatch(key)
        return key


@asynccontextmanager
async def elsewhere() -> AsyncIterator[str]:
    """Serve an empty web page of another origin; yield that origin."""

    async def blank(request: web.Request) -> web.Response:
        link = request.query.get("link", "")
        return web.Response(text=f'<!doctype html><title>x</title><a href="{link}">link</a>', content_type="text/html")

    application = web.Application()
    application.router.add_get("/", blank)
    application.router.add_get("/favicon.ico", blank)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """Start the browser, for any number of stacks: each has windows of its own."""
    async with (
        async_playwright() as playwright,
        await playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS) as browser,
    ):
        yield browser


@asynccontextmanager
async def running(directory: Path, browser: Browser) -> AsyncIterator[Stack]:
    """Start everything; afterwards no page may have complained, and no process either."""
    system = System(directory)
    try:
        async with AsyncExitStack() as exit_stack:
            stack = Stack(system, browser, exit_stack)
            await stack.start()
            yield stack
            assert stack.problems == []
    finally:
        await asyncio.to_thread(system.close)
