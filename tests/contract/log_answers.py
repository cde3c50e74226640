"""Generated logs, and what every store of them has to answer: recorded from a store of one row an entry.

`python -m tests.contract.log_answers URL` fills the store at the URL, asks, and prints the answers as JSON.
"""

import asyncio
import json
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from httpbridge.log_store.queries import LogQueries
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.reader import read
from httpbridge.log_store.selection import LogFilter, LogRow, Position
from httpbridge.log_store.sink import open_sql_sink
from httpbridge.logs import Level, LogBatch, LogEntry

GOLDEN = Path(__file__).parent / "golden" / "log_answers.json"
START = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
_WORDS = (
    "user", "order", "payment", "card", "declined", "timeout", "connecting", "to", "database", "retry", "request",
    "100%", "a_b", "C:\\temp", '"quoted"',
)  # fmt: skip


def batches(seed: int = 20261129) -> list[LogBatch]:
    """Return about 1,400 entries of three projects in 90 batches: many late, some of them far away in time."""
    chance = random.Random(seed)
    made = []
    for number in range(90):
        received_at = START + number * HOUR / 2
        entries = []
        for place in range(chance.choice([1, 1, 2, 5, 40])):
            at: datetime | None = received_at - timedelta(seconds=chance.expovariate(1 / 900))
            kind = chance.random()
            if kind < 0.1:
                at = None
            elif kind < 0.15:
                at = received_at.replace(minute=0, second=0)  # the same instant many times
            elif kind < 0.17:
                at = received_at - timedelta(days=chance.choice([400, -30, 9000]))
            entries.append(
                LogEntry(
                    level=chance.choice([*Level, Level.INFO, Level.INFO]),
                    message=f"{' '.join(chance.choices(_WORDS, k=5))} {number}.{place}",
                    timestamp=at,
                    metadata=chance.choice([None, f'{{"order":{chance.randrange(999)},"path":"/API/v1"}}']),
                    trace_id=chance.choice([None, f"{chance.getrandbits(128):032x}"]),
                    release=chance.choice([None, "2.0"]),
                )
            )
        project = chance.choice(["shop", "shop", "shop", "blog", "päge"])
        service = chance.choice(["checkout", "checkout", "web", 'a "b", c'])
        environment = chance.choice(["production", "staging"])
        made.append(LogBatch(project, "key-1", received_at, service, environment, chance.choice([None, "1"]), entries))
    return made


def _filters(project: str) -> list[dict[str, Any]]:
    day = 24 * HOUR
    return [
        {"project_id": project} | fields
        for fields in (
            {},
            {"since": START + day},
            {"until": START + day},
            {"since": START + 5 * HOUR, "until": START + 30 * HOUR},
            {"since": START + 5 * HOUR + timedelta(minutes=7), "until": START + 5 * HOUR + timedelta(minutes=40)},
            {"levels": frozenset({Level.ERROR})},
            {"levels": frozenset({Level.WARN, Level.DEBUG}), "until": START + day},
            {"service": "checkout"},
            {"service": 'a "b", c'},
            {"environment": "staging"},
            {"service": "web", "environment": "production", "since": START + 3 * HOUR},
            {"text": "DECLINED timeout"},
            {"text": "100%"},
            {"text": "a_b c:\\temp"},
            {"text": '"quoted"'},
            {"text": "/api/v1"},
            {"text": '"order":1'},
            {"text": "timeout", "levels": frozenset({Level.ERROR}), "service": "checkout", "since": START},
            {"text": "nowhere"},
        )
    ]


_FIELDS = (
    "project_id", "key_id", "received_at", "service", "environment", "release", "level", "message", "timestamp",
    "metadata", "trace_id",
)  # fmt: skip


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _name(log: Any) -> str:
    return str(log.message.rpartition(" ")[2])  # unique


async def answers(url: str) -> list[dict[str, Any]]:
    """Ask the store everything of every filter. Ids are the store's own, and left out."""
    store = ReadStore(url)
    queries = LogQueries(store, monotonic=lambda: 0.0)
    edges = [START - 24 * HOUR + number * 3 * HOUR for number in range(25)]
    found = []
    try:
        for project in ("shop", "päge", "nobody"):
            for fields in _filters(project):
                selection = LogFilter(**fields)
                rows: list[LogRow] = []
                before: Position | None = None
                while True:
                    page = await queries.page(selection, before, 37)
                    rows += page.rows
                    if page.older is None:
                        break
                    before = page.older
                buckets = await queries.histogram(selection, edges)
                oldest = [await queries.oldest(project), await queries.oldest(project, START)]
                printed = [_name(log) async for log in read(store, selection)]
                found.append(
                    {
                        "filter": {
                            name: str(sorted(v) if isinstance(v, frozenset) else v) for name, v in fields.items()
                        },
                        "rows": " ".join(_name(row.log) for row in rows),
                        "histogram": [{str(level): n for level, n in bucket.counts.items()} for bucket in buckets],
                        "count": await queries.count(selection),
                        "facets": await queries.facets(selection),
                        "oldest": [str(instant) for instant in oldest],
                        "printed": " ".join(printed),
                    }
                )
        page = await queries.page(LogFilter(project_id="päge"))
        found.append({"whole": [[_text(getattr(row.log, name)) for name in _FIELDS] for row in page.rows]})
        activity = await queries.activity(["shop", "blog", "päge", "nobody"], START + 40 * HOUR)
        found.append({"activity": {name: [a.last_hour_count, str(a.last_log_time)] for name, a in activity.items()}})
    finally:
        await store.close()
    # As JSON gives it back.
    normal: list[dict[str, Any]] = json.loads(json.dumps(found))
    return normal


async def fill(url: str) -> None:
    """Write all batches, one after the other."""
    sink = await open_sql_sink(url, monotonic=lambda: 0.0)
    for batch in batches():
        await sink.write(batch)
    await sink.close()


async def _record(url: str) -> None:
    await fill(url)
    sys.stdout.write(json.dumps(await answers(url), indent=0, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    asyncio.run(_record(sys.argv[1]))
