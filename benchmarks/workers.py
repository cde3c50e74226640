"""What does a second worker of a bridge cost a request, and what does the log writer of both cost an entry?"""

from collections.abc import Awaitable, Callable
from functools import partial

import msgspec

from benchmarks.rig.comparison import COLUMNS, Comparison, Throughput
from benchmarks.rig.processes import LOAD_CORE, SERVER_CORE, Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, median_of, ratio, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic, count, throughput

ONE, TWO = "one worker", "two workers"
SIZES = {1: 32, 50: 32, 1000: 8}
"""Connections by logs a request."""
JUDGED_SIZE = 50
WRITER, WORKER = "log-writer", "worker"
"""Words of their command lines."""

HOW = f"""\
wrk sends batches of one log over 64 connections; nothing is stored. Both bridges may use both cores. The load uses
them, too, so requests a second say little: the ratio is of processor time, of the workers and their parent together.

Then two workers store in one SQLite file, over 32 connections (8 with 1,000 logs). Only the log writer, a process of
its own, writes to it. The ratio is of processor time for an entry, the writer's to a worker's; the target is about
batches of {JUDGED_SIZE}. What the writer does for itself, such as merging, counts."""


class Costs(msgspec.Struct, frozen=True):
    """In microseconds of processor time an entry."""

    writer: float
    workers: float
    """Each entry goes through one of them."""


async def main(pace: Pace) -> Report:
    async with Rig() as rig:
        await rig.key_service(keys=1)
        cores = (SERVER_CORE, LOAD_CORE)
        bridges = {
            name: await rig.bridge("null", cores, HTTPBRIDGE_WORKERS=str(workers))
            for workers, name in ((1, ONE), (2, TWO))
        }

        async def send(server: Server) -> Throughput:
            return await throughput(rig.directory, server, Traffic(body(1), [key(0)], connections=64), pace.seconds)

        results = await interleaved({name: partial(send, each) for name, each in bridges.items()}, pace.rounds)
        for each in bridges.values():
            await each.stop()
        stored = await rig.bridge(cores=cores, HTTPBRIDGE_WORKERS="2")

        async def store(size: int) -> Costs:
            before = stored.cpu_seconds(WRITER), stored.cpu_seconds(WORKER)
            seen = await count(rig.directory, stored.address, Traffic(body(size), [key(0)], SIZES[size]), pace.seconds)
            writer, workers = stored.cpu_seconds(WRITER) - before[0], stored.cpu_seconds(WORKER) - before[1]
            entries = size * seen.requests
            return Costs(writer * 1e6 / entries, workers * 1e6 / entries)

        turns: dict[int, Callable[[], Awaitable[Costs]]] = {size: partial(store, size) for size in SIZES}
        costs = await interleaved(turns, pace.rounds)
    compared = Comparison(results, ONE)
    ratios = {
        size: ratio([each.writer for each in seen], [each.workers for each in seen]) for size, seen in costs.items()
    }
    rows: list[tuple[str, list[float | None]]] = [
        (
            f"{size} {'log' if size == 1 else 'logs'} a request",
            [median_of([each.writer for each in seen]), median_of([each.workers for each in seen]), ratios[size]],
        )
        for size, seen in costs.items()
    ]
    columns = [("the writer, CPU µs an entry", ".2f"), ("the workers", ".2f"), ("ratio", ".3f")]
    return Report(
        __doc__ or "",
        HOW,
        [Table("workers", COLUMNS, compared.rows()), Table("two workers, durable", columns, rows)],
        {"workers": 1 / compared.cpu(TWO), "log_writer": ratios[JUDGED_SIZE]},
    )


if __name__ == "__main__":
    run(main)
