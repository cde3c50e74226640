"""What does refusing a request cost, compared with serving one without any check?"""

from functools import partial
from typing import Any

from benchmarks.rig.comparison import COLUMNS, Comparison, Throughput
from benchmarks.rig.processes import Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import FOREIGN_ORIGIN, MALFORMED_KEY, body, key, unknown_key
from benchmarks.rig.wrk import Traffic, throughput

BARE = "bare aiohttp, which serves"
MALFORMED, UNKNOWN = "malformed key, 401", "unknown key, cached, 401"
ORIGIN, LIMIT = "blocked origin, 403", "over the limit, 429"

HOW = """\
wrk sends the same batch of one log over 32 connections, and every one is refused for the same reason; requests before
and after each round check the status. The ratio that is judged is of processor time: wrk is nearly as busy as a
server that refuses, and slows it down by the wall clock."""


async def main(pace: Pace) -> Report:
    one = body(1)
    async with Rig() as rig:
        await rig.key_service(keys=1)
        blocked = await rig.issue("with-origins", "https://shop.example")
        bare, bridge = await rig.bare("aiohttp"), await rig.bridge()
        limited = await rig.bridge(HTTPBRIDGE_RATE_LIMIT_PER_MINUTE="1")

        async def refuse(server: Server, status: int, api_key: str, **more: Any) -> Throughput:
            return await throughput(rig.directory, server, Traffic(one, [api_key], status=status, **more), pace.seconds)

        results = await interleaved(
            {
                BARE: partial(throughput, rig.directory, bare, Traffic(one, [key(0)]), pace.seconds),
                MALFORMED: partial(refuse, bridge, 401, MALFORMED_KEY),
                UNKNOWN: partial(refuse, bridge, 401, unknown_key(0)),
                ORIGIN: partial(refuse, bridge, 403, blocked, origin=FOREIGN_ORIGIN),
                LIMIT: partial(refuse, limited, 429, key(0), served_a_minute=1),
            },
            pace.rounds,
        )
    compared = Comparison(results, BARE)
    names = {
        "refused_malformed": MALFORMED,
        "refused_unknown": UNKNOWN,
        "refused_origin": ORIGIN,
        "refused_limit": LIMIT,
    }
    return Report(
        __doc__ or "",
        HOW,
        [Table("refused for", COLUMNS, compared.rows())],
        {target: compared.cpu(name) for target, name in names.items()},
        {target: compared.wall(name) for target, name in names.items()},
    )


if __name__ == "__main__":
    run(main)
