"""The bar chart over the Logs page: how wide its bars are, and where they stand. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from httpbridge.log_store.queries import Bucket
from httpbridge.logs import Level

BARS_MAX = 120

HEIGHT = 100
BAR_WIDTH = 10
GAP = 1
"""In the picture's own units; it is stretched to the page. The gap is between two blocks of a bar."""

_BLOCK_HEIGHT_MIN = 1.0

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_SECONDS_WITHIN = 10 * _MINUTE
"""Bars are whole minutes, but in a range that is shorter."""
_WIDTHS = (
    1, 2, 5, 10,
    _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE,
    _HOUR, 2 * _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY, 7 * _DAY, 14 * _DAY, 28 * _DAY,
)  # fmt: skip
_LONGEST = 364 * _DAY

_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)
_STACKED = (Level.ERROR, Level.WARN, Level.INFO, Level.DEBUG)  # from the bottom: errors are to be seen


class Block(msgspec.Struct, frozen=True):
    """A rectangle of the picture."""

    x: int
    y: float
    height: float
    level: str


class Column(msgspec.Struct, frozen=True):
    """One bar as a whole, for the mouse and for the table beside the picture."""

    x: int
    start: datetime
    end: datetime | None
    """None for the newest bar of a range that goes on."""
    counts: dict[Level, int]
    total: int
    is_complete: bool


class Chart(msgspec.Struct, frozen=True):
    """The picture and what it says."""

    width: int
    blocks: Sequence[Block]
    uncounted_width: int
    """How much of the picture, from its left, was not counted."""
    columns: Sequence[Column]
    """Those with entries, newest first."""
    totals: dict[str, int]
    total: int
    highest: int
    bar_seconds: int
    since: datetime
    middle: datetime
    until: datetime
    counted_since: datetime
    is_complete: bool
    """Whether all was counted that was asked for; otherwise what is older than `counted_since` was not."""

    @property
    def unit(self) -> str:
        """How long a bar is: `minute`, `2 hours`."""
        for name, seconds in (("day", _DAY), ("hour", _HOUR), ("minute", _MINUTE)):
            if self.bar_seconds % seconds == 0:
                return _plural(self.bar_seconds // seconds, name)
        return _plural(self.bar_seconds, "second")

    @property
    def is_of_one_day(self) -> bool:
        """Whether a time of day says which bar it is."""
        return self.bar_seconds < _DAY and self.until - self.since <= timedelta(days=1)


def edges(since: datetime, until: datetime) -> list[datetime]:
    """Return where bars begin, ascending: at most BARS_MAX, the first not after `since`."""
    seconds = _bar_seconds(since, until)
    width = timedelta(seconds=seconds)
    first = since - (since - _BEGINNING) % width
    return [first + number * width for number in range(-(-(until - first) // width))] or [first]


def chart(
    bars: Sequence[Bucket],
    starts: Sequence[datetime],
    until: datetime,
    *,
    is_open: bool = False,
    countable_since: datetime | None = None,
) -> Chart:
    """Lay out what was counted from each of `starts`, which `edges` returned; bars may be missing at the beginning.

    `is_open`: the newest bar goes on. `countable_since`: the bars begin there, as what is older is too much to count.
    """
    missing = len(starts) - len(bars)
    highest = max((sum(bar.counts.values()) for bar in bars), default=0)
    incomplete_width = (missing + (1 if bars and bars[0].reached is not None else 0)) * BAR_WIDTH
    counted_since = starts[missing] if bars else until
    if bars and bars[0].reached is not None:
        counted_since = bars[0].reached.timestamp
    if countable_since is not None:
        counted_since = max(counted_since, countable_since)
    totals = {level.value: sum(bar.counts.get(level, 0) for bar in bars) for level in _STACKED}
    columns = [
        Column(
            number * BAR_WIDTH,
            bar.start,
            None if is_open and bar is bars[-1] else bar.end,
            bar.counts,
            sum(bar.counts.values()),
            is_complete=bar.start >= counted_since,
        )
        for number, bar in reversed(list(enumerate(bars, missing)))
        if bar.counts or bar.reached is not None
    ]
    return Chart(
        width=len(starts) * BAR_WIDTH,
        blocks=_blocks(bars, missing, highest),
        uncounted_width=incomplete_width,
        columns=columns,
        totals=totals,
        total=sum(totals.values()),
        highest=highest,
        bar_seconds=int((starts[1] - starts[0]).total_seconds()) if len(starts) > 1 else _bar_seconds(starts[0], until),
        since=starts[0],
        middle=starts[len(starts) // 2],
        until=until,
        counted_since=counted_since,
        is_complete=countable_since is None and not incomplete_width,
    )


def _blocks(bars: Sequence[Bucket], missing: int, highest: int) -> list[Block]:
    blocks = []
    for number, bar in enumerate(bars, missing):
        heights = _heights(bar, highest)
        top = float(HEIGHT + GAP)
        for level in _STACKED:
            if height := heights.get(level):
                top -= GAP + height
                blocks.append(Block(number * BAR_WIDTH + 1, round(max(top, 0.0), 2), height, level.value))
    return blocks


def _heights(bar: Bucket, highest: int) -> dict[Level, float]:
    """Return how high each level's block is: all are seen, and the largest gives what that and the gaps take."""
    heights = {
        level: max(_BLOCK_HEIGHT_MIN, round(count * HEIGHT / highest, 2))
        for level, count in bar.counts.items()
        if count
    }
    if heights:
        largest = max(heights, key=heights.__getitem__)
        others = sum(heights.values()) - heights[largest] + GAP * (len(heights) - 1)
        room = sum(bar.counts.values()) * HEIGHT / highest - others
        heights[largest] = max(_BLOCK_HEIGHT_MIN, round(room, 2))
    return heights


def _bar_seconds(since: datetime, until: datetime) -> int:
    # One more than fit, as the first one begins before `since`.
    seconds = max(0.0, (until - since).total_seconds())
    needed = seconds / (BARS_MAX - 1)
    for width in _WIDTHS:
        if width >= needed and (width >= _MINUTE or seconds < _SECONDS_WITHIN):
            return width
    return int(-(-needed // _LONGEST)) * _LONGEST


def _plural(number: int, name: str) -> str:
    return name if number == 1 else f"{number} {name}s"
