"""What is known of a chunk's entries without its content. Pure.

Readers skip chunks by it, and count by it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import add

import msgspec

from httpbridge.logs import Level

NAMES_MAX = 16
"""Services and environments that a summary names, each; of more it names none."""

CELLS_MAX = 128
"""Counts of stretches of time in a summary."""

LEVELS = tuple(Level)

_MINUTE, _HOUR, _DAY = len("2026-11-23T20:15"), len("2026-11-23T20"), len("2026-11-23")
CELL_FIRST = {_MINUTE: ":00.000000Z", _HOUR: ":00:00.000000Z", _DAY: "T00:00:00.000000Z"}
CELL_LAST = {_MINUTE: ":59.999999Z", _HOUR: ":59:59.999999Z", _DAY: "T23:59:59.999999Z"}
"""What makes a cell its first and its last timestamp, by its length."""


class Summary(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What is known of a chunk's entries without its content."""

    levels: list[int]
    """How many there are of each of LEVELS."""
    services: list[str] = []
    """All of them, or none where they are many."""
    environments: list[str] = []
    cells: dict[str, list[int]] = {}
    """The same by minute (`2026-11-23T20:15`), hour or day, whichever are few enough; none where none are."""

    def level(self, level: Level) -> int:
        """Return how many entries have it."""
        return self.levels[LEVELS.index(level)]


read_summary = msgspec.json.Decoder(Summary).decode
"""Read a Summary back. Raises msgspec.DecodeError."""


def unknown(entries: int) -> Summary:
    """Return the summary of so many entries of which nothing is known: each level may have any number of them."""
    return Summary([entries + 1] * len(LEVELS))


def cells_of(
    first_at: str, last_at: str, levels: Sequence[Level], timestamps: Callable[[], Sequence[str]]
) -> dict[str, list[int]]:
    """Count entries by minute. All timestamps are asked for only where the first and last one are not of the same."""
    if first_at[:_MINUTE] == last_at[:_MINUTE]:
        return {first_at[:_MINUTE]: _by_level(levels)}
    cells: dict[str, list[int]] = {}
    minutes = [timestamp[:_MINUTE] for timestamp in timestamps()]
    for (minute, level), number in Counter(zip(minutes, levels, strict=True)).items():
        cells.setdefault(minute, [0] * len(LEVELS))[LEVELS.index(level)] = number
    return cells


def summary_of(cells: dict[str, list[int]], services: set[str], environments: set[str]) -> Summary:
    """Make a summary, of counts by minute, with as much as is few enough."""
    return _bounded(_totals(cells.values()), cells, services, environments)


def add_cells(cells: dict[str, list[int]], more: dict[str, list[int]], length: int = _MINUTE) -> None:
    """Add counts to `cells`, whose names are so long; those of `more` are no shorter."""
    for name, numbers in more.items():
        cell = name[:length]
        known = cells.get(cell)
        cells[cell] = numbers if known is None else list(map(add, known, numbers))


def combined(parts: Sequence[Summary]) -> Summary:
    """Return the summary of all these together. What is unknown of one is unknown of all."""
    if len(parts) == 1:
        return parts[0]
    cells: dict[str, list[int]] = {}
    if all(part.cells for part in parts):
        length = min(len(next(iter(part.cells))) for part in parts)
        for part in parts:
            add_cells(cells, part.cells, length)
    return _bounded(
        _totals([part.levels for part in parts]),
        cells,
        _union([part.services for part in parts]),
        _union([part.environments for part in parts]),
    )


def _by_level(levels: Sequence[Level]) -> list[int]:
    return [levels.count(level) for level in LEVELS]


def _totals(numbers: Iterable[list[int]]) -> list[int]:
    return list(map(sum, zip(*numbers, strict=True)))


def _union(lists: Sequence[Sequence[str]]) -> set[str]:
    return set().union(*lists) if all(lists) else set()


def _bounded(levels: list[int], cells: dict[str, list[int]], services: set[str], environments: set[str]) -> Summary:
    for length in (_HOUR, _DAY):
        if len(cells) > CELLS_MAX:
            coarser: dict[str, list[int]] = {}
            add_cells(coarser, cells, length)
            cells = coarser
    return Summary(
        levels,
        sorted(services) if len(services) <= NAMES_MAX else [],
        sorted(environments) if len(environments) <= NAMES_MAX else [],
        cells if len(cells) <= CELLS_MAX else {},
    )
