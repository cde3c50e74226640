"""How fast are logs taken in, by batch size and store?"""

from functools import partial

from benchmarks.rig.comparison import COLUMNS, Comparison, Throughput
from benchmarks.rig.processes import Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic, throughput

SIZES = {1: 32, 50: 32, 1000: 8}
"""Connections by logs a request."""
BARE, NULL, SQLITE, POSTGRES = "bare aiohttp", "nothing stored", "SQLite", "PostgreSQL"

HOW = """\
wrk sends over 32 connections (8 with 1,000 logs), with one key whose verdict is cached. Bare aiohttp is a
`web.Application` on uvloop whose handler reads the body and answers with `json_response`; "nothing stored" is the
bridge with a sink that forgets. The bridge has a core to itself; PostgreSQL shares the other one with wrk. The wall
clock is the fairer measure here, because storing waits for the disk."""


async def main(pace: Pace) -> Report:
    async with Rig() as rig:
        await rig.key_service(keys=1)
        postgres = rig.postgres()

        async def send(server: Server, size: int) -> Throughput:
            return await throughput(rig.directory, server, Traffic(body(size), [key(0)], SIZES[size]), pace.seconds)

        comparisons = {}
        for size in SIZES:
            servers = {
                BARE: await rig.bare("aiohttp"),
                NULL: await rig.bridge("null"),
                SQLITE: await rig.bridge(),
                POSTGRES: await rig.bridge(HTTPBRIDGE_LOG_STORE_URL=postgres),
            }
            comparisons[size] = await interleaved(
                {name: partial(send, server, size) for name, server in servers.items()}, pace.rounds
            )
            for server in servers.values():
                await server.stop()
    tables = [
        Table(f"{size} {'log' if size == 1 else 'logs'} a request", COLUMNS, Comparison(results, BARE).rows())
        for size, results in comparisons.items()
    ]
    measured: dict[str, float | None] = {"ingest_durable": Comparison(comparisons[1], BARE).wall(SQLITE)}
    for size, results in comparisons.items():
        for store in (SQLITE, POSTGRES):
            measured[f"stored_{size}_{store.lower()}"] = Comparison(results, NULL).wall(store)
    return Report(__doc__ or "", HOW, tables, measured)


if __name__ == "__main__":
    run(main)
