"""Servers beside a baseline: how fast each answered in every round, and what an answer cost it. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from benchmarks.rig.report import ratio

COLUMNS = [("requests/s", ",.0f"), ("CPU µs", ",.1f"), ("ratio, wall clock", ".2f"), ("ratio, CPU", ".2f")]

CONTRAST_COLUMNS = [
    ("requests/s", ",.0f"),
    ("CPU µs", ",.1f"),
    ("ratio, requests/s", ".3f"),
    ("ratio, CPU µs", ".3f"),
]


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


class Contrast:
    """Servers' rounds beside those of a baseline that has two turns in each: what is less than they differ is nothing.

    Each ratio is that of the medians that are shown.
    """

    def __init__(self, results: Mapping[str, list[Throughput]], baseline: str, control: str, resolution: float) -> None:
        """`control` is the baseline once more; `resolution` is how much it may differ from itself, of 1."""
        self._medians = {
            name: (median(each.per_second for each in rounds), median(each.cpu_microseconds for each in rounds))
            for name, rounds in results.items()
        }
        self._baseline = self._medians[baseline]
        self._control = control
        self._resolution = resolution

    def wall(self, name: str) -> float:
        """Return the ratio of requests a second."""
        return self._medians[name][0] / self._baseline[0]

    def cpu(self, name: str) -> float:
        """Return the ratio of processor time a request."""
        return self._medians[name][1] / self._baseline[1]

    def flaw(self) -> str | None:
        """Return why processor time says nothing here, or None."""
        return self._apart(self.cpu(self._control))

    def wall_flaw(self) -> str | None:
        """Return why requests a second say nothing here, or None."""
        return self._apart(self.wall(self._control))

    def _apart(self, value: float) -> str | None:
        if abs(value - 1) <= self._resolution:
            return None
        return f"the same server differed from itself by {abs(value - 1):.1%}, more than {self._resolution:.0%}"

    def rows(self) -> list[tuple[str, list[float | None]]]:
        """Return a table's rows for CONTRAST_COLUMNS."""
        return [(name, [*medians, self.wall(name), self.cpu(name)]) for name, medians in self._medians.items()]
