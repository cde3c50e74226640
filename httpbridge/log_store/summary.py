"""What is known of a chunk's entries without its content. Pure.

Readers skip chunks by it, and count by it.
"""

from collections import Counter
from collections.abc import Iterable

import msgspec

from httpbridge.logs import Level

NAMES_MAX = 16
"""Services and environments that a summary names, each; of more it names none."""

CELLS_MAX = 128
"""Counts of stretches of time in a summary."""

LEVELS = tuple(Level)
LETTERS = {ord(level[0]): number for number, level in enumerate(LEVELS)}
"""By the first letter of a level, which no other one has, its place in LEVELS."""

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


_encoder = msgspec.json.Encoder()
read_summary = msgspec.json.Decoder(Summary).decode
"""Read a Summary back."""


def summary_of(timestamps: list[str], letters: bytes, services: set[str], environments: set[str]) -> str:
    """Count the entries, each with its timestamp and the letter of its level."""
    levels = [letters.count(letter) for letter in LETTERS]
    cells: dict[str, list[int]] = {}
    if min(timestamps)[:_MINUTE] == max(timestamps)[:_MINUTE]:
        cells[timestamps[0][:_MINUTE]] = levels
    else:
        for (minute, letter), number in Counter(zip([at[:_MINUTE] for at in timestamps], letters, strict=True)).items():
            cells.setdefault(minute, [0] * len(LEVELS))[LETTERS[letter]] = number
    return _written_summary(levels, services, environments, cells)


def _written_summary(levels: list[int], services: set[str], environments: set[str], cells: dict[str, list[int]]) -> str:
    """Write it with as much as is few enough."""
    lengths = iter((_HOUR, _DAY))
    while len(cells) > CELLS_MAX:
        length = next(lengths, 0)
        cells = _coarser(cells, length) if length else {}
    summary = Summary(
        levels,
        sorted(services) if len(services) <= NAMES_MAX else [],
        sorted(environments) if len(environments) <= NAMES_MAX else [],
        cells,
    )
    return _encoder.encode(summary).decode()


def _coarser(cells: dict[str, list[int]], length: int) -> dict[str, list[int]]:
    coarser: dict[str, list[int]] = {}
    for cell, numbers in cells.items():
        _add(coarser.setdefault(cell[:length], [0] * len(LEVELS)), numbers)
    return coarser


def _add(to: list[int], numbers: list[int]) -> None:
    for place, number in enumerate(numbers):
        to[place] += number


def merged_summary(texts: Iterable[str]) -> str:
    """Return the summary of all these chunks together."""
    parts = [read_summary(text) for text in texts]
    levels = [0] * len(LEVELS)
    for part in parts:
        _add(levels, part.levels)
    # What is unknown of one is unknown of all.
    services = {name for part in parts for name in part.services} if all(part.services for part in parts) else set()
    environments = (
        {name for part in parts for name in part.environments} if all(part.environments for part in parts) else set()
    )
    cells: dict[str, list[int]] = {}
    if all(part.cells for part in parts):
        length = min(len(cell) for part in parts for cell in part.cells)
        for part in parts:
            for cell, numbers in part.cells.items():
                _add(cells.setdefault(cell[:length], [0] * len(LEVELS)), numbers)
    return _written_summary(levels, services, environments, cells)
