"""What does a flood of unknown keys do to the traffic of good ones?"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from statistics import median

from benchmarks.rig import open_loop, wrk
from benchmarks.rig.open_loop import Latencies
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key, unknown_key
from benchmarks.rig.wrk import Traffic

CONNECTIONS = 32
"""Of the flood, and of what is sent instead of it."""
SHARE_OF_PEAK = 10
"""Cached traffic is one part in so many of what the bridge could serve."""
UNKNOWN_A_SECOND_MAX = 30_000

Seen = tuple[Latencies, float]
"""What became of the cached traffic, and how many other requests a second were answered."""

QUIET, SERVED, FLOOD = "no flood", "as many connections with a good key", "flood of unknown keys"

HOW = """\
Batches of one log with a cached key arrive at a fixed rate, a tenth of what the bridge could serve, and are stored in
SQLite; latencies count from when they were due. Meanwhile 32 connections send, as fast as they are answered,
well-formed keys that nobody issued, each another one, or, for comparison, the good key. The same cached traffic is
served in all three. The key service runs on the load's core. Memory is the bridge's resident set after each round of
the flood, against that after the first."""


async def main(pace: Pace) -> Report:
    one = body(1)
    async with Rig() as rig:
        await rig.key_service(keys=1, core=1)
        bridge = await rig.bridge()
        peak = await wrk.count(rig.folder, bridge.address, Traffic(one, [key(0)]), pace.seconds)
        per_second = peak.requests / peak.seconds / SHARE_OF_PEAK
        seconds = pace.seconds + 1  # the flood begins before the traffic that is watched, and ends after it
        slices = count()
        resident: list[int] = []

        async def arrive() -> Latencies:
            return await open_loop.measure(
                rig.folder, bridge.address, body=one, key=key(0), per_second=per_second, seconds=seconds
            )

        async def arrive_among(keys: Sequence[str]) -> Seen:
            traffic = Traffic(one, keys, CONNECTIONS)
            others = asyncio.create_task(wrk.count(rig.new_folder(), bridge.address, traffic, seconds + 1))
            latencies = await arrive()
            seen = await others
            return latencies, seen.requests / seen.seconds

        async def quiet() -> Seen:
            return await arrive(), 0.0

        async def flood() -> Seen:
            first = next(slices) * UNKNOWN_A_SECOND_MAX * seconds
            keys = [unknown_key(first + number) for number in range(UNKNOWN_A_SECOND_MAX * seconds)]
            outcome = await arrive_among(keys)
            resident.append(bridge.resident_bytes())
            return outcome

        await arrive()  # for everything to be warm
        turns: dict[str, Callable[[], Awaitable[Seen]]] = {
            QUIET: quiet,
            SERVED: partial(arrive_among, [key(0)]),
            FLOOD: flood,
        }
        results = await interleaved(turns, max(2, pace.rounds), warm_up=False)
    p99 = {name: median(latencies.p99 for latencies, _ in rounds) for name, rounds in results.items()}
    rows: list[tuple[str, list[float | None]]] = [
        (
            name,
            [
                median(other for _, other in rounds),
                per_second,
                float(sum(latencies.failed for latencies, _ in rounds)),
                median(latencies.p50 for latencies, _ in rounds),
                p99[name],
                p99[name] / p99[QUIET],
                p99[name] / p99[SERVED],
            ],
        )
        for name, rounds in results.items()
    ]
    columns = [("others/s", ",.0f"), ("cached/s", ",.0f"), ("failed", ".0f"), ("p50 ms", ".2f"), ("p99 ms", ".2f")]
    columns += [("p99, ratio to none", ".2f"), ("to served", ".2f")]
    growth = resident[-1] / resident[0]
    memory = Table(
        "memory of the bridge",
        [("MB", ".1f"), ("ratio", ".2f")],
        [
            ("after the first round of the flood", [resident[0] / 1e6, 1.0]),
            ("after the last", [resident[-1] / 1e6, growth]),
        ],
    )
    return Report(
        __doc__ or "",
        HOW,
        [Table("cached traffic", columns, rows), memory],
        {"flood_p99": p99[FLOOD] / p99[QUIET], "flood_memory": growth},
    )


if __name__ == "__main__":
    run(main)
