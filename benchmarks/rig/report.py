"""What a question answers: tables of figures, and the measured values that targets are about; printed and kept as JSON.

Every question is a module with `async def main(pace: Pace) -> Report`, and ends in `run(main)`. `rig.targets` and
`rig.document` read what was kept.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import msgspec
import uvloop

from benchmarks.rig.processes import LOAD_CORE, pin

RESULTS = Path(__file__).parent.parent / "results"
"""Of this machine's last runs, by question; not in version control."""

K = TypeVar("K")
T = TypeVar("T")


class Pace(msgspec.Struct, frozen=True):
    """How long to measure."""

    rounds: int = 3
    seconds: int = 2
    """A round of one contender takes so long."""
    is_quick: bool = False
    """Only to see that everything works: the figures mean little."""


FULL = Pace()
QUICK = Pace(rounds=1, seconds=1, is_quick=True)


class Table(msgspec.Struct, frozen=True):
    """Figures side by side. `columns` are heading and format; each row has its name first. None: not measured."""

    title: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[float | None]]]

    def lines(self) -> list[list[str]]:
        """Return heading and rows as text."""
        heading = [self.title, *(name for name, _ in self.columns)]
        formats = [spec for _, spec in self.columns]
        return [heading] + [
            [
                name,
                *("n/a" if value is None else format(value, spec) for value, spec in zip(values, formats, strict=True)),
            ]
            for name, values in self.rows
        ]


class Report(msgspec.Struct, frozen=True):
    """The answer to one question."""

    question: str
    how: str
    """How it was measured: a paragraph."""
    tables: list[Table]
    measured: dict[str, float | None]
    """By the target's name in `rig.targets`; None where the rounds are invalid: `void` says why."""
    wall_clock: dict[str, float] = {}
    """The same by the wall clock, of those for which processor time is judged."""
    void: dict[str, str] = {}


async def interleaved(
    contenders: Mapping[K, Callable[[], Awaitable[T]]], rounds: int, *, warm_up: bool = True
) -> dict[K, list[T]]:
    """Let each have a turn in every round, so that what else the machine does hits all alike.

    Every other round goes backwards, so that none always follows the same one. A first round warms up and does not
    count.
    """
    results: dict[K, list[T]] = {name: [] for name in contenders}
    turns = list(contenders.items())
    for number in range(rounds + warm_up):
        for name, measure in reversed(turns) if number % 2 else turns:
            result = await measure()
            if number >= warm_up:
                results[name].append(result)
    return results


def ratio(ours: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return median(one / other for one, other in zip(ours, baseline, strict=True))


def median_of(values: Sequence[float]) -> float:
    """Return the median of the rounds."""
    return median(values)


def show(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


def run(main: Callable[[Pace], Awaitable[Report]]) -> None:
    """Answer a question from the command line (`--quick` only tries it), print its tables and keep them."""
    pace = QUICK if "--quick" in sys.argv[1:] else FULL

    async def answer() -> Report:
        this = asyncio.current_task()
        assert this is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # so that servers are stopped, too
        return await main(pace)

    pin(0, [LOAD_CORE])  # and with it all that is started, until it is put elsewhere
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            report = runner.run(answer())
        except asyncio.CancelledError:
            sys.exit("stopped")
    name = Path(sys.argv[0]).stem
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    print(f"\n{report.question}\n")
    for table in report.tables:
        print(show(table.lines()) + "\n")
