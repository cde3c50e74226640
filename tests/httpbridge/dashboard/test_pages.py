"""What the pages show and do, against a real key service and log store."""

import asyncio
import html
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from authsvc.api.limits import CallLimits
from authsvc.runtime.environment import Address
from authsvc.v1 import key_service_pb2 as pb
from httpbridge.dashboard.views.origins import ENTRIES_MAX
from httpbridge.log_store.origin_store import OriginCount, OriginStore
from httpbridge.log_store.sink import open_sql_sink
from httpbridge.logs import Level, LogBatch, LogEntry
from tests.authsvc.api.test_limits import hold
from tests.authsvc.conftest import Service
from tests.authsvc.conftest import running as running_key_service
from tests.clocks import Clock
from tests.httpbridge.dashboard.conftest import Browser, Dashboard, running

NOWHERE = Address("127.0.0.1", 1)
ORIGINS = "/projects/demo/settings/origins"
KEYS = "/projects/demo/settings/keys"


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[tuple[Service, Dashboard]]:
    """Run both, to look at the key service too."""
    state_dir = tmp_path / "state"
    async with running_key_service(state_dir) as service, running(state_dir, service.address) as dashboard:
        yield service, dashboard


async def verdict(service: Service, api_key: str, origin: str | None = None) -> int:
    request = pb.ValidateRequest(api_key=api_key, origin=origin)
    answer = await service.keys.Validate(request, metadata=service.token("bridge"))
    number: int = answer.verdict
    return number


async def store_logs(state_dir: Path, *messages: str) -> None:
    """Store logs of the project demo, as a bridge does."""
    sink = await open_sql_sink(f"sqlite:///{state_dir / 'logs.db'}", monotonic=Clock())
    entries = [LogEntry(Level.INFO, message) for message in messages]
    await sink.write(LogBatch("demo", "key", datetime.now(UTC), "shop", "production", None, entries))
    await sink.close()


async def see_origins(state_dir: Path, *seen: tuple[str, int, int]) -> None:
    """Store counts of origins (admitted, blocked) of the project demo, as a bridge does."""
    await store_logs(state_dir, "hello")
    now = datetime.now(UTC)
    hour = now.replace(minute=0, second=0, microsecond=0)
    store = OriginStore(f"sqlite:///{state_dir / 'logs.db'}")
    if seen:
        await store.add([OriginCount("demo", hour, *one) for one in seen], now)
    await store.close()


async def test_a_project_is_made_and_its_key_shown_once_with_lines_that_work(
    system: tuple[Service, Dashboard],
) -> None:
    service, dashboard = system
    browser = await dashboard.browser()
    made = await browser.create("demo")
    key = made.api_key
    assert (made.status, made.location) == (200, "")
    assert made.headers["Cache-Control"] == "no-store"
    assert await verdict(service, key) == pb.VERDICT_ALLOWED
    assert f"DEEPTRACER_KEY={key}\nNEXT_PUBLIC_DEEPTRACER_KEY={key}" in made.text
    assert "shown this once" in made.words
    for path in ("/projects", KEYS, "/audit", ORIGINS, "/projects/demo/audit"):
        page = await browser.get(path)
        assert (page.status, key in page.text) == (200, False), path
    shown = await browser.get(KEYS)
    assert "dt_ ••••" in shown.words
    assert re.search(r"Issued \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC By Ann", shown.words)


async def test_the_curl_line_names_the_bridge_and_is_one_command_for_a_shell(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    async with (
        running_key_service(state_dir) as service,
        running(state_dir, service.address, HTTPBRIDGE_PUBLIC_URL="https://logs.example/deep/") as dashboard,
    ):
        browser = await dashboard.browser()
        made = await browser.create("demo")
        line = re.search(r"(curl .*?)</code>", made.text, re.DOTALL)
        assert line
        words = shlex.split(unescape(line[1]))
        assert "https://logs.example/deep/ingest/logs" in words
        assert f"Authorization: Bearer {made.api_key}" in words


@pytest.mark.parametrize("project_id", ["", "Demo", "-a", "a" * 64, "<script>", "é"])
async def test_a_bad_name_is_told_beside_its_field_and_kept(browser: Browser, project_id: str) -> None:
    answer = await browser.create(project_id)
    assert (answer.status, answer.text.count('aria-invalid="true"')) == (400, 1)
    assert "<script>" not in answer.text
    assert (await browser.create("demo")).status == 200
    assert "There is a project demo already." in (await browser.create("demo")).words


async def test_who_loads_a_new_project_again_is_told_that_it_is_made_and_others_are_not(dashboard: Dashboard) -> None:
    browser, other = await dashboard.browser(), await dashboard.browser(name="Bob")
    await browser.create("demo")
    again = await browser.create("demo")
    assert again.status == 400
    assert "You have made demo already" in again.words
    assert "issued to you and shown once" in again.words
    assert 'href="/projects/demo/settings/keys"' in again.text
    assert "dt_" not in again.text
    assert "You have made" not in (await other.create("demo")).words


async def test_who_revoked_the_first_key_of_a_project_has_not_made_it(dashboard: Dashboard) -> None:
    browser, maker = await dashboard.browser(), await dashboard.browser(name="Bob")
    await maker.create("demo")
    await browser.submit(KEYS, f"{KEYS}/revoke", key_id=(await browser.get(KEYS)).key_id)
    again = await browser.create("demo")
    assert "There is a project demo already." in again.words
    assert "You have made" not in again.words


async def test_each_page_of_revoked_keys_says_who_revoked_them_where_it_can(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of a page was revoked by whoever issued the last one of the page before."""
    monkeypatch.setattr("authsvc.client.admin.PAGE_SIZE", 2)
    browser = await dashboard.browser()
    await browser.create("demo")
    for _ in range(3):
        await browser.submit(KEYS, f"{KEYS}/revoke", key_id=(await browser.get(KEYS)).key_id)
    first = await browser.get(KEYS)
    (older,) = re.findall(r'href="(\?page=[^"]+)"', first.text)
    second = await browser.get(KEYS + unescape(older))
    assert [page.text.count('data-label="Revoked by">Ann<') for page in (first, second)] == [1, 1]
    assert second.words.count("see the audit trail") == 1


async def test_revoking_takes_the_key_that_was_shown_and_says_when_and_where_it_died(
    system: tuple[Service, Dashboard],
) -> None:
    service, dashboard = system
    browser, other = await dashboard.browser(), await dashboard.browser(name="Bob")
    old = (await browser.create("demo")).api_key
    page, same_page = await browser.get(KEYS), await other.get(KEYS)
    assert "stops working for good" in page.words
    revoked = await browser.post(f"{KEYS}/revoke", csrf_token=page.csrf_token, key_id=page.key_id)
    assert revoked.status == 200
    assert f"Key {page.key_id} is dead everywhere since" in revoked.words
    assert "No bridge was using cached answers" in revoked.words
    new = revoked.api_key
    assert (await verdict(service, old), await verdict(service, new)) == (pb.VERDICT_INVALID_KEY, pb.VERDICT_ALLOWED)

    second = await other.post(f"{KEYS}/revoke", csrf_token=same_page.csrf_token, key_id=same_page.key_id)
    assert second.status == 409
    assert "was revoked already" in second.words
    assert "by Ann" in second.words
    assert "dt_" not in second.text
    again = await browser.post(f"{KEYS}/revoke", csrf_token=page.csrf_token, key_id=page.key_id)  # loaded again
    assert again.status == 409
    assert "You have done it already" in again.words
    assert "Somebody" not in again.words
    assert "It was shown once" in again.words
    assert await verdict(service, new) == pb.VERDICT_ALLOWED

    history = await browser.get(KEYS)
    assert f"{page.key_id} " in history.words
    assert re.search(r"By Ann", history.words)


async def test_without_javascript_a_page_asks_before_revoking(browser: Browser) -> None:
    await browser.create("demo")
    key_id = (await browser.get(KEYS)).key_id
    page = await browser.get(f"{KEYS}/revoke?key={key_id}")
    assert (page.status, page.key_id) == (200, key_id)
    assert (await browser.get(f"{KEYS}/revoke?key=another")).status == 404
    await browser.submit(KEYS, f"{KEYS}/revoke", key_id=key_id)
    stale = await browser.get(f"{KEYS}/revoke?key={key_id}")
    assert (stale.status, "You have done it already" in stale.words) == (409, True)


@pytest.mark.parametrize(("first", "second"), [("Bob", "Ann"), ("Ann", "Ann"), ("Ann", "Bob")])
async def test_who_revoked_a_key_before_the_last_one_is_not_said(dashboard: Dashboard, first: str, second: str) -> None:
    """As the page does not know: the key in use names who revoked the last one."""
    browsers = {name: await dashboard.browser(name=name) for name in ("Ann", "Bob")}
    ann = browsers["Ann"]
    await ann.create("demo")
    page = await ann.get(KEYS)
    for name in (first, second):
        key_id = (await ann.get(KEYS)).key_id
        assert (await browsers[name].submit(KEYS, f"{KEYS}/revoke", key_id=key_id)).status == 200
    stale = await ann.post(f"{KEYS}/revoke", csrf_token=page.csrf_token, key_id=page.key_id)
    assert (stale.status, "It was revoked already" in stale.words) == (409, True)
    assert "You have done it" not in stale.words
    assert "Somebody was faster" not in stale.words
    assert ("issued to you" in stale.words, "by Bob" in stale.words) == (second == "Ann", second == "Bob")


async def test_a_pending_bridge_is_named_with_the_time_that_the_old_key_dies_at_the_latest(
    system: tuple[Service, Dashboard],
) -> None:
    service, dashboard = system
    browser = await dashboard.browser()
    await browser.create("demo")
    page = await browser.get(KEYS)

    async def requests() -> AsyncIterator[pb.WatchRequest]:
        yield pb.WatchRequest(holder_id="h" * 32, name="bridge-<7>", sequence=1)
        await asyncio.Event().wait()  # never confirms anything more

    stream = service.keys.Watch(requests(), metadata=service.token("bridge"))
    while not (await stream.read()).HasField("reset"):
        pass
    revoked = await browser.post(f"{KEYS}/revoke", csrf_token=page.csrf_token, key_id=page.key_id)
    stream.cancel()
    assert "at the latest" in revoked.words
    assert re.search(r'everywhere at <time datetime="[^"]*:\d\d\.000Z"', revoked.text), "rounded up"
    assert "bridge-&lt;7&gt; has not answered since" in revoked.words


async def test_a_notice_says_a_time_as_every_page_does(system: tuple[Service, Dashboard]) -> None:
    """The script shows it in the browser's zone; names of bridges in it stay text."""
    service, dashboard = system
    browser = await dashboard.browser()
    await browser.create("demo")

    async def requests() -> AsyncIterator[pb.WatchRequest]:
        yield pb.WatchRequest(holder_id="h" * 32, name="bridge-<7>", sequence=1)
        await asyncio.Event().wait()

    stream = service.keys.Watch(requests(), metadata=service.token("bridge"))
    while not (await stream.read()).HasField("reset"):
        pass
    fields = {"entry": ["a.example"], "base": "", "reviewed": "a.example"}
    assert (await browser.submit(ORIGINS, ORIGINS, action="save", **fields)).status == 303
    stream.cancel()
    notice = re.search(r'<p class="notice good" role="status">(.*?)</p>', (await browser.get(ORIGINS)).text)
    assert notice
    assert re.fullmatch(
        r'Saved\. It holds everywhere at <time datetime="[^"]*Z" title="[^"]* UTC">[^<]* UTC</time> at the latest: '
        r"no answer yet from bridge-&lt;7&gt;\.",
        notice[1],
    )


async def test_errors_stand_beside_the_entries_that_caused_them_and_nothing_is_lost(browser: Browser) -> None:
    await browser.create("demo")
    entries = ["https://Good.example", "https://bad.example/path", "", '"><script>alert(1)</script>']
    answer = await browser.submit(ORIGINS, ORIGINS, action="review", entry=entries, base="", tried="https://x.example")
    assert answer.status == 400
    rows = re.findall(r"<li>(.*?)</li>", answer.text, re.DOTALL)
    assert ["error" in row for row in rows] == [False, True, False, True]
    assert "A path is not part of an origin." in rows[1]
    for entry, row in zip(entries[:3], rows, strict=False):
        assert f'value="{entry}"' in row
    assert "<script>alert" not in answer.text
    assert 'value="https://x.example"' in answer.text
    assert "all origins" in (await browser.get(ORIGINS)).words


async def test_entries_are_added_and_removed_without_saving(browser: Browser) -> None:
    await browser.create("demo")
    added = await browser.submit(ORIGINS, ORIGINS, action="add:", entry=["a.example"])
    assert re.findall(r'name="entry" value="([^"]*)"', added.text) == ["a.example", ""]
    proposed = await browser.submit(ORIGINS, ORIGINS, action="add:https://c.example", entry=["a.example"])
    assert re.findall(r'name="entry" value="([^"]*)"', proposed.text) == ["a.example", "https://c.example"]
    removed = await browser.submit(ORIGINS, ORIGINS, action="remove:0", entry=["a.example", "b.example"])
    assert re.findall(r'name="entry" value="([^"]*)"', removed.text) == ["b.example"]
    for number in ("2", "-1", "x", "", "9" * 5000, "٠"):  # 9: more digits than Python reads
        same = await browser.submit(ORIGINS, ORIGINS, action=f"remove:{number}", entry=["a.example", "b.example"])
        assert (same.status, same.text.count('name="entry"')) == (200, 2), number
    assert "all origins" in (await browser.get(ORIGINS)).words


@pytest.mark.parametrize(("removed", "focused"), [(0, 'id="entry-1"'), (1, 'id="entry-2"'), (2, 'value="add:"')])
async def test_the_cursor_is_on_what_moved_up_when_an_entry_is_removed(
    browser: Browser, removed: int, focused: str
) -> None:
    await browser.create("demo")
    entries = ["a.example", "b.example", "c.example"]
    page = await browser.submit(ORIGINS, ORIGINS, action=f"remove:{removed}", entry=entries)
    (tag,) = re.findall(r"<(?:input|button)[^>]* autofocus>", page.text)
    assert focused in tag


async def test_too_many_entries_are_numbered(browser: Browser) -> None:
    await browser.create("demo")
    entries = [f"{number}.example" for number in range(ENTRIES_MAX + 3)]
    answer = await browser.submit(ORIGINS, ORIGINS, action="review", entry=entries, base="")
    assert (answer.status, "There are 103 entries, and 100 are the most." in answer.words) == (400, True)


async def test_what_was_reviewed_is_saved_and_shown_normalised(system: tuple[Service, Dashboard]) -> None:
    service, dashboard = system
    browser = await dashboard.browser()
    key = (await browser.create("demo")).api_key
    fields = {"entry": ["https://Shop.EXAMPLE:443", "*.shop.example."], "base": ""}
    unseen = await browser.submit(ORIGINS, ORIGINS, action="save", **fields)
    assert "Before saving" in unseen.words
    assert await verdict(service, key, "https://evil.example") == pb.VERDICT_ALLOWED
    reviewed = re.search(r'name="reviewed" value="([^"]*)"', unseen.text)
    assert reviewed
    assert reviewed[1].split() == ["https://shop.example", "*.shop.example"]
    changed = await browser.submit(ORIGINS, ORIGINS, action="save", **fields | {"reviewed": "https://shop.example"})
    assert "Before saving" in changed.words
    saved = await browser.submit(ORIGINS, ORIGINS, action="save", reviewed=reviewed[1], **fields)
    assert (saved.status, saved.location) == (303, ORIGINS)
    (notice,) = [one for one in saved.headers.getall("Set-Cookie") if one.startswith("dashboard_notice_")]
    assert {part.strip() for part in notice.split(";")[1:]} == {"HttpOnly", "Max-Age=60", "Path=/", "SameSite=Strict"}
    page = await browser.get(ORIGINS)
    assert "Saved. It holds everywhere" in page.words
    assert re.findall(r'name="entry" value="([^"]*)"', page.text) == ["https://shop.example", "*.shop.example"]
    assert await verdict(service, key, "https://evil.example") == pb.VERDICT_ORIGIN_NOT_ALLOWED
    assert "Saved. It holds" not in (await browser.get(ORIGINS)).words
    base = reviewed[1].replace("&#10;", "\n")
    again = await browser.submit(ORIGINS, ORIGINS, action="save", reviewed=base, **fields | {"base": base})
    assert again.status == 303
    assert "This was saved already. It holds everywhere" in (await browser.get(ORIGINS)).words
    assert "Ann demo changed the allowed origins" in (await browser.get("/audit")).words


async def test_a_list_that_another_saved_meanwhile_is_not_overwritten_unseen(dashboard: Dashboard) -> None:
    browser, other = await dashboard.browser(), await dashboard.browser(name="Bob")
    await browser.create("demo")
    theirs = {"entry": ["theirs.example"], "base": "", "reviewed": "theirs.example"}
    assert (await other.submit(ORIGINS, ORIGINS, action="save", **theirs)).status == 303
    ours = {"entry": ["ours.example"], "base": "", "reviewed": "ours.example"}
    answer = await browser.submit(ORIGINS, ORIGINS, action="save", **ours)
    assert "Somebody saved another list meanwhile" in answer.words
    assert 'value="ours.example"' in answer.text
    again = await browser.submit(ORIGINS, ORIGINS, action="save", **ours | {"base": "theirs.example"})
    assert again.status == 303


async def test_of_two_people_who_save_at_once_the_second_is_told(dashboard: Dashboard) -> None:
    """However closely they follow each other; what the second typed is kept."""
    people = [await dashboard.browser(name=name) for name in ("Ann", "Bob", "Cyd", "Dan")]
    await people[0].create("demo")
    tokens = [(await person.get(ORIGINS)).csrf_token for person in people]
    lists = [f"list-{number}.example" for number in range(len(people))]
    answers = await asyncio.gather(
        *(
            person.post(ORIGINS, csrf_token=token, action="save", entry=[entry], base="", reviewed=entry)
            for person, token, entry in zip(people, tokens, lists, strict=True)
        )
    )
    assert sorted(answer.status for answer in answers) == [200, 200, 200, 303]
    for entry, answer in zip(lists, answers, strict=True):
        if answer.status == 200:
            assert "Somebody saved another list meanwhile" in answer.words
            assert f'value="{entry}"' in answer.text
    assert (await people[0].get("/audit")).text.count("changed the allowed origins") == 1


@pytest.mark.parametrize(
    ("entries", "tried", "expected"),
    [
        ([], "https://a.example", "Admitted https://a.example : the list is empty"),
        (["b.example", "*.example"], "https://a.example", "Admitted https://a.example , by *.example ."),
        (["b.example"], "https://a.example", "Blocked No entry admits https://a.example ."),
        (["*.example"], "null", "Blocked No entry admits null ."),
        (["b.example"], "https://a.example/path?a=b#c", "Blocked No entry admits https://a.example ."),
        (["shop.example"], "https://Shop.example:443/", "Admitted https://Shop.example:443 , by shop.example ."),
        (["shop.example"], "chrome-extension://abc", "Blocked No entry admits chrome-extension://abc ."),
        (["shop.example"], "shop.example", "This is not an origin."),
        (["shop.example"], "https://a@shop.example", "This is not an origin."),
        ([], "<b>", "This is not an origin."),
    ],
)
async def test_an_origin_is_tried_against_the_list_in_the_form(
    browser: Browser, entries: list[str], tried: str, expected: str
) -> None:
    await browser.create("demo")
    assert expected in (await browser.submit(ORIGINS, ORIGINS, action="try", entry=entries, tried=tried)).words


async def test_everybodys_pages_are_admitted_only_with_a_tick(browser: Browser) -> None:
    await browser.create("demo")
    fields = {"entry": ["*.vercel.app"], "base": ""}
    refused = await browser.submit(ORIGINS, ORIGINS, action="review", **fields)
    assert refused.status == 400
    assert "It would admit everybody's pages under vercel.app" in html.unescape(refused.words)
    assert re.search(r'<input type="checkbox" name="allow_public_suffix">', refused.text)
    review = await browser.submit(ORIGINS, ORIGINS, action="review", allow_public_suffix="on", **fields)
    assert (review.status, "Before saving" in review.words) == (200, True)
    reviewed = fields | {"reviewed": "*.vercel.app"}
    assert (await browser.submit(ORIGINS, ORIGINS, action="save", **reviewed)).status == 400
    saved = await browser.submit(ORIGINS, ORIGINS, action="save", allow_public_suffix="on", **reviewed)
    assert saved.status == 303
    page = await browser.get(ORIGINS)
    assert 'class="error"' not in page.text
    assert re.search(r'<input type="checkbox" name="allow_public_suffix" checked>', page.text)


async def test_the_tick_is_not_there_without_a_public_suffix(browser: Browser) -> None:
    await browser.create("demo")
    page = await browser.submit(ORIGINS, ORIGINS, action="review", entry=["*.shop.example"], base="")
    assert "allow_public_suffix" not in page.text


async def test_before_saving_the_origins_that_it_would_block_are_listed_with_their_counts(
    dashboard: Dashboard, browser: Browser
) -> None:
    await browser.create("demo")
    await see_origins(
        dashboard.state_dir, ("https://shop.example", 1200, 0), ("https://old.example", 7, 3), ("null", 0, 1)
    )
    review = await browser.submit(ORIGINS, ORIGINS, action="review", entry=["shop.example"], base="")
    assert "It would block 2 origins that are admitted now, and were seen in the last 24 hours" in review.words
    assert "https://old.example : 10 requests, 3 of them blocked null : 1 request" in review.words
    assert 'value="add:https://old.example"' in review.text
    assert "https://shop.example 1,200 0 Admitted by shop.example" in review.words
    saved = {"entry": ["shop.example", "old.example"], "base": "", "reviewed": "shop.example\nold.example"}
    assert (await browser.submit(ORIGINS, ORIGINS, action="save", **saved)).status == 303
    again = await browser.submit(ORIGINS, ORIGINS, action="review", entry=["shop.example"], base=saved["reviewed"])
    assert "It would block 1 origin that is admitted now, and was seen in the last 24 hours" in again.words
    assert (
        "1 origin seen in the last 24 hours is blocked already, and would go on to be null : 1 request" in again.words
    )


async def test_a_flood_of_blocked_origins_hides_no_admitted_one_and_the_page_says_that_it_is_one(
    dashboard: Dashboard, browser: Browser
) -> None:
    await browser.create("demo")
    saved = {"entry": ["quiet.example"], "base": "", "reviewed": "quiet.example"}
    assert (await browser.submit(ORIGINS, ORIGINS, action="save", **saved)).status == 303
    flood = [(f"https://{number}.evil.example", 0, 9) for number in range(600)]
    await see_origins(dashboard.state_dir, ("https://quiet.example", 1, 0), *flood)
    page = await browser.get(ORIGINS)
    assert "https://quiet.example 1 0 Admitted by quiet.example" in page.words
    assert "101 other origins are not shown" in page.words
    review = await browser.submit(ORIGINS, ORIGINS, action="review", entry=["x.example"], base="quiet.example")
    assert "It would block 1 origin that is admitted now" in review.words
    assert "Too many origins were seen to look at all: 101 others may be blocked too." in review.words
    entries = ["x.example", "quiet.example"]
    review = await browser.submit(ORIGINS, ORIGINS, action="review", entry=entries, base="quiet.example")
    assert "Of those that were looked at and are admitted now, it blocks none." in review.words
    assert "It blocks none of the origins" not in review.words


async def test_emptying_the_list_is_warned_about(dashboard: Dashboard, browser: Browser) -> None:
    """It opens the project to every page there is, also to those that were blocked."""
    await browser.create("demo")
    saved = {"entry": ["shop.example"], "base": "", "reviewed": "shop.example"}
    assert (await browser.submit(ORIGINS, ORIGINS, action="save", **saved)).status == 303
    await see_origins(dashboard.state_dir, ("https://shop.example", 7, 0), ("https://evil.example", 0, 5))
    review = await browser.submit(ORIGINS, ORIGINS, action="review", entry=[""], base="shop.example")
    expected = "Pages of every origin may send logs then , also of the 1 origin that is blocked now"
    assert expected in review.words
    assert "It blocks none" not in review.words
    assert "No entries: all origins would be admitted." in review.words
    tried = await browser.submit(ORIGINS, ORIGINS, action="try", entry=[""], tried="https://a.example")
    assert "the list is empty, so all origins would be." in tried.words


async def test_what_was_edited_after_a_review_is_reviewed_again(browser: Browser) -> None:
    await browser.create("demo")
    reviewed = {"entry": ["a.example"], "base": "", "reviewed": "a.example"}
    for action, entries, is_reviewed in [
        ("try", ["a.example"], True),
        ("try", ["b.example"], False),
        ("add:", ["a.example"], False),
        ("remove:0", ["a.example"], False),
    ]:
        page = await browser.submit(ORIGINS, ORIGINS, action=action, **reviewed | {"entry": entries})
        assert ("Before saving" in page.words, 'name="reviewed"' in page.text) == (is_reviewed, is_reviewed), action


async def test_an_empty_table_of_origins_says_how_to_send_from_one(dashboard: Dashboard, browser: Browser) -> None:
    await browser.create("demo")
    await see_origins(dashboard.state_dir)
    page = await browser.get(ORIGINS)
    assert "no web page has sent logs" in page.words
    assert "-H 'Origin: https://app.example.com'" in unescape(page.text)


async def test_projects_are_listed_with_their_activity_and_found_by_name(
    dashboard: Dashboard, browser: Browser
) -> None:
    await store_logs(dashboard.state_dir, "one", "two")
    for project_id in ("demo", "other-shop", "shop"):
        await browser.create(project_id)
    page = await browser.get("/projects")
    assert re.search(r"demo moments old All origins 2 \d{4}-", page.words)
    assert re.search(r"shop moments old All origins 0 none yet", page.words)
    found = await browser.get("/projects?q=SHOP")
    assert re.findall(r'href="/projects/([a-z-]+)/logs"', found.text) == ["other-shop", "shop"]
    assert "No project's name contains" in (await browser.get("/projects?q=%25")).words.replace("&#39;", "'")


async def test_more_projects_and_changes_than_a_page_holds_are_a_click_away(
    system: tuple[Service, Dashboard],
) -> None:
    service, dashboard = system
    for number in range(53):
        await service.keys.Issue(pb.IssueRequest(project_id=f"p{number:02}"), metadata=service.token())
    browser = await dashboard.browser()
    for path in ("/projects", "/audit"):
        first = await browser.get(path)
        more = re.search(r'class="pager"><a class="button" href="([^"]+)"', first.text)
        assert more
        href = more[1].replace("&amp;", "&")
        second = await browser.get(href if href.startswith("/") else path + href)
        assert (first.text.count("<tr>"), second.text.count("<tr>")) == (51, 4)


async def test_every_answer_forbids_what_pages_of_ours_do_not_need(dashboard: Dashboard, browser: Browser) -> None:
    await browser.create("demo")
    paths = ["/sign-in", "/projects", KEYS, ORIGINS, "/audit", "/nowhere", "/static/dashboard.css", "/static/x", "/"]
    for path in paths:
        answer = await browser.get(path)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "Server" not in answer.headers
        assert answer.headers["Cache-Control"] == ("no-cache" if path.startswith("/static/") else "no-store"), path
        assert " style=" not in answer.text
        assert "<style" not in answer.text
        assert not re.search(r"<script(?! src=\"/static/)", answer.text)
        assert not re.search(r"\son[a-z]+=", answer.text)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/9.9-canary\r\n\r\n", 400),
        (b"canary\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nCookie : canary\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: canary\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"c" * 9000 + b"canary\r\n\r\n", 400),
        (b"GET /" + b"c" * 9000 + b"canary HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\nExpect: canary\r\n\r\n", 417),
        (b"GET /static/icon.svg HTTP/1.1\r\nHost: x\r\nExpect: canary\r\n\r\n", 417),
        (b"POST /sign-in HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\ncanary\r\n", 400),
        (b"GET /sign-in HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        (b"GET /sign-in HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nConnection: close\r\n\r\n", 100),
    ],
)
async def test_what_is_no_request_is_answered_without_a_byte_of_it_and_names_no_version(
    dashboard: Dashboard, sent: bytes, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    host, port = dashboard.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(sent)
    answer = (await reader.read()).decode()
    writer.close()
    assert answer.split()[1] == str(status)
    headers = answer.partition("\r\n\r\n")[0] if status != 100 else answer
    assert "frame-ancestors 'none'" in headers
    assert "Cache-Control: no-store" in headers
    assert "Server:" not in headers
    assert "aiohttp" not in answer
    assert "canary" not in answer + "".join(capsys.readouterr())


async def test_what_no_handler_can_answer_is_logged_without_its_text_and_ends_the_connection(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "-".join(["can", "ary"])  # a traceback has lines of this file

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(canary)

    monkeypatch.setattr("httpbridge.dashboard.pages.Pages.render", fail)
    monkeypatch.setattr("httpbridge.dashboard.middleware.Middlewares._failure", fail)
    host, port = dashboard.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /sign-in?{canary} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    with capture_logs() as logged:
        answer = (await reader.read()).decode()
    writer.close()
    assert answer.startswith("HTTP/1.1 500 Internal Server Error\r\n")
    assert "frame-ancestors 'none'" in answer
    assert "unexpected_error" in {event["event"] for event in logged}
    assert canary not in answer + str(logged)


async def test_a_name_with_markup_is_shown_as_text(dashboard: Dashboard) -> None:
    browser = await dashboard.browser(name="<b>Ann</b> O'Neil & Søn")
    await browser.create("demo")
    for path in ("/audit", KEYS, "/projects/demo/audit"):
        page = await browser.get(path)
        assert "<b>Ann" not in page.text
        assert "&lt;b&gt;Ann&lt;/b&gt; O&#39;Neil &amp; Søn" in page.text


@pytest.mark.parametrize(
    "path",
    [
        "/projects/unknown/settings/keys",
        "/projects/unknown/settings/origins",
        "/projects/unknown/audit",
        "/projects/UPPER/settings/keys",
        "/projects/%3Cscript%3E/settings/keys",
        "/nowhere",
        "/audit?before=x",
        "/projects?page=x",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
    ],
)
async def test_what_is_not_there_is_a_page_that_says_so(browser: Browser, path: str) -> None:
    answer = await browser.get(path)
    assert answer.status == 404
    assert "All projects" in answer.words
    assert await browser.head(path) == 404
    assert "<script>" not in answer.text


async def test_without_the_key_service_each_page_says_what_to_do(tmp_path: Path) -> None:
    async with running(tmp_path, NOWHERE, HTTPBRIDGE_ADMIN_TOKEN=32 * "x") as dashboard:
        browser = await dashboard.browser()
        for path in ("/projects", KEYS, ORIGINS, "/audit"):
            answer = await browser.get(path)
            assert (answer.status, answer.headers["Cache-Control"]) == (503, "no-store")
            assert "refuses connections" in answer.words
            assert "authsvc serve" in answer.words
            assert ('aria-label="Project demo"' in answer.text) == ("demo" in path)  # the other pages may work
        assert "<script>" not in (await browser.get("/projects/%3Cscript%3E/settings/keys")).text
        assert (await browser.create("demo")).status == 503


async def test_an_overloaded_key_service_is_down_and_not_without_the_page(tmp_path: Path) -> None:
    """For HEAD as for GET; logs are shown all the same."""
    async with (
        running_key_service(tmp_path, CallLimits(admin_calls_max=4)) as service,
        running(tmp_path, service.address) as dashboard,
    ):
        browser = await dashboard.browser()
        await browser.create("demo")
        await store_logs(tmp_path, "hello")
        async with AsyncExitStack() as stack:
            await hold(stack, service, "/authsvc.v1.ProjectService/ListProjects", "admin", 3)
            for path in ("/projects", KEYS, ORIGINS, "/audit"):
                answer = await browser.get(path)
                assert (answer.status, "The key service is unavailable" in answer.words) == (503, True), path
                assert "RESOURCE_EXHAUSTED" in answer.words
                assert await browser.head(path) == 503
            assert (await browser.create("other")).status == 503
            logs = await browser.get("/projects/demo/logs")
            assert (logs.status, "hello" in logs.words) == (200, True)


@pytest.mark.parametrize("is_signed_in", [True, False])
async def test_a_spoilt_dashboard_token_is_a_page_that_says_so_and_is_logged(
    tmp_path: Path, is_signed_in: bool
) -> None:
    """It signs forms and sessions, so the page does without."""
    async with running(tmp_path, NOWHERE, HTTPBRIDGE_DASHBOARD_TOKEN="") as dashboard:
        browser = await dashboard.browser(is_signed_in=False)
        kept = tmp_path / "dashboard-token"
        token = kept.read_text()
        if is_signed_in:
            assert (await browser.sign_in(token=token)).status == 303
        kept.write_text("two words\n")
        for path in ("/sign-in", "/projects/new", "/nowhere"):
            with capture_logs() as logged:
                answer = await browser.get(path)
            if answer.status == 303:  # to sign in
                continue
            assert (answer.status, "Not set up" in answer.words) == (503, True)
            assert answer.headers["X-Frame-Options"] == "DENY"
            assert [(event["event"], "dashboard-token" in event["reason"]) for event in logged] == [
                ("not_set_up", True)
            ]
        kept.write_text(token)
        assert (await browser.get("/sign-in")).status == 200


async def test_a_wrong_admin_token_is_told_without_showing_it(tmp_path: Path) -> None:
    async with (
        running_key_service(tmp_path / "keys") as service,
        running(tmp_path, service.address, HTTPBRIDGE_ADMIN_TOKEN=3 * "wrong-token") as dashboard,
    ):
        answer = await (await dashboard.browser()).get("/projects")
        assert answer.status == 503
        assert "does not accept our admin token" in answer.words
        assert "wrong-token" not in answer.text


async def test_the_key_service_comes_back_without_a_restart_of_the_dashboard(tmp_path: Path) -> None:
    state_dir = tmp_path / "state"
    async with running_key_service(state_dir) as service:
        address = service.address
    async with running(state_dir, address) as dashboard:
        browser = await dashboard.browser()
        assert (await browser.get("/projects")).status == 503
        async with running_key_service(state_dir, AUTHSVC_LISTEN=str(address)):
            assert (await browser.get("/projects")).status == 200


async def test_without_the_log_store_keys_and_origins_are_managed_all_the_same(browser: Browser) -> None:
    await browser.create("demo")
    listed = await browser.get("/projects")
    assert "Counts are missing. There is no log store at" in listed.words
    assert "unknown" in listed.words
    assert (await browser.get(KEYS)).status == 200
    assert "Not known. There is no log store at" in (await browser.get(ORIGINS)).words
    review = await browser.submit(ORIGINS, ORIGINS, action="review", entry=["shop.example"], base="")
    assert "Whom it would block is not known. There is no log store at" in review.words


async def test_a_project_leads_to_its_logs_and_its_settings_to_the_key(browser: Browser) -> None:
    """Also where it is called like a page."""
    for name in ("demo", "settings"):
        assert (await browser.create(name)).status == 200
        for path, section in (("", "logs"), ("/settings", "settings/keys")):
            assert (await browser.get(f"/projects/{name}{path}")).location == f"/projects/{name}/{section}"
