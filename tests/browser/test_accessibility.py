"""Every page, light and dark, wide and 360 pixels narrow: axe finds nothing, and the keyboard is enough."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, ViewportSize, expect

from tests.browser.conftest import Stack
from tests.e2e.http_exchange import exchange, request

SCHEMES: tuple[Literal["light"], Literal["dark"]] = ("light", "dark")
WIDE, NARROW = ViewportSize(width=1200, height=800), ViewportSize(width=360, height=740)


class Checker:
    """Looks at the page that is open, in each form; keeps what is wrong."""

    def __init__(self, stack: Stack, page: Page) -> None:
        self.faults: list[str] = []
        self._stack = stack
        self._page = page

    async def check(self, what: str) -> None:
        for scheme in SCHEMES:
            await self._page.emulate_media(color_scheme=scheme)
            for size in (WIDE, NARROW):
                await self._page.set_viewport_size(size)
                results = await Axe().run(self._page)
                if results.violations_count:
                    self.faults.append(f"{what}, {scheme}, {size}: {results.generate_report()}")
                if await self._page.evaluate("document.documentElement.scrollWidth") > size["width"]:
                    self.faults.append(f"{what} is wider than {size}")

    @asynccontextmanager
    async def visiting(self, path: str) -> AsyncIterator[None]:
        """Open a page of the dashboard, have something done there, and check it."""
        await self._page.goto(self._stack.url + path)
        yield
        await self.check(path)

    async def visit(self, *paths: str) -> None:
        for path in paths:
            async with self.visiting(path):
                pass


async def test_axe_finds_nothing_on_any_page(stack: Stack) -> None:
    """Empty states, forms with errors, the dialog, keys, tables and failures included."""
    page = await stack.page(is_signed_in=False)
    page.on("dialog", lambda dialog: dialog.accept())
    checker = Checker(stack, page)
    await checker.visit("/sign-in", "/sign-in/link?t=x")
    await page.goto(stack.link())
    await checker.check("no projects yet")
    async with checker.visiting("/projects/new"):
        await page.get_by_label("Name").fill("Not A Name")
        await page.keyboard.press("Enter")
        await expect(page.get_by_label("Name")).to_have_accessible_description(re.compile("project id"))
    key = await stack.create(page)
    await checker.check("a key is shown")
    await checker.visit("/projects/shop/logs")
    entries = [
        {"level": "warn", "message": "hello", "metadata": {"a": [1, {"b": None}]}},
        {"level": "error", "message": "<b>x"},
    ]
    body = json.dumps({"logs": entries}).encode()
    for origin in ("https://shop.example", "https://evil.example", None):
        await exchange(stack.bridge.address, request(key=key, origin=origin, body=body))
    await checker.visit(
        "/projects", "/projects?q=zzz", "/projects/shop/logs", "/projects/shop/logs?text=nothing-like-it"
    )
    async with checker.visiting("/projects/shop/logs"):
        await page.locator("details.entry summary").first.click()
    async with checker.visiting("/projects/shop/settings/keys"):
        await page.get_by_role("link", name="Revoke…").click()
    await page.get_by_role("button", name="Revoke key").click()
    await expect(page.get_by_text("is dead everywhere")).to_be_visible()
    await checker.check("a key was revoked")
    await checker.visit("/projects/shop/settings/keys")
    for entry in ("https://shop.example/path", "https://shop.example"):
        async with checker.visiting("/projects/shop/settings/origins"):
            await page.get_by_role("button", name="Add entry").click()
            await page.get_by_role("textbox", name="Entry 1").fill(entry)
            await page.get_by_role("textbox", name="Try an origin").fill("https://evil.example")
            await page.get_by_role("button", name="Review changes").click()
    await checker.visit("/audit", "/projects/shop/audit", "/nowhere", "/projects/unknown/settings/keys")
    await stack.key_service.stop()
    await checker.visit("/projects")
    assert not checker.faults, "\n".join(checker.faults)


async def test_the_keyboard_is_enough_and_shows_where_it_is(stack: Stack) -> None:
    """Sign in, make a project, open and close the dialog, with Tab, Enter and Escape alone."""
    page = await stack.page(is_signed_in=False)
    page.on("dialog", lambda dialog: dialog.accept())
    await page.goto(stack.url + "/sign-in")
    await page.keyboard.type("Ann")
    await page.keyboard.press("Tab")
    await page.keyboard.type((stack.system.state_dir / "dashboard-token").read_text().strip())
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("link", name="New project")).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("link", name="New project")).to_be_focused()
    ring = await page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert ring == "3px"
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Name")).to_be_focused()
    await page.keyboard.type("shop")
    await page.keyboard.press("Enter")
    await expect(page.locator("#raw-key")).to_be_visible()
    await page.goto(stack.url + "/projects/shop/settings/keys")
    await page.get_by_role("link", name="Revoke…").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await expect(page.get_by_role("link", name="Revoke…")).to_be_focused()
