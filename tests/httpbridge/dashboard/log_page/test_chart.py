"""The bars of the chart: how wide, how many, how high."""

from datetime import UTC, datetime, timedelta
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httpbridge.dashboard.log_page.chart import BARS_MAX, GAP, HEIGHT, Chart, chart, edges
from httpbridge.log_store.queries import Bucket
from httpbridge.log_store.selection import Position
from httpbridge.logs import Level

NOW = datetime(2026, 11, 23, 20, 15, 42, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("range_", "width", "count"),
    [
        (timedelta(seconds=1), None, 1),
        (timedelta(seconds=10), timedelta(seconds=1), 10),
        (timedelta(minutes=1), timedelta(seconds=1), 60),
        (timedelta(minutes=9), timedelta(seconds=5), 109),
        (timedelta(minutes=10), MINUTE, 11),
        (timedelta(minutes=15), MINUTE, 16),
        (timedelta(hours=1), MINUTE, 61),
        (timedelta(hours=2), 2 * MINUTE, 61),
        (timedelta(hours=6), 5 * MINUTE, 73),
        (timedelta(days=1), 15 * MINUTE, 97),
        (timedelta(days=7), timedelta(hours=2), 85),
        (timedelta(days=30), timedelta(hours=12), 61),
    ],
)
def test_bars_are_minutes_or_what_suits_the_range(range_: timedelta, width: timedelta | None, count: int) -> None:
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
    assert all(start.microsecond == 0 for start in starts)
    assert until - since < timedelta(minutes=10) or all(start.second == 0 for start in starts)
    if len(starts) > 1:
        width = starts[1] - starts[0]
        assert since - starts[0] < width
        assert until - starts[-1] <= width


def test_blocks_stand_on_each_other_errors_lowest() -> None:
    starts = [NOW, NOW + MINUTE]
    bars = [
        Bucket(starts[0], starts[1], {Level.ERROR: 1, Level.INFO: 3}),
        Bucket(starts[1], starts[1] + MINUTE, {Level.DEBUG: 2}),
    ]
    drawn = chart(bars, starts, NOW + 2 * MINUTE)
    assert [(block.level, block.x, block.y, block.height) for block in drawn.blocks] == [
        ("error", 1, 75, 25), ("info", 1, 0, 74), ("debug", 11, 50, 50),
    ]  # fmt: skip
    assert (drawn.width, drawn.total, drawn.highest, drawn.unit) == (20, 6, 4, "minute")
    assert drawn.totals == {"error": 1, "warn": 0, "info": 3, "debug": 2}
    assert [column.total for column in drawn.columns] == [2, 4]  # newest first
    assert (drawn.uncounted_width, drawn.counted_since, drawn.is_complete) == (0, NOW, True)
    assert [column.end for column in drawn.columns] == [NOW + 2 * MINUTE, NOW + MINUTE]
    assert [column.end for column in chart(bars, starts, NOW, is_open=True).columns] == [None, NOW + MINUTE]


def test_what_was_not_counted_is_drawn_as_such() -> None:
    starts = [NOW + number * MINUTE for number in range(4)]
    until = NOW + 4 * MINUTE
    stopped = Position(starts[2] + MINUTE / 2, 7)
    bars = [Bucket(starts[2], starts[3], {Level.INFO: 7}, stopped), Bucket(starts[3], until, {})]
    drawn = chart(bars, starts, until)
    assert (drawn.uncounted_width, drawn.is_complete) == (30, False)
    assert drawn.counted_since == stopped.timestamp
    assert [(block.x, block.height) for block in drawn.blocks] == [(21, HEIGHT)]
    assert [(column.total, column.is_complete) for column in drawn.columns] == [(7, False)]
    nothing = chart([], starts, until)
    assert (nothing.uncounted_width, nothing.counted_since, nothing.is_complete) == (40, until, False)


def test_a_count_that_stops_in_the_newest_bar_says_from_when_on_it_counted() -> None:
    starts = [NOW, NOW + MINUTE]
    stopped = Position(NOW + MINUTE * 1.5, 7)
    drawn = chart([Bucket(starts[1], NOW + 2 * MINUTE, {Level.INFO: 250_000}, stopped)], starts, NOW + 2 * MINUTE)
    assert (drawn.total, drawn.counted_since, drawn.is_complete) == (250_000, stopped.timestamp, False)


def test_an_axis_that_begins_where_the_budget_ends_has_nothing_grey_and_says_that_it_is_not_all() -> None:
    starts = [NOW, NOW + MINUTE]
    bars = [Bucket(NOW, NOW + MINUTE, {Level.INFO: 1}), Bucket(NOW + MINUTE, NOW + 2 * MINUTE, {Level.INFO: 2})]
    drawn = chart(bars, starts, NOW + 2 * MINUTE, countable_since=NOW + MINUTE / 2)
    assert (drawn.uncounted_width, drawn.is_complete, drawn.counted_since) == (0, False, NOW + MINUTE / 2)
    assert [column.is_complete for column in drawn.columns] == [True, False]


def assert_all_are_seen(drawn: Chart) -> None:
    """Each level has a block of its own, within the picture, with a gap below it."""
    for _, blocks in groupby(drawn.blocks, key=lambda block: block.x):
        bottom = float(HEIGHT + GAP)
        for block in blocks:
            assert block.height >= 1
            assert block.y >= 0
            assert bottom - (block.y + block.height) == pytest.approx(GAP, abs=0.02)
            bottom = block.y


@pytest.mark.parametrize("largest", Level)
def test_a_single_entry_among_millions_is_seen(largest: Level) -> None:
    counts = {level: 10_000_000 if level is largest else 1 for level in Level}
    drawn = chart([Bucket(NOW, NOW + MINUTE, counts)], [NOW], NOW)
    assert sorted(block.height for block in drawn.blocks) == [1, 1, 1, HEIGHT - 3 - 3 * GAP]
    assert_all_are_seen(drawn)


_COUNTS = st.dictionaries(st.sampled_from(Level), st.integers(0, 300) | st.integers(0, 10_000_000))


@given(st.lists(_COUNTS, min_size=1, max_size=3))
def test_blocks_do_not_overlap_and_keep_their_gaps(counts: list[dict[Level, int]]) -> None:
    starts = [NOW + number * MINUTE for number in range(len(counts))]
    bars = [Bucket(start, start + MINUTE, of_levels) for start, of_levels in zip(starts, counts, strict=True)]
    drawn = chart(bars, starts, NOW + len(counts) * MINUTE)
    assert len(drawn.blocks) == sum(1 for of_levels in counts for count in of_levels.values() if count)
    assert_all_are_seen(drawn)


@pytest.mark.parametrize(
    ("range_", "unit"),
    [
        (timedelta(seconds=30), "second"), (timedelta(minutes=9), "5 seconds"), (timedelta(hours=1), "minute"),
        (timedelta(hours=6), "5 minutes"), (timedelta(hours=119), "hour"), (timedelta(days=7), "2 hours"),
        (timedelta(days=119), "day"), (timedelta(days=365), "7 days"), (timedelta(days=365 * 200), "728 days"),
    ],
)  # fmt: skip
def test_a_bar_says_how_long_it_is(range_: timedelta, unit: str) -> None:
    assert chart([], edges(NOW - range_, NOW), NOW).unit == unit
