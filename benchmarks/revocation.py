"""How long does a revoked key live, and what does watching for changes cost a bridge?"""

import asyncio
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from benchmarks.rig import wrk
from benchmarks.rig.closed_loop import Load
from benchmarks.rig.processes import LOAD_CORE, Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, ratio, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic

STREAMS = (1, 10, 100)
REVOCATIONS_A_ROUND = 8
CONNECTIONS = 8
CHANGES_A_SECOND = 10
WATCH_ROUNDS_A_ROUND = 2
QUIET, CHANGES, CONTROL = "no changes", "ten changes a second", "no changes, once more"

HOW = """\
Keys are revoked while a bridge is under load with them over 8 connections, and so many Watch streams are open: the
bridge's, and those of holders that only watch. Times are in milliseconds from the call of Revoke. Then the bridge's
processor time a request is measured while wrk sends batches of one log, with ten changes a second in another project
and without; nothing is stored. Without changes it is measured twice a round: the difference is what this measurement
cannot tell apart. The key service is on the load's core, as its own work is no cost of the bridge's."""


async def main(pace: Pace) -> Report:
    async with Rig() as rig:
        await rig.key_service()
        number = pace.rounds * REVOCATIONS_A_ROUND
        alone = await _alone(rig, number)
        bridge = await rig.bridge()
        times = {}
        async with AsyncExitStack() as stack:
            open_streams = 1
            for streams in STREAMS:
                await stack.enter_async_context(_holders(rig, streams - open_streams))
                open_streams = streams
                times[streams] = await _under_load(rig, bridge, number)
    baseline = _quantiles(alone)[0]
    rows: list[tuple[str, list[float | None]]] = [("its return, nobody watching", [*_quantiles(alone), 1.0])]
    for streams, (returned, last_accepted) in times.items():
        for what, values in (("its return", returned), ("the last accepted request", last_accepted)):
            quantiles = _quantiles(values)
            rows.append((f"{what}, {streams} streams", [*quantiles, quantiles[0] / baseline]))
    costs = await _watching(pace)
    cost_rows: list[tuple[str, list[float | None]]] = [
        (name, [sorted(values)[len(values) // 2], ratio(values, costs[QUIET])]) for name, values in costs.items()
    ]
    latency_columns = [("p50", ".1f"), ("p90", ".1f"), ("max", ".1f"), ("ratio", ".1f")]
    return Report(
        __doc__ or "",
        HOW,
        [
            Table("ms from the call of Revoke to", latency_columns, rows),
            Table(
                "ingest while keys are revoked elsewhere", [("CPU µs a request", ".1f"), ("ratio", ".3f")], cost_rows
            ),
        ],
        {},
    )


async def _alone(rig: Rig, number: int) -> list[float]:
    await rig.issue("alone")
    return [await _timed(rig, "alone") for _ in range(number)]


async def _timed(rig: Rig, project: str) -> float:
    called = time.time()
    await rig.revoke(project)
    return (time.time() - called) * 1000


async def _under_load(rig: Rig, bridge: Server, number: int) -> tuple[list[float], list[float]]:
    """Return, in milliseconds from the call of each Revoke, its return and the start of the last accepted request."""
    returned, last_accepted = [], []
    for _ in range(number):
        project = f"round-{time.time_ns()}"
        load = Load(bridge.address, await rig.issue(project))
        running = asyncio.create_task(load.run(CONNECTIONS))
        while not any(status == 200 for _, status in load.outcomes):
            await asyncio.sleep(0.005)
        called = time.time()
        returned.append(await _timed(rig, project))
        while load.outcomes[-1][1] != 401:
            await asyncio.sleep(0.005)
        load.stopped = True
        await running
        last = max(started for started, status in load.outcomes if status == 200)
        last_accepted.append(max(0.0, last - called) * 1000)
    return returned, last_accepted


async def _watching(pace: Pace) -> dict[str, list[float]]:
    """Return the bridge's processor time a request, in microseconds, in every round."""
    async with Rig() as rig:
        await rig.key_service(keys=1, core=LOAD_CORE)
        await rig.issue("elsewhere")
        bridge = await rig.bridge("null")
        traffic = Traffic(body(1), [key(0)])

        async def cost(changes_a_second: int) -> float:
            changing = asyncio.create_task(_change(rig, changes_a_second))
            try:
                return (await wrk.throughput(rig.folder, bridge, traffic, pace.seconds)).cpu_microseconds
            finally:
                changing.cancel()
                await asyncio.wait([changing])

        turns = {QUIET: partial(cost, 0), CHANGES: partial(cost, CHANGES_A_SECOND), CONTROL: partial(cost, 0)}
        return await interleaved(turns, pace.rounds * WATCH_ROUNDS_A_ROUND)


async def _change(rig: Rig, per_second: int) -> None:
    while per_second:
        await rig.revoke("elsewhere")
        await asyncio.sleep(1 / per_second)


@asynccontextmanager
async def _holders(rig: Rig, count: int) -> AsyncIterator[None]:
    """Have so many holders watch, from a process of their own."""
    if count == 0:
        yield
        return
    arguments = [rig.environ["HTTPBRIDGE_KEY_SERVICE"], str(rig.state / "bridge-token"), str(count)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.rig.holders", *arguments, stdin=PIPE, stdout=PIPE
    )
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield
    finally:
        await process.communicate(b"")  # which ends its standard input


def _quantiles(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.9)], ordered[-1]]


if __name__ == "__main__":
    run(main)
