"""The bar chart over the Logs page: how wide its bars are, and where they stand. Pure; used by `logs`."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from httpbridge.logs import Level
from httpbridge.sinks.log_queries import Bar

BARS_MAX = 120

HEIGHT = 100
BAR_WIDTH = 10
"""In the picture's own units; it is stretched to the page."""

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_WIDTHS = (
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
    counts: dict[str, int]
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
    until: datetime
    counted_since: datetime
    """Later than `since` where the count stopped before it was done."""


def edges(since: datetime, until: datetime) -> list[datetime]:
    """Return where bars begin, ascending: whole minutes or more, at most BARS_MAX, the first not after `since`."""
    seconds = _bar_seconds(since, until)
    width = timedelta(seconds=seconds)
    first = since - (since - _BEGINNING) % width
    return [first + number * width for number in range(-(-(until - first) // width))] or [first]


def chart(bars: Sequence[Bar], starts: Sequence[datetime], until: datetime) -> Chart:
    """Lay out what was counted from each of `starts`, which `edges` returned; bars may be missing at the beginning."""
    missing = len(starts) - len(bars)
    highest = max((sum(bar.counts.values()) for bar in bars), default=0)
    blocks = []
    for number, bar in enumerate(bars, missing):
        top = float(HEIGHT)
        for level in _STACKED:
            if count := bar.counts.get(level, 0):
                height = max(1.0, round(count * HEIGHT / highest, 2))
                top -= height
                blocks.append(Block(number * BAR_WIDTH + 1, round(max(top, 0.0), 2), height, level.value))
    totals = {level.value: sum(bar.counts.get(level, 0) for bar in bars) for level in _STACKED}
    columns = [
        Column(
            number * BAR_WIDTH,
            bar.start,
            bar.end,
            {level.value: count for level, count in bar.counts.items()},
            sum(bar.counts.values()),
            bar.is_complete,
        )
        for number, bar in reversed(list(enumerate(bars, missing)))
        if bar.counts or not bar.is_complete
    ]
    incomplete = missing + (1 if bars and not bars[0].is_complete else 0)
    return Chart(
        width=len(starts) * BAR_WIDTH,
        blocks=blocks,
        uncounted_width=incomplete * BAR_WIDTH,
        columns=columns,
        totals=totals,
        total=sum(totals.values()),
        highest=highest,
        bar_seconds=int((starts[1] - starts[0]).total_seconds()) if len(starts) > 1 else _MINUTE,
        since=starts[0],
        until=until,
        counted_since=starts[incomplete] if incomplete < len(starts) else until,
    )


def _bar_seconds(since: datetime, until: datetime) -> int:
    # One more than fit, as the first one begins before `since`.
    needed = max(0.0, (until - since).total_seconds()) / (BARS_MAX - 1)
    for width in _WIDTHS:
        if width >= needed:
            return width
    return int(-(-needed // _LONGEST)) * _LONGEST
