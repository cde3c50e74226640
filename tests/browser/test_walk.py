"""What a user does, from the first key to the last, in a real browser on the real processes."""

import asyncio
import json
import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from playwright.async_api import Dialog, Error, Page, Request, Response, Route, expect

from httpbridge.config import Config
from httpbridge.dashboard.app import open_sessions
from httpbridge.log_store.chunk import IDS
from httpbridge.log_store.queries import QueryLimits
from tests.browser.stack import FORMS, RAW_KEY, Stack, elsewhere
from tests.browser.tour import ORIGINS, dashboard_of, until_shown
from tests.browser.tour import send as post_logs

pytestmark = pytest.mark.asyncio(loop_scope="session")  # that of the browser

# What the JavaScript SDK does, to the header.
_SEND = """async ([url, key, message]) => {
  const response = await fetch(`${url}/ingest/logs`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${key}`, "x-deeptracer-sdk": "js" },
    body: JSON.stringify({ product: "web", service: "shop-front", environment: "production",
      logs: [{ timestamp: new Date().toISOString(), level: "error", message, metadata: { order: 1042 } }] }),
    keepalive: true,
  });
  const names = ["retry-after", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
  return { status: response.status, body: await response.json(),
    headers: Object.fromEntries(names.map((name) => [name, response.headers.get(name)])) };
}"""


async def send(page: Page, url: str, key: str, message: str = "hello") -> Any:
    """Send a log from the page's own code."""
    return await page.evaluate(_SEND, [url, key, message])


async def test_from_the_first_key_to_a_revoked_one(stack: Stack) -> None:
    """Issue, copy, send from another origin, see it live, restrict origins, revoke: each step as users see it."""
    link = stack.system.run("httpbridge", "sign-in-link", "--name", "Ann", "--url", stack.url)
    assert stack.system.run("httpbridge", "sign-in-link", "--name", "nn\u202eA").returncode == 2
    anywhere = stack.system.run("httpbridge", "sign-in-link", HTTPBRIDGE_DASHBOARD_LISTEN="0.0.0.0:8081")
    assert (anywhere.returncode, "--url" in anywhere.stderr) == (2, True)
    page = await stack.page(is_signed_in=False, permissions=["clipboard-read", "clipboard-write"])
    await stack.follow(page, link.stdout.strip())
    await expect(page.get_by_role("heading", name="No projects yet")).to_be_visible()
    await page.get_by_role("link", name="Make the first one").click()
    await page.get_by_label("Name").fill("shop")
    await page.keyboard.press("Enter")

    # The key: shown once, with lines to copy.
    await expect(page.get_by_text("shown this once")).to_be_visible()
    copied = []
    for name in ("Copy API key", "Copy .env.local", "Copy Try it"):
        await page.get_by_role("button", name=name).click()
        copied.append(await page.evaluate("navigator.clipboard.readText()"))
    key = copied[0]
    assert RAW_KEY.fullmatch(key)
    assert copied[1] == f"DEEPTRACER_KEY={key}\nNEXT_PUBLIC_DEEPTRACER_KEY={key}"
    curl = await asyncio.create_subprocess_shell(copied[2], stdout=asyncio.subprocess.PIPE)
    answer, _ = await curl.communicate()
    assert json.loads(answer) == {"ok": True, "count": 1}

    # Logs, as they arrive.
    await page.get_by_role("link", name="Logs").click()
    await expect(page.get_by_text("hello, world").first).to_be_visible()
    await page.get_by_role("button", name="Live tail").click()
    await expect(page.get_by_role("button", name="Pause")).to_be_visible()

    async with elsewhere() as origin, elsewhere() as other_origin:
        theirs, others = await stack.page(is_signed_in=False), await stack.page(is_signed_in=False)
        await theirs.goto(origin)
        await others.goto(other_origin)
        sent = await send(theirs, stack.logs_url, key, "card declined")
        assert (sent["status"], sent["body"]) == (200, {"ok": True, "count": 1})
        assert sent["headers"]["x-ratelimit-limit"] == "100000000"
        await expect(page.get_by_text("card declined").first).to_be_visible()
        assert (await send(others, stack.logs_url, key))["status"] == 200

        # Allowed origins: nothing is saved before its consequences were shown.
        await page.get_by_role("link", name="Settings").click()
        await page.get_by_role("link", name="Allowed origins").click()
        await expect(page.get_by_text("all origins").first).to_be_visible()
        await page.get_by_role("button", name="Add entry").click()
        await page.get_by_role("textbox", name="Entry 1").fill(origin + "/checkout")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("textbox", name="Entry 1")).to_have_accessible_description(
            "A path is not part of an origin."
        )
        await page.get_by_role("textbox", name="Entry 1").fill(origin.upper())
        await page.get_by_role("textbox", name="Try an origin").fill(other_origin)
        await page.get_by_role("button", name="Review changes").click()
        await expect(page.locator(".try-result")).to_contain_text(f"No entry admits {other_origin}")
        await expect(page.get_by_role("textbox", name="Entry 1")).to_have_value(origin)
        assert (await send(others, stack.logs_url, key))["status"] == 200
        await page.get_by_role("button", name="Save", exact=True).click()
        await expect(page.get_by_role("status").first).to_contain_text("It holds everywhere: 1 bridge confirmed.")

        refused = await send(others, stack.logs_url, key)
        assert (refused["status"], refused["body"]) == (403, {"error": "Origin not allowed"})
        assert (await send(theirs, stack.logs_url, key))["status"] == 200

        # A bridge that lets one request a minute through: the page's code can read how long to wait.
        strict = await stack.system.bridge(HTTPBRIDGE_RATE_LIMIT_PER_MINUTE="1")
        answers = [await send(theirs, f"http://{strict.address}", key) for _ in range(3)]
        limited = answers[-1]
        assert (limited["status"], limited["body"]) == (429, {"error": "Rate limit exceeded"})
        assert 1 <= int(limited["headers"]["retry-after"]) <= 60
        assert (limited["headers"]["x-ratelimit-limit"], limited["headers"]["x-ratelimit-remaining"]) == ("1", "0")
        assert int(limited["headers"]["x-ratelimit-reset"]) > 0

        # Revoke, by the dialog.
        await page.get_by_role("navigation").get_by_role("link", name="API Keys").click()
        revoke = page.get_by_role("link", name="Revoke…")
        await expect(revoke).to_be_visible()
        await page.wait_for_load_state()  # its script has run
        await revoke.click()
        dialog = page.get_by_role("dialog")
        await expect(dialog).to_contain_text("stops working for good")
        await dialog.get_by_role("button", name="Cancel").click()
        await expect(dialog).to_be_hidden()
        assert (await send(theirs, stack.logs_url, key))["status"] == 200
        await page.get_by_role("link", name="Revoke…").click()
        await dialog.get_by_role("button", name="Revoke key").click()
        await expect(page.get_by_text("is dead everywhere since")).to_contain_text("Confirmed by 2 bridges")
        dead = await send(theirs, stack.logs_url, key)
        assert (dead["status"], dead["body"]) == (401, {"error": "Missing or invalid API key"})
        next_key = (await page.locator("#api-key").inner_text()).strip()
        assert (await send(theirs, stack.logs_url, next_key))["status"] == 200

    await page.get_by_role("button", name="Copy API key").click()
    await page.get_by_role("link", name="Audit").last.click()
    rows = page.locator("tbody tr")
    await expect(rows).to_have_count(3)
    await expect(rows.first).to_contain_text("Ann")
    await expect(rows.first).to_contain_text("revoked the key")


async def test_leaving_the_page_that_shows_a_key_is_warned_about_and_loses_it(stack: Stack) -> None:
    """The browser asks before the key is lost; afterwards no way back shows it again."""
    page = await stack.page()
    asked: list[str] = []

    async def answer(dialog: Dialog) -> None:
        asked.append(dialog.type)
        await dialog.accept()

    page.on("dialog", answer)
    key = await stack.create(page)
    await page.get_by_role("link", name="I have stored it").click()
    await expect(page.get_by_role("heading", name="API Keys")).to_be_visible()
    assert asked == ["beforeunload"]
    assert key not in await page.content()
    with pytest.raises(Error, match="ERR_CACHE_MISS"):  # nothing was kept; sending the form again would be refused
        await page.go_back()
    await expect(page.locator("body")).not_to_contain_text(key)


async def test_two_people_who_revoke_at_once_revoke_one_key(stack: Stack) -> None:
    """The second is told who was faster, and the first one's new key lives on."""
    ann, bob = await stack.page(), await stack.page(name="Bob")
    await stack.create(ann)
    for page in (ann, bob):
        page.on("dialog", lambda dialog: dialog.accept())
        await page.goto(stack.url + "/projects/shop/settings/keys")
        await page.get_by_role("link", name="Revoke…").click()
    await ann.get_by_role("button", name="Revoke key").click()
    key = (await ann.locator("#api-key").inner_text()).strip()
    await bob.get_by_role("button", name="Revoke key").click()
    await expect(bob.get_by_role("heading", name="Somebody was faster")).to_be_visible()
    await expect(bob.get_by_role("main")).to_contain_text("by Ann")
    assert stack.system.run("authsvc", "validate", stdin=key).returncode == 0


async def test_everything_but_copying_works_without_javascript(stack: Stack) -> None:
    """Sign in with the token, issue, revoke by a page that asks, try and change origins, sign out."""
    page = await stack.page(is_signed_in=False, java_script_enabled=False)
    await page.goto(stack.url + "/audit")
    await page.get_by_label("Your name").fill("Ann")
    token = (stack.system.state_dir / "dashboard-token").read_text()
    await page.get_by_label("Dashboard token").fill(token)
    await page.get_by_role("button", name="Sign in").click()
    assert page.url == stack.url + "/audit"
    key = await stack.create(page)
    assert await page.get_by_role("button", name="Copy").count() == 0
    await page.get_by_role("link", name="I have stored it").click()
    await page.get_by_role("link", name="Revoke…").click()
    await expect(page.get_by_role("heading", name="Revoke the key of shop?")).to_be_visible()
    await page.get_by_role("button", name="Revoke key").click()
    assert (await page.locator("#api-key").inner_text()).strip() != key
    assert stack.system.run("authsvc", "validate", stdin=key).returncode == 1
    await page.get_by_role("link", name="Allowed origins").click()
    await page.get_by_role("button", name="Add entry").click()
    await page.get_by_role("textbox", name="Entry 1").fill("shop.example")
    await page.get_by_role("textbox", name="Try an origin").fill("https://evil.example/page")
    await page.get_by_role("button", name="Try", exact=True).click()
    await expect(page.locator(".try-result")).to_contain_text("No entry admits https://evil.example")
    await page.get_by_role("textbox", name="Try an origin").fill("https://shop.example")
    await page.get_by_role("button", name="Try", exact=True).click()
    await expect(page.locator(".try-result")).to_contain_text("https://shop.example, by shop.example")
    await page.get_by_role("button", name="Review changes").click()
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.get_by_role("status").first).to_contain_text("Saved. It holds everywhere")
    assert await page.locator("time").count() == 0
    await page.get_by_role("link", name="Audit").last.click()
    assert (await page.locator("time").first.inner_text()).endswith(" UTC")
    await page.get_by_role("button", name="Sign out").click()
    await page.goto(stack.url + "/projects")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


@pytest.mark.parametrize("has_javascript", [True, False])
async def test_logs_are_filtered_opened_and_followed_back(stack: Stack, has_javascript: bool) -> None:
    """By filters, the chart and its numbers, Older, Newest and Go on searching, with JavaScript or without."""
    page = await stack.page(java_script_enabled=has_javascript)
    page.on("dialog", lambda dialog: dialog.accept())
    key = await stack.create(page)
    entries = page.locator("details.entry")

    # Pages.
    await post_logs(stack, key, *({"level": "info", "message": f"number {number}"} for number in range(250)))
    await page.goto(stack.url + "/projects/shop/logs")
    assert await page.locator("#live").is_visible() is has_javascript
    seen = []
    for count in (100, 100, 50):
        await expect(entries).to_have_count(count)
        seen += await page.locator("details.entry .headline").all_inner_texts()
        if count == 100:
            await page.get_by_role("link", name="Older").click()
    assert sorted(seen) == sorted(f"number {number}" for number in range(250))
    await expect(page.get_by_role("link", name="Older")).to_have_count(0)
    await page.get_by_role("link", name="Newest").click()
    await expect(page).to_have_url(re.compile(r"/logs\??$"))

    # Filters, and an entry.
    await post_logs(stack, key, {"level": "error", "message": "in staging", "metadata": {"order": 7}}, environment="x")
    await page.goto(stack.url + "/projects/shop/logs")
    await page.get_by_label("Environment").fill("x")
    await page.get_by_role("button", name="Show").click()
    await expect(entries).to_have_count(1)
    assert "environment=x" in page.url
    await expect(page.get_by_text('"order": 7')).to_be_hidden()
    await entries.locator("summary").click()
    await expect(page.get_by_text('"order": 7')).to_be_visible()
    await page.get_by_role("link", name="by itself").click()
    await expect(page.get_by_role("heading", name=f"Entry {2 * IDS}")).to_be_visible()

    # The chart: by a bar, and by its numbers.
    await page.goto(stack.url + "/projects/shop/logs?environment=x")
    title = await page.locator(".chart .column title").text_content() or ""
    assert ("Z: 1 log" in title) is not has_javascript  # the script makes it local
    assert re.match(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:00", title)
    await page.locator(".chart a").first.click()
    await expect(page).to_have_url(re.compile("since="))
    await expect(entries).to_have_count(1)
    await page.goto(stack.url + "/projects/shop/logs?environment=x")
    await page.get_by_text("The numbers").click()
    await page.locator(".chart tbody a").first.click()
    await expect(page).to_have_url(re.compile("since="))
    await expect(entries).to_have_count(1)

    # A search that takes several pages.
    for _ in range(50):
        await post_logs(stack, key, {"level": "debug", "message": "hay"})
    async with dashboard_of(stack, QueryLimits(entries_max=100)) as (url, page):
        await page.goto(url + "/projects/shop/logs")
        await page.get_by_label("Text").fill("number 249")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_text("Nothing was found in the newest 50 entries")).to_be_visible()
        await expect(page.get_by_text("There is too much to count at once")).to_be_visible()
        for _ in range(10):
            await page.get_by_role("link", name="Go on searching").click()
            await page.wait_for_load_state()
            if await page.get_by_role("link", name="Go on searching").count() == 0:
                break
        entries = page.locator("details.entry")
        await expect(entries).to_have_count(1)
        await expect(entries).to_contain_text("number 249")


async def test_projects_are_found_with_their_activity_and_their_blocked_origins(stack: Stack) -> None:
    page = await stack.page()
    page.on("dialog", lambda dialog: dialog.accept())
    key = await stack.create(page)
    await stack.create(page, "other")
    await page.goto(stack.url + ORIGINS)
    await page.get_by_role("button", name="Add entry").click()
    await page.get_by_role("textbox", name="Entry 1").fill("shop.example")
    await page.get_by_role("button", name="Review changes").click()
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.get_by_role("status").first).to_contain_text("Saved.")
    for origin, status in (("https://shop.example", 200), ("https://evil.example", 403), ("https://evil.example", 403)):
        assert await post_logs(stack, key, origin=origin) == status
    await until_shown(page, "https://evil.example")
    seen = page.get_by_role("row").filter(has_text="https://evil.example")
    await expect(seen.get_by_role("cell")).to_have_text(["0", "2", re.compile("Blocked")])
    await seen.get_by_role("button", name="Add https://evil.example to the list").click()
    await expect(page.get_by_role("textbox", name="Entry 2")).to_have_value("https://evil.example")

    await page.get_by_role("link", name="Projects").first.click()
    rows = page.locator("tbody tr")
    await expect(rows).to_have_count(2)
    await page.get_by_role("searchbox").fill("SHO")
    await page.keyboard.press("Enter")
    await expect(rows).to_have_count(1)
    await expect(rows).to_contain_text("shop.example")
    await expect(rows.get_by_role("cell").filter(has_text=re.compile(r"^1$"))).to_have_count(1)


async def test_a_link_on_another_site_leads_to_the_page_without_signing_in_again(stack: Stack) -> None:
    """The session cookie stays at home when another site links here, so the page loads itself once more."""
    page = await stack.page()
    async with elsewhere() as origin:
        await page.goto(f"{origin}/?link={stack.url}/audit")
        await page.get_by_role("link", name="link").click()
        await expect(page.get_by_role("heading", name="Audit")).to_be_visible()


@pytest.mark.parametrize("has_javascript", [True, False])
async def test_a_sign_in_link_on_another_site_signs_in_by_its_button_and_once(
    stack: Stack, has_javascript: bool
) -> None:
    """Where the cookies of the dashboard stay at home; the link is in no address that the browser keeps."""
    page = await stack.page(is_signed_in=False, java_script_enabled=has_javascript)
    link = stack.link("Ann")
    visited: list[str] = []
    page.on("framenavigated", lambda frame: visited.append(frame.url))
    async with elsewhere() as origin:
        await page.goto(f"{origin}/?link={link}")
        visited.clear()
        await page.get_by_role("link", name="link").click()
        await expect(page.get_by_role("heading", name="Sign in as Ann?")).to_be_visible()
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", name="No projects yet")).to_be_visible()
        assert set(visited) == {stack.url + "/sign-in/link", stack.url + "/projects"}
        other = await stack.page(is_signed_in=False, java_script_enabled=has_javascript)
        await other.goto(f"{origin}/?link={link}")
        await other.get_by_role("link", name="link").click()
        await expect(other.get_by_role("alert")).to_contain_text("This link was used")
        await expect(other.get_by_label("Dashboard token")).to_be_visible()


async def test_a_form_on_another_site_changes_nothing(stack: Stack) -> None:
    """Whichever way the browser says where it is from. Forms of our own say it likewise, and are taken."""
    page = await stack.page()

    def note(sent: Request) -> None:
        if sent.method == "POST":
            noting.append(asyncio.ensure_future(sent.all_headers()))

    noting: list[asyncio.Future[dict[str, str]]] = []
    page.on("request", note)
    await stack.create(page)
    async with elsewhere() as origin:
        await page.goto(origin)
        await page.evaluate(
            """(url) => {
              document.body.innerHTML = `<form method="post" action="${url}"></form>`;
              document.querySelector("form").submit();
            }""",
            stack.url + "/sign-out",
        )
        await expect(page.get_by_text("does not come from a page of this dashboard")).to_be_visible()
        await page.goto(stack.url + "/audit")
        await expect(page.get_by_role("heading", name="Audit")).to_be_visible()
        said = [(headers.get("origin"), headers.get("sec-fetch-site")) for headers in await asyncio.gather(*noting)]
        assert said == [(stack.url, "same-origin"), (origin, "cross-site")]


async def test_two_dashboards_on_one_host_keep_their_people(stack: Stack) -> None:
    """In one browser, where they share a host's cookies."""
    page = await stack.page(name="Ann")
    own = stack.dashboard
    variables = {"HTTPBRIDGE_STATE_DIR": str(stack.system.state_dir / "other"), "HTTPBRIDGE_ADMIN_TOKEN": "x" * 64}
    stack.dashboard = await stack.system.dashboard(**variables)
    sessions = open_sessions(Config.from_environment(stack.system.environment(**variables)))
    await stack.follow(page, f"{stack.url}/sign-in/link?t={sessions.link('Bob')}")
    await expect(page.get_by_title("Signed in as Bob")).to_be_visible()
    for dashboard, name in ((own, "Ann"), (stack.dashboard, "Bob")):
        await page.goto(f"http://{dashboard.address}/projects/new")
        await expect(page.get_by_title(f"Signed in as {name}")).to_be_visible()
    await page.get_by_role("button", name="Sign out").click()
    await page.goto(f"http://{own.address}/projects/new")
    await expect(page.get_by_title("Signed in as Ann")).to_be_visible()


async def test_times_are_in_the_browsers_zone_and_utc_on_hover(stack: Stack) -> None:
    """Nine hours apart in Tokyo."""
    page = await stack.page(timezone_id="Asia/Tokyo")
    page.on("dialog", lambda dialog: dialog.accept())
    await stack.create(page)
    await page.goto(stack.url + "/projects/shop/audit")
    time = page.locator("tbody time").first
    shown, title = await time.inner_text(), await time.get_attribute("title")
    assert title is not None
    ahead = datetime.fromisoformat(shown) - datetime.fromisoformat(title.removesuffix(" UTC"))
    assert ahead == timedelta(hours=9)


async def test_a_api_key_is_in_one_response_and_nowhere_else(stack: Stack) -> None:
    """The canary: not in a URL, another page, a cookie, a file of the state directory, or what a process printed."""
    page = await stack.page()
    page.on("dialog", lambda dialog: dialog.accept())
    seen: list[tuple[str, str]] = []

    async def note(response: Response | None) -> None:
        assert response is not None
        seen.append((response.url, await response.text()))

    async def click(name: str) -> None:
        async with page.expect_navigation() as navigation:
            await page.get_by_role("button", name=name).click()
        await note(await navigation.value)

    await note(await page.goto(stack.url + "/projects/new"))
    await page.get_by_label("Name").fill("shop")
    await click("Make project and key")
    keys = [(await page.locator("#api-key").inner_text()).strip()]
    await note(await page.goto(stack.url + "/projects/shop/settings/keys"))
    await page.get_by_role("link", name="Revoke…").click()
    await click("Revoke key")
    keys.append((await page.locator("#api-key").inner_text()).strip())
    assert await post_logs(stack, keys[1]) == 200
    for path in (
        "/projects", "/projects/shop/logs", "/projects/shop/logs/1", "/projects/shop/settings/keys",
        "/projects/shop/settings/origins", "/audit", "/projects/shop/audit", "/nowhere",
    ):  # fmt: skip
        await note(await page.goto(stack.url + path))
    cookies = str(await page.context.cookies())
    files = [path.read_bytes() for path in stack.system.directory.rglob("*") if path.is_file()]
    assert len(files) > 5
    for key in keys:
        assert sum(key in text for _, text in seen) == 1
        assert not any(key in url for url, _ in seen)
        assert key not in cookies
        assert not any(key.encode() in content for content in files)


async def test_times_are_typed_in_the_zone_that_they_are_shown_in(stack: Stack) -> None:
    """The address has UTC, so that it means the same to everybody; a range of a bar comes back as it was."""
    page = await stack.page(timezone_id="Asia/Tokyo")
    page.on("dialog", lambda dialog: dialog.accept())
    await stack.create(page)
    await page.goto(stack.url + "/projects/shop/logs?since=2026-01-31T08:00:00.123456Z&until=2026-02-01")
    since, until = page.locator("#since"), page.locator("#until")
    await expect(since).to_have_value("2026-01-31 17:00:00")
    await expect(until).to_have_value("2026-02-01 09:00:00")
    await page.get_by_role("button", name="Show").click()
    await expect(page).to_have_url(re.compile(r"since=2026-01-31T08%3A00%3A00\.123456Z&until=2026-02-01$"))
    await expect(since).to_have_value("2026-01-31 17:00:00")  # the script has run
    await since.fill("2026-01-31 10:30")
    await until.fill("15m")
    await page.get_by_role("button", name="Show").click()
    await expect(page).to_have_url(re.compile(r"since=2026-01-31T01%3A30%3A00\.000Z&until=15m$"))
    await expect(since).to_have_value("2026-01-31 10:30:00")


async def test_a_day_of_utc_has_its_minute_where_it_does_not_begin_at_midnight(stack: Stack) -> None:
    """West of UTC its date alone would be that of the day before."""
    page = await stack.page(timezone_id="America/New_York", viewport=FORMS["narrow"][1])
    page.on("dialog", lambda dialog: dialog.accept())
    key = await stack.create(page)
    assert await post_logs(stack, key, {"level": "info", "message": "old", "timestamp": "2026-02-10T12:00:00Z"}) == 200
    path = "/projects/shop/logs?since=2026-01-01&until=2026-04-01"
    await page.goto(stack.url + path)
    ticks, row = page.locator(".ticks time"), page.locator(".numbers tbody time")
    await expect(row).to_have_text(["2026-02-09 19:00"])
    await expect(ticks).to_have_text(["2025-12-31 19:00", "2026-02-14 19:00", "2026-03-31 20:00"])
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    in_utc = await stack.page(timezone_id="UTC")
    await in_utc.goto(stack.url + path)
    await expect(in_utc.locator(".numbers tbody time")).to_have_text(["2026-02-10"])
    await expect(in_utc.locator(".ticks time")).to_have_text(["2026-01-01", "2026-02-15", "2026-04-01"])


async def test_a_bar_leads_to_its_entries_and_filters_are_in_the_address(stack: Stack) -> None:
    page = await stack.page()
    page.on("dialog", lambda dialog: dialog.accept())
    key = await stack.create(page)
    entries = [{"level": "error", "message": message, "metadata": {"order": 1042}} for message in ("first", "second")]
    assert await post_logs(stack, key, *entries) == 200
    await page.goto(stack.url + "/projects/shop/logs")
    await page.get_by_role("checkbox", name="error").check()
    await page.get_by_label("Service").fill("checkout")
    await page.get_by_label("Text").fill("SECOND")
    await page.get_by_role("button", name="Show").click()
    await expect(page.locator("details.entry")).to_have_count(1)
    assert page.url.endswith("?level=error&text=SECOND&service=checkout")
    await page.locator(".chart a").first.click()
    await expect(page).to_have_url(re.compile("since=.*level=error.*text=SECOND|level=error.*text=SECOND.*since="))
    await expect(page.locator("details.entry")).to_have_count(1)
    await page.locator("details.entry summary").click()
    await expect(page.locator("details.entry pre").last).to_contain_text('"order": 1042')


async def test_a_preset_and_times_of_ones_own_exclude_each_other(stack: Stack) -> None:
    """The choice of time says what is shown, and the address has what was chosen, and nothing empty."""
    page = await stack.page(timezone_id="UTC")
    page.on("dialog", lambda dialog: dialog.accept())
    await stack.create(page)
    await page.goto(stack.url + "/projects/shop/logs")
    choice, since, until = page.get_by_label("Time"), page.locator("#since"), page.locator("#until")
    show = page.get_by_role("button", name="Show")
    await expect(choice).to_have_value("1h")
    await since.press_sequentially("2h")
    await expect(choice).to_have_value("custom")
    await since.clear()
    await expect(choice).to_have_value("1h")
    await until.press_sequentially("30m")
    await expect(choice).to_have_value("custom")
    await show.click()
    await expect(page).to_have_url(re.compile(r"/logs\?until=30m$"))
    await page.wait_for_load_state()  # the script, too
    await expect(choice).to_have_value("custom")
    await choice.select_option("Last 6 hours")
    await expect(until).to_have_value("")
    await show.click()
    await expect(page).to_have_url(re.compile(r"/logs\?range=6h$"))
    await page.wait_for_load_state()
    await expect(choice).to_have_value("6h")
    await choice.select_option("Last hour")
    await show.click()
    await expect(page).to_have_url(re.compile(r"/logs\??$"))


@pytest.mark.parametrize("form", ["narrow", pytest.param("light", marks=pytest.mark.long)])
async def test_who_chooses_custom_goes_on_with_its_beginning(stack: Stack, form: str) -> None:
    """On narrow screens, too, where the times are folded away."""
    page = await stack.page(viewport=FORMS[form][1])
    page.on("dialog", lambda dialog: dialog.accept())
    await stack.create(page)
    await page.goto(stack.url + "/projects/shop/logs")
    since = page.locator("#since")
    await expect(since).to_be_visible(visible=form != "narrow")
    await page.get_by_label("Time").select_option("Custom")
    await expect(since).to_be_visible()
    await expect(since).to_be_focused()
    await page.keyboard.type("2h")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile(r"/logs\?since=2h$"))


async def test_without_javascript_a_preset_chosen_on_a_custom_page_takes_its_place(stack: Stack) -> None:
    """And times that are typed beside a preset take the preset's."""
    page = await stack.page(java_script_enabled=False)
    await stack.create(page)
    await page.goto(stack.url + "/projects/shop/logs")
    choice, since = page.get_by_label("Time"), page.locator("#since")
    show = page.get_by_role("button", name="Show")
    await since.fill("2h")
    await show.click()
    await expect(choice).to_have_value("custom")
    await expect(since).to_have_value("2h")
    await choice.select_option("Last 6 hours")
    await show.click()
    await expect(choice).to_have_value("6h")
    await expect(since).to_have_value("")


async def test_origins_that_are_not_saved_are_not_left_without_a_word(stack: Stack) -> None:
    """But for those who discard them, and where there is nothing to lose."""
    page = await stack.page()
    asked: list[str] = []

    async def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        await dialog.dismiss()

    async def leave(to: str) -> None:
        await page.get_by_role("navigation").get_by_role("link", name=to).click()

    page.once("dialog", lambda dialog: dialog.accept())  # the key is left
    await stack.create(page)
    await page.goto(stack.url + ORIGINS)
    page.on("dialog", stay)
    await page.get_by_role("button", name="Add entry").click()
    await leave("API Keys")  # an empty entry is nothing
    await expect(page.get_by_role("heading", name="API Keys")).to_be_visible()
    await page.goto(stack.url + ORIGINS)
    await page.get_by_role("button", name="Add entry").click()
    await page.get_by_role("textbox", name="Entry 1").fill("shop.example")
    await page.get_by_role("button", name="Review changes").click()
    await expect(page.get_by_role("heading", name="Before saving")).to_be_visible()
    await page.wait_for_load_state()  # its script has run
    assert asked == []
    await leave("API Keys")
    await expect(page.get_by_role("textbox", name="Entry 1")).to_have_value("shop.example")
    assert asked == ["beforeunload"]
    await page.get_by_role("link", name="Discard").click()
    await expect(page.get_by_text("No entries")).to_be_visible()
    await page.get_by_role("button", name="Add entry").click()
    await page.get_by_role("textbox", name="Entry 1").fill("shop.example")
    await page.get_by_role("button", name="Review changes").click()
    await page.get_by_role("button", name="Save", exact=True).click()
    await expect(page.get_by_role("status").first).to_contain_text("Saved.")
    await leave("API Keys")
    await expect(page.get_by_role("heading", name="API Keys")).to_be_visible()
    assert asked == ["beforeunload"]


async def test_a_page_that_showed_a_key_keeps_nothing_of_it_for_going_back(stack: Stack) -> None:
    """Some browsers keep a page that was left, as it was, in memory."""
    page = await stack.page()
    page.on("dialog", lambda dialog: dialog.accept())
    key = await stack.create(page)
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true }))")
    assert key not in await page.content()
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))")
    await expect(page.get_by_role("heading", name="Projects")).to_be_visible()


async def test_a_form_is_sent_once_however_often_it_is_clicked(stack: Stack) -> None:
    page = await stack.page()
    page.on("dialog", lambda dialog: dialog.accept())
    sent: list[str] = []
    is_sent, is_clicked_again = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        if route.request.method == "POST":
            sent.append(route.request.url)
            is_sent.set()
            await is_clicked_again.wait()
        await route.continue_()

    await page.route("**/projects/new", hold)
    await page.goto(stack.url + "/projects/new")
    await page.get_by_label("Name").fill("shop")
    box = await page.get_by_role("button", name="Make project and key").bounding_box()
    assert box is not None
    await page.mouse.click(box["x"] + 5, box["y"] + 5)
    await is_sent.wait()
    await page.mouse.click(box["x"] + 5, box["y"] + 5)
    is_clicked_again.set()
    await expect(page.locator("#api-key")).to_be_visible()
    assert len(sent) == 1


async def test_what_cannot_be_copied_is_selected(stack: Stack) -> None:
    """Outside secure contexts there is no clipboard."""
    page = await stack.page()
    page.on("dialog", lambda dialog: dialog.accept())
    await page.add_init_script("Object.defineProperty(Navigator.prototype, 'clipboard', { value: undefined })")
    key = await stack.create(page)
    await page.get_by_role("button", name="Copy API key").click()
    await expect(page.get_by_role("button", name="Selected")).to_be_visible()
    assert (await page.evaluate("getSelection().toString()")).strip() == key
