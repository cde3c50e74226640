"""Settings > Data: what is stored, how long it is kept, and erasing."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from authsvc.runtime.database_url import sqlite_url
from httpbridge.dashboard.views.data import bytes_of, bytes_text
from httpbridge.log_store.sink import SqlSink
from httpbridge.logs import Level, LogEntry
from tests.contract.test_log_sink import batch, sink_on
from tests.e2e.stored_logs import messages
from tests.httpbridge.dashboard.conftest import Browser, Dashboard

PAGE = "/projects/shop/settings/data"


@pytest.fixture
async def sink(dashboard: Dashboard, browser: Browser) -> AsyncIterator[SqlSink]:
    """Have a project, and a bridge's sink that stores."""
    await browser.create("shop")
    async with sink_on(sqlite_url(dashboard.state_dir / "logs.db")) as sink:
        yield sink


async def test_the_page_says_what_is_stored(browser: Browser, sink: SqlSink) -> None:
    await sink.write(batch("a", "b", project_id="shop"))
    await sink.write(batch("other", project_id="other"))
    page = await browser.get(PAGE)
    assert page.status == 200
    assert "Entries 2" in page.words
    assert "Oldest 2026-11-23 20:15:00 UTC Newest 2026-11-23 20:15:00 UTC" in page.words
    assert "httpbridge export shop --output shop.ndjson.zst" in page.words
    assert "As all projects: for ever" in page.words
    assert "Nothing was dropped so far." in page.words
    assert "None. What is erased here" in page.words
    await browser.create("bare")
    empty = await browser.get("/projects/bare/settings/data")
    assert "Entries 0" in empty.words
    assert "Oldest none" in empty.words
    assert (await browser.get("/projects/nowhere/settings/data")).status == 404


async def test_limits_are_saved_and_shown_again(dashboard: Dashboard, browser: Browser, sink: SqlSink) -> None:
    for days, number, room, stored in (
        ("own", "30", "2 GB", (30, 2 * 10**9)),
        ("all", "30", "1234567", (0, 1234567)),
        ("default", "", "", (None, None)),
    ):
        saved = await browser.submit(PAGE, PAGE, action="retention", days=days, days_number=number, bytes_max=room)
        assert (saved.status, saved.location) == (303, PAGE)
        page = await browser.get(PAGE)
        assert "Saved." in page.words
        assert f'value="{days}" checked' in page.text
        with closing(sqlite3.connect(dashboard.state_dir / "logs.db")) as connection:
            row = connection.execute("SELECT retention_days, bytes_max FROM project_data WHERE project_id = 'shop'")
            assert row.fetchone() == stored
        if stored[1]:
            assert f'value="{bytes_text(stored[1])}"' in page.text


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"days": "own", "days_number": "0"}, "a number of days from 1 to 36,500"),
        ({"days": "own", "days_number": "<b>"}, "a number of days from 1 to 36,500"),
        ({"days": "own", "days_number": "36501"}, "a number of days from 1 to 36,500"),
        ({"days": "default", "bytes_max": "much <i>"}, "Write a number of bytes"),
        ({"days": "default", "bytes_max": "0"}, "Write a number of bytes"),
        ({"days": "never"}, "How long it is kept"),
    ],
)
async def test_limits_that_make_no_sense_change_nothing(
    dashboard: Dashboard, browser: Browser, sink: SqlSink, fields: dict[str, str], error: str
) -> None:
    refused = await browser.submit(PAGE, PAGE, action="retention", **fields)
    assert refused.status == 400
    assert error in refused.words
    assert "<b>" not in refused.text
    assert "<i>" not in refused.text
    with closing(sqlite3.connect(dashboard.state_dir / "logs.db")) as connection:
        assert connection.execute("SELECT * FROM project_data").fetchall() == []


async def test_what_is_selected_is_counted_confirmed_and_erased(
    dashboard: Dashboard, browser: Browser, sink: SqlSink
) -> None:
    """While a bridge stores, which goes on."""
    entries = [LogEntry(Level.INFO, f"order {number} of <b>Eve</b>") for number in range(5)]
    await sink.write(batch(project_id="shop", entries=[*entries, LogEntry(Level.INFO, "kept")]))
    await sink.write(batch("order of another project", project_id="other"))
    fields = {"since": "", "until": "", "service": "api", "environment": "", "text": "ORDER <"}
    preview = await browser.submit(PAGE, PAGE, action="preview", **(fields | {"text": "of <B>"}))
    assert preview.status == 200
    assert "5 entries would go, of shop: service api; with the text &#39;of &lt;B&gt;&#39;" in preview.words
    fields = fields | {"text": "of <B>"}
    wrong = await browser.post(PAGE, csrf_token=preview.csrf_token, action="erase", confirm="shopp", **fields)
    assert wrong.status == 400
    assert "This is not the project's name. Nothing was erased." in wrong.words
    assert len(messages(dashboard.state_dir, "shop")) == 6
    without = await browser.post(PAGE, action="erase", confirm="shop", **fields)
    assert without.status == 403
    assert len(messages(dashboard.state_dir, "shop")) == 6
    erased = await browser.post(PAGE, csrf_token=wrong.csrf_token, action="erase", confirm="shop", **fields)
    assert (erased.status, erased.location) == (303, PAGE)
    page = await browser.get(PAGE)
    assert "Erased 5 entries." in page.words
    assert "service api; with a text of 6 characters 5 dashboard:Ann" in page.words
    assert messages(dashboard.state_dir, "shop") == ["kept"]
    assert messages(dashboard.state_dir, "other") == ["order of another project"]
    await sink.write(batch("and on", project_id="shop"))
    assert messages(dashboard.state_dir, "shop") == ["kept", "and on"]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"since": "yesterday"}, "neither a time such as"),
        ({"until": "<b>"}, "neither a time such as"),
        ({"since": "1h", "until": "2h"}, "not after the beginning"),
        ({"text": "x" * 201}, "more than 200 characters"),
        ({"service": "x" * 257}, "more than 256 characters"),
    ],
)
@pytest.mark.parametrize("action", ["preview", "erase"])
async def test_a_selection_that_makes_no_sense_erases_nothing(
    dashboard: Dashboard, browser: Browser, sink: SqlSink, action: str, fields: dict[str, str], error: str
) -> None:
    """Nor is a text cut to one that selects more."""
    await sink.write(batch("x" * 300, project_id="shop"))
    refused = await browser.submit(PAGE, PAGE, action=action, confirm="shop", **fields)
    assert refused.status == 400
    assert error in refused.words
    assert "<b>" not in refused.text
    assert len(messages(dashboard.state_dir, "shop")) == 1


async def test_times_of_the_preview_are_those_that_are_erased(
    dashboard: Dashboard, browser: Browser, sink: SqlSink
) -> None:
    """Not those so long before whenever the name was typed."""
    preview = await browser.submit(PAGE, PAGE, action="preview", since="1h", until="1s")
    assert 'name="since" value="20' in preview.text
    assert 'name="until" value="20' in preview.text
    assert 'value="1h"' not in preview.text


async def test_without_a_store_the_page_says_so(browser: Browser) -> None:
    await browser.create("shop")
    page = await browser.get(PAGE)
    assert page.status == 503
    assert "no bridge has run with it yet" in page.words


def test_numbers_of_bytes_are_read_as_they_are_written() -> None:
    for text, number in (
        ("0", 0),
        ("1", 1),
        ("1500B", 1500),
        ("500 MB", 5 * 10**8),
        ("3GB", 3 * 10**9),
        ("2 T", 2 * 10**12),
    ):
        assert bytes_of(text) == number
    for number in (1, 999, 1000, 1500, 10**6, 2_500_000, 10**12, 2**63 - 1):
        assert min(bytes_of(bytes_text(number)), 2**63 - 1) == number or number == 2**63 - 1
    for text in ("", "-1", "1.5 GB", "much", "1 PB", "٣"):
        assert bytes_of(text) == 0
