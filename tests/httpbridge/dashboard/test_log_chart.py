"""The bars of the chart: how wide, how many, how high."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpbridge.dashboard.log_chart import BARS_MAX, HEIGHT, chart, edges
from httpbridge.logs import Level
from httpbridge.sinks.log_queries import Bar

NOW = datetime(2026, 11, 23, 20, 15, 42, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("range_", "width", "count"),
    [
        (timedelta(seconds=10), None, 1),
        (timedelta(minutes=15), MINUTE, 16),
        (timedelta(hours=1), MINUTE, 61),
        (timedelta(hours=2), 2 * MINUTE, 61),
        (timedelta(hours=6), 5 * MINUTE, 73),
        (timedelta(days=1), 15 * MINUTE, 97),
        (timedelta(days=7), timedelta(hours=2), 85),
        (timedelta(days=30), timedelta(hours=12), 61),
    ],
)
def test_bars_are_minutes_or_as_much_as_is_needed(range_: timedelta, width: timedelta | None, count: int) -> None:
    starts = edges(NOW - range_, NOW)
    assert len(starts) == count
    assert {later - earlier for earlier, later in pairwise(starts)} == ({width} if width else set())


_INSTANTS = st.datetimes(timezones=st.just(UTC))


@given(_INSTANTS, _INSTANTS)
def test_bars_cover_any_range(one: datetime, other: datetime) -> None:
    """At most BARS_MAX of them, on whole minutes, the first and the last just covering it."""
    since, until = sorted((one, other))
    starts = edges(since, until)
    assert 1 <= len(starts) <= BARS_MAX
    assert starts[0] <= since
    assert starts[-1] < until or since == until or len(starts) == 1
    assert all(start.second == start.microsecond == 0 for start in starts)
    if len(starts) > 1:
        width = starts[1] - starts[0]
        assert since - starts[0] < width
        assert until - starts[-1] <= width


def test_blocks_stand_on_each_other_errors_lowest() -> None:
    starts = [NOW, NOW + MINUTE]
    bars = [
        Bar(starts[0], starts[1], {Level.ERROR: 1, Level.INFO: 3}, True),
        Bar(starts[1], None, {Level.DEBUG: 2}, True),
    ]
    drawn = chart(bars, starts, NOW + 2 * MINUTE)
    assert [(block.level, block.x, block.y, block.height) for block in drawn.blocks] == [
        ("error", 1, 75, 25), ("info", 1, 0, 75), ("debug", 11, 50, 50),
    ]  # fmt: skip
    assert (drawn.width, drawn.total, drawn.highest, drawn.bar_seconds) == (20, 6, 4, 60)
    assert drawn.totals == {"error": 1, "warn": 0, "info": 3, "debug": 2}
    assert [column.total for column in drawn.columns] == [2, 4]  # newest first
    assert (drawn.uncounted_width, drawn.counted_since) == (0, NOW)


def test_what_was_not_counted_is_drawn_as_such() -> None:
    starts = [NOW + number * MINUTE for number in range(4)]
    bars = [Bar(starts[2], starts[3], {Level.INFO: 7}, False), Bar(starts[3], None, {}, True)]
    drawn = chart(bars, starts, NOW + 4 * MINUTE)
    assert drawn.uncounted_width == 30
    assert drawn.counted_since == starts[3]
    assert [(block.x, block.height) for block in drawn.blocks] == [(21, HEIGHT)]
    assert [(column.total, column.is_complete) for column in drawn.columns] == [(7, False)]
    assert chart([], starts, NOW + 4 * MINUTE).uncounted_width == 40


def test_a_single_entry_among_millions_is_seen() -> None:
    drawn = chart([Bar(NOW, None, {Level.ERROR: 1, Level.INFO: 10_000_000}, True)], [NOW], NOW)
    assert all(block.height >= 1 and 0 <= block.y <= HEIGHT for block in drawn.blocks)
    assert len(drawn.blocks) == 2
