"""How much more does a request cost with two workers of a bridge than with one?"""

from functools import partial

from benchmarks.rig.comparison import COLUMNS, Comparison, Throughput
from benchmarks.rig.processes import LOAD_CORE, SERVER_CORE, Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic, throughput

ONE, TWO = "one worker", "two workers"

HOW = """\
wrk sends batches of one log over 64 connections; nothing is stored. Both bridges may use both cores. The load uses
them, too, so requests a second say little: the ratio is of processor time, of the workers and their parent together."""


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
    compared = Comparison(results, ONE)
    return Report(
        __doc__ or "",
        HOW,
        [Table("workers", COLUMNS, compared.rows())],
        {"workers": 1 / compared.cpu(TWO)},
    )


if __name__ == "__main__":
    run(main)
