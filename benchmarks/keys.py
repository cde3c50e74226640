"""What does one more key cost, in the key service's store and in a bridge's cache?"""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from itertools import count, cycle
from typing import TypeAlias

import psutil

from authsvc.client import Decision, Verdict
from authsvc.client.api_key import ApiKey
from authsvc.client.verdict_cache import CacheLimits, VerdictCache
from authsvc.client.verdicts import Response
from authsvc.v1 import key_service_pb2 as pb
from benchmarks.rig.comparison import Comparison, Throughput
from benchmarks.rig.processes import Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import key, unknown_key
from benchmarks.validate import COLUMNS, call

FEW, MANY = 1_000, 1_000_000
CACHED = 50_000
STRIDE = 7919
"""A prime: the whole store's keys in turn, none twice, each far from the last."""

Ask: TypeAlias = Callable[[], Awaitable[Throughput]]

HOW = """\
A client with 32 calls in flight asks key services with a thousand keys and with a million. First it asks for the same
thousand keys in turn, which each service has in its key cache. Then it asks for keys that are not there: at the large
service for all of the million in turn, each for the first time. A thousand keys are soon used up, so the small
service has a key cache with room for one key, and looks each up in its database as if for the first time. Last come
unknown keys, each a different one, which no key cache has either. Ratios are of the service's processor time for a
call. The memory of a verdict is what a process grows by when its cache takes 50,000 verdicts of a bridge, divided by
their number; the minimal entry is a dictionary's with the digest as key and a tuple of two texts."""


async def main(pace: Pace) -> Report:
    many = MANY // 10 if pace.is_quick else MANY
    async with Rig() as small, Rig() as cold, Rig() as large:
        few_server = await small.key_service(keys=FEW)
        cold_server = await cold.key_service(keys=FEW, is_forgetful=True)
        many_server = await large.key_service(keys=many)

        def ask(rig: Rig, server: Server, requests: Iterator[pb.ValidateRequest]) -> Ask:
            return partial(call, rig, pace.seconds, server, rig.stub.Validate, requests)

        common = [pb.ValidateRequest(api_key=key(number)) for number in range(FEW)]
        unknown = (pb.ValidateRequest(api_key=unknown_key(number)) for number in count())
        new = (pb.ValidateRequest(api_key=key(number * STRIDE % many)) for number in range(many))
        few_name, many_name = f"{FEW:,} keys", f"{many:,} keys"
        turns = {
            "the same thousand keys": (ask(small, few_server, cycle(common)), ask(large, many_server, cycle(common))),
            "first-time keys": (ask(cold, cold_server, cycle(common)), ask(large, many_server, new)),
            "unknown keys": (ask(small, few_server, unknown), ask(large, many_server, unknown)),
        }
        compared = {
            what: Comparison(await interleaved({few_name: few, many_name: much}, pace.rounds), few_name)
            for what, (few, much) in turns.items()
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
    targets = dict(zip(("keys_known", "keys_first", "keys_unknown"), compared.values(), strict=True))
    return Report(
        __doc__ or "",
        HOW,
        [*(Table(f"Validate of {what}", COLUMNS, each.rows()) for what, each in compared.items()), memory],
        {"verdict_bytes": verdict_bytes, **{name: 1 / each.cpu(many_name) for name, each in targets.items()}},
        {name: 1 / each.wall(many_name) for name, each in targets.items()},
    )


async def _memory(kind: str) -> float:
    output = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "benchmarks.keys", kind], check=True, capture_output=True, text=True
    )
    return float(output.stdout)


def _grow(kind: str) -> float:
    """Return the bytes that each of many entries takes."""
    resident = psutil.Process().memory_info
    cache = VerdictCache(CacheLimits(keys_max=CACHED))
    minimal: dict[bytes, tuple[str, str]] = {}
    before = resident().rss
    for number in range(CACHED):
        api_key = ApiKey.parse(key(number))
        assert api_key is not None
        project_id, key_id = f"project-{number:07}", f"key_{number:016x}"
        if kind == "minimal":
            minimal[api_key.digest] = (project_id, key_id)
        else:
            decision = Decision(Verdict.ALLOWED, project_id, key_id)
            cache.put(api_key.digest, None, Response(decision, True, 60.0, number), float(number))
    return (resident().rss - before) / CACHED


if __name__ == "__main__":
    if sys.argv[1:] in (["verdicts"], ["minimal"]):
        print(_grow(sys.argv[1]))
    else:
        run(main)
