"""What is to be reached, in the order of the document. Pure; read by `__main__` and `rig.document`."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from benchmarks.rig.report import Report


class Bound(Enum):
    """Which side of the target is the good one."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the contract. `name` is where a report has what was measured; `unit` follows the number."""

    name: str
    question: str
    """The module that measures it."""
    what: str
    baseline: str
    bound: Bound
    number: float
    unit: str = "×"

    def is_met(self, value: float) -> bool:
        """Whether what was measured will do."""
        return value >= self.number if self.bound is Bound.AT_LEAST else value <= self.number

    def text(self, value: float) -> str:
        """Return a number with its unit."""
        return f"{value:,.0f} {self.unit}" if self.unit == "bytes" else f"{value:.2f} {self.unit}"


_UP, _DOWN = Bound.AT_LEAST, Bound.AT_MOST
_ECHO = "bare grpc.aio echo"
_BARE = "bare aiohttp + uvloop"
_NULL = "the bridge with nothing stored"
_ROWS = "a table of rows"
_FLOOD = "cached traffic while unknown keys flood in"

TARGETS = (
    Target("ingest_durable", "ingest", "ingest, cached key, 1 log, durable: requests/s", _BARE, _UP, 0.8),
    *(
        Target(f"stored_{size}_{store.lower()}", "ingest", f"the same, {logs}, {store}", _NULL, _UP, number)
        for size, logs, number in ((1, "1 log", 0.8), (50, "50 logs", 0.6), (1000, "1,000 logs", 0.4))
        for store in ("SQLite", "PostgreSQL")
    ),
    Target(
        "latency_tail",
        "latency",
        "durable ingest at half of the peak, merging and retention under way, p99",
        "p50 in the same run",
        _DOWN,
        8,
    ),
    Target("room", "room", "bytes on disk, merged; 1 log a request", "JSON as sent, compact", _DOWN, 0.45),
    Target("read_newest", "reading", "the newest 100 errors of a project, of 300,000 entries", _ROWS, _DOWN, 1),
    Target("read_histogram", "reading", "the histogram of its week", _ROWS, _DOWN, 0.1),
    Target("read_text", "reading", "a word in it", _ROWS, _DOWN, 1.5),
    Target("page_many", "reading", "the newest page, of 10 million entries", "of 300,000", _DOWN, 1.3),
    Target("page_memory", "reading", "memory of who reads it", "of 300,000", _DOWN, 1.1),
    Target("retention", "retention", "dropping a day of 1 million entries", "`DELETE` of its rows", _DOWN, 0.02),
    Target("export", "export", "export to NDJSON, entries/s", "`zstd -d` of the same bytes", _UP, 0.5),
    Target("log_writer", "workers", "the log writer of several workers, CPU an entry", "a worker's", _DOWN, 0.15),
    Target("refused_malformed", "refusals", "refusal of a malformed key, CPU", _BARE, _UP, 1),
    Target("refused_unknown", "refusals", "refusal of an unknown key, cached, CPU", _BARE, _UP, 1),
    Target("refused_origin", "refusals", "refusal of a blocked origin, CPU", _BARE, _UP, 1),
    Target("refused_limit", "refusals", "refusal over the limit, CPU", _BARE, _UP, 1),
    Target(
        "uncached_32",
        "misses",
        "ingest, every key uncached, 32 in flight, CPU",
        "bare aiohttp, one grpc.aio call each",
        _UP,
        3,
    ),
    Target(
        "uncached_1",
        "misses",
        "the same, 1 in flight: requests/s",
        "bare aiohttp, one grpc.aio call each",
        _UP,
        0.8,
    ),
    Target("validate", "validate", "`Validate`, CPU", _ECHO, _UP, 0.85),
    Target("batch_validate", "validate", "`BatchValidate` of 32, CPU", "32-key bare echo", _UP, 0.5),
    Target("watching", "revocation", "ingest under leases, ten changes a second, CPU", "without Watch", _DOWN, 1.03),
    Target(
        "body_step_large", "bodies", "the dearest body of 5 MiB, longest hold of the event loop", "", _DOWN, 25, "ms"
    ),
    Target("body_step_small", "bodies", "the same of 256 KiB", "", _DOWN, 5, "ms"),
    Target("keys_known", "keys", "a million keys in the store, CPU a call: the same keys", "1,000 keys", _DOWN, 1.2),
    Target("keys_first", "keys", "a million keys in the store, CPU a call: first-time keys", "1,000 keys", _DOWN, 1.2),
    Target("keys_unknown", "keys", "a million keys in the store, CPU a call: unknown keys", "1,000 keys", _DOWN, 1.2),
    Target("verdict_bytes", "keys", "memory of a cached verdict", "", _DOWN, 600, "bytes"),
    Target("flood_p99", "flood", f"{_FLOOD}: p99", "without the flood", _DOWN, 1.5),
    Target("flood_memory", "flood", f"{_FLOOD}: memory of the bridge", "after the first flood", _DOWN, 1.1),
    Target(
        "fairness_p99",
        "fairness",
        "one key beside another that sends the dearest bodies: p99",
        "beside as many of 1 kB",
        _DOWN,
        3,
    ),
    Target("workers", "workers", "two workers, nothing stored, CPU a request", "one worker", _DOWN, 1.15),
    Target("startup_service", "startup", "key service, from start to first answer", "", _DOWN, 1.5, "s"),
    Target("startup_bridge", "startup", "bridge, from start to first answer", "", _DOWN, 1.5, "s"),
)

HEADING = ("what", "against", "measured", "by wall clock", "target", "")


def rows(reports: Mapping[str, Report]) -> list[tuple[str, ...]]:
    """Return a row for each target of the questions that were answered, in order.

    As HEADING says, with whether it is met. Where processor time is judged, the wall clock's ratio stands beside it.
    """
    lines: list[tuple[str, ...]] = []
    for target in TARGETS:
        report = reports.get(target.question)
        if report is None:
            continue
        value = report.measured[target.name]
        wall_clock = report.wall_clock.get(target.name)
        met = f"not met: {report.void[target.name]}" if value is None else _verdict(target.is_met(value))
        lines.append(
            (
                target.what,
                target.baseline,
                "n/a" if value is None else target.text(value),
                "" if wall_clock is None else target.text(wall_clock),
                f"{target.bound.value} {target.text(target.number)}",
                met,
            )
        )
    return lines


def _verdict(is_met: bool) -> str:
    return "met" if is_met else "not met"
