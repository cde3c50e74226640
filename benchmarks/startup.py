"""How long from the start of a service to its first answer?"""

import time
from collections.abc import Awaitable, Callable

from authsvc.v1 import key_service_pb2 as pb
from benchmarks.rig.probe import is_answered
from benchmarks.rig.report import Pace, Report, Table, interleaved, median_of, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key

ROUNDS_A_ROUND = 2
HOW = """\
The wall clock from the start of the process: to the answer to Validate, with an empty state directory and with one
that was used before; and to the 200 for a first batch that a bridge stored, while the key service is already running.
Each runs alone, on the servers' core."""


async def main(pace: Pace) -> Report:
    async def key_service(rig: Rig) -> None:
        await rig.key_service()
        await rig.stub.Validate(pb.ValidateRequest(api_key=key(0)), metadata=rig.metadata)

    async def timed(start: Callable[[], Awaitable[None]]) -> float:
        started = time.perf_counter()
        await start()
        return time.perf_counter() - started

    async def first() -> float:
        async with Rig() as rig:
            return await timed(lambda: key_service(rig))

    async def again() -> float:
        async with Rig() as rig:
            await (await rig.key_service()).stop()
            return await timed(lambda: key_service(rig))

    async def bridge() -> float:
        async with Rig() as rig:
            await rig.key_service(keys=1)

            async def start() -> None:
                server = await rig.bridge()
                assert await is_answered(server.address, 200, key(0), body(1))

            return await timed(start)

    results = await interleaved(
        {"key service, the first time": first, "key service": again, "bridge": bridge},
        pace.rounds * ROUNDS_A_ROUND,
        warm_up=False,
    )
    rows: list[tuple[str, list[float | None]]] = [
        (name, [median_of(times), max(times)]) for name, times in results.items()
    ]
    return Report(
        __doc__ or "",
        HOW,
        [Table("from start to first answer", [("median s", ".2f"), ("longest s", ".2f")], rows)],
        {
            "startup_service": median_of(results["key service, the first time"]),
            "startup_bridge": median_of(results["bridge"]),
        },
    )


if __name__ == "__main__":
    run(main)
