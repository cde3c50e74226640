"""What does refusing a request cost, against serving one without any check?"""

from functools import partial

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
wrk sends the same batch of one log over 32 connections, every one refused for the same reason. The ratio is of
processor time, which other work on the machine disturbs less; nothing here waits for anything."""


async def main(pace: Pace) -> Report:
    one = body(1)
    async with Rig() as rig:
        await rig.key_service(keys=1)
        blocked = await rig.issue("with-origins", "https://shop.example")
        bare, bridge = await rig.bare("aiohttp"), await rig.bridge()
        limited = await rig.bridge(HTTPBRIDGE_RATE_LIMIT_PER_MINUTE="1")

        async def refuse(server: Server, api_key: str, origin: str | None = None) -> Throughput:
            traffic = Traffic(one, [api_key], origin=origin)
            return await throughput(rig.folder, server, traffic, pace.seconds, refused=True)

        results = await interleaved(
            {
                BARE: partial(throughput, rig.folder, bare, Traffic(one, [key(0)]), pace.seconds),
                MALFORMED: partial(refuse, bridge, MALFORMED_KEY),
                UNKNOWN: partial(refuse, bridge, unknown_key(0)),
                ORIGIN: partial(refuse, bridge, blocked, FOREIGN_ORIGIN),
                LIMIT: partial(refuse, limited, key(0)),
            },
            pace.rounds,
        )
    compared = Comparison(results, BARE)
    return Report(
        __doc__ or "",
        HOW,
        [Table("refused for", COLUMNS, compared.rows())],
        {
            "refused_malformed": compared.cpu(MALFORMED),
            "refused_unknown": compared.cpu(UNKNOWN),
            "refused_origin": compared.cpu(ORIGIN),
            "refused_limit": compared.cpu(LIMIT),
        },
    )


if __name__ == "__main__":
    run(main)
