"""Throughput: wrk drives a server as fast as it answers, on keep-alive connections."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.rig.comparison import Throughput
from benchmarks.rig.probe import is_answered
from benchmarks.rig.processes import Server, output_of

_SCRIPT = Path(__file__).with_name("load.lua")
_REFUSED_FROM = 400
_MINUTES_MAX = 2
"""That a load reaches into."""


class VoidError(Exception):
    """What was measured is not what was asked; the text says why."""


class Count(msgspec.Struct, frozen=True):
    """What wrk saw. `refused` are the answers from 400 on; `broken` are connections that failed."""

    requests: int
    seconds: float
    refused: int
    broken: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent: each key in turn, from each of the connections; and how it is to be answered."""

    body: bytes
    """Or several in turn, one a line."""
    keys: Sequence[str]
    connections: int = 32
    origin: str | None = None
    status: int = 200
    served_a_minute: int = 0
    """Of requests to be refused: so many are served first, in each minute."""
    is_each_key_new: bool = False
    """Whether no key may be sent twice."""
    gives_way: bool = False
    """Whether wrk leaves its core to whatever else wants it."""


def program() -> str:
    """Return wrk's path; exit, saying what to install, where there is none."""
    path = shutil.which("wrk")
    if path is None:
        sys.exit("wrk is missing: it makes the load (on Debian: apt-get install wrk)")
    return path


async def count(directory: Path, address: str, traffic: Traffic, seconds: float) -> Count:
    """Send for so many seconds; `directory` takes the files that the script reads.

    Raises VoidError when the answers were not those that the traffic is to have, or when its keys did not last.
    """
    body, keys = directory / "body", directory / "keys"
    body.write_bytes(traffic.body)
    keys.write_text("".join(f"{key}\n" for key in traffic.keys))
    output = await output_of(
        *(("nice", "-n", "19") if traffic.gives_way else ()),
        program(), "--threads=1", f"--connections={traffic.connections}", f"--duration={max(1, round(seconds))}s",
        "--timeout=10s", f"--script={_SCRIPT}", f"http://{address}", "--", body, keys,
        *([] if traffic.origin is None else [traffic.origin]),
    )  # fmt: skip
    seen = msgspec.json.decode(output.splitlines()[-1], type=Count)
    if (reason := flaw(traffic, seen)) is not None:
        raise VoidError(reason)
    return seen


def flaw(traffic: Traffic, seen: Count) -> str | None:
    """Return why what wrk saw says nothing about this traffic, or None."""
    if seen.requests == 0 or seen.broken:
        return f"{seen.requests} requests were answered, {seen.broken} connections failed"
    most = 0 if traffic.status < _REFUSED_FROM else seen.requests
    least = max(0, most - _MINUTES_MAX * traffic.served_a_minute)
    if not least <= seen.refused <= most:
        return f"of {seen.requests} requests, all to be answered with {traffic.status}, {seen.refused} were refused"
    sent = seen.requests + traffic.connections  # those under way at the end are not counted as answered
    if traffic.is_each_key_new and sent >= len(traffic.keys):  # one more is for the probes
        return f"{sent} requests with {len(traffic.keys)} keys: some were sent twice; give the question more keys"
    return None


async def probe(address: str, traffic: Traffic) -> None:
    """Raise VoidError unless refusals are of the kind that is meant: wrk counts any status from 400 on.

    The last key is used. One that is to be over its limit is, afterwards.
    """
    if traffic.status < _REFUSED_FROM:
        return
    tries = _MINUTES_MAX * traffic.served_a_minute + 1
    api_key = traffic.keys[-1]
    if not await is_answered(address, traffic.status, api_key, traffic.body, traffic.origin, tries=tries):
        raise VoidError(f"a request was not answered with {traffic.status}, as all are to be")


async def throughput(
    directory: Path, server: Server, traffic: Traffic, seconds: float, *, also: Sequence[Server] = ()
) -> Throughput:
    """Measure, as `count` does, and probe before and after; `also` are servers whose processor time counts besides."""
    await probe(server.address, traffic)
    watched = (server, *also)
    before = sum(each.cpu_seconds() for each in watched)
    seen = await count(directory, server.address, traffic, seconds)
    cpu_seconds = sum(each.cpu_seconds() for each in watched) - before
    await probe(server.address, traffic)
    return Throughput(seen.requests / seen.seconds, cpu_seconds * 1e6 / seen.requests)
