"""What do idle connections and slow bodies do to other traffic, and how many can there be?"""

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from benchmarks.rig import open_loop
from benchmarks.rig.open_loop import Latencies
from benchmarks.rig.processes import Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, median_of, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic, count
from httpbridge.http.server import CONNECTIONS_MAX

IDLE, SLOW = 4_000, 1_000
MORE = 200
"""Connections beyond the bound."""
LARGE, LARGE_BYTES = 80, 4_000_000
"""Slow bodies that have come so far: more together than a bridge holds of bodies."""
SHARE_OF_PEAK = 4

HOW = """\
There are three bridges: one with 4,000 connections that send nothing and 1,000 that send a byte of a body each
second; one with 80 that have sent 4 MB of a body of 5 MB and continue with a byte each second; and one with none.
Batches of one log with a cached key arrive at each in turn, at a fixed rate of a quarter of the peak, stored in
SQLite. All bodies together may take 256 MiB, so some of the large ones are refused. Then more connections are opened
to the first bridge than it accepts. Idle connections and slow bodies are ended after 75 and 120 seconds; tests check
that, and this does not wait for it."""


async def main(pace: Pace) -> Report:
    one = body(1)
    async with Rig() as rig:
        await rig.key_service(keys=1)
        calm, crowded, laden = [await rig.bridge() for _ in range(3)]
        peak = await count(rig.directory, calm.address, Traffic(one, [key(0)]), pace.seconds)
        for server in (crowded, laden):
            await count(rig.directory, server.address, Traffic(one, [key(0)]), pace.seconds)

        async def arrive(server: Server) -> tuple[Latencies, float]:
            cpu = server.cpu_seconds()
            latencies = await open_loop.measure(
                rig.directory,
                server.address,
                body=one,
                keys=[key(0)],
                per_second=peak.requests / peak.seconds / SHARE_OF_PEAK,
                seconds=pace.seconds,
            )
            return latencies, (server.cpu_seconds() - cpu) * 1e6 / latencies.requests

        before, laden_before = crowded.resident_bytes(), laden.resident_bytes()
        async with (
            _clients(crowded, IDLE, SLOW) as (opened, _),
            _clients(laden, 0, LARGE, LARGE_BYTES) as (large, large_refused),
        ):
            held_bytes = (crowded.resident_bytes() - before) / opened
            laden_bytes = laden.resident_bytes() - laden_before
            results = await interleaved(
                {
                    "no others": partial(arrive, calm),
                    f"{IDLE:,} idle, {SLOW:,} slow": partial(arrive, crowded),
                    f"{LARGE} slow, of 4 MB": partial(arrive, laden),
                },
                pace.rounds,
            )
            async with AsyncExitStack() as stack:
                accepted, refused = opened, 0
                if opened == IDLE + SLOW:
                    missing = CONNECTIONS_MAX - opened
                    more, refused = await stack.enter_async_context(_clients(crowded, missing + MORE, 0))
                    accepted += more
    names = list(results)
    rows: list[tuple[str, list[float | None]]] = []
    baseline = median_of([latencies.p99 for latencies, _ in results[names[0]]])
    for name, rounds in results.items():
        p50, p99 = (median_of([getattr(latencies, field) for latencies, _ in rounds]) for field in ("p50", "p99"))
        failed = float(sum(latencies.failed for latencies, _ in rounds))
        rows.append((name, [failed, p50, p99, p99 / baseline, median_of([cpu for _, cpu in rounds])]))
    columns = [
        ("failed", ".0f"),
        ("p50 ms", ".2f"),
        ("p99 ms", ".2f"),
        ("p99, ratio", ".2f"),
        ("CPU µs a request", ".1f"),
    ]
    bound = Table(
        "connections",
        [("number", ",.0f")],
        [
            ("open at most", [float(accepted)]),
            ("refused at once, with 503", [float(refused)]),
            ("bytes of memory each", [held_bytes]),
            ("bodies of 4 MB held", [float(large)]),
            ("refused, with 503", [float(large_refused)]),
            ("MB of memory all together", [laden_bytes / 1e6]),
        ],
    )
    return Report(
        __doc__ or "",
        HOW,
        [Table("cached traffic", columns, rows), bound],
        {},
    )


@asynccontextmanager
async def _clients(server: Server, idle: int, slow: int, sent_bytes: int = 0) -> AsyncIterator[tuple[int, int]]:
    """Hold connections from a process of its own; yield how many are open, and how many were refused.

    `sent_bytes` is how much of the slow bodies comes at once.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.rig.slow_clients",
        server.address,
        str(idle),
        str(slow),
        str(sent_bytes),
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        assert process.stdout is not None
        opened, refused = map(int, (await process.stdout.readline()).split())
        yield opened, refused
    finally:
        await process.communicate(b"")  # which ends its standard input


if __name__ == "__main__":
    run(main)
