"""How fast are requests taken in when their keys' verdicts are not cached?"""

from functools import partial
from itertools import count

from benchmarks.rig.comparison import COLUMNS, Comparison, Throughput
from benchmarks.rig.processes import Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic, throughput

BARE = "bare aiohttp and bare grpc.aio, one call a request"
FIRST, EXPIRED, UNKNOWN_TO_ALL = "keys never seen before", "verdicts expired, keys seen before", "never seen, durable"
OUR_SERVICE, OUR_BRIDGE = "never seen, bare aiohttp in front", "never seen, bare grpc.aio behind"
CONNECTIONS = (1, 32)
KEYS_SEEN = 1000
KEYS_A_SECOND_MAX = 15_000
"""More than can be served: every request of a round has a key of its own."""

HOW = """\
wrk sends batches of one log, each with another key. Keys never seen before are only in the key service's database;
expired verdicts are those of a bridge that caches none, for a thousand keys that the key service has answered for
before. Both services share one core, and so do the two of the baseline. Only the last row stores anything. At 32
connections the ratio is of the processor time of both; at one it is of the wall clock, since that one is about
waiting. There, two more rows show what each of our services adds to the baseline while the other one is bare; the
bridge in these opens no stream of changes."""


async def main(pace: Pace) -> Report:
    one = body(1)
    slice_keys = KEYS_A_SECOND_MAX * pace.seconds
    slices = count()
    async with Rig() as rig:
        service = await rig.key_service(keys=slice_keys * (2 * len(CONNECTIONS) + 2) * (pace.rounds + 1))
        echo = await rig.bare("grpc")
        bare = await rig.bare("aiohttp-grpc", echo.address)
        null, durable = await rig.bridge("null"), await rig.bridge()
        forgetful = await rig.bridge("null", HTTPBRIDGE_CACHE_TTL_SECONDS="0")
        bare_in_front = await rig.bare("aiohttp-grpc", service.address, rig.environ["HTTPBRIDGE_KEY_SERVICE_TOKEN"])
        bare_behind = await rig.bridge("null", BENCH_WATCH="off", HTTPBRIDGE_KEY_SERVICE=echo.address)

        async def send(server: Server, behind: Server, traffic: Traffic) -> Throughput:
            return await throughput(rig.directory, server, traffic, pace.seconds, also=[behind])

        async def send_new(server: Server, connections: int, behind: Server = service) -> Throughput:
            first = next(slices) * slice_keys
            keys = [key(first + number) for number in range(slice_keys)]
            return await send(server, behind, Traffic(one, keys, connections, is_each_key_new=True))

        seen = [key(number) for number in range(KEYS_SEEN)]
        compared = {}
        for connections in CONNECTIONS:
            contenders = {
                BARE: partial(send, bare, echo, Traffic(one, [key(0)], connections)),
                FIRST: partial(send_new, null, connections),
                EXPIRED: partial(send, forgetful, service, Traffic(one, seen, connections)),
                UNKNOWN_TO_ALL: partial(send_new, durable, connections),
            }
            if connections == 1:
                contenders |= {
                    OUR_SERVICE: partial(send_new, bare_in_front, connections),
                    OUR_BRIDGE: partial(send_new, bare_behind, connections, echo),
                }
            compared[connections] = Comparison(await interleaved(contenders, pace.rounds), BARE)
    return Report(
        __doc__ or "",
        HOW,
        [Table(f"{number} in flight", COLUMNS, comparison.rows()) for number, comparison in compared.items()],
        {"uncached_32": compared[32].cpu(FIRST), "uncached_1": compared[1].wall(FIRST)},
        {"uncached_32": compared[32].wall(FIRST)},
    )


if __name__ == "__main__":
    run(main)
