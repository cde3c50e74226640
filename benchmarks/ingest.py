"""How fast are logs taken in, by batch size and store?"""

from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.rig.bulk_writes import measure
from benchmarks.rig.comparison import COLUMNS, Comparison, Throughput
from benchmarks.rig.processes import Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic, count, throughput

SIZES = {1: 32, 50: 32, 1000: 8}
"""Connections by logs a request."""
COMPARED_SIZE = 50
"""The batch whose rows are written without us, too."""
BARE, NULL, SQLITE, POSTGRES = "bare aiohttp", "nothing stored", "SQLite", "PostgreSQL"
ALONE = "`executemany` alone"

HOW = """\
wrk sends over 32 connections (8 with 1,000 logs), with one key whose verdict is cached. Bare aiohttp is a
`web.Application` on uvloop whose handler reads the body and answers with `json_response`; "nothing stored" is the
bridge with a sink that forgets. The bridge has a core to itself; PostgreSQL shares the other one with wrk.
`executemany` alone is Python's `sqlite3` writing the rows of as many requests, prepared in advance, into the same
table with the same durability and equally rare checkpoints (`wal_autocheckpoint=4096`), in transactions as large as
the bridge's are on average, on the bridge's core. The wall clock is the fairer measure here, because storing waits
for the disk."""


async def main(pace: Pace) -> Report:
    async with Rig() as rig:
        await rig.key_service(keys=1)
        rows_a_commit = await _rows_a_commit(rig)
        postgres, file = rig.postgres(), f"sqlite:///{rig.new_directory()}/logs.db"

        async def send(server: Server, size: int) -> Throughput:
            return await throughput(rig.directory, server, Traffic(body(size), [key(0)], SIZES[size]), pace.seconds)

        async def alone() -> Throughput:
            written = await measure("driver", file, COMPARED_SIZE, rows_a_commit, pace.seconds)
            requests = written.rows / COMPARED_SIZE
            return Throughput(requests / written.seconds, written.cpu_seconds * 1e6 / requests)

        comparisons = {}
        for size in SIZES:
            servers = {
                BARE: await rig.bare("aiohttp"),
                NULL: await rig.bridge("null"),
                SQLITE: await rig.bridge(),  # with a new file, like the one that is written without it
                POSTGRES: await rig.bridge(HTTPBRIDGE_LOG_STORE_URL=postgres),
            }
            contenders: dict[str, Callable[[], Awaitable[Throughput]]] = {
                name: partial(send, server, size) for name, server in servers.items()
            }
            if size == COMPARED_SIZE:
                contenders[ALONE] = alone
            comparisons[size] = await interleaved(contenders, pace.rounds)
            for server in servers.values():
                await server.stop()
    tables = [
        Table(f"{size} {'log' if size == 1 else 'logs'} a request", COLUMNS, Comparison(results, BARE).rows())
        for size, results in comparisons.items()
    ]
    return Report(
        __doc__ or "",
        f"{HOW} (That is {rows_a_commit:,} rows here.)",
        tables,
        {
            "ingest_durable": Comparison(comparisons[1], BARE).wall(SQLITE),
            "ingest_rows": Comparison(comparisons[COMPARED_SIZE], ALONE).wall(SQLITE),
        },
    )


async def _rows_a_commit(rig: Rig) -> int:
    """Return how many rows a commit takes when batches come as fast as they are answered."""
    bridge = await rig.bridge("counted")
    seen = await count(rig.directory, bridge.address, Traffic(body(COMPARED_SIZE), [key(0)]), 1)
    commits = int((await bridge.stop()).rpartition("commits=")[2])
    return round(COMPARED_SIZE * seen.requests / commits)


if __name__ == "__main__":
    run(main)
