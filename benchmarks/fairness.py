"""What does one key's most expensive traffic do to another key's?"""

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from statistics import median

import msgspec

from benchmarks.rig import open_loop
from benchmarks.rig.greedy import Sent
from benchmarks.rig.open_loop import Latencies
from benchmarks.rig.processes import LOAD_CORE, Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, ratio, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import key
from benchmarks.rig.wrk import VoidError

GREEDY, OTHER = key(0), key(1)
CONNECTIONS = 16
"""Of the greedy key."""
OTHERS_A_SECOND = 100
SECONDS_A_ROUND = 2
"""Times the pace: a p99 is to be more than a few requests."""
SETTLE_SECONDS = 1.0
"""Before the other key is watched, so that what waits is as much as will."""

SMALL = json.dumps({"logs": [{"level": "info", "message": "x" * 900}]}).encode()


def _logs(entries: int, message: str) -> bytes:
    return b'{"logs": [%b]}' % b", ".join([b'{"level": "info", "message": "%b"}' % message.encode()] * entries)


DEAREST = {
    "one text of 5 MB": _logs(1, "x" * 5_000_000),
    "1,000 texts of 5 kB": _logs(1000, "x" * 4_900),
    "1,000 texts of escapes": _logs(1000, r"\u00e9" * 800),
    "1,000 short texts": _logs(1000, "x"),
}
"""Bodies by what makes them expensive: bytes, pages of the store, decoding, rows."""

QUIET = "nothing else"
AS_MANY = "as many of 1 kB"

HOW = """\
Requests of 1 kB with one key arrive at a fixed rate, 100 a second, and are stored in SQLite; latencies count from
when they were due. Meanwhile 16 connections with another key keep sending a body of up to 5 MB, as fast as they are
answered: as gzip, which compresses it to some kB. The limit of bytes a minute is off, so that this does not end; with
the default limit it ends within seconds, until the next minute. Each kind of body is expensive in another way. The
baseline is requests of 1 kB with that key, at the rate at which the large ones of the quickest kind were stored. The
target is about the worst kind; it is also missed when a request of the other key fails. After each turn, the
benchmark waits for the disk."""


class Beside:
    """The other key's traffic, and the rest."""

    def __init__(self, rig: Rig, bridge: Server, seconds: float) -> None:
        self._rig = rig
        self._bridge = bridge
        self._seconds = seconds

    async def quiet(self) -> tuple[Latencies, float]:
        return await self._arrive(OTHER, OTHERS_A_SECOND), 0.0

    async def as_many(self, per_second: float) -> tuple[Latencies, float]:
        async with asyncio.TaskGroup() as group:
            besides = group.create_task(self._arrive(GREEDY, per_second))
            latencies, _ = await self.quiet()
        return latencies, besides.result().served_per_second

    async def greedy(self, body: bytes) -> tuple[Latencies, float]:
        async with self._sending(body) as ended:
            await asyncio.sleep(SETTLE_SECONDS)
            latencies, _ = await self.quiet()
            sent = await ended()
        await asyncio.to_thread(os.sync)
        if not sent.stored:
            raise VoidError(f"of {sent.answered} bodies none was stored")
        return latencies, sent.stored / sent.seconds

    @asynccontextmanager
    async def _sending(self, body: bytes) -> AsyncIterator[Callable[[], Awaitable[Sent]]]:
        file = self._rig.new_directory() / "body"
        file.write_bytes(body)
        arguments = [self._bridge.address, GREEDY, str(CONNECTIONS), str(file)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.rig.greedy", *arguments, stdin=PIPE, stdout=PIPE
        )
        assert process.stdout is not None

        async def ended() -> Sent:
            output, _ = await process.communicate(b"")  # the end of its input is what stops it
            return msgspec.json.decode(output, type=Sent)

        try:
            await process.stdout.readline()
            yield ended
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _arrive(self, api_key: str, per_second: float) -> Latencies:
        return await open_loop.measure(
            self._rig.new_directory(),
            self._bridge.address,
            body=SMALL,
            keys=[api_key],
            per_second=per_second,
            seconds=self._seconds,
        )


async def main(pace: Pace) -> Report:
    async with Rig() as rig:
        await rig.key_service(keys=2, core=LOAD_CORE)
        beside = Beside(rig, await rig.bridge(HTTPBRIDGE_BYTES_PER_MINUTE=str(2**60)), pace.seconds * SECONDS_A_ROUND)
        per_second = max([(await beside.greedy(body))[1] for body in DEAREST.values()])
        turns: dict[str, Callable[[], Awaitable[tuple[Latencies, float]]]] = {
            QUIET: beside.quiet,
            AS_MANY: partial(beside.as_many, per_second),
            **{name: partial(beside.greedy, body) for name, body in DEAREST.items()},
        }
        results = await interleaved(turns, pace.rounds, warm_up=False)
    tails = {name: [latencies.p99 for latencies, _ in rounds] for name, rounds in results.items()}
    ratios = {name: ratio(tails[name], tails[AS_MANY]) for name in DEAREST}
    rows: list[tuple[str, list[float | None]]] = []
    for name, rounds in results.items():
        latencies = [each for each, _ in rounds]
        quantiles = [median(getattr(each, field) for each in latencies) for field in ("p50", "p90", "p99", "max")]
        failed = float(sum(each.failed for each in latencies))
        rows.append((name, [median(besides for _, besides in rounds), failed, *quantiles, ratios.get(name)]))
    columns = [("others/s", ",.1f"), ("failed", ".0f"), ("p50 ms", ".2f"), ("p90 ms", ".2f"), ("p99 ms", ".2f")]
    columns += [("max ms", ".1f"), ("p99, to as many of 1 kB", ".2f")]
    failed = sum(each.failed for name in DEAREST for each, _ in results[name])
    flaw = f"{failed} requests failed" if failed else None
    return Report(
        __doc__ or "",
        HOW,
        [Table("the other key", columns, rows)],
        {"fairness_p99": None if flaw else max(ratios.values())},
        void={"fairness_p99": flaw} if flaw else {},
    )


if __name__ == "__main__":
    run(main)
