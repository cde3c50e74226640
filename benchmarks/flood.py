"""What do floods of refused requests do to the traffic of good keys, and to other callers of the key service?"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from itertools import count, islice
from statistics import median
from time import monotonic
from typing import Any

from benchmarks.rig import calls, open_loop, wrk
from benchmarks.rig.open_loop import Latencies
from benchmarks.rig.processes import LOAD_CORE, Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, ratio, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import FOREIGN_ORIGIN, MALFORMED_KEY, body, key, unknown_key
from benchmarks.rig.wrk import Traffic, VoidError
from httpbridge.log_store.merging import MERGE_LIMITS

SHARE_OF_PEAK = 10
"""Cached traffic is one part in so many of what the bridge could serve."""
OTHERS_SHARE_OF_PEAK = 4
"""Other traffic, at a fixed rate."""
CONNECTIONS = 32
"""Of the other traffic, without a rate."""
KEYS_A_SECOND_MAX = 20_000
GOOD_KEYS = 20
LIMIT_PER_MINUTE = 2_000
"""Of the bridge that a key over its limit floods: the good keys stay below it, and one alone reaches it at once."""
CALLS_A_SECOND = 200
"""Of another caller of the key service."""
_MERGING_SECONDS = 5.0
"""For some of it to be done."""
WRK_STARTS_SECONDS = 0.5
"""wrk reads its keys on the core of that caller, which would wait for it. It goes on for a second more."""

Seen = tuple[Latencies, float]
"""What became of the cached traffic, and how many other requests a second were answered."""

QUIET = "nothing else"
SERVED, FLOOD = "a good key, at a fixed rate", "unknown keys, at a fixed rate"
SERVED_FULL, FLOOD_FULL = "a good key, as fast as answered", "unknown keys, as fast as answered"
MALFORMED_FULL = "a malformed key, as fast as answered"
ORIGIN_FULL = "a blocked origin, as fast as answered"
LIMIT_FULL = "a key over its limit, as fast as answered"

HOW = """\
Batches of one log with cached keys, twenty in turn, arrive at a fixed rate, a tenth of what the bridge could serve,
and are stored in SQLite; latencies count from when they were due. In addition, well-formed keys that nobody issued
arrive, each a different one, at a fixed rate of a quarter of what the bridge could serve; or, for comparison, as many
requests with good keys. The other rows have no rate: 32 connections send whenever they are answered, so the bridge's
core is always busy. What is refused without a call to the key service is refused so fast that the load's core is
busy, too. There, the flood yields to the cached traffic, which would be late otherwise. The target compares the flood
of unknown keys without a rate with no flood. It is also missed when a request of the cached traffic fails, or when
less than 99 % of its rate is served. The key service runs on the load's core. Memory is the bridge's resident set
after each flood of unknown keys, from when its store merges chunks. Finally, another caller asks the key service
about a good key, 200 times a second,
with `Validate`, with and without unknown keys flooding the bridge. Its latencies, too, count from when a call was
due, and include a timer's millisecond."""


class Traffics:
    """What is sent to one bridge; each kind of it is a method without parameters."""

    def __init__(self, rig: Rig, bridge: Server, unknown: Iterator[str], per_second: float, seconds: int) -> None:
        """`per_second` is what the bridge could serve; `seconds` is how long the cached traffic is watched.

        The other traffic goes on for a second more; of `unknown`, no key is sent twice.
        """
        self._rig = rig
        self._bridge = bridge
        self._peak_per_second = per_second
        self._seconds = seconds
        self._good = [key(number) for number in range(GOOD_KEYS)]
        self._unknown = unknown
        self.resident_bytes: list[int] = []
        """Of the bridge, after each flood of unknown keys."""

    async def quiet(self) -> Seen:
        return await self._arrive(self._good, SHARE_OF_PEAK, self._seconds), 0.0

    async def served(self) -> Seen:
        return await self._among(self._at_rate(self._good, 200))

    async def flood(self) -> Seen:
        return await self._noted(self._among(self._at_rate(self._strangers(), 401)))

    async def served_full(self) -> Seen:
        return await self.among(Traffic(body(1), self._good, CONNECTIONS))

    async def flood_full(self) -> Seen:
        return await self._noted(self.among(self.unknown()))

    def unknown(self) -> Traffic:
        return Traffic(body(1), self._strangers(), CONNECTIONS, status=401, is_each_key_new=True)

    async def among(self, others: Traffic) -> Seen:
        """Serve the cached traffic among others, which are sent as fast as they are answered."""
        await wrk.probe(self._bridge.address, others)
        seen = await self._among(self.as_fast_as_answered(others))
        await wrk.probe(self._bridge.address, others)
        return seen

    async def as_fast_as_answered(self, traffic: Traffic) -> float:
        """Return how many requests a second were answered."""
        sent = await wrk.count(self._rig.new_directory(), self._bridge.address, traffic, self._seconds + 1)
        return sent.requests / sent.seconds

    async def _among(self, others: Coroutine[Any, Any, float]) -> Seen:
        async with asyncio.TaskGroup() as group:
            sent = group.create_task(others)
            latencies, _ = await self.quiet()
        return latencies, sent.result()

    async def _noted(self, flood: Coroutine[Any, Any, Seen]) -> Seen:
        seen = await flood
        self.resident_bytes.append(self._bridge.resident_bytes())
        return seen

    async def _at_rate(self, keys: list[str], status: int) -> float:
        seconds = self._seconds + 1
        sent = await self._arrive(keys, OTHERS_SHARE_OF_PEAK, seconds, status)
        if status != 200 and sent.requests > len(keys):
            raise VoidError(f"{sent.requests} requests with {len(keys)} keys: some were sent twice")
        return (sent.requests - sent.failed) / seconds

    async def _arrive(self, keys: list[str], share_of_peak: int, seconds: float, status: int = 200) -> Latencies:
        return await open_loop.measure(
            self._rig.new_directory(),
            self._bridge.address,
            body=body(1),
            keys=keys,
            per_second=self._peak_per_second / share_of_peak,
            seconds=seconds,
            status=status,
        )

    def _strangers(self) -> list[str]:
        return list(islice(self._unknown, KEYS_A_SECOND_MAX * (self._seconds + 1)))


async def main(pace: Pace) -> Report:
    async with Rig() as rig:
        await rig.key_service(keys=GOOD_KEYS + 1, core=LOAD_CORE)
        blocked = await rig.issue("with-origins", "https://shop.example")
        bridge, limited = await rig.bridge(), await rig.bridge(HTTPBRIDGE_RATE_LIMIT_PER_MINUTE=str(LIMIT_PER_MINUTE))
        peak = await wrk.count(rig.directory, bridge.address, Traffic(body(1), [key(0)]), pace.seconds)
        per_second = peak.requests / peak.seconds
        unknown = (unknown_key(number) for number in count())
        watched = Traffics(rig, bridge, unknown, per_second, pace.seconds + 1)
        # For everything to be warm, and what is bounded to be full: merging begins when chunks have an age.
        merging_at = monotonic() + MERGE_LIMITS.age_seconds + _MERGING_SECONDS
        while monotonic() < merging_at:
            await watched.served_full()
        await watched.flood_full()
        watched.resident_bytes.clear()
        over = Traffic(
            body(1), [key(GOOD_KEYS)], CONNECTIONS, status=429, served_a_minute=LIMIT_PER_MINUTE, gives_way=True
        )
        of_limited = Traffics(rig, limited, unknown, per_second, pace.seconds)
        short = Traffics(rig, bridge, unknown, per_second, pace.seconds)
        malformed = Traffic(body(1), [MALFORMED_KEY], CONNECTIONS, status=401, gives_way=True)
        foreign = Traffic(body(1), [blocked], CONNECTIONS, FOREIGN_ORIGIN, status=403, gives_way=True)
        # In this order, and backwards, neither of the two that are judged comes after one that stores ten times as
        # much: the disk goes on with that for seconds.
        turns: dict[str, Callable[[], Awaitable[Seen]]] = {
            QUIET: watched.quiet,
            FLOOD_FULL: watched.flood_full,
            FLOOD: watched.flood,
            SERVED: watched.served,
            SERVED_FULL: watched.served_full,
            MALFORMED_FULL: partial(short.among, malformed),
            ORIGIN_FULL: partial(short.among, foreign),
            LIMIT_FULL: partial(of_limited.among, over),
        }
        results = await interleaved(turns, pace.rounds, warm_up=False)
        resident = watched.resident_bytes

        async def another_caller(flood: Traffic | None) -> Latencies:
            async with asyncio.TaskGroup() as group:
                if flood is not None:
                    group.create_task(short.as_fast_as_answered(flood))
                    await asyncio.sleep(WRK_STARTS_SECONDS)
                return await calls.measure(rig, key(0), per_second=CALLS_A_SECOND, seconds=pace.seconds)

        others = await interleaved(
            {QUIET: lambda: another_caller(None), FLOOD_FULL: lambda: another_caller(short.unknown())},
            pace.rounds,
            warm_up=False,
        )
    tails = {name: [latencies.p99 for latencies, _ in rounds] for name, rounds in results.items()}
    rows: list[tuple[str, list[float | None]]] = []
    for name, rounds in results.items():
        other = median(others_per_second for _, others_per_second in rounds)
        cached = median(latencies.served_per_second for latencies, _ in rounds)
        failed = float(sum(latencies.failed for latencies, _ in rounds))
        p50 = median(latencies.p50 for latencies, _ in rounds)
        compared = None if name == QUIET else SERVED if name in (SERVED, FLOOD) else SERVED_FULL
        against = None if compared is None else ratio(tails[name], tails[compared])
        rows.append(
            (name, [other, cached, failed, p50, median(tails[name]), ratio(tails[name], tails[QUIET]), against])
        )
    columns = [("others/s", ",.0f"), ("cached/s", ",.0f"), ("failed", ".0f"), ("p50 ms", ".2f"), ("p99 ms", ".2f")]
    columns += [("p99, to nothing else", ".2f"), ("to a good key", ".2f")]
    growth = resident[-1] / resident[0]
    memory = Table(
        "memory of the bridge",
        [("MB", ".1f"), ("ratio", ".2f")],
        [
            ("after the first flood that counts", [resident[0] / 1e6, 1.0]),
            ("after the last", [resident[-1] / 1e6, growth]),
        ],
    )
    calls_tails = {name: [each.p99 for each in rounds] for name, rounds in others.items()}
    another = Table(
        "`Validate` for another caller",
        [("p50 ms", ".2f"), ("p99 ms", ".2f"), ("p99, ratio", ".2f")],
        [
            (name, [median(each.p50 for each in rounds), median(tail), ratio(tail, calls_tails[QUIET])])
            for (name, rounds), tail in zip(others.items(), calls_tails.values(), strict=True)
        ],
    )
    flaw = open_loop.flaw([latencies for name in (QUIET, FLOOD_FULL) for latencies, _ in results[name]])
    return Report(
        __doc__ or "",
        HOW,
        [Table("cached traffic", columns, rows), memory, another],
        {"flood_p99": None if flaw else ratio(tails[FLOOD_FULL], tails[QUIET]), "flood_memory": growth},
        void={"flood_p99": flaw} if flaw else {},
    )


if __name__ == "__main__":
    run(main)
