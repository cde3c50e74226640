"""docs/performance.md, made of the results of a whole run. Called by `__main__`."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from benchmarks.cost import Recorded, recorded
from benchmarks.rig.report import Report
from benchmarks.rig.targets import HEADING, rows

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "performance.md"

_INTRODUCTION = """\
# Performance

Written by `make bench`, which measures all of this in about seventeen minutes; `python -m benchmarks NAME…` answers
only some questions. Absolute figures drift by a factor of two on a shared machine. What counts are ratios to a
baseline that does the least that could be called the same work, in the same rounds. Every contender has a turn in
each round, every other round runs backwards, and a ratio is the median over the rounds unless a question says
otherwise. Servers have one core; load and PostgreSQL have the other. What is stored for the questions about reading,
retention and export is the same in every run. All figures are of one run. A target that is met
in one run may be missed in the next, so it counts as met when it is met in two runs of three.

Where a target is about refusals, misses, calls or keys, the ratio that is judged is of the servers' processor time
for one answer, with the wall clock's beside it. The two are equal only where both servers are always busy. Here the
load, too, has only one core. A gRPC client works as hard as its server, and wrk nearly as hard as a server that
refuses, so by the wall clock the faster of two servers waits for its load. What a server waits for, such as a disk,
is not in its processor time: where that matters, the wall clock is judged.

`make cost`, a part of the checks, counts instructions instead, which hardly depend on other work on the machine. It
fails when a cached ingest request, from aiohttp's parser to group commit, takes 1.3 × what `benchmarks/cost.json`
records, as a ratio to the bare handler's. That is $cost.
"""


def write(reports: Mapping[str, Report], facts: Sequence[tuple[str, str]], today: date) -> str:
    """Return the document."""
    parts = [
        _INTRODUCTION.replace("$cost", _cost(recorded())),
        "## Targets\n",
        _table([HEADING, *rows(reports)]),
        f"## Where and when\n\n{today.isoformat()}. State is in temporary files; everything talks over the loopback.\n",
        _table([("", ""), *facts]),
    ]
    for name, report in reports.items():
        parts.append(f"## {report.question}\n\n`python -m benchmarks.{name}`. {report.how}\n")
        parts += [_table(table.lines()) for table in report.tables]
    return "\n".join(parts)


def _cost(last: Recorded) -> str:
    return f"{last.cost.ratio:.3f}; {len(last.ratios)} runs gave {min(last.ratios):.4f} to {max(last.ratios):.4f}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    heading, *rest = lines
    rule = ["---"] + ["---:" if _is_number(rest, column) else "---" for column in range(1, len(heading))]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heading, rule, *rest))


def _is_number(lines: Sequence[Sequence[str]], column: int) -> bool:
    return all(line[column].replace(",", "").replace(".", "").isdigit() or line[column] == "n/a" for line in lines)
