"""Every page, light, dark and 360 pixels narrow: axe finds nothing, and the keyboard is enough."""

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Page, expect

from tests.browser.stack import FORMS, Stack
from tests.browser.tour import WALKS, Walk


async def faults(page: Page, what: str) -> list[str]:
    """Look at the page that is open, in each form; return what is wrong."""
    found = []
    for form, (scheme, size) in FORMS.items():
        await page.emulate_media(color_scheme=scheme)
        await page.set_viewport_size(size)
        results = await Axe().run(page)
        if results.violations_count:
            found.append(f"{what}, {form}: {results.generate_report()}")
        if await page.evaluate("document.documentElement.scrollWidth") > size["width"]:
            found.append(f"{what} is wider than the window, {form}")
    return found


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.__name__)
async def test_axe_finds_nothing_on_any_page(stack: Stack, walk: Walk) -> None:
    """Empty states, forms with errors, the dialog, keys, live tail and failures included."""
    found = []
    async for what, page in walk(stack):
        found += await faults(page, what)
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
    await expect(page.locator("#raw-key")).to_be_visible()
    await page.goto(stack.url + "/projects/shop/settings/keys")
    await page.get_by_role("link", name="Revoke…").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog").get_by_role("button", name="Cancel")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await expect(page.get_by_role("link", name="Revoke…")).to_be_focused()
