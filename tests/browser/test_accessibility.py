"""Every page, light, dark and 360 pixels narrow: axe finds nothing, and the keyboard is enough."""

import itertools
import re
from collections.abc import Collection

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.browser.stack import FORMS, Stack
from tests.browser.tour import LOGS, ORIGINS, WALKS, Walk, send

pytestmark = pytest.mark.asyncio(loop_scope="session")  # that of the browser


async def faults(page: Page, what: str, axe_forms: Collection[str]) -> list[str]:
    """Look at the page that is open, in each form; return what is wrong."""
    found = []
    for form, (scheme, size) in FORMS.items():
        await page.emulate_media(color_scheme=scheme)
        await page.set_viewport_size(size)
        if form in axe_forms and (results := await Axe().run(page)).violations_count:
            found.append(f"{what}, {form}: {results.generate_report()}")
        if await page.evaluate("document.documentElement.scrollWidth") > size["width"]:
            found.append(f"{what} is wider than the window, {form}")
    return found


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.__name__)
async def test_axe_finds_nothing_on_any_page(stack: Stack, walk: Walk, is_long: bool) -> None:
    """Empty states, forms with errors, the dialog, keys, live tail and failures included.

    In its short form it looks at each page in one form, in turn.
    """
    found, forms = [], itertools.cycle(FORMS)
    async for what, page in walk(stack):
        found += await faults(page, what, FORMS if is_long else [next(forms)])
    assert not found, "\n".join(found)


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
    await expect(page.locator("#api-key")).to_be_visible()
    await page.goto(stack.url + "/projects/shop/settings/keys")
    await page.get_by_role("link", name="Revoke…").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await expect(page.get_by_role("link", name="Revoke…")).to_be_focused()


async def test_the_keyboard_is_enough_for_origins_and_never_lost_there(stack: Stack) -> None:
    """Add, remove, review and save; the focus is on what comes next."""
    page = await stack.page()
    page.on("dialog", lambda dialog: dialog.accept())
    await stack.create(page)
    await page.goto(stack.url + ORIGINS)
    for number, entry in enumerate(("a.example", "b.example", "c.example"), 1):
        await page.get_by_role("button", name="Add entry").focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("textbox", name=f"Entry {number}")).to_be_focused()
        await page.keyboard.type(entry)
    await page.get_by_role("button", name="Remove entry 1").focus()
    await page.keyboard.press("Space")
    await expect(page.get_by_role("textbox", name="Entry 1")).to_be_focused()
    await expect(page.get_by_role("textbox", name="Entry 1")).to_have_value("b.example")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Remove entry 2")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Add entry")).to_be_focused()
    await page.get_by_role("textbox", name="Entry 1").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", name="Before saving")).to_be_focused()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Save", exact=True)).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("status").first).to_contain_text("Saved.")


async def test_the_keyboard_is_enough_for_logs(stack: Stack) -> None:
    """Filter, open an entry, go to a bar by its number, follow live."""
    page = await stack.page()
    page.on("dialog", lambda dialog: dialog.accept())
    key = await stack.create(page)
    await send(stack, key, {"level": "error", "message": "one"}, {"level": "info", "message": "two"})
    await page.goto(stack.url + LOGS)
    await page.get_by_role("button", name="Live tail").focus()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("checkbox", name="debug")).to_be_focused()
    for _ in range(3):
        await page.keyboard.press("Tab")
    await page.keyboard.press("Space")
    for name in ("Text", "Time", "From", "To", "Service", "Environment", "Show"):
        await page.keyboard.press("Tab")
        focused = page.locator(":focus")
        await expect(focused).to_have_accessible_name(name)
    await page.keyboard.press("Enter")
    await expect(page.locator("details.entry")).to_have_count(1)
    await page.get_by_text("The numbers").focus()
    await page.keyboard.press("Enter")
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("region", name="Entries per minute")).to_be_focused()
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page).to_have_url(re.compile("since="))
    await page.locator("details.entry summary").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("region", name=re.compile("message of entry"))).to_be_visible()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("region", name=re.compile("message of entry"))).to_be_focused()


async def test_a_long_name_cuts_nothing_off_the_list_of_projects(stack: Stack) -> None:
    """Sixty-three characters, beside origins and times, in a window as wide as most."""
    page = await stack.page(viewport=FORMS["light"][1])
    page.on("dialog", lambda dialog: dialog.accept())
    name = "a" * 63
    key = await stack.create(page, name)
    origins = ["https://checkout.shop-front.example:8443", "https://another.shop-front.example:8443"]
    assert stack.system.run("authsvc", "origins", name, *origins).returncode == 0
    assert await send(stack, key) == 200
    await page.goto(stack.url + "/projects")
    frame = page.get_by_role("region", name="Projects")
    await expect(frame.locator("tbody time")).to_be_visible()
    assert await frame.evaluate("(one) => one.scrollWidth - one.clientWidth") == 0
