"""Signing in and out, sessions, and what keeps strangers from both."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from authsvc.runtime.environment import Address, ConfigurationError
from authsvc.runtime.networks import Networks
from httpbridge.config import Config
from httpbridge.dashboard.app import open_sessions
from httpbridge.dashboard.middleware import Middlewares
from httpbridge.dashboard.pages import Pages
from httpbridge.dashboard.sessions import IDLE_SECONDS, REFRESH_SECONDS, SESSION_SECONDS, SPENT_MAX, Spent
from httpbridge.dashboard.views.sign_in import (
    FAILURES_MAX,
    FAILURES_PER_ADDRESS_MAX,
    WAITING_MAX,
    WINDOW_SECONDS,
    LoginThrottle,
    SignIn,
    ThrottledError,
    own_path,
)
from tests.clocks import Clock
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


@pytest.mark.parametrize("path", ["/dt_c0ffee", "/dt_c0ffee?t=dt_c0ffee", "/projects/demo/logs/1/dt_c0ffee"])
async def test_an_address_of_no_page_is_not_repeated(dashboard: Dashboard, path: str) -> None:
    """It may be a secret that somebody pasted."""
    browser = await dashboard.browser(is_signed_in=False)
    asked = await browser.get(path)
    assert (asked.status, asked.location) == (303, "/sign-in")
    assert "c0ffee" not in f"{asked.headers}{asked.text}"


async def test_a_cookie_that_is_no_text_is_no_session(dashboard: Dashboard) -> None:
    host, port = dashboard.url.removeprefix("http://").split(":")
    for name in (b"dashboard_session", b"dashboard_pre_session", b"dashboard_notice"):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /projects HTTP/1.1\r\nHost: x\r\nCookie: " + name + b"=\xff\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"303"
        writer.close()


async def test_the_session_cookie_is_kept_from_scripts_and_other_sites(dashboard: Dashboard) -> None:
    browser = await dashboard.browser(is_signed_in=False)
    answer = await browser.sign_in()
    (cookie,) = [value for value in answer.headers.getall("Set-Cookie") if value.startswith("dashboard_session_")]
    attributes = {part.strip() for part in cookie.split(";")[1:]}
    assert attributes == {"HttpOnly", "Max-Age=43200", "Path=/", "SameSite=Strict"}
    assert TOKEN not in cookie


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
    assert browser.session is None
    assert token not in answer.text


async def test_wrong_tokens_are_limited_and_the_right_one_is_taken_all_the_same(dashboard: Dashboard) -> None:
    """From the address that all of them come from: of an office, or of a proxy that nobody named."""
    browser = await dashboard.browser(is_signed_in=False)
    csrf_token = (await browser.get("/sign-in")).csrf_token

    def attempt(token: str) -> asyncio.Task[Answer]:
        return asyncio.create_task(browser.post("/sign-in", csrf_token=csrf_token, name="Eve", token=token))

    # At once: those whose answers are waited for count as well.
    attempts = [attempt("wrong") for _ in range(FAILURES_PER_ADDRESS_MAX + 1)]
    async with asyncio.timeout(60):
        while not any(one.done() and one.result().status == 429 for one in attempts):
            await asyncio.wait([one for one in attempts if not one.done()], return_when=asyncio.FIRST_COMPLETED)
    refused = await attempt("wrong")
    assert refused.status == 429
    assert 1 <= int(refused.headers["Retry-After"]) <= WINDOW_SECONDS
    assert "Many wrong ones came; the right one is taken at any time." in refused.words
    assert (await attempt(TOKEN)).status == 303
    assert browser.session is not None
    for one in attempts:
        one.cancel()
    await asyncio.gather(*attempts, return_exceptions=True)


@asynccontextmanager
async def signing_in(tmp_path: Path, sleep: Callable[[float], Awaitable[None]]) -> AsyncIterator[Browser]:
    """Serve the way in alone, with a clock that stands still."""
    sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_DASHBOARD_TOKEN": TOKEN}))
    pages = Pages(sessions, "http://bridge", Clock().wall)
    application = web.Application(middlewares=Middlewares(sessions, pages, Networks()).in_order)
    application.add_routes(SignIn(sessions, pages, LoginThrottle(Clock(), sleep)).routes)
    async with TestServer(application) as server, Browser(str(server.make_url("")).rstrip("/")) as browser:
        yield browser


async def test_wrong_tokens_are_answered_ever_more_slowly_until_the_right_one(tmp_path: Path) -> None:
    """Which does not wait, and from which on the address counts as one that knows it."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with signing_in(tmp_path, sleep) as browser:
        for token, status in [("wrong", 403)] * 4 + [(TOKEN, 303)]:
            assert (await browser.sign_in(token=token)).status == status
        assert slept == [0, 0.25, 0.5, 1]
        slept.clear()
        browser.forget()
        assert [(await browser.sign_in(token="wrong")).status for _ in range(2)] == [403, 403]
        assert slept == [0, 0.25]


async def test_the_log_says_who_signed_in_and_from_where(dashboard: Dashboard) -> None:
    with capture_logs() as logged:
        await dashboard.browser(name="Zoë")
    (event,) = [event for event in logged if event["event"] == "signed_in"]
    assert (event["name"], event["address"]) == ("Zoë", "127.0.0.1")


class Failing:
    """Wrong tokens, of which nobody waits; `seconds` is how long each would have."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.seconds: list[float] = []
        self.throttle = LoginThrottle(self.clock, self._sleep)

    async def _sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    async def wait_of(self, address: str) -> float:
        await self.throttle.failed(address)
        return self.seconds[-1]


async def test_each_attempt_waits_longer_until_there_is_none_left() -> None:
    failing = Failing()
    waits = [await failing.wait_of("192.0.2.1") for _ in range(FAILURES_PER_ADDRESS_MAX)]
    assert waits == [0, 0.25, 0.5, 1, 2, 4, 4, 4, 4, 4]
    with pytest.raises(ThrottledError) as refused:
        await failing.wait_of("192.0.2.1")
    assert refused.value.retry_after_seconds == WINDOW_SECONDS
    assert await failing.wait_of("192.0.2.2") == 0
    failing.throttle.succeeded("192.0.2.1")
    assert await failing.wait_of("192.0.2.1") == 0


async def test_one_subscriber_of_ipv6_is_one_address() -> None:
    failing = Failing()
    for number in range(FAILURES_PER_ADDRESS_MAX):
        await failing.wait_of(f"2001:db8::{number:x}")
    with pytest.raises(ThrottledError):
        await failing.wait_of("2001:db8::ffff:1")
    assert await failing.wait_of("2001:db8:0:1::1") == 0


async def test_attempts_from_everywhere_are_limited_too() -> None:
    failing = Failing()
    for number in range(FAILURES_MAX):
        await failing.wait_of(f"address {number}")
    with pytest.raises(ThrottledError):
        await failing.wait_of("another")


async def test_few_wrong_answers_are_waited_for_at_a_time_as_each_keeps_a_connection() -> None:
    gate = asyncio.Event()
    waiting = asyncio.Semaphore(0)

    async def sleep(_seconds: float) -> None:
        waiting.release()
        await gate.wait()

    throttle = LoginThrottle(Clock(), sleep)
    async with asyncio.TaskGroup() as tasks:
        for number in range(WAITING_MAX):
            tasks.create_task(throttle.failed(f"address {number}"))
            await waiting.acquire()
        with pytest.raises(ThrottledError):
            await throttle.failed("another")
        gate.set()
    await throttle.failed("one more")


async def test_of_refused_attempts_the_log_has_their_number_once_a_minute() -> None:
    """They cost a stranger nothing, so they must not fill a disk."""
    failing = Failing()

    async def logged(refusals: int) -> list[int]:
        with capture_logs() as events:
            for _ in range(refusals):
                with pytest.raises(ThrottledError):
                    await failing.wait_of("a")
        return [event["attempts"] for event in events if event["event"] == "sign_in_attempts_exhausted"]

    for _ in range(FAILURES_PER_ADDRESS_MAX):
        await failing.wait_of("a")
    assert await logged(5) == [1]
    failing.clock.advance(60)
    assert await logged(2) == [5]


async def test_signing_out_ends_the_session_wherever_its_cookie_was_copied_to(dashboard: Dashboard) -> None:
    browser, thief = await dashboard.browser(), await dashboard.browser(is_signed_in=False)
    thief.set_session(browser.session)
    assert (await thief.get("/projects")).status == 200
    signed_out = await browser.submit("/projects", "/sign-out")
    assert (signed_out.status, signed_out.location) == (303, "/sign-in")
    assert (await browser.get("/projects")).status == 303
    assert (await thief.get("/projects")).status == 303


async def test_a_copied_cookie_stays_dead_when_the_dashboard_starts_again(tmp_path: Path) -> None:
    """Who did not sign out stays signed in, though; and dashboards that share a state directory know it at once."""
    async with running(tmp_path, NOWHERE) as dashboard, running(tmp_path, NOWHERE) as beside:
        browser, other = await dashboard.browser(), await dashboard.browser()
        copied, kept = browser.session, other.session
        thief = await beside.browser(is_signed_in=False)
        thief.set_session(copied)
        assert (await thief.get("/projects/new")).status == 200
        await browser.submit("/projects/new", "/sign-out")
        assert (await thief.get("/projects/new")).status == 303
    async with running(tmp_path, NOWHERE) as dashboard:
        for session, status in ((copied, 303), (kept, 200)):
            somebody = await dashboard.browser(is_signed_in=False)
            somebody.set_session(session)
            assert (await somebody.get("/projects/new")).status == status


async def test_signing_out_works_without_a_state_directory_to_write_to(tmp_path: Path) -> None:
    """Until the dashboard ends."""
    (tmp_path / "file").touch()
    async with running(tmp_path / "file" / "state", NOWHERE, HTTPBRIDGE_ADMIN_TOKEN=32 * "x") as dashboard:
        browser, thief = await dashboard.browser(), await dashboard.browser(is_signed_in=False)
        thief.set_session(browser.session)
        with capture_logs() as logged:
            assert (await browser.submit("/projects/new", "/sign-out")).status == 303
        assert [event["event"] for event in logged] == ["sign_out_not_stored"]
        assert (await thief.get("/projects/new")).status == 303


def test_what_is_kept_of_sign_outs_and_used_links_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is over anyway is forgotten, and of too many those that end first."""
    assert SPENT_MAX == 10_000
    monkeypatch.setattr("httpbridge.dashboard.sessions.SPENT_MAX", 3)
    spent = Spent(tmp_path / "spent")
    for number in range(5):
        assert spent.add(f"{number}", until=100 + number, now=50)
    assert [spent.has(f"{number}", 100 + number) for number in range(5)] == [False, False, True, True, True]
    assert not spent.add("4", until=104, now=50)
    assert spent.add("later", until=200, now=104)
    assert len(list((tmp_path / "spent").iterdir())) == 2
    assert spent.has("4", 104)


async def test_another_token_ends_every_session_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE, HTTPBRIDGE_DASHBOARD_TOKEN="") as dashboard:
        kept = tmp_path / "dashboard-token"
        assert kept.stat().st_mode & 0o777 == 0o600
        browser = await dashboard.browser(is_signed_in=False)
        await browser.sign_in(token=kept.read_text())
        assert (await browser.get("/projects/new")).status == 200
        kept.write_text(5 * "another" + "\n")
        assert (await browser.get("/projects/new")).status == 303


def test_sessions_end_in_time_and_earlier_when_they_are_not_used(tmp_path: Path) -> None:
    """Used is what has a cookie of then, which each page of a minute later brings."""
    clock = Clock()
    sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_STATE_DIR": str(tmp_path)}), clock.wall)
    first = cookie = sessions.begin("Ann")
    began = clock.wall()
    while (session := sessions.read(cookie)) is not None:
        assert sessions.refreshed(session) is None
        clock.advance(REFRESH_SECONDS - 1)
        assert sessions.refreshed(session) is None
        clock.advance(IDLE_SECONDS - REFRESH_SECONDS)
        cookie = sessions.refreshed(session) or ""
    assert (clock.wall() - began).total_seconds() >= SESSION_SECONDS
    assert SESSION_SECONDS == 12 * 3600 > IDLE_SECONDS
    clock.set(began)
    clock.advance(IDLE_SECONDS - 1)
    assert sessions.read(first) is not None
    clock.advance(1)
    assert sessions.read(first) is None


def test_what_was_signed_for_one_purpose_is_worth_nothing_for_another(tmp_path: Path) -> None:
    sessions = open_sessions(Config.from_environment({"HTTPBRIDGE_STATE_DIR": str(tmp_path)}))
    cookie = sessions.begin("Ann")
    assert sessions.read_link(cookie) is None
    assert sessions.read(sessions.link("Ann")) is None
    assert sessions.read(sessions.notice("x")) is None
    forged = cookie[:9] + ("A" if cookie[9] != "A" else "B") + cookie[10:]
    for other in (forged, "", ".", "x.y", "é", "\udcff", "a" * 5000):  # the last but one: no UTF-8
        assert sessions.read(other) is None


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
def test_only_a_path_of_ours_is_released_to(path: str, expected: str) -> None:
    assert own_path(path) == expected


async def test_signing_in_leads_to_no_other_site(dashboard: Dashboard) -> None:
    browser = await dashboard.browser(is_signed_in=False)
    assert (await browser.sign_in(next_path="//evil.example/")).location == "/"


async def test_a_link_on_another_site_finds_the_session_by_loading_again(dashboard: Dashboard) -> None:
    stranger = await dashboard.browser(is_signed_in=False)
    answer = await stranger.get("/projects", **{"Sec-Fetch-Site": "cross-site"})
    assert (answer.status, 'http-equiv="refresh"' in answer.text) == (200, True)


async def test_where_a_network_sees_the_dashboard_somebody_has_to_choose_its_token(tmp_path: Path) -> None:
    """A generated one would be known to those alone who read the state directory; and TLS alone keeps nobody out."""
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
