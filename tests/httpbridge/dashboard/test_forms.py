"""What a form has to be, and what becomes of one that is not taken."""

import asyncio
import re
from html import unescape

import pytest
from structlog.testing import capture_logs

from tests.httpbridge.dashboard.conftest import TOKEN, Browser, Dashboard

ORIGINS = "/projects/demo/settings/origins"
NEW = "/projects/new"


def hidden_fields(text: str) -> list[tuple[str, str]]:
    """Return the fields of the form that a page offers to send again."""
    (form,) = re.findall(r'<form method="post">(.*?)</form>', text, re.DOTALL)
    return [(unescape(name), unescape(value)) for name, value in re.findall(r'name="([^"]*)" value="([^"]*)"', form)]


async def test_a_form_from_elsewhere_changes_nothing(dashboard: Dashboard, browser: Browser) -> None:
    stranger = await dashboard.browser(name="Eve")
    theirs = (await stranger.get(NEW)).csrf_token
    for csrf_token in ("", "x", "é", theirs):
        answer = await browser.post(NEW, csrf_token=csrf_token, project_id="demo")
        assert answer.status == 403
        assert "Nothing was changed" in answer.words
    assert (await browser.post(NEW, project_id="demo")).status == 403
    assert "No projects yet" in (await browser.get("/projects")).words
    nobody = await dashboard.browser(is_signed_in=False)
    assert (await nobody.post("/sign-in", name="Ann", token=TOKEN)).status == 403


async def test_a_form_of_a_session_that_is_over_is_kept_and_sent_again_after_signing_in(
    dashboard: Dashboard, browser: Browser
) -> None:
    """Every field of it; nothing is changed before a person has sent it again."""
    await browser.create("demo")
    page = await browser.get(ORIGINS)
    entries = [("entry", "https://a.example"), ("entry", ""), ("entry", '"><script>&'), ("action", "review")]
    returning = await dashboard.browser(is_signed_in=False)
    over = await returning.post_from("same-origin", ORIGINS, [*entries, ("csrf_token", page.csrf_token)])
    assert over.status == 403
    assert "Your session is over" in over.words
    assert "<script>&" not in over.text
    kept = hidden_fields(over.text)
    assert kept == [("csrf_token", ""), *entries]
    await returning.sign_in("Ann")
    asked = await returning.post_from("same-origin", ORIGINS, kept)
    assert asked.status == 403
    assert "from before you signed in as Ann" in asked.words
    sent = await returning.post_from("same-origin", ORIGINS, hidden_fields(asked.text))
    assert sent.status == 400
    assert re.findall(r'name="entry" value="([^"]*)"', sent.text)[:2] == ["https://a.example", ""]


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", ""])
async def test_what_another_site_sent_is_never_offered_to_be_sent_again(
    dashboard: Dashboard, browser: Browser, site: str
) -> None:
    await browser.create("demo")
    for somebody in (browser, await dashboard.browser(is_signed_in=False)):
        answer = await somebody.post_from(site, ORIGINS, [("entry", "evil.example"), ("action", "save")])
        assert answer.status == 403
        assert "Nothing was changed" in answer.words
        assert "evil.example" not in answer.text


async def test_a_dashboard_token_in_a_refused_form_is_not_repeated(dashboard: Dashboard, browser: Browser) -> None:
    for somebody in (browser, await dashboard.browser(is_signed_in=False)):
        answer = await somebody.post_from("same-origin", "/sign-in", [("name", "Ann"), ("token", TOKEN)])
        assert (answer.status, TOKEN in answer.text) == (403, False)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"x", {"Content-Type": "multipart/form-data"}),
        (b"--x\r\nnonsense", {"Content-Type": "multipart/form-data; boundary=x"}),
        (
            b"--x\r\nContent-Disposition: form-data\r\n\r\nx\r\n--x--",
            {"Content-Type": "multipart/form-data; boundary=x"},
        ),
        (b"a=b", {"Content-Type": "application/x-www-form-urlencoded; charset=nonsense"}),
        (b"a=b-" + b"9" * 1000, {"Content-Type": "application/x-www-form-urlencoded; charset=punycode"}),
        (b"a=\xff", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"nonsense", {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "gzip"}),
        (b"nonsense", {"Content-Type": "nonsense/nonsense"}),
        (b"a=" + b"x" * 300_000, {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"a=b&" * 50_000, {"Content-Type": "application/x-www-form-urlencoded"}),
    ],
)
async def test_what_is_no_form_is_refused_and_is_no_error_of_ours(
    dashboard: Dashboard, browser: Browser, body: bytes, headers: dict[str, str]
) -> None:
    """From anybody, signed in or not: nothing of it is logged."""
    with capture_logs() as logged:
        for somebody in (browser, await dashboard.browser(is_signed_in=False)):
            for path in ("/sign-in", NEW, "/sign-out", "/static/x", "/nowhere"):
                for site in ("same-origin", "cross-site"):
                    answer = await somebody.post_raw(path, body, **headers, **{"Sec-Fetch-Site": site})
                    assert 400 <= answer.status < 500
                    assert "nonsense" not in answer.text
    assert [event for event in logged if event["event"] != "signed_in"] == []


@pytest.mark.parametrize("charset", ["punycode", "raw_unicode_escape", "utf-16", "latin-1", "utf-7", "nonsense"])
async def test_a_form_in_another_character_set_is_refused_before_it_is_decoded(
    dashboard: Dashboard, charset: str
) -> None:
    """Whoever sends it chooses the work: a form that decodes in quadratic time would stop all pages for minutes."""
    stranger = await dashboard.browser(is_signed_in=False)
    csrf_token = (await stranger.get("/sign-in")).csrf_token
    body = f"csrf_token={csrf_token}&name=\\ud800&token=x".encode()
    content_type = "application/x-www-form-urlencoded; charset="
    refused = await stranger.post_raw("/sign-in", body, **{"Content-Type": content_type + charset})
    assert (refused.status, "Forms are taken in UTF-8" in refused.words) == (400, True)
    assert charset not in refused.text
    taken = await stranger.post_raw("/sign-in", body, **{"Content-Type": content_type + "UTF-8"})
    assert (taken.status, "This is not the dashboard token." in taken.words) == (403, True)


@pytest.mark.parametrize("path", ["/sign-in/", "//sign-in", "/sign%2Din", "///sign-i%6e/?next=/audit"])
async def test_a_path_is_the_same_however_it_is_spelt(dashboard: Dashboard, path: str) -> None:
    host, port = dashboard.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 200 OK\r\n")
    assert ("/audit" in answer) is ("/audit" in path), "the query stays"


async def test_a_form_is_taken_at_any_spelling_of_its_path(dashboard: Dashboard) -> None:
    browser = await dashboard.browser()
    assert (await browser.submit("/projects/new/", "//projects/new/", project_id="demo")).status == 200
    assert (await browser.get("/projects/demo//settings/keys/")).status == 200
    assert (await browser.get("/projects/demo/settings%2Fkeys")).status == 404
