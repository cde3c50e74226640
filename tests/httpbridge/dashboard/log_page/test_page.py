"""Project > Logs over HTTP, on a real key service and a store that a real sink wrote."""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import pytest
import sqlalchemy as sa

from authsvc.runtime.environment import Address
from httpbridge.dashboard import app
from httpbridge.dashboard.log_page import page as logs_view
from httpbridge.dashboard.log_page.filters import position_text, read_position
from httpbridge.log_store.queries import QueryLimits
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.selection import Position
from httpbridge.log_store.sink import SqlSink
from httpbridge.logs import Level, LogEntry
from tests.contract.test_log_sink import batch, reading_engine, sink_on
from tests.httpbridge.dashboard.conftest import Answer, Browser, Dashboard, running
from tests.stored_chunks import COLUMNS, chunk_values

PAGE = "/projects/demo/logs"
_ENTRY = re.compile(r'<details class="entry level-(\w+)" data-id="(\d+)">(.*?)</details>', re.DOTALL)
_HEADLINE = re.compile(r'<bdi class="headline">(.*?)</bdi>')


@asynccontextmanager
async def sink_in(state_dir: Path) -> AsyncIterator[SqlSink]:
    """Write where the dashboard reads."""
    async with sink_on(f"sqlite:///{state_dir / 'logs.db'}") as sink:
        yield sink


@pytest.fixture
async def sink(dashboard: Dashboard) -> AsyncIterator[SqlSink]:
    async with sink_in(dashboard.state_dir) as sink:
        yield sink


@pytest.fixture
async def browser(dashboard: Dashboard) -> Browser:
    """Sign in, and make the project."""
    browser = await dashboard.browser()
    assert (await browser.create("demo")).status == 200
    return browser


def entry(message: str, minutes_ago: float = 1, level: Level = Level.INFO, **fields: Any) -> LogEntry:
    return LogEntry(level, message, timestamp=datetime.now(UTC) - timedelta(minutes=minutes_ago), **fields)


async def write(sink: SqlSink, *entries: LogEntry, **changes: Any) -> None:
    await sink.write(batch(entries=list(entries), **changes))


def messages(answer: Answer) -> list[str]:
    assert answer.status == 200, answer.text
    return [unescape(_HEADLINE.search(match[3])[1]) for match in _ENTRY.finditer(answer.text)]  # type: ignore[index]


def link(answer: Answer, label: str) -> str:
    """Return where a link with this text leads, from the page itself."""
    match = re.search(rf'<a [^>]*href="([^"]*)"[^>]*>{re.escape(label)}</a>', answer.text)
    assert match, f"no {label!r} in {answer.words}"
    return PAGE + unescape(match[1]) if match[1].startswith("?") else unescape(match[1])


async def test_entries_are_newest_first_with_all_their_fields(browser: Browser, sink: SqlSink) -> None:
    full = entry(
        "a message\nof two lines", 2, Level.WARN, metadata='{"n":1.0E+2,"deep":{"a":[1,2]}}', trace_id="trace-1",
        span_id="span-1", request_id="request-1", vercel_id="vercel-1", context="context-1", release="release-1",
    )  # fmt: skip
    await write(sink, full, entry("newer", 1), service="web", environment="staging")
    page = await browser.get(PAGE)
    assert messages(page) == ["newer", "a message of two lines"]
    for shown in ("trace-1", "span-1", "request-1", "vercel-1", "context-1", "release-1", "web", "staging", "key-1"):
        assert f"<bdi>{shown}</bdi>" in page.text
    assert "\na message\nof two lines</pre>" in page.text
    assert '{\n  "n": 1.0E+2,\n  "deep": {\n    "a": [\n      1,\n      2\n    ]\n  }\n}</pre>' in unescape(page.text)
    (found, _) = reversed(_ENTRY.findall(page.text))
    alone = await browser.get(f"{PAGE}/{found[1]}")
    assert alone.status == 200
    assert "\na message\nof two lines</pre>" in alone.text


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)> \x1b[31mred\x07 \u202egnol\u2066"


async def test_hostile_entries_are_shown_harmlessly(browser: Browser, sink: SqlSink) -> None:
    """Markup, terminal codes and marks that turn text around become text, in every field and on both pages."""
    fields: dict[str, Any] = dict.fromkeys(("trace_id", "span_id", "request_id", "vercel_id", "context"), HOSTILE)
    key = HOSTILE.replace('"', "").replace("\x1b", "\x7f").replace("\x07", "")
    hostile = entry(HOSTILE, metadata=f'{{"{key}": 1}}', **fields)
    await write(sink, hostile, service=HOSTILE, environment=HOSTILE, release=HOSTILE[:100])
    page = await browser.get(f"{PAGE}?text={quote('<script>alert(1)')}")
    assert len(messages(page)) == 1
    (found,) = _ENTRY.findall(page.text)
    for answer in (page, await browser.get(f"{PAGE}/{found[1]}")):
        assert "<script>alert" not in answer.text
        assert "<img src=x" not in answer.text
        assert not set(answer.text) & set("\x1b\x07\x7f\u202e\u2066")
        assert "\\x1b[31mred\\x07 \\u202egnol\\u2066" in answer.text
        assert answer.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 8
        assert " style=" not in answer.text
        assert not re.search(r"<[^>]* on\w+=", answer.text)


async def test_long_entries_are_shortened_and_more_is_one_click_away(browser: Browser, sink: SqlSink) -> None:
    """A page of a hundred such entries stays small."""
    text = "m" * 1_000_000
    await write(sink, *(entry(text[:45_000], 2) for _ in range(100)))
    await write(sink, entry(text, metadata='{"a":[' + "1," * 100_000 + "1]}"))
    page = await browser.get(PAGE)
    assert len(messages(page)) == 100
    assert len(page.text) < 1_000_000
    assert "996,000 more characters are not shown here." in page.words
    alone = await browser.get(link(page, "See more of this entry"))
    assert "m" * 200_000 in alone.text
    assert "m" * 200_001 not in alone.text
    assert "800,000 more characters are not shown here." in alone.words


async def test_entries_of_nothing_that_prints_make_no_larger_page(browser: Browser, sink: SqlSink) -> None:
    """An escape is ten times as long as what it stands for."""
    text = "\U000e0001" * 5000
    fields: dict[str, Any] = dict.fromkeys(("trace_id", "span_id", "request_id", "vercel_id", "context"), text)
    entries = [entry(text, 1, metadata=f'{{"k":"{text}"}}', **fields) for _ in range(100)]
    await write(sink, *entries, service=text[:256], environment=text[:256], release=text[:256])
    page = await browser.get(PAGE)
    assert len(messages(page)) == 100
    assert len(page.text) < 3_000_000
    assert "4,600 more characters are not shown here." in page.words
    (found, *_) = _ENTRY.findall(page.text)
    assert len((await browser.get(f"{PAGE}/{found[1]}")).text) < 1_000_000


async def test_each_filter_is_in_the_address_and_in_the_form(browser: Browser, sink: SqlSink) -> None:
    await write(sink, entry("old", 90), entry("a", 3), entry("b", 2, Level.ERROR))
    await write(sink, entry("c", 1, Level.DEBUG, metadata='{"user": "Ann"}'), service="w&b", environment="st aging")
    instant = (datetime.now(UTC) - timedelta(minutes=2.5)).strftime("%Y-%m-%d %H:%M:%S")
    for query, found in [
        ("", "c b a"),
        ("?level=error", "b"),
        ("?level=error&level=debug", "c b"),
        ("?level=fatal", "c b a"),
        ("?service=w%26b", "c"),
        ("?service=api&environment=production", "b a"),
        ("?environment=st+aging", "c"),
        ("?text=ANN", "c"),
        ("?text=%25", ""),
        ("?range=24h", "c b a old"),
        ("?range=all", "c b a old"),
        ("?range=nonsense", "c b a"),
        ("?since=2h&until=1h", "old"),
        ("?until=1h", "old"),
        ("?until=1h&range=15m", "old"),  # times of one's own count,
        ("?until=1h&range=15m&shown=custom", "c b a"),  # unless the preset was chosen after them
        ("?since=2h&range=custom&shown=custom", "c b a old"),
        ("?range=custom", "c b a"),
        (f"?since={quote(instant)}", "c b"),
        (f"?until={quote(instant)}&range=24h", "a old"),
    ]:
        assert " ".join(messages(await browser.get(PAGE + query))) == found, query
    page = await browser.get(PAGE + "?level=error&level=debug&service=w%26b&text=%22x%22&range=6h&until=30s")
    for field in (
        'value="error" checked', 'value="debug" checked', 'value="info">', 'name="service" value="w&amp;b"',
        'name="text" value="&#34;x&#34;"', '<option value="custom" selected', 'name="until" value="30s"',
        'name="shown" value="custom"',
        '<option value="w&amp;b">', '<option value="st aging">',
    ):  # fmt: skip
        assert field in page.text, field
    page = await browser.get(PAGE + "?range=6h")
    assert re.findall(r'<option value="(\w+)" selected', page.text) == ["6h"]
    assert 'name="shown"' not in page.text


@pytest.mark.parametrize(
    ("query", "field", "error"),
    [
        ("?since=yesterday", "since", "Write a time such as"),
        ("?until=2026-13-01", "until", "Write a time such as"),
        ("?since=999999999w", "since", "Write a time such as"),
        ("?since=1h&until=2h", "until", "This is not after the beginning."),
        ("?since=0001-01-01T00:00:00%2B23:00", "since", "Write a time such as"),
    ],
)
async def test_a_time_that_makes_no_sense_is_said_beside_its_field(
    browser: Browser, sink: SqlSink, query: str, field: str, error: str
) -> None:
    await write(sink, entry("a"))
    page = await browser.get(PAGE + query)
    assert messages(page) == ["a"]
    match = re.search(rf'aria-describedby="{field}-error".*?id="{field}-error">([^<]*)', page.text, re.DOTALL)
    assert match
    assert error in match[1]


@pytest.mark.parametrize(
    "query",
    [
        "before=nonsense", "before=2026-01-01T00:00:00Z_99999999999999999999", "before=2026-01-01T00:00:00_1",
        "before=%00_1", "text=%00a", "text=%ED%A0%80", "service=%FF", "text=" + "%25_/" * 1000, "level=", "since=%00",
        "before=0001-01-01T00:00:00+23:00_1", "before=9999-12-31T23:59:59.999999Z_999999999999999999",
        "since=0001-01-01&until=9999-12-31T23:59:59", "range=all&range=1h", "text=a&text=b", "%00=%00", "before=_",
        "since=9999-12-31T23:59:59.999999Z", "until=0001-01-01T00:00:00Z", "until=9999-12-31T23:59:59.999999Z",
    ],
)  # fmt: skip
async def test_no_address_breaks_the_page(browser: Browser, sink: SqlSink, query: str) -> None:
    await write(sink, entry("a", 0, metadata='{"a": 1}'))
    await sink.write(batch(entries=[LogEntry(Level.INFO, "first", timestamp=datetime(1, 1, 1, tzinfo=UTC))]))
    await sink.write(batch(entries=[LogEntry(Level.INFO, "last", timestamp=datetime.max.replace(tzinfo=UTC))]))
    assert (await browser.get(f"{PAGE}?{query}")).status == 200
    assert (await browser.get(f"{PAGE}?{query}&range=all")).status == 200


def test_positions_are_written_and_read_back() -> None:
    position = Position(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), 7)
    assert read_position(position_text(position)) == position


async def test_older_pages_follow_without_a_gap_and_keep_the_filter(browser: Browser, sink: SqlSink) -> None:
    await write(
        sink, *(entry(str(number), number // 10, (Level.INFO, Level.WARN)[number % 2]) for number in range(450))
    )
    page = await browser.get(PAGE + "?level=warn&range=24h")
    found = messages(page)
    while len(messages(page)) == 100:
        page = await browser.get(link(page, "Older"))
        found += messages(page)
        assert link(page, "Newest") == PAGE + "?range=24h&level=warn"
    assert sorted(map(int, found)) == list(range(1, 450, 2))
    assert len(found) == 225
    assert ">Older<" not in page.text


@pytest.mark.parametrize("query_limits", [QueryLimits(entries_max=1000)])  # half of it for the chart of the first page
async def test_a_long_search_says_how_far_it_got_and_goes_on_at_a_click(browser: Browser, sink: SqlSink) -> None:
    for _ in range(6):
        await write(sink, *(entry("hay", 1) for _ in range(100)))
    await write(sink, entry("needle", 2))
    page = await browser.get(PAGE + "?text=needle")
    assert messages(page) == []
    assert "Nothing was found in the newest 500 entries, back to" in page.words
    assert "There is too much to count at once" in page.words
    page = await browser.get(link(page, "Go on searching"))
    assert messages(page) == ["needle"]
    assert "Go on searching" not in page.text
    assert "<svg" not in page.text


async def test_the_chart_says_in_words_and_numbers_what_it_shows(browser: Browser, sink: SqlSink) -> None:
    await write(sink, *(entry("a", 5) for _ in range(3)), entry("b", 5, Level.ERROR), entry("c", 40, Level.ERROR))
    page = await browser.get(PAGE)
    match = re.search(
        r'<svg [^>]*role="group" aria-labelledby="chart-title">\s*<title id="chart-title">(.*?)</title>',
        page.text,
        re.DOTALL,
    )
    assert match
    title = " ".join(match[1].split())
    levels = "2 error, 0 warn, 3 info, 0 debug"
    assert re.fullmatch(rf"5 logs from \S+Z to \S+Z: {levels}\. The highest bar has 4 per minute\.", title)
    assert page.text.count('<rect class="level-') == 3
    row = re.search(r'<tr><th scope="row"><a href="([^"]+)">.*?</tr>', page.text, re.DOTALL)
    assert row
    bar = re.search(rf'<a href="{re.escape(row[1])}"[^>]*><rect class="column"[^>]*><title>(.*?)</title>', page.text)
    assert bar
    assert bar[1].endswith("Z: 4 logs, 3 info, 1 error")
    assert re.findall(r'<td class="number">([^<]*)', row[0]) == ["0", "3", "0", "1", "4"]
    zoomed = await browser.get(PAGE + unescape(row[1]))
    assert messages(zoomed) == ["b", "a", "a", "a"]
    assert (await browser.get(PAGE + "?level=error")).text.count('<rect class="level-') == 2


@pytest.mark.parametrize("query", ["?", "?range=15m", "?range=all", "?since=1h"])
async def test_entries_of_the_future_and_of_antiquity_take_over_no_view(
    browser: Browser, sink: SqlSink, query: str
) -> None:
    """They are numbered, and a click away; what is a little early is shown."""
    later = [LogEntry(Level.INFO, "later", timestamp=datetime(2999, 1, day, tzinfo=UTC)) for day in range(1, 31)]
    ancient = LogEntry(Level.INFO, "ancient", timestamp=datetime(1, 1, 1, tzinfo=UTC))
    await write(sink, entry("early", -3), entry("now", 1), *later, ancient)
    page = await browser.get(PAGE + query)
    is_all = query == "?range=all"
    assert messages(page) == ["early", "now", *(["ancient"] if is_all else [])]
    assert "30 entries claim to be from the future, over 5 minutes from now. Show them" in page.words
    assert "data-stream" in page.text
    assert re.search(r"<title id=\"chart-title\">2 logs from 2", page.text)
    assert '<time datetime="2999' not in page.text
    shown = await browser.get(link(page, "Show them"))
    assert messages(shown) == ["later"] * 30
    of_antiquity = "1 entry claims to be older than the year 2000, where the chart begins. Show it"
    assert (of_antiquity in page.words) is is_all
    if is_all:
        assert messages(await browser.get(link(page, "Show it"))) == ["ancient"]


@pytest.mark.parametrize("query_limits", [QueryLimits(counted_entries_max=2)])
async def test_more_entries_of_the_future_than_are_numbered_are_said_to_be_more(
    browser: Browser, sink: SqlSink
) -> None:
    await write(sink, entry("now"), *(entry("later", -60) for _ in range(3)))
    assert "More than 2 entries claim to be from the future" in (await browser.get(PAGE)).words


async def test_live_tail_shows_entries_of_the_future(browser: Browser, sink: SqlSink) -> None:
    """A client whose clock is wrong finds them where they arrive."""
    await write(sink, entry("now"))
    (path,) = re.findall(r'data-stream="([^"]*)"', (await browser.get(PAGE)).text)
    await write(sink, entry("later", -60))
    assert ">later</bdi>" in await browser.beginning(unescape(path), "headline")


@pytest.mark.parametrize("query_limits", [QueryLimits(entries_max=200)])
async def test_a_chart_of_too_much_shows_what_can_be_counted_in_fine_bars(browser: Browser, sink: SqlSink) -> None:
    # The newest hundred in four seconds of thirty days.
    await write(sink, entry("old hay", 60 * 24 * 29))
    for start in (200, 100, 0):
        await write(sink, *(entry("hay", 5 + number / 1500) for number in range(start, start + 100)))
    page = await browser.get(PAGE + "?range=30d&level=info&text=hay")
    assert 'class="uncounted"' not in page.text
    assert "what is older than 20" in page.words
    title = re.search(r'<title id="chart-title">(.*?)</title>', page.text, re.DOTALL)
    assert title
    assert re.match(r"100 logs from \S+Z to \S+Z:", title[1])
    assert re.search(r"The highest bar has at least \d+ per 5 seconds\.", title[1])
    counted_since = datetime.fromisoformat(title[1].split()[3])
    assert timedelta(0) <= datetime.now(UTC) - counted_since - timedelta(minutes=5) < timedelta(minutes=1)


async def test_the_entries_around_one_are_a_click_away(browser: Browser, sink: SqlSink) -> None:
    await write(sink, entry("before", 12), entry("just before", 10.5), entry("it", 10), entry("after", 8))
    found = {unescape(_HEADLINE.search(match[3])[1]): match[2] for match in _ENTRY.finditer(  # type: ignore[index]
        (await browser.get(PAGE)).text)}  # fmt: skip
    alone = await browser.get(f"{PAGE}/{found['it']}")
    assert messages(await browser.get(link(alone, "Around this entry"))) == ["it", "just before"]
    await sink.write(batch(entries=[LogEntry(Level.INFO, "first", timestamp=datetime(1, 1, 1, tzinfo=UTC))]))
    assert "Around this entry" not in (await browser.get(f"{PAGE}/5")).words


async def test_an_empty_page_says_what_to_do_next(browser: Browser, sink: SqlSink) -> None:
    page = await browser.get(PAGE)
    assert "No logs yet" in page.words
    line = re.search(r'<pre id="curl-line"[^>]*><code>(.*?)</code>', page.text, re.DOTALL)
    assert line
    assert "Authorization: Bearer $DEEPTRACER_KEY" in unescape(line[1])
    assert 'href="/projects/demo/settings/keys"' in page.text
    await write(sink, entry("old", 600))
    page = await browser.get(PAGE)
    assert "There are logs, but not in this time." in page.words
    assert messages(await browser.get(link(page, "All time"))) == ["old"]
    page = await browser.get(PAGE + "?range=24h&text=nothing")
    assert "There are logs, but not with these filters." in page.words
    assert messages(await browser.get(link(page, "Without the filters"))) == ["old"]


async def test_what_is_not_there_is_not_found(browser: Browser, sink: SqlSink) -> None:
    await browser.create("other")
    await write(sink, entry("a"))
    (found,) = _ENTRY.findall((await browser.get(PAGE)).text)
    for path in (
        "/projects/unknown/logs", "/projects/unknown/logs/1", "/projects/unknown/logs/stream", "/projects/%00/logs",
        f"/projects/other/logs/{found[1]}", PAGE + "/999999", PAGE + "/9999999999999999999", PAGE + "/x",
    ):  # fmt: skip
        assert (await browser.get(path)).status == 404, path


async def test_logs_are_shown_while_the_key_service_is_down(tmp_path: Path) -> None:
    async with running(tmp_path, Address("127.0.0.1", 1)) as dashboard, sink_in(tmp_path) as sink:
        browser = await dashboard.browser()
        await write(sink, entry("a"))
        assert messages(await browser.get(PAGE)) == ["a"]


async def test_a_key_service_that_hangs_keeps_no_log_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs_view, "_PROJECT_SECONDS_MAX", 0.05)

    async def hang(request: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    server = grpc.aio.server()
    hanging: dict[str, Any] = {"GetProject": grpc.unary_unary_rpc_method_handler(hang)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("authsvc.v1.ProjectService", hanging)])
    address = Address("127.0.0.1", server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    async with running(tmp_path, address, HTTPBRIDGE_ADMIN_TOKEN=32 * "x") as dashboard, sink_in(tmp_path) as sink:
        browser = await dashboard.browser()
        await write(sink, entry("a"))
        async with asyncio.timeout(5):  # half the time that other pages wait for it
            assert messages(await browser.get(PAGE)) == ["a"]
            assert ">a</bdi>" in await browser.beginning(PAGE + "/stream?after=0", "headline")
    await server.stop(None)


async def test_a_store_that_fails_in_the_middle_of_a_page_is_a_page_that_says_so(
    dashboard: Dashboard, browser: Browser, sink: SqlSink
) -> None:
    """It answers the first statement, and several at once fail after that."""
    await write(sink, entry("a"))
    engine = reading_engine(f"sqlite:///{dashboard.state_dir / 'logs.db'}")
    async with engine.begin() as connection:
        await connection.execute(sa.text("ALTER TABLE chunks RENAME COLUMN summary TO away"))
        await connection.execute(sa.text("ALTER TABLE chunks RENAME COLUMN content TO gone"))
    await engine.dispose()
    page = await browser.get(PAGE)
    assert (page.status, "The log store is unavailable" in page.words) == (503, True)


async def test_a_statement_that_takes_too_long_is_stopped_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_STATEMENT_SECONDS_MAX", 0.0)
    async with running(tmp_path, Address("127.0.0.1", 1)) as dashboard, sink_in(tmp_path) as sink:
        browser = await dashboard.browser()
        await write(sink, entry("a"))
        assert messages(await browser.get(PAGE)) == ["a"]  # too little work to look at the clock
        with closing(sqlite3.connect(tmp_path / "logs.db")) as store, store:  # many newer chunks to pass over
            values = chunk_values(batch(entries=[entry("hay")]))
            store.executemany(f"INSERT INTO chunks ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", [values] * 5000)
        page = await browser.get(PAGE + "?since=3h&until=2h")
        assert (page.status, "The log store is slow" in page.words) == (503, True)
        assert (await browser.get(link(page, "The last 15 minutes"))).status in (200, 503)


async def test_the_dashboard_asks_four_things_of_the_store_at_a_time(
    dashboard: Dashboard, sink: SqlSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many people ask at once: what they do shall not keep the bridge from its store."""
    browser = await dashboard.browser()
    await browser.create("demo")
    await write(sink, entry("a"))
    asking = lent = most = 0
    release = asyncio.Event()
    lend = ReadStore.connection

    @asynccontextmanager
    async def held(store: ReadStore) -> AsyncIterator[Any]:
        nonlocal asking, lent, most
        asking += 1
        async with lend(store) as connection:
            lent += 1
            most = max(most, lent)
            await release.wait()
            lent -= 1
            yield connection

    monkeypatch.setattr(ReadStore, "connection", held)
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        pages = [group.create_task(browser.get(PAGE)) for _ in range(8)]
        while asking < len(pages) or lent < 4:
            await browser.get("/sign-in")
        for _ in range(20):  # as long as it takes to connect
            await browser.get("/sign-in")
        release.set()
    assert most == 4
    assert [page.result().status for page in pages] == [200] * len(pages)


async def test_a_log_store_that_is_not_there_is_a_page_that_says_so(browser: Browser) -> None:
    for path in (PAGE, PAGE + "/1", PAGE + "/stream"):
        page = await browser.get(path)
        assert page.status == 503
        assert "no bridge has run with it yet" in page.words
