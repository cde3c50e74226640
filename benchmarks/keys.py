"""What does a key more cost: in the store of the key service, and in the cache of a bridge?"""

import asyncio
import subprocess
import sys
from functools import partial
from itertools import count, cycle

import psutil

from authsvc.client import Decision, Verdict
from authsvc.client.raw_key import RawKey
from authsvc.client.verdict_cache import VerdictCache
from authsvc.client.verdicts import Answer
from benchmarks.rig.comparison import Comparison
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import key, unknown_key
from benchmarks.validate import COLUMNS, call
from protos.authsvc.v1 import key_service_pb2 as pb

FEW, MANY = 1_000, 1_000_000
CACHED = 50_000
STRIDE = 7919
"""A prime: keys of the whole store in turn, none twice."""

HOW = """\
Two key services, with a thousand keys and with a million, are asked by a client with 32 calls in flight: for the same
thousand keys in turn, and for unknown keys, each another, so that the store is looked into. The last row asks for all
of the million in turn, which nothing can keep at hand. Ratios are of the service's processor time a call. The memory
of a verdict is what a process grows by when its cache takes 50,000 verdicts of a bridge, divided by their number; the
minimal entry is a dictionary's with the digest as key and a tuple of two texts."""


async def main(pace: Pace) -> Report:
    many = MANY // 10 if pace.is_quick else MANY
    async with Rig() as small, Rig() as large:
        services = {small: await small.key_service(keys=FEW), large: await large.key_service(keys=many)}
        common = [pb.ValidateRequest(api_key=key(number)) for number in range(FEW)]
        unknown = (pb.ValidateRequest(api_key=unknown_key(number)) for number in count())
        spread = (pb.ValidateRequest(api_key=key(number * STRIDE % many)) for number in count())
        known, strange = {}, {}
        for rig, server in services.items():
            ask = partial(call, rig, pace.seconds, server, rig.stub.Validate)
            size = f"{FEW if rig is small else many:,} keys"
            known[size] = partial(ask, cycle(common))
            strange[size] = partial(ask, unknown)
        known["all of them in turn"] = partial(call, large, pace.seconds, services[large], large.stub.Validate, spread)
        results_known = await interleaved(known, pace.rounds)
        results_strange = await interleaved(strange, pace.rounds)
    baseline, measured, _ = known
    compared = {
        "the same thousand": Comparison(results_known, baseline),
        "unknown": Comparison(results_strange, baseline),
    }
    verdict_bytes, minimal_bytes = await _memory("verdicts"), await _memory("minimal")
    memory = Table(
        "memory of one cached verdict",
        [("bytes", ",.0f"), ("ratio", ".2f")],
        [
            ("a minimal dictionary entry", [minimal_bytes, 1.0]),
            ("a verdict in the cache", [verdict_bytes, verdict_bytes / minimal_bytes]),
        ],
    )
    return Report(
        __doc__ or "",
        HOW,
        [*(Table(f"Validate of {what} keys", COLUMNS, each.rows()) for what, each in compared.items()), memory],
        {
            "keys_known": 1 / compared["the same thousand"].cpu(measured),
            "keys_unknown": 1 / compared["unknown"].cpu(measured),
            "verdict_bytes": verdict_bytes,
        },
    )


async def _memory(kind: str) -> float:
    output = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "benchmarks.keys", kind], check=True, capture_output=True, text=True
    )
    return float(output.stdout)


def _grow(kind: str) -> float:
    """Return the bytes that each of many entries takes."""
    resident = psutil.Process().memory_info
    cache = VerdictCache(keys_max=CACHED)
    minimal: dict[bytes, tuple[str, str]] = {}
    before = resident().rss
    for number in range(CACHED):
        raw_key = RawKey.parse(key(number))
        assert raw_key is not None
        project_id, key_id = f"project-{number:07}", f"key_{number:016x}"
        if kind == "minimal":
            minimal[raw_key.digest] = (project_id, key_id)
        else:
            decision = Decision(Verdict.ALLOWED, project_id, key_id)
            cache.put(raw_key.digest, None, Answer(decision, True, 60.0, number), float(number))
    return (resident().rss - before) / CACHED


if __name__ == "__main__":
    if sys.argv[1:] in (["verdicts"], ["minimal"]):
        print(_grow(sys.argv[1]))
    else:
        run(main)
