"""What does a flood of unknown keys do to the traffic of good ones?"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from statistics import median
from typing import Any

from benchmarks.rig import open_loop, wrk
from benchmarks.rig.open_loop import Latencies
from benchmarks.rig.processes import LOAD_CORE, Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, ratio, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key, unknown_key
from benchmarks.rig.wrk import Traffic

SHARE_OF_PEAK = 10
"""Cached traffic is one part in so many of what the bridge could serve."""
OTHERS_SHARE_OF_PEAK = 4
"""What is sent besides, at a fixed rate."""
CONNECTIONS = 32
"""Of what is sent besides, without a rate."""
KEYS_A_SECOND_MAX = 20_000

Seen = tuple[Latencies, float]
"""What became of the cached traffic, and how many other requests a second were answered."""

QUIET = "nothing besides"
SERVED, FLOOD = "a good key besides", "unknown keys besides"
SERVED_FULL, FLOOD_FULL = "a good key, as fast as answered", "unknown keys, as fast as answered"

HOW = """\
Batches of one log with a cached key arrive at a fixed rate, a tenth of what the bridge could serve, and are stored in
SQLite; latencies count from when they were due. Besides, well-formed keys arrive that nobody issued, each another
one, at a fixed rate of a quarter of what the bridge could serve; or, for comparison, as many requests with the good
key. The last two rows have no rate: 32 connections send whenever they are answered, so the bridge's core is always
busy. The same cached traffic is served throughout; the target compares the flood without a rate
with no flood. The key service runs on the load's core. Memory is the bridge's resident set after each flood."""


class Traffics:
    """What is sent to one bridge; each kind of it is a method without parameters."""

    def __init__(self, rig: Rig, bridge: Server, peak_per_second: float, seconds: int) -> None:
        """`seconds` is how long the cached traffic is watched; what is sent besides goes on for one more."""
        self._rig = rig
        self._bridge = bridge
        self._peak_per_second = peak_per_second
        self._seconds = seconds
        self._floods = count()
        self.resident_bytes: list[int] = []
        """Of the bridge, after each flood."""

    async def quiet(self) -> Seen:
        return await self._arrive([key(0)], SHARE_OF_PEAK, self._seconds), 0.0

    async def served(self) -> Seen:
        return await self._among(self._at_rate([key(0)], 200))

    async def flood(self) -> Seen:
        return await self._noted(self._among(self._at_rate(self._strangers(), 401)))

    async def served_full(self) -> Seen:
        return await self._among(self._as_fast_as_answered([key(0)]))

    async def flood_full(self) -> Seen:
        return await self._noted(self._among(self._as_fast_as_answered(self._strangers())))

    async def _among(self, others: Coroutine[Any, Any, float]) -> Seen:
        task = asyncio.create_task(others)
        latencies, _ = await self.quiet()
        return latencies, await task

    async def _noted(self, flood: Coroutine[Any, Any, Seen]) -> Seen:
        seen = await flood
        self.resident_bytes.append(self._bridge.resident_bytes())
        return seen

    async def _at_rate(self, keys: list[str], status: int) -> float:
        seconds = self._seconds + 1
        sent = await self._arrive(keys, OTHERS_SHARE_OF_PEAK, seconds, status)
        return (sent.requests - sent.failed) / seconds

    async def _as_fast_as_answered(self, keys: list[str]) -> float:
        traffic = Traffic(body(1), keys, CONNECTIONS)
        sent = await wrk.count(self._rig.new_folder(), self._bridge.address, traffic, self._seconds + 1)
        return sent.requests / sent.seconds

    async def _arrive(self, keys: list[str], share_of_peak: int, seconds: float, status: int = 200) -> Latencies:
        return await open_loop.measure(
            self._rig.new_folder(),
            self._bridge.address,
            body=body(1),
            keys=keys,
            per_second=self._peak_per_second / share_of_peak,
            seconds=seconds,
            status=status,
        )

    def _strangers(self) -> list[str]:
        number = KEYS_A_SECOND_MAX * (self._seconds + 1)
        first = next(self._floods) * number
        return [unknown_key(first + each) for each in range(number)]


async def main(pace: Pace) -> Report:
    async with Rig() as rig:
        await rig.key_service(keys=1, core=LOAD_CORE)
        bridge = await rig.bridge()
        peak = await wrk.count(rig.folder, bridge.address, Traffic(body(1), [key(0)]), pace.seconds)
        seconds = pace.seconds + 1
        traffics = Traffics(rig, bridge, peak.requests / peak.seconds, seconds)
        await traffics.flood_full()  # for everything to be warm, and what is bounded to be full
        traffics.resident_bytes.clear()
        turns: dict[str, Callable[[], Awaitable[Seen]]] = {
            QUIET: traffics.quiet,
            SERVED: traffics.served,
            FLOOD: traffics.flood,
            SERVED_FULL: traffics.served_full,
            FLOOD_FULL: traffics.flood_full,
        }
        results = await interleaved(turns, pace.rounds, warm_up=False)
        resident = traffics.resident_bytes
    tails = {name: [latencies.p99 for latencies, _ in rounds] for name, rounds in results.items()}
    compared = {SERVED: SERVED, FLOOD: SERVED, SERVED_FULL: SERVED_FULL, FLOOD_FULL: SERVED_FULL}
    rows: list[tuple[str, list[float | None]]] = []
    for name, rounds in results.items():
        other = median(others for _, others in rounds)
        cached = median((latencies.requests - latencies.failed) / seconds for latencies, _ in rounds)
        p50 = median(latencies.p50 for latencies, _ in rounds)
        against = ratio(tails[name], tails[compared[name]]) if name in compared else None
        rows.append((name, [other, cached, p50, median(tails[name]), ratio(tails[name], tails[QUIET]), against]))
    columns = [("others/s", ",.0f"), ("cached/s", ",.0f"), ("p50 ms", ".2f"), ("p99 ms", ".2f")]
    columns += [("p99, to nothing besides", ".2f"), ("to a good key", ".2f")]
    growth = resident[-1] / resident[0]
    memory = Table(
        "memory of the bridge",
        [("MB", ".1f"), ("ratio", ".2f")],
        [
            ("after the first flood that counts", [resident[0] / 1e6, 1.0]),
            ("after the last", [resident[-1] / 1e6, growth]),
        ],
    )
    return Report(
        __doc__ or "",
        HOW,
        [Table("cached traffic", columns, rows), memory],
        {"flood_p99": ratio(tails[FLOOD_FULL], tails[QUIET]), "flood_memory": growth},
    )


if __name__ == "__main__":
    run(main)
