"""Servers beside a baseline: how fast each answered in every round, and what an answer cost it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from benchmarks.rig.report import ratio

COLUMNS = [("requests/s", ",.0f"), ("CPU µs", ",.1f"), ("ratio, wall clock", ".2f"), ("ratio, CPU", ".2f")]


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast a server answered, and what an answer cost it."""

    per_second: float
    cpu_microseconds: float
    """Processor time a request, of the servers that were watched."""


class Comparison:
    """Servers' rounds beside those of a baseline."""

    def __init__(self, results: Mapping[str, list[Throughput]], baseline: str) -> None:
        self._results = results
        self._baseline = results[baseline]

    def wall(self, name: str) -> float:
        """Return the ratio of requests a second."""
        return ratio([each.per_second for each in self._results[name]], [each.per_second for each in self._baseline])

    def cpu(self, name: str) -> float:
        """Return the ratio of requests a second of processor time."""
        return ratio(
            [each.cpu_microseconds for each in self._baseline], [each.cpu_microseconds for each in self._results[name]]
        )

    def rows(self) -> list[tuple[str, list[float | None]]]:
        """Return a table's rows for COLUMNS."""
        return [
            (
                name,
                [
                    median(each.per_second for each in rounds),
                    median(each.cpu_microseconds for each in rounds),
                    self.wall(name),
                    self.cpu(name),
                ],
            )
            for name, rounds in self._results.items()
        ]
