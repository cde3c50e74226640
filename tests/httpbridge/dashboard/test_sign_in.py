"""Signing in and out, sessions, and what keeps strangers from both."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from authsvc.client.environment import Address, ConfigurationError
from httpbridge.config import Config
from httpbridge.dashboard.app import open_sessions
from httpbridge.dashboard.attempts import (
    ATTEMPTS_MAX,
    ATTEMPTS_PER_ADDRESS_MAX,
    WINDOW_SECONDS,
    Attempts,
    TooManyAttemptsError,
)
from httpbridge.dashboard.guard import Guard
from httpbridge.dashboard.pages import Pages
from httpbridge.dashboard.sign_in import SignIn, own_path
from httpbridge.dashboard.signed_out import SignedOut
from tests.httpbridge.conftest import FakeClock
from tests.httpbridge.dashboard.conftest import TOKEN, Answer, Browser, Dashboard, running

NOWHERE = Address("127.0.0.1", 1)


async def test_the_token_and_a_name_sign_in_and_lead_to_the_page_that_was_asked_for(dashboard: Dashboard) -> None:
    browser = await dashboard.browser(is_signed_in=False)
    asked = await browser.get("/projects?q=a%26b")
    assert (asked.status, asked.location) == (303, "/sign-in?next=/projects%3Fq%3Da%2526b")
    page = await browser.get(asked.location)
    assert page.status == 200
    assert 'name="next" value="/projects?q=a%26b"' in page.text
    signed_in = await browser.sign_in("Ann", next_path="/projects?q=a%26b")
    assert (signed_in.status, signed_in.location) == (303, "/projects?q=a%26b")
    assert "Ann" in (await browser.get(signed_in.location)).words


async def test_a_cookie_that_is_no_text_is_no_session(dashboard: Dashboard) -> None:
    host, port = dashboard.url.removeprefix("http://").split(":")
    for name in (b"dashboard_session", b"dashboard_visitor", b"dashboard_notice"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /projects HTTP/1.1\r\nHost: x\r\nCookie: " + name + b"=\xff\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"303"
        writer.close()


async def test_the_session_cookie_is_kept_from_scripts_and_other_sites(dashboard: Dashboard) -> None:
    browser = await dashboard.browser(is_signed_in=False)
    answer = await browser.sign_in()
    (cookie,) = [value for value in answer.headers.getall("Set-Cookie") if value.startswith("dashboard_session=")]
    attributes = {part.strip() for part in cookie.split(";")[1:]}
    assert attributes == {"HttpOnly", "Max-Age=43200", "Path=/", "SameSite=Strict"}
    assert TOKEN not in cookie


@pytest.mark.parametrize(
    ("header", "is_secure"),
    [("https", True), ("https, http", True), ("HTTPS ,http", True), ("http, https", False), ("", False), (",", False)],
)
async def test_cookies_are_secure_behind_proxies_the_first_of_which_speaks_https(
    dashboard: Dashboard, header: str, is_secure: bool
) -> None:
    browser = await dashboard.browser(is_signed_in=False)
    answer = await browser.get("/sign-in", **{"X-Forwarded-Proto": header})
    assert ("; Secure" in answer.headers["Set-Cookie"]) is is_secure


async def test_under_https_cookies_are_secure(tmp_path: Path) -> None:
    ca, cert, key = trustme.CA(), tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = ca.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    ca.configure_trust(context)
    files = {"HTTPBRIDGE_TLS_CERT": str(cert), "HTTPBRIDGE_TLS_KEY": str(key)}
    async with running(tmp_path, NOWHERE, **files) as dashboard, aiohttp.ClientSession() as session:
        url = dashboard.url.replace("http://", "https://") + "/sign-in"
        async with session.get(url, ssl=context) as answer:
            visitor = answer.headers["Set-Cookie"]
            page = Answer(answer, await answer.text())
        fields = {"form_token": page.form_token, "name": "Ann", "token": TOKEN}
        headers = {"Cookie": visitor.partition(";")[0]}
        async with session.post(url, ssl=context, data=fields, headers=headers, allow_redirects=False) as answer:
            (signed_in,) = [one for one in answer.headers.getall("Set-Cookie") if one.startswith("dashboard_session=")]
        for cookie in (visitor, signed_in):
            assert "; Secure" in cookie


@pytest.mark.parametrize(
    ("name", "token", "status"),
    [("Ann", "wrong", 403), ("", TOKEN, 400), ("x" * 65, TOKEN, 400), ("nn\u202eA", TOKEN, 400)],
)
async def test_a_wrong_token_or_no_name_is_told_beside_its_field(
    dashboard: Dashboard, name: str, token: str, status: int
) -> None:
    browser = await dashboard.browser(is_signed_in=False)
    answer = await browser.sign_in(name, token)
    assert (answer.status, answer.text.count('aria-invalid="true"')) == (status, 1)
    assert "dashboard_session" not in browser.cookies
    assert token not in answer.text


async def test_attempts_are_limited_and_the_right_token_is_no_exception(dashboard: Dashboard) -> None:
    browser = await dashboard.browser(is_signed_in=False)
    form_token = (await browser.get("/sign-in")).form_token

    def attempt(token: str) -> asyncio.Task[Answer]:
        return asyncio.create_task(browser.post("/sign-in", form_token=form_token, name="Eve", token=token))

    # At once: those that wait for their answers count as well.
    attempts = [attempt("wrong") for _ in range(ATTEMPTS_PER_ADDRESS_MAX + 1)]
    async with asyncio.timeout(10):
        while not any(one.done() and one.result().status == 429 for one in attempts):
            await asyncio.wait([one for one in attempts if not one.done()], return_when=asyncio.FIRST_COMPLETED)
    refused = await attempt(TOKEN)
    assert refused.status == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= WINDOW_SECONDS
    assert "Too many attempts. Try again in 5 minutes." in refused.words
    assert "dashboard_session" not in browser.cookies
    for one in attempts:
        one.cancel()
    await asyncio.gather(*attempts, return_exceptions=True)


@asynccontextmanager
async def signing_in(tmp_path: Path, sleep: Callable[[float], Awaitable[None]]) -> AsyncIterator[Browser]:
    """Serve the way in alone, with a clock that stands still."""
    sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_DASHBOARD_TOKEN": TOKEN}))
    pages = Pages(sessions, FakeClock().now)
    guard = Guard(sessions, pages)
    application = web.Application(middlewares=guard.middlewares())
    application.add_routes(SignIn(sessions, pages, Attempts(FakeClock().monotonic), sleep).routes())
    async with TestServer(application) as server, Browser(str(server.make_url("")).rstrip("/")) as browser:
        yield browser


async def test_wrong_tokens_are_answered_ever_more_slowly_until_the_right_one(tmp_path: Path) -> None:
    """The wait comes before the token is looked at, so that the right one is no quicker than a wrong one."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with signing_in(tmp_path, sleep) as browser:
        for token, status in [("wrong", 403)] * 4 + [(TOKEN, 303)]:
            assert (await browser.sign_in(token=token)).status == status
        assert slept == [0, 0.25, 0.5, 1, 2]
        slept.clear()
        browser.forget()
        assert [(await browser.sign_in(token="wrong")).status for _ in range(2)] == [403, 403]
        assert slept == [0, 0.25]


async def test_the_log_says_who_signed_in_and_from_where(dashboard: Dashboard) -> None:
    with capture_logs() as logged:
        await dashboard.browser(name="Zoë")
    (event,) = [event for event in logged if event["event"] == "signed_in"]
    assert (event["name"], event["address"]) == ("Zoë", "127.0.0.1")


def test_each_attempt_waits_longer_until_there_is_none_left() -> None:
    clock = FakeClock()
    attempts = Attempts(clock.monotonic)
    assert [attempts.begin("a") for _ in range(ATTEMPTS_PER_ADDRESS_MAX)] == [0, 0.25, 0.5, 1, 2, 4, 4, 4, 4, 4]
    with pytest.raises(TooManyAttemptsError) as refused:
        attempts.begin("a")
    assert refused.value.retry_after_seconds == WINDOW_SECONDS
    assert attempts.begin("b") == 0
    attempts.succeeded("a")
    assert attempts.begin("a") == 0


def test_attempts_from_everywhere_are_limited_too() -> None:
    attempts = Attempts(FakeClock().monotonic)
    for number in range(ATTEMPTS_MAX):
        attempts.begin(f"address {number}")
    with pytest.raises(TooManyAttemptsError):
        attempts.begin("another")


async def test_signing_out_ends_the_session_wherever_its_cookie_was_copied_to(dashboard: Dashboard) -> None:
    browser, thief = await dashboard.browser(), await dashboard.browser(is_signed_in=False)
    thief.set_cookies(browser.cookies)
    assert (await thief.get("/projects")).status == 200
    signed_out = await browser.submit("/projects", "/sign-out")
    assert (signed_out.status, signed_out.location) == (303, "/sign-in")
    assert (await browser.get("/projects")).status == 303
    assert (await thief.get("/projects")).status == 303


async def test_a_copied_cookie_stays_dead_when_the_dashboard_starts_again(tmp_path: Path) -> None:
    """Who did not sign out stays signed in, though; and dashboards that share a state folder know it at once."""
    async with running(tmp_path, NOWHERE) as dashboard, running(tmp_path, NOWHERE) as beside:
        browser, other = await dashboard.browser(), await dashboard.browser()
        copied, kept = browser.cookies, other.cookies
        thief = await beside.browser(is_signed_in=False)
        thief.set_cookies(copied)
        assert (await thief.get("/projects/new")).status == 200
        await browser.submit("/projects/new", "/sign-out")
        assert (await thief.get("/projects/new")).status == 303
    async with running(tmp_path, NOWHERE) as dashboard:
        for cookies, status in ((copied, 303), (kept, 200)):
            somebody = await dashboard.browser(is_signed_in=False)
            somebody.set_cookies(cookies)
            assert (await somebody.get("/projects/new")).status == status


async def test_signing_out_works_without_a_state_folder_to_write_to(tmp_path: Path) -> None:
    """Until the dashboard ends."""
    (tmp_path / "file").touch()
    async with running(tmp_path / "file" / "state", NOWHERE, HTTPBRIDGE_ADMIN_TOKEN=32 * "x") as dashboard:
        browser, thief = await dashboard.browser(), await dashboard.browser(is_signed_in=False)
        thief.set_cookies(browser.cookies)
        with capture_logs() as logged:
            assert (await browser.submit("/projects/new", "/sign-out")).status == 303
        assert [event["event"] for event in logged] == ["sign_out_not_stored"]
        assert (await thief.get("/projects/new")).status == 303


def test_what_is_kept_of_sign_outs_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that are over are forgotten, and of too many those that end first."""
    monkeypatch.setattr("httpbridge.dashboard.signed_out.KEPT_MAX", 3)
    signed_out = SignedOut(tmp_path)
    for number in range(5):
        signed_out.add(f"{number}", until=100 + number, now=50)
    assert [signed_out.has(f"{number}", 100 + number) for number in range(5)] == [False, False, True, True, True]
    signed_out.add("later", until=200, now=104)
    assert len(list((tmp_path / "signed-out").iterdir())) == 2
    assert signed_out.has("4", 104)


async def test_another_token_ends_every_session_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE, HTTPBRIDGE_DASHBOARD_TOKEN="") as dashboard:
        kept = tmp_path / "dashboard-token"
        assert kept.stat().st_mode & 0o777 == 0o600
        browser = await dashboard.browser(is_signed_in=False)
        await browser.sign_in(token=kept.read_text())
        assert (await browser.get("/projects/new")).status == 200
        kept.write_text(5 * "another" + "\n")
        assert (await browser.get("/projects/new")).status == 303


@pytest.mark.parametrize(
    "name", ["", " \t", "x" * 65, "nn\u202eA", "Ann\x00", "\x1b[31mAnn", "\u3164", "\u115f\u1160 \uffa0\u2800\u034f"]
)
def test_a_link_is_for_a_name_that_can_be_seen(tmp_path: Path, name: str) -> None:
    sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_STATE_DIR": str(tmp_path)}))
    with pytest.raises(ValueError, match="A name is needed"):
        sessions.link(name)
    assert sessions.name_of_link(sessions.link(" Ann  Ängström ")) == "Ann Ängström"
    assert sessions.name_of_link(sessions.link("Ann\u3164")) == "Ann"  # and not somebody who looks like her


def test_sessions_and_links_end_in_time(tmp_path: Path) -> None:
    clock = FakeClock()
    config = Config.from_environment({"HTTPBRIDGE_STATE_DIR": str(tmp_path)})
    sessions = open_sessions(config, clock.now)
    cookie, link = sessions.begin("Ann"), sessions.link("Bob")
    assert sessions.name_of_link(link) == "Bob"
    clock.advance(599)
    assert sessions.name_of_link(link) == "Bob"
    clock.advance(1)
    assert sessions.name_of_link(link) is None
    clock.advance(12 * 3600 - 601)
    assert sessions.read(cookie) is not None
    clock.advance(1)
    assert sessions.read(cookie) is None


def test_what_was_signed_for_one_purpose_is_worth_nothing_for_another(tmp_path: Path) -> None:
    sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_STATE_DIR": str(tmp_path)}))
    cookie = sessions.begin("Ann")
    assert sessions.name_of_link(cookie) is None
    assert sessions.read(sessions.link("Ann")) is None
    assert sessions.read(sessions.notice("x")) is None
    forged = cookie[:9] + ("A" if cookie[9] != "A" else "B") + cookie[10:]
    for other in (forged, "", ".", "x.y", "é", "\udcff", "a" * 5000):  # the last but one: no UTF-8
        assert sessions.read(other) is None


async def test_a_link_signs_in_and_is_not_the_token(dashboard: Dashboard) -> None:
    environ = {"HTTPBRIDGE_DASHBOARD_TOKEN": TOKEN}
    link = open_sessions(Config.from_environment(environ)).link("Zoë")
    assert TOKEN not in link
    browser = await dashboard.browser(is_signed_in=False)
    answer = await browser.get(f"/sign-in/link?t={link}")
    assert (answer.status, answer.location) == (303, "/")
    assert "Zoë" in (await browser.get("/projects")).words
    stranger = await dashboard.browser(is_signed_in=False)
    dead = await stranger.get(f"/sign-in/link?t={link}x")
    assert (dead.status, 'role="alert">This link is too old' in dead.text) == (403, True)
    assert 'aria-invalid="true"' not in dead.text
    assert (await stranger.get("/projects")).status == 303


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/projects?q=a", "/projects?q=a"),
        ("", "/"),
        ("https://evil.example", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/sign-out", "/"),
        ("/é", "/"),
        ("/" + "x" * 3000, "/"),
        ("evil.example", "/"),
        ("///evil.example", "/"),
    ],
)
def test_only_a_path_of_ours_is_gone_to(path: str, expected: str) -> None:
    assert own_path(path) == expected


async def test_signing_in_leads_to_no_other_site(dashboard: Dashboard) -> None:
    browser = await dashboard.browser(is_signed_in=False)
    assert (await browser.sign_in(next_path="//evil.example/")).location == "/"


async def test_a_link_on_another_site_finds_the_session_by_loading_again(dashboard: Dashboard) -> None:
    stranger = await dashboard.browser(is_signed_in=False)
    answer = await stranger.get("/projects", **{"Sec-Fetch-Site": "cross-site"})
    assert (answer.status, 'http-equiv="refresh"' in answer.text) == (200, True)


async def test_where_a_network_sees_the_dashboard_somebody_has_to_choose_its_token(tmp_path: Path) -> None:
    """A generated one would be known to nobody but those who read the state folder; and TLS alone keeps nobody out."""
    cert, key = (tmp_path / f"{name}.pem" for name in ("cert", "key"))
    issued = trustme.CA().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    variables = {
        "HTTPBRIDGE_DASHBOARD_LISTEN": "0.0.0.0:0",
        "HTTPBRIDGE_TLS_CERT": str(cert),
        "HTTPBRIDGE_TLS_KEY": str(key),
    }
    with pytest.raises(ConfigurationError, match="set HTTPBRIDGE_DASHBOARD_TOKEN"):
        async with running(tmp_path, NOWHERE, HTTPBRIDGE_DASHBOARD_TOKEN="", **variables):
            pass
    async with running(tmp_path, NOWHERE, **variables):
        pass


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"HTTPBRIDGE_DASHBOARD_LISTEN": "0.0.0.0:0"}, "HTTPBRIDGE_DASHBOARD_LISTEN"),
        ({"HTTPBRIDGE_KEY_SERVICE": "192.0.2.1:50051"}, "HTTPBRIDGE_KEY_SERVICE"),
        ({"HTTPBRIDGE_PUBLIC_URL": "javascript:x"}, "HTTPBRIDGE_PUBLIC_URL"),
        ({"HTTPBRIDGE_TLS_CERT": "/nowhere", "HTTPBRIDGE_TLS_KEY": "/nowhere"}, "HTTPBRIDGE_TLS_CERT"),
    ],
)
async def test_an_unsafe_or_unusable_setting_refuses_to_start(
    tmp_path: Path, variables: dict[str, str], named: str
) -> None:
    with pytest.raises(ConfigurationError, match=named):
        async with running(tmp_path, NOWHERE, **variables):
            pass
