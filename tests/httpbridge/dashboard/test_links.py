"""Sign-in links: each signs in once, by a button, and stays in no address."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from httpbridge.config import Config
from httpbridge.dashboard.app import open_sessions
from httpbridge.dashboard.sessions import LINK_SECONDS
from tests.clocks import Clock
from tests.httpbridge.dashboard.conftest import TOKEN, Dashboard, running
from tests.httpbridge.dashboard.test_sign_in import NOWHERE


def link(name: str = "Zoë", token: str = TOKEN) -> str:
    """Return what the command prints, without the host."""
    sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_DASHBOARD_TOKEN": token}))
    return f"/sign-in/link?t={sessions.link(name)}"


@pytest.mark.parametrize(
    "name", ["", " \t", "x" * 65, "nn\u202eA", "Ann\x00", "\x1b[31mAnn", "\u3164", "\u115f\u1160 \uffa0\u2800\u034f"]
)
def test_a_link_is_for_a_name_that_can_be_seen(tmp_path: Path, name: str) -> None:
    sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_STATE_DIR": str(tmp_path)}))
    with pytest.raises(ValueError, match="A name is needed"):
        sessions.link(name)
    for given, shown in ((" Ann  Ängström ", "Ann Ängström"), ("Ann\u3164", "Ann")):  # and not one who looks like her
        read = sessions.read_link(sessions.link(given))
        assert read is not None
        assert read.name == shown


def test_a_link_ends_in_time_and_is_used_once_until_then(tmp_path: Path) -> None:
    clock = Clock()
    sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_STATE_DIR": str(tmp_path)}), clock.wall)
    text, unused = sessions.link("Ann"), sessions.link("Ann")
    read = sessions.read_link(text)
    assert read is not None
    assert not sessions.is_used(read)
    assert [sessions.use(read), sessions.use(read)] == [True, False]
    assert sessions.is_used(read)
    clock.advance(LINK_SECONDS - 1)
    assert not sessions.use(read)
    assert sessions.read_link(unused) is not None
    clock.advance(1)
    assert (sessions.read_link(text), sessions.read_link(unused)) == (None, None)


async def test_a_link_signs_in_whoever_presses_its_button_and_is_not_the_token(dashboard: Dashboard) -> None:
    path = link()
    assert TOKEN not in path
    browser = await dashboard.browser(is_signed_in=False)
    page = await browser.follow(path)
    assert (page.status, "Sign in as Zoë?" in page.words) == (200, True)
    assert (await browser.get("/projects")).status == 303, "nobody is signed in by looking"
    with capture_logs() as logged:
        signed_in = await browser.use(path)
    assert (signed_in.status, signed_in.location) == (303, "/")
    assert [(event["event"], event["name"]) for event in logged] == [("signed_in", "Zoë")]
    assert "Zoë" in (await browser.get("/projects")).words
    assert not [name for name in browser.cookies if "link" in name]


async def test_the_link_is_in_the_address_of_no_page(dashboard: Dashboard) -> None:
    """What is in an address is in histories. The next page has it from a cookie, wherever the link stood."""
    browser = await dashboard.browser(is_signed_in=False)
    path = link()
    for path_asked in (path, path + "x", path[:-5]):
        for site in ("none", "cross-site"):
            answer = await browser.get(path_asked, **{"Sec-Fetch-Site": site})
            assert (answer.status, answer.location, answer.text) == (303, "/sign-in/link", "")
    answer = await browser.get(path)
    (cookie,) = [one for one in answer.headers.getall("Set-Cookie") if one.startswith("dashboard_link_")]
    attributes = {part.strip() for part in cookie.split(";")[1:]}
    assert attributes == {"HttpOnly", f"Max-Age={LINK_SECONDS}", "Path=/", "SameSite=Lax"}


async def test_who_looks_at_a_link_uses_it_up_neither_by_head_nor_by_get(dashboard: Dashboard) -> None:
    """Mail servers and chats do, for those whom the link is for."""
    path = link()
    for _ in range(3):
        scanner = await dashboard.browser(is_signed_in=False)
        assert await scanner.head(path) == 303
        assert await scanner.head("/sign-in/link") == 200
        assert (await scanner.follow(path)).status == 200
        assert scanner.session is None
    browser = await dashboard.browser(is_signed_in=False)
    assert (await browser.use(path)).status == 303


async def test_a_used_link_says_so_and_how_to_get_another(dashboard: Dashboard) -> None:
    first, second, third = [await dashboard.browser(is_signed_in=False) for _ in range(3)]
    path = link()
    page = await second.follow(path)
    text = path.partition("=")[2]
    assert (await first.use(path)).status == 303
    with capture_logs() as logged:
        refused = await second.post("/sign-in/link", csrf_token=page.csrf_token, link=text)
    assert [event["event"] for event in logged] == ["used_link_refused"]
    for answer in (refused, await second.follow(path), await third.follow(path)):
        assert (answer.status, 'role="alert">This link was used' in answer.text) == (403, True)
        assert "httpbridge sign-in-link" in answer.words
        assert "change the dashboard token" in answer.words
        assert text not in answer.text
    assert (second.session, third.session) == (None, None)


@pytest.mark.parametrize(
    "spoil", [lambda path: path + "x", lambda _: "/sign-in/link?t=", lambda _: link(token="b" * 64)]
)
async def test_what_is_no_link_says_so(dashboard: Dashboard, spoil: object) -> None:
    assert callable(spoil)
    browser = await dashboard.browser(is_signed_in=False)
    await browser.follow(link())  # its cookie is not taken for the other's
    dead = await browser.follow(spoil(link()))
    assert (dead.status, 'role="alert">This link is too old' in dead.text) == (403, True)
    assert 'aria-invalid="true"' not in dead.text
    assert "httpbridge sign-in-link" in dead.words
    posted = await browser.post("/sign-in/link", csrf_token=dead.csrf_token, link="x")
    assert (posted.status, "This link is too old" in posted.words) == (403, True)
    assert browser.session is None


async def test_of_many_who_press_the_button_at_once_one_is_signed_in(tmp_path: Path) -> None:
    """On several dashboards that share a state directory, too."""
    async with running(tmp_path, NOWHERE) as dashboard, running(tmp_path, NOWHERE) as beside:
        path = link()
        browsers = [await one.browser(is_signed_in=False) for one in (dashboard, beside) * 5]
        pages = [await browser.follow(path) for browser in browsers]
        answers = await asyncio.gather(
            *(
                browser.post("/sign-in/link", csrf_token=page.csrf_token, link=path.partition("=")[2])
                for browser, page in zip(browsers, pages, strict=True)
            )
        )
        assert sorted(answer.status for answer in answers) == [303] + [403] * 9


async def test_a_used_link_stays_used_when_the_dashboard_starts_again(tmp_path: Path) -> None:
    path, unused = link(), link()
    async with running(tmp_path, NOWHERE) as dashboard:
        assert (await (await dashboard.browser(is_signed_in=False)).use(path)).status == 303
    async with running(tmp_path, NOWHERE) as dashboard:
        browser = await dashboard.browser(is_signed_in=False)
        assert "This link was used" in (await browser.use(path)).words
        assert (await browser.use(unused)).status == 303


async def test_a_link_whose_use_cannot_be_kept_signs_nobody_in(tmp_path: Path) -> None:
    """It would sign in again after a restart. The token does."""
    (tmp_path / "file").touch()
    async with running(tmp_path / "file" / "state", NOWHERE, HTTPBRIDGE_ADMIN_TOKEN="x" * 64) as dashboard:
        browser = await dashboard.browser(is_signed_in=False)
        with capture_logs() as logged:
            refused = await browser.use(link())
        assert (refused.status, "Links cannot be used now" in refused.words) == (503, True)
        assert [event["event"] for event in logged] == ["link_use_not_stored"]
        assert browser.session is None
        assert (await browser.sign_in()).status == 303


async def test_another_sign_in_than_the_pages_is_not_used_by_it(dashboard: Dashboard) -> None:
    """A page signs in by the link that it shows, whatever was opened since; and a form from elsewhere by none."""
    browser = await dashboard.browser(is_signed_in=False)
    shown, opened = link("Ann"), link("Bob")
    page = await browser.follow(shown)
    await browser.follow(opened)
    text = shown.partition("=")[2]
    assert (await browser.post("/sign-in/link", link=text)).status == 403
    assert (await browser.post_from("cross-site", "/sign-in/link", [("link", text)])).status == 403
    await browser.post("/sign-in/link", csrf_token=page.csrf_token, link=text)
    assert "Ann" in (await browser.get("/projects")).words
    assert (await (await dashboard.browser(is_signed_in=False)).use(opened)).status == 303
