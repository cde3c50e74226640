"""Every page of the dashboard, in every state that looks different: opened one after the other, in a few walks.

`test_accessibility` checks each with axe, and `screenshots` takes pictures of it. A walk yields the name of what is on
the page, and goes on when it is asked for the next one.
"""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TypeAlias
from unittest.mock import patch

from playwright.async_api import Page, expect

from authsvc.runtime import clock
from authsvc.runtime.environment import Address
from httpbridge.dashboard import app as dashboard
from httpbridge.dashboard.connections import CONNECTION_LIMITS
from httpbridge.dashboard.views.origins import ENTRIES_MAX
from httpbridge.dashboard.views.sign_in import FAILURES_PER_ADDRESS_MAX
from httpbridge.log_store import sqlite_reads
from httpbridge.log_store.queries import QueryLimits
from tests.browser.stack import Stack
from tests.http_exchange import exchange, request
from tests.httpbridge.dashboard.conftest import TOKEN
from tests.httpbridge.dashboard.conftest import running as running_dashboard
from tests.waiting import until

Walk: TypeAlias = Callable[[Stack], AsyncIterator[tuple[str, Page]]]

KEYS, ORIGINS, LOGS = "/projects/shop/settings/keys", "/projects/shop/settings/origins", "/projects/shop/logs"
DATA = "/projects/shop/settings/data"


async def signed_in(stack: Stack, name: str = "Ann Example") -> Page:
    """Open a page that asks nothing when it is left."""
    page = await stack.page(name=name)
    page.on("dialog", lambda dialog: dialog.accept())
    return page


async def send(
    stack: Stack,
    key: str,
    *entries: Mapping[str, object],
    origin: str | None = None,
    environment: str = "production",
) -> int:
    """Send logs of a shop's checkout to the bridge; return the status of the answer."""
    logs = entries or ({"level": "info", "message": "hello"},)
    body = json.dumps({"service": "checkout", "environment": environment, "logs": logs}).encode()
    return (await exchange(stack.bridge.address, request(key=key, origin=origin, body=body))).status


@asynccontextmanager
async def dashboard_of(stack: Stack, query_limits: QueryLimits) -> AsyncIterator[tuple[str, Page]]:
    """Run a dashboard of another kind here, and sign in; give its URL and a page."""
    address = Address.parse(stack.key_service.address)
    async with running_dashboard(stack.system.state_dir, address, clock.now, CONNECTION_LIMITS, query_limits) as other:
        page = await stack.page(is_signed_in=False)
        await page.goto(other.url + "/sign-in")
        await page.get_by_label("Your name").fill("Ann Example")
        await page.get_by_label("Dashboard token").fill(TOKEN)
        await page.get_by_role("button", name="Sign in").click()
        yield other.url, page


def an_hour_of_logs() -> list[Mapping[str, object]]:
    """Return entries as a shop might send them, those of the last hour, most of them quiet."""
    kinds: list[tuple[str, str, dict[str, object]]] = [
        ("info", "order placed", {"order": 1042, "total": 59.9, "items": [{"sku": "A-7", "count": 2}]}),
        ("debug", "cache miss for price list", {"region": "eu"}),
        ("info", "payment accepted", {"order": 1042, "provider": "card"}),
        ("warn", "payment provider is slow, trying again", {"attempt": 2, "elapsed_ms": 2210}),
        ("error", "card declined: insufficient funds", {"order": 1043, "customer": {"id": 77, "country": "DE"}}),
    ]
    now = datetime.now(UTC)
    entries: list[Mapping[str, object]] = []
    for minute in range(58):
        for number in range(1 + minute * 7 % 5 + (9 if minute in (20, 21) else 0)):
            level, message, metadata = kinds[(minute * 3 + number * number) % len(kinds)]
            instant = now - timedelta(minutes=minute, seconds=7 * number + 1)
            entries.append(
                {"level": level, "message": message, "metadata": metadata, "timestamp": instant.isoformat()}
                | ({"trace_id": f"4bf92f3577b34da6a3ce929d0e0e{minute:04}"} if number % 2 else {})
            )
    return entries


async def way_in(stack: Stack) -> AsyncIterator[tuple[str, Page]]:
    """Sign in, in all ways that fail; then lose the session."""
    page = await stack.page(is_signed_in=False)
    await page.goto(stack.url + "/sign-in")
    yield "sign-in", page
    await page.get_by_label("Your name").fill("Ann Example")
    await page.get_by_label("Dashboard token").fill("wrong")
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_label("Dashboard token")).to_have_accessible_description(re.compile("not the dashboard"))
    yield "sign-in, wrong token", page
    await page.goto(stack.url + "/sign-in/link?t=x")
    yield "sign-in, dead link", page
    link = stack.link("Ann Example")
    await page.goto(link)
    await expect(page.get_by_role("heading", name="Sign in as Ann Example?")).to_be_visible()
    yield "sign-in, link", page
    await stack.follow(await stack.page(is_signed_in=False), link)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("alert")).to_contain_text("This link was used")
    yield "sign-in, used link", page
    async with guessing(stack, page):
        await page.get_by_label("Your name").fill("Ann Example")
        await page.get_by_label("Dashboard token").fill("wrong")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_text("Many wrong ones came")).to_be_visible()
        yield "sign-in, too many attempts", page
    # From a link on another site: this page loads itself again at once, so it is shown without that.
    arrived = await page.context.request.get(stack.url + "/audit", headers={"Sec-Fetch-Site": "cross-site"})
    again = re.sub(r'<meta http-equiv="refresh"[^>]*>', "", await arrived.text())
    await page.route("**/again", lambda route: route.fulfill(body=again, content_type="text/html"))
    await page.goto(stack.url + "/again")
    await expect(page.get_by_role("link", name="Go on to the dashboard")).to_be_visible()
    yield "from another site", page
    page = await signed_in(stack)
    yield "no projects", page
    await page.goto(stack.url + "/projects/new")
    yield "new project", page
    await page.get_by_label("Name").fill("Not A Name")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Name")).to_have_accessible_description(re.compile("cannot have this name"))
    yield "new project, refused", page
    await stack.create(page)
    await page.goto(stack.url + ORIGINS)
    await page.get_by_role("button", name="Add entry").click()
    await page.get_by_role("textbox", name="Entry 1").fill("https://shop.example")
    await page.context.clear_cookies()
    await page.get_by_role("button", name="Review changes").click()
    await expect(page.get_by_role("heading", name="Your session is over")).to_be_visible()
    yield "session over", page
    async with page.context.expect_page() as opening:
        await page.get_by_role("link", name="Sign in").click()
    await stack.follow(await opening.value, stack.link("Ann Example"))
    await page.get_by_role("button", name="Send it again").click()
    await expect(page.get_by_text("from before you signed in as Ann Example")).to_be_visible()
    yield "form of another sign-in", page
    await page.get_by_role("button", name="Send it again").click()
    await expect(page.get_by_role("heading", name="Before saving")).to_be_visible()
    await expect(page.get_by_role("textbox", name="Entry 1")).to_have_value("https://shop.example")


@asynccontextmanager
async def guessing(stack: Stack, page: Page) -> AsyncIterator[None]:
    """Have somebody else on this machine try wrong tokens until no more are taken."""
    csrf_token = await page.locator("input[name=csrf_token]").first.get_attribute("value") or ""
    fields: dict[str, str | float | bool] = {"csrf_token": csrf_token, "name": "Eve", "token": "wrong"}
    guesses = [
        asyncio.create_task(page.context.request.post(stack.url + "/sign-in", form=fields))
        for _ in range(FAILURES_PER_ADDRESS_MAX)
    ]
    try:
        await until("guessing is stopped", lambda: "sign_in_attempts_exhausted" in stack.dashboard.stderr)
        yield
    finally:
        for guess in guesses:
            guess.cancel()
        await asyncio.gather(*guesses, return_exceptions=True)


async def keys(stack: Stack) -> AsyncIterator[tuple[str, Page]]:
    """Walk along a project's key, from the first to the last, the audit trail, and what is not there."""
    page, other = await signed_in(stack), await signed_in(stack, "Bob")
    await stack.create(page)
    yield "key shown", page
    await page.goto(stack.url + KEYS)
    yield "API keys, the first one", page
    key_id = await page.locator("input[name=key_id]").get_attribute("value")
    await page.get_by_role("link", name="Revoke…").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    yield "revoke, dialog", page
    await other.goto(f"{stack.url}{KEYS}/revoke?key={key_id}")
    yield "revoke, page", other
    await page.get_by_role("button", name="Revoke key").click()
    await expect(page.get_by_text("is dead everywhere since")).to_be_visible()
    yield "key revoked", page
    await other.get_by_role("button", name="Revoke key").click()
    await expect(other.get_by_role("heading", name="Somebody was faster")).to_be_visible()
    yield "already revoked", other
    await page.goto(stack.url + KEYS)
    yield "API keys, with history", page
    await page.get_by_role("link", name="Revoke…").click()
    await page.evaluate("document.querySelector('dialog form').action = '/projects/Shop/settings/keys/revoke'")
    await page.get_by_role("button", name="Revoke key").click()
    await expect(page.get_by_role("heading", name="Refused")).to_be_visible()
    yield "refused", page
    await page.goto(stack.url + KEYS)
    stack.bridge.send(signal.SIGSTOP)  # a bridge that does not answer: revoking waits two seconds for it
    await page.get_by_role("link", name="Revoke…").click()
    await page.get_by_role("button", name="Revoke key").click()
    await expect(page.get_by_text("has not answered since")).to_be_visible()
    yield "key revoked, a bridge pending", page
    stack.bridge.send(signal.SIGCONT)
    for name, path in (
        ("audit", "/audit"),
        ("audit of a project", "/projects/shop/audit"),
        ("projects", "/projects"),
        ("projects, none found", "/projects?q=zzz"),
        ("page not found", "/nowhere"),
        ("project not found", "/projects/unknown/settings/keys"),
    ):
        await page.goto(stack.url + path)
        yield name, page


async def logs(stack: Stack) -> AsyncIterator[tuple[str, Page]]:
    """Look at the Logs page, empty and full, and live."""
    page = await signed_in(stack)
    key = await stack.create(page)
    await page.goto(stack.url + LOGS)
    yield "logs, none yet", page
    await page.get_by_role("button", name="Live tail").click()
    await expect(page.locator("#live-state")).to_have_text("Live")
    yield "live tail, waiting", page
    await send(stack, key, {"level": "error", "message": "the first one", "metadata": {"order": 1}})
    await page.locator("details.entry summary").first.click()
    yield "live tail, an entry arrived", page
    await page.get_by_role("button", name="Pause").click()
    yield "live tail, paused", page
    assert await send(stack, key, *an_hour_of_logs()) == 200
    await page.goto(stack.url + LOGS)
    yield "logs", page
    hostile = {
        "level": "warn",
        "message": "<b>\u202eevil\x1b[31m " + "x" * 400,
        "metadata": {"a": [1, {"b": None}] * 9},
    }
    await send(stack, key, hostile, {"level": "info", "message": ""})
    await page.goto(stack.url + LOGS)
    for number in range(3):
        await page.locator("details.entry summary").nth(number).click()
    await page.get_by_text("The numbers").click()
    yield "logs, entries and numbers open", page
    await page.get_by_role("link", name="by itself").nth(2).click()
    yield "one entry", page
    for name, query in (
        ("logs, filtered", "?level=error&text=declined&range=24h"),
        ("logs, nothing matches", "?text=nothing-like-it"),
        ("logs, not in this time", "?since=2020-01-01&until=2020-01-02"),
        ("logs, a time that makes no sense", "?since=yesterday"),
    ):
        await page.goto(stack.url + LOGS + query)
        yield name, page
    times = ("2999-01-01T00:00:00Z", "2999-01-02T00:00:00Z", "1970-01-01T00:00:00Z")
    await send(stack, key, *({"level": "info", "message": "when?", "timestamp": time} for time in times))
    await page.goto(stack.url + LOGS + "?range=all")
    await expect(page.get_by_text("2 entries claim to be from the future, over 5 minutes from now.")).to_be_visible()
    yield "logs, times that cannot be right", page


async def many_logs(stack: Stack) -> AsyncIterator[tuple[str, Page]]:
    """Look at more than is shown at once: older pages, a gap in live tail, a search that goes on."""
    page = await signed_in(stack)
    key = await stack.create(page)
    await page.goto(stack.url + LOGS)
    await page.get_by_role("button", name="Live tail").click()
    await expect(page.locator("#live-state")).to_have_text("Live")
    await page.get_by_role("button", name="Pause").click()
    await send(stack, key, *({"level": "info", "message": str(number)} for number in range(250)))
    await page.get_by_role("button", name="Resume").click()
    await expect(page.get_by_text("More arrived than is shown here.")).to_be_visible()
    yield "live tail, a gap", page
    await page.goto(stack.url + LOGS)
    await page.get_by_role("link", name="Older").click()
    await expect(page.get_by_role("link", name="Newest")).to_be_visible()
    yield "logs, an older page", page
    for _ in range(3):
        await send(stack, key, {"level": "debug", "message": "hay"})
    async with dashboard_of(stack, QueryLimits(entries_max=4)) as (url, page):
        await page.goto(url + LOGS + "?text=nothing-like-it")
        await expect(page.get_by_text("There are older ones.")).to_be_visible()
        await expect(page.get_by_text("There is too much to count at once")).to_be_visible()
        yield "logs, a search that is not done", page
    # A dashboard whose statements may take no time at all.
    with patch.object(dashboard, "_STATEMENT_SECONDS_MAX", 0.0), patch.object(sqlite_reads, "_STEPS", 1):
        async with dashboard_of(stack, QueryLimits()) as (url, page):
            await page.goto(url + LOGS + "?text=nothing-like-it")
            await expect(page.get_by_role("heading", name="The log store is slow")).to_be_visible()
            yield "log store slow", page


async def origins(stack: Stack) -> AsyncIterator[tuple[str, Page]]:
    """Edit allowed origins: empty, wrong, tried, reviewed, saved, overtaken."""
    page, other = await signed_in(stack), await signed_in(stack, "Bob")
    key = await stack.create(page)
    await page.goto(stack.url + ORIGINS)
    yield "origins, none", page
    for origin in ("https://shop.example", "https://shop.example", "https://evil.example", "http://localhost:3000"):
        assert await send(stack, key, origin=origin) == 200
    await until_shown(page, "https://evil.example")
    yield "origins, all", page
    await page.get_by_role("button", name="Add entry").click()
    await page.get_by_role("textbox", name="Entry 1").fill("https://shop.example/path")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("textbox", name="Entry 1")).to_have_accessible_description(re.compile("path"))
    yield "origins, a wrong entry", page
    await page.get_by_role("textbox", name="Entry 1").fill("https://Shop.example")
    await page.get_by_role("textbox", name="Try an origin").fill("not an origin")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("This is not an origin")).to_be_visible()
    yield "origins, tried what is none", page
    await page.get_by_role("textbox", name="Try an origin").fill("https://evil.example")
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("No entry admits")).to_be_visible()
    yield "origins, tried", page
    await other.goto(stack.url + ORIGINS)
    await page.get_by_role("button", name="Review changes").click()
    await expect(page.get_by_text("It would block 2 origins that are admitted now")).to_be_visible()
    yield "origins, before saving", page
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.get_by_role("status").first).to_contain_text("Saved.")
    yield "origins, saved", page
    await other.get_by_role("button", name="Add entry").click()
    await other.get_by_role("textbox", name="Entry 1").fill("https://other.example")
    await other.get_by_role("button", name="Review changes").click()
    await expect(other.get_by_role("alert")).to_contain_text("Somebody saved another list meanwhile")
    yield "origins, saved by somebody else", other
    await page.get_by_role("button", name="Remove entry 1").click()
    await page.get_by_role("button", name="Review changes").click()
    await expect(page.get_by_text("Pages of every origin may send logs then")).to_be_visible()
    yield "origins, before removing all", page
    await page.goto(stack.url + ORIGINS)
    await page.evaluate(
        """(count) => {
          const list = document.querySelector(".entries");
          for (let number = 0; number < count; number++) {
            const entry = list.firstElementChild.cloneNode(true);
            entry.querySelector("input").value = `shop-${number}.example`;
            list.append(entry);
          }
        }""",
        ENTRIES_MAX,
    )
    await page.get_by_role("button", name="Review changes").click()
    await expect(page.get_by_role("alert")).to_contain_text(
        f"There are {ENTRIES_MAX + 1} entries, and {ENTRIES_MAX} are the most."
    )
    yield "origins, too many", page


async def data(stack: Stack) -> AsyncIterator[tuple[str, Page]]:
    """See what is stored, set how long it is kept, and erase some of it: with mistakes."""
    page = await signed_in(stack)
    key = await stack.create(page)
    assert await send(stack, key, *an_hour_of_logs()) == 200
    await page.goto(stack.url + DATA)
    yield "data", page
    await page.get_by_label("A number of its own").check()
    await page.get_by_label("Days that this project's logs are kept").fill("0")
    await page.get_by_label("At most on disk").fill("much")
    await page.get_by_role("button", name="Save").click()
    await expect(page.get_by_label("At most on disk")).to_have_accessible_description(re.compile("such as 500 MB"))
    yield "data, limits that make no sense", page
    await page.get_by_label("Days that this project's logs are kept").fill("30")
    await page.get_by_label("At most on disk").fill("2 GB")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").first).to_contain_text("Saved.")
    yield "data, limits saved", page
    await page.get_by_label("From").fill("yesterday")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("From")).to_have_accessible_description(re.compile("neither a time"))
    yield "data, a time that makes no sense", page
    await page.get_by_label("From").fill("2h")
    await page.get_by_label("Text").fill("card DECLINED")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Type the project's name")).to_be_focused()
    yield "data, before erasing", page
    await page.keyboard.type("shopp")
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("Type the project's name")).to_have_accessible_description(re.compile("Nothing was"))
    yield "data, another name typed", page
    await page.get_by_label("Type the project's name").fill("shop")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").first).to_contain_text(re.compile("Erased [0-9]+ entries"))
    await expect(page.get_by_role("cell", name="dashboard:Ann Example")).to_be_visible()
    yield "data, erased", page


async def until_shown(page: Page, text: str) -> None:
    """Load the page again until it shows a text: counts are stored every few seconds."""

    async def is_shown() -> bool:
        await page.reload()
        return text in await page.content()

    await until(f"{text} is shown", is_shown)


async def failures(stack: Stack) -> AsyncIterator[tuple[str, Page]]:
    """Take away what the dashboard needs, and give it back."""
    page = await signed_in(stack)
    key = await stack.create(page)
    await send(stack, key)
    await page.goto(stack.url + LOGS)
    await page.get_by_role("button", name="Live tail").click()
    await expect(page.locator("#live-state")).to_have_text("Live")
    store, away = stack.system.state_dir / "logs.db", stack.system.state_dir / "away.db"
    store.rename(away)
    await expect(page.locator("#live-state")).to_contain_text("unavailable")
    yield "live tail, log store down", page
    for name, path in (
        ("log store down", LOGS),
        ("projects, log store down", "/projects"),
        ("origins, log store down", ORIGINS),
        ("data, log store down", DATA),
    ):
        await page.goto(stack.url + path)
        await expect(page.get_by_text("no bridge has run with it yet").first).to_be_visible()
        yield name, page
    await page.goto(stack.url + LOGS)
    away.rename(store)
    await page.get_by_role("link", name="Try again").click()
    await expect(page.get_by_role("heading", name="Logs")).to_be_visible()
    await stack.key_service.stop()
    for name, path in (("key service down", "/projects"), ("key service down, in a project", KEYS)):
        await page.goto(stack.url + path)
        await expect(page.get_by_role("heading", name="The key service is unavailable")).to_be_visible()
        await expect(page.get_by_role("main")).to_contain_text("authsvc serve")
        yield name, page
    await stack.system.key_service(AUTHSVC_LISTEN=stack.key_service.address)
    await page.get_by_role("link", name="Try again").click()
    await expect(page.get_by_role("heading", name="API Keys")).to_be_visible()


WALKS: tuple[Walk, ...] = (way_in, keys, logs, many_logs, origins, data, failures)
