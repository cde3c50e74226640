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
from benchmarks.rig.comparison import CONTRAST_COLUMNS, Contrast, Throughput
from benchmarks.rig.processes import LOAD_CORE, Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic

STREAMS = (1, 10, 100)
REVOCATIONS_A_ROUND = 8
CONNECTIONS = 8
CHANGES_A_SECOND = 10
QUIET, CHANGES = "no changes", "ten changes a second"
ALONE, WATCHING, CONTROL = "without Watch", "watching", "without Watch, once more"
CHANGES_A_SECOND_MIN = 9
TURN_SECONDS = 1
ROUNDS = 16
RESOLUTION = 0.03
"""What cannot be told from nothing, if the same bridge measured twice differs by no more than that."""

HOW = """\
Keys are revoked while a bridge is under load with them over 8 connections, with the given number of Watch streams
open: the bridge's, and those of holders that only watch. Times are in milliseconds from the call of Revoke.

Then wrk sends batches of one log, which are not stored, to two bridges in turn: one as it is, and one without the
lease protocol, which opens no stream and uses its cache as if it always had a lease. This happens first while nothing
changes, then while another project's key is revoked ten times a second. The changes are made in both bridges' turns:
the key service is on the load's core, and its work there changes how requests are grouped, which affects the cost of
a request more than a change itself does. Turns take a second, there are sixteen rounds, and the bridge without the
protocol has two turns in each. What is judged is processor time a request, with changes. The comparison is void if
these two turns differ by more than 3 % in it, or if there are fewer than nine changes a second. So a cost below 3 %
cannot be measured here. Each ratio is that of the medians beside it. Requests a second are resolved only to the
difference between the two rows without Watch."""


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
    contrasts, changes_a_second = await _watching(pace)
    tables = [Table(f"ingest, cached key, {when}", CONTRAST_COLUMNS, each.rows()) for when, each in contrasts.items()]
    changing = contrasts[CHANGES]
    flaw = changing.flaw()
    if changes_a_second < CHANGES_A_SECOND_MIN:
        flaw = f"there were {changes_a_second:.1f} changes a second, and should be {CHANGES_A_SECOND}"
    latency_columns = [("p50", ".1f"), ("p90", ".1f"), ("max", ".1f"), ("ratio", ".1f")]
    return Report(
        __doc__ or "",
        HOW,
        [Table("ms from the call of Revoke to", latency_columns, rows), *tables],
        {"watching": None if flaw else changing.cpu(WATCHING)},
        wall_clock={} if changing.wall_flaw() else {"watching": 1 / changing.wall(WATCHING)},
        void={"watching": flaw} if flaw else {},
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


async def _watching(pace: Pace) -> tuple[dict[str, Contrast], float]:
    """Return the rounds without and with changes, and how many of these there were a second."""
    made = 0
    async with Rig() as rig:
        await rig.key_service(keys=1, core=LOAD_CORE)
        await rig.issue("elsewhere")
        watching, alone = await rig.bridge("null"), await rig.bridge("null", BENCH_WATCH="off")
        traffic = Traffic(body(1), [key(0)])

        async def change() -> None:
            nonlocal made
            due = time.monotonic()
            while True:
                await rig.revoke("elsewhere", waits=False)
                made += 1
                due += 1 / CHANGES_A_SECOND
                await asyncio.sleep(max(0.0, due - time.monotonic()))

        async def quiet_turn(bridge: Server) -> Throughput:
            return await wrk.throughput(rig.directory, bridge, traffic, TURN_SECONDS)

        async def changing_turn(bridge: Server) -> Throughput:
            changing = asyncio.create_task(change())
            try:
                return await quiet_turn(bridge)
            finally:
                changing.cancel()
                await asyncio.wait([changing])

        bridges = {ALONE: alone, WATCHING: watching, CONTROL: alone}
        rounds = 1 if pace.is_quick else ROUNDS
        contrasts = {}
        for when, turn in ((QUIET, quiet_turn), (CHANGES, changing_turn)):
            turns = {name: partial(turn, bridge) for name, bridge in bridges.items()}
            contrasts[when] = Contrast(await interleaved(turns, rounds), ALONE, CONTROL, RESOLUTION)
        return contrasts, made / ((rounds + 1) * len(bridges) * TURN_SECONDS)


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
