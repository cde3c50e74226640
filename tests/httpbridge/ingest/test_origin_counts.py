"""Counting origins: what is kept, how much, and what becomes of it when the store fails."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from httpbridge.errors import StoreUnavailableError
from httpbridge.ingest import origin_counts
from httpbridge.ingest.origin_counts import ENTRIES_MAX, NOT_AN_ORIGIN, ORIGINS_MAX, OTHER, OriginCounts
from httpbridge.log_store.origin_store import OriginCount
from tests.clocks import Clock
from tests.httpbridge.conftest import BLOCKED_ORIGIN, BODY, OTHER_KEY, PROJECT_ID, Bridge, request

HOUR = datetime(2026, 11, 23, 20, tzinfo=UTC)


class MemoryStore:
    """Adds up what it is given; refuses, or waits, when told to."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, datetime, str], tuple[int, int]] = {}
        self.largest = 0
        self.refuses = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.adding = asyncio.Event()
        self.added = asyncio.Event()
        self.is_closed = False

    async def add(self, counts: Sequence[OriginCount], now: datetime) -> None:
        self.adding.set()
        await self.gate.wait()
        if self.refuses:
            raise StoreUnavailableError("no room")
        self.largest = max(self.largest, len(counts))
        for count in counts:
            key = (count.project_id, count.hour, count.origin)
            allowed, blocked = self.counts.get(key, (0, 0))
            self.counts[key] = (allowed + count.allowed, blocked + count.blocked)
        self.added.set()

    async def close(self) -> None:
        self.is_closed = True

    def by_origin(self) -> dict[str, tuple[int, int]]:
        return {origin: counts for (_, _, origin), counts in self.counts.items()}


def clock_before_the_hour_ends() -> Clock:
    clock = Clock()
    clock.set(HOUR + timedelta(minutes=59))
    return clock


def counting(store: MemoryStore, clock: Clock | None = None) -> OriginCounts:
    return OriginCounts(store, now=(clock or clock_before_the_hour_ends()).wall, flush_seconds=0.001)


async def test_the_bridge_counts_whoever_has_a_valid_key_and_an_origin(bridge: Bridge) -> None:
    """Blocked requests, too; unknown and malformed keys and requests without an Origin never."""
    good = "https://good.example"
    for cached in (False, True):
        bridge.validator.remembers = cached
        for sent in (
            request(body=BODY, origin=good),
            request(body=BODY, origin=BLOCKED_ORIGIN),
            request(body=b"no JSON", origin=good),
            request(body=BODY),
            request(body=BODY, origin=good, key=OTHER_KEY),
            request(body=BODY, origin=good, key="none"),
            request("POST", "/ingest/logs", f"Origin: {good}", body=BODY, origin=good),  # two of them
        ):
            await bridge.exchange(sent)
    allowed, blocked, doubled = (
        (PROJECT_ID, good, True),
        (PROJECT_ID, BLOCKED_ORIGIN, False),
        (PROJECT_ID, "null", False),
    )
    assert bridge.origins.counted == [allowed, blocked, allowed, doubled] * 2


async def test_counts_add_up_within_an_hour_and_begin_anew_with_the_next() -> None:
    store, clock = MemoryStore(), clock_before_the_hour_ends()
    counts = counting(store, clock)
    for origin, is_allowed in [("https://a.example", True)] * 3 + [("https://a.example", False), ("null", False)]:
        counts.count("demo", origin, is_allowed)
    await counts.flush()
    await counts.flush()  # nothing twice
    counts.count("demo", "https://a.example", True)
    clock.advance(120)
    await counts.flush()
    counts.count("demo", "https://a.example", True)
    counts.count("other", "https://a.example", True)
    await counts.flush()
    later = HOUR + timedelta(hours=1)
    assert store.counts == {
        ("demo", HOUR, "https://a.example"): (4, 1),
        ("demo", HOUR, "null"): (0, 1),
        ("demo", later, "https://a.example"): (1, 0),
        ("other", later, "https://a.example"): (1, 0),
    }


@pytest.mark.parametrize(
    ("origin", "kept"),
    [
        ("https://a.example", "https://a.example"),
        ("HTTPS://A.Example:8443", "https://a.example:8443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://bücher.example"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
        ("", NOT_AN_ORIGIN),
        ("*", NOT_AN_ORIGIN),
        ("a.example", NOT_AN_ORIGIN),
        ("https://a.example/path", NOT_AN_ORIGIN),
        ("https://user@a.example", NOT_AN_ORIGIN),
        ("https://a.example?q", NOT_AN_ORIGIN),
        ("https://a b", NOT_AN_ORIGIN),
        ("https://a\u202e.example", NOT_AN_ORIGIN),
        ("https://a\x1b[31m", NOT_AN_ORIGIN),
        ("https://\ud800.example", NOT_AN_ORIGIN),
        ("https://" + "a" * 293, NOT_AN_ORIGIN),
        ("dt_0123456789abcdef01234567", NOT_AN_ORIGIN),
        ("https://dt_0123456789abcdef01234567.example", NOT_AN_ORIGIN),
        ("https://DT_0123456789ABCDEF01234567", NOT_AN_ORIGIN),
    ],
)
async def test_only_what_looks_like_an_origin_is_kept(origin: str, kept: str) -> None:
    """And never what looks like a key."""
    store = MemoryStore()
    counts = counting(store)
    counts.count("demo", origin, True)
    counts.count("demo", origin, True)
    await counts.close()
    assert store.by_origin() == {kept: (2, 0)}


async def test_a_flood_of_origins_is_bounded_and_loses_no_request() -> None:
    """The first ones keep their names for the hour, over flushes; the rest is one entry; other projects have theirs."""
    store, clock = MemoryStore(), clock_before_the_hour_ends()
    counts = counting(store, clock)
    for start in (0, 5000):
        for number in range(start, start + 5000):
            counts.count("demo", f"https://{number}.example", False)
        counts.count("demo", "https://0.example", False)
        await counts.flush()
    counts.count("demo", "https://allowed.example", True)
    counts.count("other", "https://9999.example", False)
    await counts.flush()
    demo = {origin: blocked for (project, _, origin), (_, blocked) in store.counts.items() if project == "demo"}
    assert len(demo) == ORIGINS_MAX + 2
    assert demo.pop("https://allowed.example") == 0
    assert demo.pop(OTHER) == 10_000 - ORIGINS_MAX
    assert demo["https://0.example"] == 3
    assert sum(demo.values()) == ORIGINS_MAX + 2
    assert store.counts["other", HOUR, "https://9999.example"] == (0, 1)
    clock.advance(3600)
    await counts.flush()
    counts.count("demo", "https://9999.example", False)
    await counts.flush()
    assert store.counts["demo", HOUR + timedelta(hours=1), "https://9999.example"] == (0, 1)


async def test_many_projects_are_bounded_too() -> None:
    store = MemoryStore()
    counts = counting(store)
    for number in range(ENTRIES_MAX + 1000):
        counts.count(f"project-{number}", "https://a.example", True)
    await counts.flush()
    assert len(store.counts) == ENTRIES_MAX
    assert store.largest <= 1000  # a transaction of all would keep logs waiting


async def test_a_store_that_fails_is_told_later_what_it_missed() -> None:
    """It is one line in the log, and what was not stored is stored with its hour."""
    store, clock = MemoryStore(), clock_before_the_hour_ends()
    counts = counting(store, clock)
    store.refuses = True
    with structlog.testing.capture_logs() as lines:
        for _ in range(3):
            counts.count("demo", "https://a.example", True)
            await counts.flush()
        clock.advance(3600)
        counts.count("demo", "https://a.example", False)
        await counts.flush()
    assert [line["event"] for line in lines] == ["origin_counts_not_stored"]
    store.refuses = False
    await counts.flush()
    assert store.by_origin() == {"https://a.example": (3, 1)}
    counts.count("demo", "https://a.example", False)
    await counts.flush()
    assert store.counts["demo", HOUR + timedelta(hours=1), "https://a.example"] == (0, 1)


async def test_a_store_that_fails_for_days_takes_no_more_memory() -> None:
    store, clock = MemoryStore(), clock_before_the_hour_ends()
    counts = counting(store, clock)
    store.refuses = True
    for hour in range(5):
        clock.set(HOUR + timedelta(hours=hour))
        await counts.flush()
        for number in range(ENTRIES_MAX // 2):
            counts.count(f"project-{number}", "https://a.example", True)
    await counts.flush()
    store.refuses = False
    await counts.flush()
    assert len(store.counts) == ENTRIES_MAX


async def test_counts_are_flushed_by_themselves_and_at_the_end() -> None:
    store = MemoryStore()
    counts = counting(store)
    counts.start()
    counts.count("demo", "https://a.example", True)
    await store.added.wait()
    assert store.by_origin() == {"https://a.example": (1, 0)}
    counts.count("demo", "https://a.example", True)
    await counts.close()
    assert store.by_origin() == {"https://a.example": (2, 0)}
    assert store.is_closed
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_an_end_during_a_flush_counts_nothing_twice() -> None:
    store = MemoryStore()
    counts = counting(store)
    store.gate.clear()
    counts.start()
    counts.count("demo", "https://a.example", True)
    await store.adding.wait()
    counts.count("demo", "https://b.example", True)
    closing = asyncio.create_task(counts.close())
    await asyncio.sleep(0)
    store.gate.set()
    await closing
    assert store.by_origin() == {"https://a.example": (1, 0), "https://b.example": (1, 0)}


async def test_a_store_that_never_answers_does_not_keep_the_bridge_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(origin_counts, "CLOSE_SECONDS_MAX", 0.01)
    store = MemoryStore()
    counts = counting(store)
    store.gate.clear()
    counts.start()
    counts.count("demo", "https://a.example", True)
    await store.adding.wait()
    counts.count("demo", "https://b.example", True)
    await counts.close()
    assert store.is_closed
    assert asyncio.all_tasks() == {asyncio.current_task()}
