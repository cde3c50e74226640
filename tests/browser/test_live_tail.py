"""Live tail in a real browser: what arrives is shown once and harmlessly, whatever the tail goes through."""

import json
from contextlib import AsyncExitStack

import aiohttp
import pytest
from playwright.async_api import Page, Route, expect

from httpbridge.dashboard.log_page.stream import STREAMS_OF_SESSION_MAX
from tests.browser.stack import Stack
from tests.browser.tour import LOGS, send, signed_in

pytestmark = pytest.mark.asyncio(loop_scope="session")  # that of the browser

_HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


async def live(stack: Stack, query: str = "") -> tuple[Page, str]:
    """Make a project, and open its live tail; return the page and the key."""
    page = await signed_in(stack)
    key = await stack.create(page)
    await page.goto(stack.url + LOGS + query)
    await page.get_by_role("button", name="Live tail").click()
    await expect(page.locator("#live-state")).to_have_text("Live")
    return page, key


async def shown(page: Page) -> list[str]:
    """Return the lines of the list, newest arrival first."""
    return await page.locator("details.entry .headline").all_inner_texts()


async def test_what_arrives_is_put_on_top_and_opens_to_all_its_fields(stack: Stack) -> None:
    """As the server shows it; the empty page's words go, and the filter holds."""
    page, key = await live(stack, "?level=error&level=warn")
    await expect(page.get_by_role("heading", name="No logs yet")).to_be_visible()
    await send(stack, key, {"level": "error", "message": "one", "metadata": {"order": 7}, "trace_id": "trace-1"})
    await expect(page.locator("details.entry")).to_have_count(1)
    await expect(page.get_by_role("heading", name="No logs yet")).to_have_count(0)
    await send(stack, key, {"level": "info", "message": "not asked for"}, {"level": "warn", "message": "two"})
    await expect(page.locator("details.entry")).to_have_count(2)
    assert await shown(page) == ["two", "one"]
    arrived = page.locator("details.entry").last
    await arrived.locator("summary").click()
    await expect(arrived).to_contain_text("trace-1")
    fields = await arrived.locator("dl").inner_text()
    await page.reload()
    loaded = page.locator("details.entry").last
    await loaded.locator("summary").click()
    assert await loaded.locator("dl").inner_text() == fields


async def test_hostile_entries_arrive_harmlessly(stack: Stack) -> None:
    """Markup, terminal codes, marks that turn text around, and a megabyte, in every field."""
    page, key = await live(stack)
    text = "<img src=x onerror=alert(1)><script>alert(2)</script> \x1b[31m\u202egnol" + "m" * 1_000_000
    entry = {"level": "error", "message": text, "context": text, "trace_id": text[:100], "metadata": {text[:90]: text}}
    assert await send(stack, key, entry) == 200
    arrived = page.locator("details.entry")
    await arrived.locator("summary").click()
    await expect(arrived).to_contain_text("\\x1b[31m\\u202egnol")
    await expect(arrived).to_contain_text("more characters are not shown here")
    assert await page.locator("#entries img, #entries script").count() == 0
    content = await page.content()
    assert not set(content) & set("\x1b\u202e")
    assert len(content) < 100_000


async def test_a_pause_and_a_tab_out_of_sight_lose_nothing(stack: Stack) -> None:
    """And while it is out of sight, a tab keeps no connection."""
    page, key = await live(stack)
    await send(stack, key, {"level": "info", "message": "before"})
    await expect(page.locator("details.entry")).to_have_count(1)
    await page.get_by_role("button", name="Pause").click()
    await send(stack, key, {"level": "info", "message": "in the pause"})
    await page.get_by_role("button", name="Resume").click()
    await expect(page.locator("details.entry")).to_have_count(2)
    await page.evaluate(_HIDE, True)
    await expect(page.locator("#live-state")).to_have_text("Paused while out of sight")
    await send(stack, key, {"level": "info", "message": "out of sight"})
    await page.evaluate(_HIDE, False)
    await expect(page.locator("details.entry")).to_have_count(3)
    await page.get_by_role("button", name="Pause").click()
    await page.evaluate(_HIDE, True)
    await page.evaluate(_HIDE, False)
    await expect(page.locator("#live-state")).to_have_text("Paused")
    assert await shown(page) == ["out of sight", "in the pause", "before"]


async def test_a_dashboard_that_starts_again_is_found_again_and_nothing_is_lost(stack: Stack) -> None:
    page, key = await live(stack)
    await send(stack, key, {"level": "info", "message": "before"})
    await expect(page.locator("details.entry")).to_have_count(1)
    await stack.dashboard.stop()
    await expect(page.locator("#live-state")).to_have_text("Connecting again")
    await send(stack, key, {"level": "info", "message": "meanwhile"})
    await stack.system.dashboard(HTTPBRIDGE_DASHBOARD_LISTEN=stack.dashboard.address)
    await expect(page.locator("details.entry")).to_have_count(2)
    assert await shown(page) == ["meanwhile", "before"]
    stack.problems.clear()  # the browser says that nobody answered


async def test_more_than_is_shown_is_said(stack: Stack) -> None:
    page, key = await live(stack)
    await page.get_by_role("button", name="Pause").click()
    await send(stack, key, *({"level": "info", "message": str(number)} for number in range(150)))
    await page.get_by_role("button", name="Resume").click()
    await expect(page.locator("details.entry")).to_have_count(100)
    await expect(page.get_by_text("More arrived than is shown here.")).to_be_visible()


async def test_a_tail_that_connects_again_after_the_session_says_that_it_is_over(stack: Stack) -> None:
    page, _ = await live(stack)
    await page.get_by_role("button", name="Pause").click()
    await page.context.clear_cookies()
    await page.get_by_role("button", name="Resume").click()
    await expect(page.locator("#live-state")).to_have_text("Your session is over; reload the page to sign in")
    await page.reload()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


async def test_a_store_that_is_away_and_a_session_that_ends_are_said(stack: Stack) -> None:
    """The first mends itself; the second shows nothing more."""
    page, key = await live(stack)
    store, away = stack.system.state_dir / "logs.db", stack.system.state_dir / "away.db"
    store.rename(away)
    await expect(page.locator("#live-state")).to_have_text("The log store is unavailable; trying again")
    away.rename(store)
    await expect(page.locator("#live-state")).to_have_text("Live")
    await send(stack, key, {"level": "info", "message": "after"})
    await expect(page.locator("details.entry")).to_have_count(1)
    elsewhere = await page.context.new_page()
    await elsewhere.goto(stack.url + "/projects")
    await elsewhere.get_by_role("button", name="Sign out").click()
    await expect(page.locator("#live-state")).to_contain_text("Your session is over")
    await send(stack, key, {"level": "info", "message": "secret"})
    await expect(page.get_by_role("button", name="Live tail")).to_be_visible()
    assert await shown(page) == ["after"]


async def test_a_tail_that_a_newer_one_displaced_says_so_and_does_not_come_back(stack: Stack) -> None:
    page, key = await live(stack)
    cookies = {cookie["name"]: cookie["value"] for cookie in await page.context.cookies()}
    async with AsyncExitStack() as open_streams:
        session = await open_streams.enter_async_context(
            aiohttp.ClientSession(cookies=cookies, cookie_jar=aiohttp.CookieJar(unsafe=True))
        )
        for _ in range(STREAMS_OF_SESSION_MAX):
            await open_streams.enter_async_context(session.get(f"{stack.url}{LOGS}/stream"))
        await expect(page.locator("#live-state")).to_have_text("You have opened many live tails; this one has ended")
        await page.evaluate(_HIDE, True)
        await page.evaluate(_HIDE, False)
        await expect(page.get_by_role("button", name="Live tail")).to_have_attribute("aria-pressed", "false")
    await send(stack, key, {"level": "info", "message": "meanwhile"})
    await page.get_by_role("button", name="Live tail").click()
    await expect(page.locator("details.entry")).to_have_count(1)


async def test_a_tail_keeps_the_newest_five_hundred(stack: Stack) -> None:
    """So that a page that is left open does not grow for ever."""
    page = await signed_in(stack)
    await stack.create(page)
    time = "2026-01-31T08:00:00.000000Z"
    made = {"timestamp": time, "received_at": time, "level": "info", "service": "shop", "parts": [], "is_short": False}
    entries = [made | {"id": number, "headline": str(number)} for number in range(510)]
    bodies = [f"id: 510\ndata: {json.dumps({'entries': entries, 'is_gap': False})}\n\n", "event: over\ndata: \n\n"]

    async def answer(route: Route) -> None:
        await route.fulfill(body=bodies.pop(0), content_type="text/event-stream")

    await page.route("**/logs/stream?*", answer)
    await page.goto(stack.url + LOGS)
    await page.get_by_role("button", name="Live tail").click()
    await expect(page.locator("details.entry")).to_have_count(500)
    assert [(await shown(page))[number] for number in (0, -1)] == ["509", "10"]
