"""The address of a Logs page: what a query string selects, and how it is written. `test_logs_page` has it over HTTP."""

from datetime import UTC, datetime, timedelta

import pytest
from multidict import MultiDict

from httpbridge.dashboard.log_page.filters import (
    AHEAD_MAX,
    CUSTOM,
    NAME_CHARACTERS_MAX,
    RANGES,
    TEXT_CHARACTERS_MAX,
    LogQuery,
    ending,
    position_text,
    read_position,
)
from httpbridge.log_store.selection import LogFilter, Position
from httpbridge.logs import Level

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)


def query(**fields: str) -> LogQuery:
    return LogQuery.of(MultiDict(fields))


def selected(asked: LogQuery) -> tuple[datetime | None, datetime | None, dict[str, str]]:
    selection, errors = asked.selection("demo", NOW)
    return selection.since, selection.until, errors


def test_nothing_chosen_is_the_last_hour_of_everything() -> None:
    asked = query()
    assert asked == LogQuery()
    assert not asked.is_narrow
    assert asked.url() == "?"
    assert asked.selection("demo", NOW) == (LogFilter(project_id="demo", since=NOW - HOUR), {})


def test_every_field_comes_back_from_the_address_it_makes() -> None:
    fields = {"since": "2h", "until": "1h", "service": "a b", "environment": "ü&=", "text": "50 %"}
    asked = LogQuery.of(MultiDict([*fields.items(), ("level", "error"), ("level", "warn"), ("level", "loud")]))
    assert asked == LogQuery(range=CUSTOM, level=(Level.WARN, Level.ERROR), **fields)
    assert asked.url() == "?since=2h&until=1h&level=warn&level=error&service=a+b&environment=%C3%BC%26%3D&text=50+%25"
    assert asked.selection("demo", NOW) == (
        LogFilter(
            project_id="demo",
            since=NOW - 2 * HOUR,
            until=NOW - HOUR,
            levels=frozenset({Level.WARN, Level.ERROR}),
            service="a b",
            environment="ü&=",
            text="50 %",
        ),
        {},
    )


@pytest.mark.parametrize("field", ["service", "environment", "text", "level"])
def test_any_field_but_the_time_narrows(field: str) -> None:
    assert query(**{field: "error"}).is_narrow
    assert not query(since="1h").is_narrow


@pytest.mark.parametrize(
    ("fields", "range_", "since"),
    [
        ({"range": "6h"}, "6h", ""),
        ({"range": "everything"}, "1h", ""),
        ({"range": CUSTOM}, "1h", ""),
        ({"range": "6h", "since": " 2h "}, CUSTOM, "2h"),
        ({"range": "6h", "until": "2h"}, CUSTOM, ""),
        ({"range": "6h", "since": "2h", "until": "1h", "shown": CUSTOM}, "6h", ""),
        ({"range": CUSTOM, "since": "2h", "shown": CUSTOM}, CUSTOM, "2h"),
        ({"range": "6h", "since": "2h", "shown": "6h"}, CUSTOM, "2h"),
    ],
)
def test_times_of_ones_own_hold_unless_a_preset_was_chosen_after_them(
    fields: dict[str, str], range_: str, since: str
) -> None:
    asked = query(**fields)
    assert (asked.range, asked.since) == (range_, since)
    assert bool(asked.until) is ("until" in fields and range_ == CUSTOM)


@pytest.mark.parametrize(
    ("more", "url"),
    [
        ({}, "?range=6h&text=x"),
        ({"range": "1h"}, "?text=x"),
        ({"range": CUSTOM}, "?text=x"),
        ({"since": "2h"}, "?since=2h&text=x"),
        ({"until": "2h"}, "?until=2h&text=x"),
        ({"before": "p_1", "text": ""}, "?range=6h&before=p_1"),
    ],
)
def test_an_address_says_what_differs_from_the_default(more: dict[str, str], url: str) -> None:
    assert query(range="6h", text="x").url(**more) == url


@pytest.mark.parametrize("name", ["since", "until", "service", "environment", "text"])
def test_text_is_cut_and_holds_nothing_that_no_database_takes(name: str) -> None:
    length = TEXT_CHARACTERS_MAX if name == "text" else NAME_CHARACTERS_MAX
    assert getattr(query(**{name: "x" * (length + 1)}), name) == "x" * length
    assert getattr(query(**{name: "a\0b\ud800c"}), name) == "abc"


@pytest.mark.parametrize("range_", RANGES)
def test_a_preset_ends_now_and_goes_back_by_its_name(range_: str) -> None:
    seconds = {"15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000}.get(range_)
    since = None if seconds is None else NOW - timedelta(seconds=seconds)
    assert selected(query(range=range_)) == (since, None, {})


@pytest.mark.parametrize(
    ("fields", "since", "until", "wrong"),
    [
        ({"since": "2h"}, NOW - 2 * HOUR, None, []),
        ({"until": "2h"}, None, NOW - 2 * HOUR, []),
        ({"since": "soon"}, NOW - HOUR, None, ["since"]),
        ({"until": "soon"}, NOW - HOUR, None, ["until"]),
        ({"since": "soon", "until": "later"}, NOW - HOUR, None, ["since", "until"]),
        ({"since": "2h", "until": "soon"}, NOW - 2 * HOUR, None, ["until"]),
        ({"since": "soon", "until": "2h"}, None, NOW - 2 * HOUR, ["since"]),
        ({"since": "1h", "until": "2h"}, NOW - HOUR, None, ["until"]),
        ({"since": "1h", "until": "1h"}, NOW - HOUR, None, ["until"]),
    ],
)
def test_a_time_that_makes_no_sense_is_named_and_left_out(
    fields: dict[str, str], since: datetime | None, until: datetime | None, wrong: list[str]
) -> None:
    found_since, found_until, errors = selected(query(**fields))
    assert (found_since, found_until, list(errors)) == (since, until, wrong)
    if fields.get("until") in ("1h", "2h") and "until" in wrong:
        assert errors["until"] == "This is not after the beginning."
    else:
        assert all(error.startswith("Write a time such as") for error in errors.values())


@pytest.mark.parametrize(
    ("since", "until", "end"),
    [
        (None, None, NOW + AHEAD_MAX),
        (NOW - HOUR, None, NOW + AHEAD_MAX),
        (NOW, None, NOW + AHEAD_MAX),
        (NOW - HOUR, NOW, NOW),
        (NOW + HOUR, None, None),
        (NOW + HOUR, NOW + 2 * HOUR, NOW + 2 * HOUR),
    ],
)
def test_what_has_no_end_ends_a_little_after_now_unless_it_begins_later(
    since: datetime | None, until: datetime | None, end: datetime | None
) -> None:
    selection = LogFilter(project_id="demo", since=since, until=until, text="x")
    assert ending(selection, NOW) == LogFilter(project_id="demo", since=since, until=end, text="x")


def test_a_position_comes_back_from_its_text() -> None:
    position = Position(NOW.replace(microsecond=1), 10**18 - 1)
    assert position_text(position) == "2026-11-23T12:00:00.000001Z_999999999999999999"
    assert read_position(position_text(position)) == position
    elsewhere = read_position("2026-11-23T13:00:00+01:00_7")
    assert elsewhere == Position(NOW, 7)
    assert elsewhere.timestamp.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "2026-11-23T12:00:00Z",
        "2026-11-23T12:00:00Z_",
        "2026-11-23T12:00:00Z_-7",
        "2026-11-23T12:00:00Z_７",
        "2026-11-23T12:00:00Z_1000000000000000000",
        "2026-11-23T12:00:00_7",
        "yesterday_7",
        "0001-01-01T00:00:00+01:00_7",
    ],
)
def test_anything_else_is_no_position(text: str) -> None:
    assert read_position(text) is None
