"""What do two workers of a bridge cost a request more than one?"""

from functools import partial

import msgspec

from benchmarks.rig.comparison import COLUMNS, Comparison, Throughput
from benchmarks.rig.processes import LOAD_CORE, SERVER_CORE, Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import body, key
from benchmarks.rig.wrk import Traffic, throughput
from httpbridge.config import Config

ONE, TWO = "one worker", "two workers"
VARIABLE = "HTTPBRIDGE_WORKERS"

HOW = """\
wrk sends batches of one log over 64 connections; nothing is stored. Both bridges may use both cores, which the load
uses, too, so that requests a second say little: the ratio is of processor time, of the workers and their parent
together."""


async def main(pace: Pace) -> Report:
    if VARIABLE.removeprefix("HTTPBRIDGE_").lower() not in {field.name for field in msgspec.structs.fields(Config)}:
        rows: list[tuple[str, list[float | None]]] = [(name, [None] * len(COLUMNS)) for name in (ONE, TWO)]
        measured = None
    else:
        async with Rig() as rig:
            await rig.key_service(keys=1)
            cores = (SERVER_CORE, LOAD_CORE)
            bridges = {
                name: await rig.bridge("null", cores, **{VARIABLE: str(workers)})
                for workers, name in ((1, ONE), (2, TWO))
            }

            async def send(server: Server) -> Throughput:
                return await throughput(rig.folder, server, Traffic(body(1), [key(0)], connections=64), pace.seconds)

            results = await interleaved({name: partial(send, each) for name, each in bridges.items()}, pace.rounds)
        rows = Comparison(results, ONE).rows()
        measured = 1 / Comparison(results, ONE).cpu(TWO)
    return Report(
        __doc__ or "",
        HOW,
        [Table("workers", COLUMNS, rows)],
        {"workers": measured},
    )


if __name__ == "__main__":
    run(main)
