"""Throughput: wrk drives a server as fast as it answers, on keep-alive connections."""

import asyncio
import shutil
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.rig.comparison import Throughput
from benchmarks.rig.processes import Server

_SCRIPT = Path(__file__).with_name("load.lua")


class Count(msgspec.Struct, frozen=True):
    """What wrk saw. `refused` are the answers from 400 on; `broken` are connections that failed."""

    requests: int
    seconds: float
    refused: int
    broken: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent: each key in turn, from each of the connections."""

    body: bytes
    keys: Sequence[str]
    connections: int = 32
    origin: str | None = None


def program() -> str:
    """Return wrk's path; exit, saying what to install, where there is none."""
    path = shutil.which("wrk")
    if path is None:
        sys.exit("wrk is missing: it makes the load (on Debian: apt-get install wrk)")
    return path


async def count(folder: Path, address: str, traffic: Traffic, seconds: float) -> Count:
    """Send for so many seconds; `folder` takes the files that the script reads."""
    body, keys = folder / "body", folder / "keys"
    body.write_bytes(traffic.body)
    keys.write_text("".join(f"{key}\n" for key in traffic.keys))
    process = await asyncio.create_subprocess_exec(
        program(), "--threads=1", f"--connections={traffic.connections}", f"--duration={max(1, round(seconds))}s",
        "--timeout=10s", f"--script={_SCRIPT}", f"http://{address}", "--", body, keys,
        *([] if traffic.origin is None else [traffic.origin]), stdout=PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return msgspec.json.decode(output.splitlines()[-1], type=Count)


async def throughput(
    folder: Path,
    server: Server,
    traffic: Traffic,
    seconds: float,
    *,
    refused: bool = False,
    also: Sequence[Server] = (),
) -> Throughput:
    """Measure; `also` are servers whose processor time counts besides. Fails if answers are not of the kind expected.

    Of refusals a few may be missing: the first request of a window is under the limit.
    """
    watched = (server, *also)
    before = sum(each.cpu_seconds() for each in watched)
    seen = await count(folder, server.address, traffic, seconds)
    cpu_seconds = sum(each.cpu_seconds() for each in watched) - before
    expected = seen.requests if refused else 0
    assert seen.requests > 0, seen
    assert seen.broken == 0, seen
    assert abs(seen.refused - expected) <= (seen.requests // 100 if refused else 0), seen
    return Throughput(seen.requests / seen.seconds, cpu_seconds * 1e6 / seen.requests)
