"""Who asks and by which address: cookies by instance, HTTPS, proxies, whose page a form is from, idle sessions."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from unittest.mock import patch

import aiohttp
import pytest
import trustme
from aiohttp.test_utils import make_mocked_request
from structlog.testing import capture_logs

from authsvc.runtime.networks import Networks
from httpbridge.dashboard.clients import Client, client_of
from httpbridge.dashboard.log_page.stream import STREAM_LIMITS, LogStreams
from httpbridge.dashboard.sessions import IDLE_SECONDS, REFRESH_SECONDS
from tests.clocks import Clock
from tests.httpbridge.dashboard.conftest import TOKEN, Answer, Browser, Dashboard, running
from tests.httpbridge.dashboard.test_sign_in import NOWHERE

PROXIES = Networks.parse("127.0.0.0/8, 10.0.0.0/8, fd00::/8")
NEW = "/projects/new"


@pytest.fixture
async def proxied(tmp_path: Path) -> AsyncIterator[Dashboard]:
    """Run a dashboard behind a proxy on this machine."""
    async with running(tmp_path, NOWHERE, HTTPBRIDGE_TRUSTED_PROXIES="127.0.0.1") as dashboard:
        yield dashboard


async def test_two_dashboards_on_one_host_sign_nobody_out_of_the_other(tmp_path: Path) -> None:
    """A browser sends a host's cookies to all of its ports; signing in and out of one does nothing to the other."""
    other_token = "another-dashboard's-token-of-its-own"
    async with (
        running(tmp_path / "a", NOWHERE) as one,
        running(tmp_path / "b", NOWHERE, HTTPBRIDGE_DASHBOARD_TOKEN=other_token) as other,
        running(tmp_path / "c", NOWHERE) as third,  # with the first one's token
    ):
        browser = await one.browser(name="Ann")
        for dashboard, name, token in ((one, "Ann", TOKEN), (other, "Bob", other_token), (third, "Cyd", TOKEN)):
            browser.url = dashboard.url
            assert (await browser.sign_in(name, token)).status == 303
        for dashboard, name in ((one, "Ann"), (other, "Bob"), (third, "Cyd")):
            browser.url = dashboard.url
            assert f"Signed in as {name}" in (await browser.get(NEW)).text
        assert (await browser.submit(NEW, "/sign-out")).status == 303
        for dashboard, status in ((one, 200), (other, 200), (third, 303)):
            browser.url = dashboard.url
            assert (await browser.get(NEW)).status == status


async def test_the_names_of_cookies_outlive_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE) as dashboard:
        listen = dashboard.url.removeprefix("http://")
        browser = await dashboard.browser()
        names, session = browser.cookies.keys(), browser.session
    async with running(tmp_path, NOWHERE, HTTPBRIDGE_DASHBOARD_LISTEN=listen) as dashboard:
        again = await dashboard.browser(is_signed_in=False)
        again.set_session(session)
        assert (await again.get(NEW)).status == 200
        assert (await dashboard.browser()).cookies.keys() == names


@pytest.mark.parametrize(
    ("host", "is_https", "name"),
    [
        ("localhost:8081", False, "dashboard_session_8081"),
        ("[::1]:8081", False, "dashboard_session_8081"),
        ("[::1]", False, "dashboard_session"),
        ("logs.example", False, "dashboard_session"),
        ("logs.example:8443", True, "__Host-dashboard_session_8443"),
        ("logs.example", True, "__Host-dashboard_session"),
        ("logs.example:8443; Domain=example", True, "__Host-dashboard_session"),
        ("logs.example:\u0661", False, "dashboard_session"),
        ("", False, "dashboard_session"),
    ],
)
def test_a_cookie_is_named_by_the_port_that_browsers_use(host: str, is_https: bool, name: str) -> None:
    assert Client("", is_https, host).cookie("session") == name


async def test_under_https_cookies_are_secure_and_of_this_host_and_browsers_are_told_to_stay(tmp_path: Path) -> None:
    ca, cert, key = trustme.CA(), tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = ca.issue_cert("127.0.0.1", "localhost")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    ca.configure_trust(context)
    files = {"HTTPBRIDGE_TLS_CERT": str(cert), "HTTPBRIDGE_TLS_KEY": str(key)}
    async with running(tmp_path, NOWHERE, **files) as dashboard, aiohttp.ClientSession() as session:
        url = dashboard.url.replace("http://", "https://") + "/sign-in"
        async with session.get(url, ssl=context) as answer:
            pre_session = answer.headers["Set-Cookie"]
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
            page = Answer(answer, await answer.text())
        fields = {"csrf_token": page.csrf_token, "name": "Ann", "token": TOKEN}
        headers = {"Cookie": pre_session.partition(";")[0]}
        async with session.post(url, ssl=context, data=fields, headers=headers, allow_redirects=False) as answer:
            assert answer.status == 303
            (signed_in,) = [one for one in answer.headers.getall("Set-Cookie") if "dashboard_session" in one]
        port = dashboard.url.rpartition(":")[2]
        for cookie, name in ((pre_session, "pre_session"), (signed_in, "session")):
            assert cookie.startswith(f"__Host-dashboard_{name}_{port}=")
            attributes = {part.strip() for part in cookie.split(";")[1:]}
            assert attributes == {"HttpOnly", "Max-Age=43200", "Path=/", "SameSite=Strict", "Secure"}
        async with session.get(url.replace("127.0.0.1", "localhost"), ssl=context) as answer:
            assert "Strict-Transport-Security" not in answer.headers, "every machine has that name, with other services"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Client("10.0.0.1", False, "host:8081")),
        ({"X-Forwarded-Proto": "https"}, Client("10.0.0.1", True, "host:8081")),
        (
            {"X-Forwarded-Proto": "HTTPS", "X-Forwarded-Host": "Logs.Example:443"},
            Client("10.0.0.1", True, "logs.example"),
        ),
        ({"X-Forwarded-Host": "logs.example:80"}, Client("10.0.0.1", False, "logs.example")),
        ({"X-Forwarded-For": "192.0.2.1"}, Client("192.0.2.1", False, "host:8081")),
        ({"X-Forwarded-For": "192.0.2.1:4711"}, Client("192.0.2.1", False, "host:8081")),
        ({"X-Forwarded-For": "[2001:db8::1]:4711"}, Client("2001:db8::1", False, "host:8081")),
        # What a stranger sent stands before what the proxy added.
        ({"X-Forwarded-For": "198.51.100.1, 192.0.2.1"}, Client("192.0.2.1", False, "host:8081")),
        ({"X-Forwarded-Proto": "https, http"}, Client("10.0.0.1", False, "host:8081")),
        ({"X-Forwarded-Proto": "http ,https"}, Client("10.0.0.1", True, "host:8081")),
        # Two proxies of ours: the outer one saw the browser.
        (
            {"X-Forwarded-For": "198.51.100.1, 192.0.2.1, 10.0.0.2", "X-Forwarded-Proto": "http, https, http"},
            Client("192.0.2.1", True, "host:8081"),
        ),
        (
            {"X-Forwarded-For": "192.0.2.1, 10.0.0.2", "X-Forwarded-Proto": "https"},
            Client("192.0.2.1", True, "host:8081"),
        ),
        (
            {"Forwarded": 'for=192.0.2.1;proto=https;host="logs.example:8443"'},
            Client("192.0.2.1", True, "logs.example:8443"),
        ),
        (
            {"Forwarded": 'for=x;proto=http, for="[2001:db8::1]:4711";proto=https, for=10.0.0.2;proto=http'},
            Client("2001:db8::1", True, "host:8081"),
        ),
        ({"Forwarded": "for=unknown"}, Client("10.0.0.1", False, "host:8081")),
        ({"Forwarded": "nonsense"}, Client("10.0.0.1", False, "host:8081")),
        ({"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=198.51.100.1"}, Client("192.0.2.1", False, "host:8081")),
    ],
)
def test_what_a_trusted_proxy_says_is_believed_and_nobody_else(headers: dict[str, str], expected: Client) -> None:
    for peer, client in (("10.0.0.1", expected), ("192.0.2.9", Client("192.0.2.9", False, "host:8081"))):
        with patch("aiohttp.web_request.BaseRequest.remote", peer):
            request = make_mocked_request("GET", "/", headers={"Host": "Host:8081", **headers})
            assert client_of(request, PROXIES) == client


@pytest.mark.parametrize(
    "headers", [{"X-Forwarded-Proto": "https"}, {"Forwarded": "proto=https"}], ids=["X-Forwarded", "Forwarded"]
)
async def test_behind_a_trusted_proxy_with_https_the_dashboard_counts_as_https_and_behind_another_not(
    dashboard: Dashboard, proxied: Dashboard, headers: dict[str, str]
) -> None:
    for one, is_https in ((proxied, True), (dashboard, False)):
        browser = await one.browser(is_signed_in=False)
        answer = await browser.get("/sign-in", **headers)
        assert answer.headers["Set-Cookie"].startswith("__Host-") is is_https
        assert ("; Secure" in answer.headers["Set-Cookie"]) is is_https
        assert ("Strict-Transport-Security" in answer.headers) is is_https


async def test_the_log_has_the_address_that_a_trusted_proxy_names(proxied: Dashboard) -> None:
    browser = await proxied.browser(is_signed_in=False)
    browser.headers = {"X-Forwarded-For": "192.0.2.7"}
    with capture_logs() as logged:
        await browser.sign_in(token="wrong")
        await browser.sign_in()
    assert [(event["event"], event["address"]) for event in logged] == [
        ("sign_in_refused", "192.0.2.7"),
        ("signed_in", "192.0.2.7"),
    ]


async def test_a_form_of_another_site_is_refused_whatever_cookies_and_tokens_come_with_it(
    dashboard: Dashboard, browser: Browser
) -> None:
    """By Sec-Fetch-Site or Origin, whichever is there, and on every path."""
    ours = dashboard.url
    pairs = [("csrf_token", (await browser.get(NEW)).csrf_token), ("project_id", "demo")]
    for site, origin in (
        ("cross-site", ""), ("same-site", ""), ("cross-site", ours), ("same-site", ours), ("none", "null"),
        ("", "https://evil.example"), ("", "null"), ("", ours.replace("127.0.0.1", "localhost")), ("", ours + "1"),
        ("", ours.rpartition(":")[0]), ("", ours + "/"),
    ):  # fmt: skip
        for path in (NEW, "/sign-in", "/sign-in/link", "/sign-out", "/nowhere", "/static/dashboard.css"):
            answer = await browser.post_from(site, path, pairs, origin)
            assert (answer.status, "Nothing was changed" in answer.words) == (403, True)
            assert "the header Host, port included" in answer.words
            assert "HTTPBRIDGE_TRUSTED_PROXIES" in answer.words
            assert "evil" not in answer.text
    assert (await browser.get(NEW)).status == 200, "and nobody was signed out"
    made = await browser.post_from("same-origin", NEW, pairs, ours)
    assert made.status == 200
    for site, origin in (("same-origin", ""), ("none", ""), ("", ours), ("", ours.upper()), ("", "")):
        answer = await browser.post_from(site, NEW, pairs, origin)
        assert (answer.status, "There is a project demo already" in answer.words) == (400, True)


@pytest.mark.parametrize(
    ("site", "is_ours"), [("same-origin", True), ("same-site", False), ("cross-site", False), ("", False)]
)
def test_a_proxy_that_leaves_the_port_out_of_host_costs_no_form_where_the_browser_says_whose_it_is(
    site: str, is_ours: bool
) -> None:
    """As nginx does with `proxy_set_header Host $host`. Without Sec-Fetch-Site, nobody can tell."""
    headers = {"Host": "logs.example", "Origin": "https://logs.example:8443"} | (
        {"Sec-Fetch-Site": site} if site else {}
    )
    request = make_mocked_request("POST", NEW, headers)
    assert client_of(request, Networks()).site(request) == ("ours" if is_ours else "another")


async def test_behind_a_proxy_the_address_in_the_browser_is_the_one_that_counts(
    dashboard: Dashboard, proxied: Dashboard
) -> None:
    """As the proxy says. Where one that is not trusted speaks HTTPS, that is no fault of the form."""
    forwarded = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "logs.example"}
    browser = await proxied.browser(is_signed_in=False)
    pairs = [("name", "Ann"), ("token", TOKEN)]
    for headers, origin, is_ours in (
        (forwarded, "https://logs.example", True),
        (forwarded, "http://logs.example", False),  # whoever is in between can make such a page
        (forwarded, proxied.url, False),
        ({"X-Forwarded-Proto": "https"}, proxied.url.replace("http:", "https:"), True),
        ({}, proxied.url.replace("http:", "https:"), True),
    ):
        browser.headers = headers
        answer = await browser.post_from("", "/sign-in", pairs, origin)
        assert ("does not come from a page of this dashboard" not in answer.words) is is_ours, (headers, origin)
    stranger = await dashboard.browser(is_signed_in=False)
    stranger.headers = forwarded
    answer = await stranger.post_from("", "/sign-in", pairs, "https://logs.example")
    assert "does not come from a page of this dashboard" in answer.words


async def test_a_session_that_is_not_used_for_an_hour_is_over(tmp_path: Path) -> None:
    """What people do keeps it; a live tail, which a page opens by itself, does not."""
    clock = Clock()
    async with running(tmp_path, NOWHERE, clock.wall) as dashboard:
        browser = await dashboard.browser()
        began = browser.session
        assert (await browser.get(NEW)).headers.getall("Set-Cookie", []) == []
        clock.advance(REFRESH_SECONDS)
        answer = await browser.get(NEW)
        (cookie,) = answer.headers.getall("Set-Cookie")
        assert "dashboard_session_" in cookie
        assert browser.session != began
        for _ in range(3):
            clock.advance(IDLE_SECONDS - 1)
            assert (await browser.get(NEW)).status == 200
        used = browser.session
        clock.advance(IDLE_SECONDS - 1)
        assert await browser.beginning("/projects/demo/logs/stream?after=0", "retry")
        with patch.object(LogStreams, "open", STREAM_LIMITS.streams_max):
            assert (await browser.get("/projects/demo/logs/stream?after=0")).status == 503
        assert browser.session == used
        clock.advance(1)
        assert (await browser.get(NEW)).status == 303
        assert "event: over" in await browser.beginning("/projects/demo/logs/stream?after=0", "data")
        copied = await dashboard.browser(is_signed_in=False)
        copied.set_session(began)
        assert (await copied.get(NEW)).status == 303


async def test_signing_out_is_not_undone_by_the_cookie_of_the_same_answer(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path, NOWHERE, clock.wall) as dashboard:
        browser = await dashboard.browser()
        csrf_token = (await browser.get(NEW)).csrf_token
        clock.advance(REFRESH_SECONDS)
        answer = await browser.post("/sign-out", csrf_token=csrf_token)
        (cookie,) = answer.headers.getall("Set-Cookie")
        assert "Max-Age=0" in cookie
        assert browser.session is None
