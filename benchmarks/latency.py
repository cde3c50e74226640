"""How long does a durable request take at half of the peak rate, while the store is maintained?"""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

from benchmarks.rig import open_loop
from benchmarks.rig.open_loop import Latencies
from benchmarks.rig.processes import Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, median_of, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic, throughput

BARE, SQLITE, POSTGRES = "bare aiohttp", "SQLite", "PostgreSQL"
SECONDS_A_ROUND = 2
"""Times the pace: checkpoints of SQLite's log come every few seconds."""
STORE_BYTES_MAX = 256 * 1024
"""A second's logs or two, so that every round drops some."""

HOW = """\
The peak is the most that wrk reaches over 32 connections with batches of one log. Then requests arrive evenly at half
of that rate, whatever becomes of those before. Each latency counts from the instant when the request was due, so that
it includes waiting for a free connection (no coordinated omission). A failed request has no latency: if there is one,
or if less than 99 % of the rate is served, the target is missed. PostgreSQL shares the core of the load. All the time
both bridges merge what is a second old, and drop what is above 256 KiB (`HTTPBRIDGE_STORE_BYTES_MAX`), looking for it
several times a second instead of once in two seconds and once a minute. If a round of SQLite has neither, the target is
missed, too."""


async def main(pace: Pace) -> Report:
    one = body(1)
    async with Rig() as rig:
        await rig.key_service(keys=1)
        file = rig.new_directory() / "logs.db"

        async def bridge(url: str) -> Server:
            bytes_max = str(STORE_BYTES_MAX)
            return await rig.bridge("maintained", HTTPBRIDGE_LOG_STORE_URL=url, HTTPBRIDGE_STORE_BYTES_MAX=bytes_max)

        servers = {
            BARE: await rig.bare("aiohttp"),
            SQLITE: await bridge(f"sqlite:///{file}"),
            POSTGRES: await bridge(rig.postgres()),
        }
        traffic = Traffic(one, [key(0)])
        peaks = await interleaved(
            {name: partial(throughput, rig.directory, each, traffic, pace.seconds) for name, each in servers.items()},
            pace.rounds,
        )
        rates = {name: round(max(each.per_second for each in rounds) / 2) for name, rounds in peaks.items()}

        idle_rounds = 0

        async def arrive(name: str, server: Server) -> Latencies:
            nonlocal idle_rounds
            merged, dropped = _maintained(file)
            seen = await open_loop.measure(
                rig.directory,
                server.address,
                body=one,
                keys=[key(0)],
                per_second=rates[name],
                seconds=pace.seconds * SECONDS_A_ROUND,
            )
            merged_since, dropped_since = _maintained(file)
            idle_rounds += name == SQLITE and (merged_since == merged or dropped_since == dropped)
            return seen

        results = await interleaved(
            {name: partial(arrive, name, server) for name, server in servers.items()}, pace.rounds, warm_up=False
        )
    rows: list[tuple[str, list[float | None]]] = []
    tails = {}
    for name, rounds in results.items():
        tails[name] = median_of([each.p99 / each.p50 for each in rounds])
        p50, p90, p99, highest = (
            median_of([getattr(each, field) for each in rounds]) for field in ("p50", "p90", "p99", "max")
        )
        failed = float(sum(each.failed for each in rounds))
        rows.append((name, [float(rates[name]), p50, p90, p99, highest, tails[name], failed]))
    flaw = open_loop.flaw(results[SQLITE])
    if idle_rounds:
        flaw = f"{idle_rounds} rounds were without merging or without dropping"
    columns = [("requests/s", ",.0f"), ("p50 ms", ".2f"), ("p90 ms", ".2f"), ("p99 ms", ".2f"), ("max ms", ".1f")]
    columns += [("p99 / p50", ".1f"), ("failed", ".0f")]
    return Report(
        __doc__ or "",
        HOW,
        [Table("arriving at half of the peak", columns, rows)],
        {"latency_tail": None if flaw else tails[SQLITE]},
        void={"latency_tail": flaw} if flaw else {},
    )


def _maintained(file: Path) -> tuple[int, int]:
    """Return the newest merged chunk, and how many entries were dropped so far."""
    with closing(sqlite3.connect(file.as_uri() + "?mode=ro", uri=True, timeout=5)) as connection:
        ((merged,),) = connection.execute("SELECT coalesce(max(id), 0) FROM chunks WHERE version > 0").fetchall()
        ((dropped,),) = connection.execute("SELECT coalesce(sum(dropped_entries), 0) FROM project_data").fetchall()
    return merged, dropped


if __name__ == "__main__":
    run(main)
