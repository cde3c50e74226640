"""How long a revoked key lives, and what watching costs.

1. From the call of Revoke to its return, and to the start of the last request that was accepted with the old key, while
   a bridge is under load, with 1, 10 and 100 streams (the bridge's, and holders that only watch). Baseline: Revoke with
   nobody watching, in the same run.
2. Ingest throughput of the bridge while ten changes a second are made in another project, as a ratio to the throughput
   without, in interleaved rounds.

Real processes on loopback, SQLite. Where the machine has two cores or more, the services run on the first and the load
on the second.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc

from authsvc.client.channel import TokenFile, authorization
from benchmarks.load import Load
from benchmarks.processes import pin, start, stop
from protos.authsvc.v1 import key_service_pb2 as pb
from protos.authsvc.v1 import key_service_pb2_grpc as pb_grpc

ROUNDS = 30
SECONDS_A_ROUND = 2.0
THROUGHPUT_ROUNDS = 5
CONNECTIONS = 8


class Bench:
    """Both services, and an admin's stub."""

    def __init__(self, stack: AsyncExitStack, state: Path) -> None:
        self.stack = stack
        self.state = state
        self.environ = {name: value for name, value in os.environ.items() if "AUTHSVC" not in name} | {
            "AUTHSVC_STATE_DIR": str(state),
            "HTTPBRIDGE_STATE_DIR": str(state),
            "AUTHSVC_LISTEN": "127.0.0.1:0",
            "HTTPBRIDGE_LISTEN": "127.0.0.1:0",
            "HTTPBRIDGE_RATE_LIMIT_PER_MINUTE": "1000000000",
        }
        self.keys: Any = None
        self.metadata: Any = None
        self.service = ""
        self.bridge = ("", 0)

    async def start_service(self) -> None:
        process, self.service = await start("authsvc", self.environ, core=0)
        self.stack.push_async_callback(stop, process)
        self.environ["HTTPBRIDGE_KEY_SERVICE"] = self.service
        self.metadata = authorization(TokenFile(self.state / "admin-token").read())
        channel = await self.stack.enter_async_context(grpc.aio.insecure_channel(self.service))
        self.keys = pb_grpc.KeyServiceStub(channel)

    async def start_bridge(self) -> None:
        process, address = await start("httpbridge", self.environ, core=0)
        self.stack.push_async_callback(stop, process)
        host, _, port = address.rpartition(":")
        self.bridge = (host, int(port))

    async def start_holders(self, count: int) -> None:
        if count == 0:
            return
        command = ["-m", "benchmarks.holders", self.service, str(self.state / "bridge-token"), str(count)]
        process = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=PIPE, stdout=PIPE)
        self.stack.push_async_callback(stop, process)
        assert process.stdout is not None
        await process.stdout.readline()

    async def issue(self, project_id: str) -> str:
        answer = await self.keys.Issue(pb.IssueRequest(project_id=project_id), metadata=self.metadata)
        return str(answer.api_key)

    async def revoke(self, project_id: str) -> Any:
        return await self.keys.Revoke(pb.RevokeRequest(project_id=project_id), metadata=self.metadata)


async def latencies(bench: Bench) -> tuple[list[float], list[float]]:
    """Return, in milliseconds from the call of each Revoke, its return and the start of the last accepted request."""
    returned, last_accepted = [], []
    for number in range(ROUNDS):
        project = f"round-{os.urandom(4).hex()}-{number}"
        key = await bench.issue(project)
        load = Load(bench.bridge, lambda key=key: key)  # type: ignore[misc]
        running = asyncio.create_task(load.run(CONNECTIONS))
        while not any(status == 200 for _, status in load.outcomes):
            await asyncio.sleep(0.005)
        called = time.time()
        await bench.revoke(project)
        returned.append((time.time() - called) * 1000)
        while load.outcomes[-1][1] != 401:
            await asyncio.sleep(0.005)
        load.stopped = True
        await running
        last = max(started for started, status in load.outcomes if status == 200)
        last_accepted.append(max(0.0, last - called) * 1000)
    return returned, last_accepted


async def throughput(bench: Bench, key: str, changes_per_second: int) -> float:
    load = Load(bench.bridge, lambda: key)
    running = asyncio.create_task(load.run(CONNECTIONS))
    give_up = time.monotonic() + SECONDS_A_ROUND
    while (left := give_up - time.monotonic()) > 0:
        if changes_per_second:
            await bench.revoke("elsewhere")
            await asyncio.sleep(min(left, 1 / changes_per_second))
        else:
            await asyncio.sleep(left)
    load.stopped = True
    await running
    return len(load.outcomes) / SECONDS_A_ROUND


def row(name: str, values: list[float], baseline: float) -> str:
    ordered = sorted(values)
    middle, high = statistics.median(ordered), ordered[int(len(ordered) * 0.9)]
    return f"{name:<44} {middle:8.1f} {high:8.1f} {ordered[-1]:8.1f}   {middle / baseline:6.1f}"


async def main() -> None:
    pin(0, 1)
    async with AsyncExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(stack, state)
        await bench.start_service()
        await bench.issue("alone")
        alone = []
        for _ in range(ROUNDS):
            called = time.time()
            await bench.revoke("alone")
            alone.append((time.time() - called) * 1000)
        baseline = statistics.median(alone)
        print(f"\n{'milliseconds from the call of Revoke to':<44} {'p50':>8} {'p90':>8} {'max':>8}   {'ratio':>6}")
        print(row("its return, nobody watching (baseline)", alone, baseline))
        await bench.start_bridge()
        streams = 1
        for target in (1, 10, 100):
            await bench.start_holders(target - streams)
            streams = target
            returned, last_accepted = await latencies(bench)
            print(row(f"its return, {target} streams", returned, baseline))
            print(row(f"the last accepted request, {target} streams", last_accepted, baseline))
    async with AsyncExitStack() as stack:
        state = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(stack, state)
        await bench.start_service()
        await bench.start_bridge()
        key = await bench.issue("loaded")
        await bench.issue("elsewhere")
        quiet, busy = [], []
        for _ in range(THROUGHPUT_ROUNDS):
            quiet.append(await throughput(bench, key, 0))
            busy.append(await throughput(bench, key, 10))
        ratio = statistics.median(busy) / statistics.median(quiet)
        print(f"\n{'ingest requests a second, one bridge':<44} {'median':>8}   {'ratio':>6}")
        print(f"{'no changes (baseline)':<44} {statistics.median(quiet):8.0f}   {1:6.2f}")
        print(f"{'ten changes a second elsewhere':<44} {statistics.median(busy):8.0f}   {ratio:6.2f}")


if __name__ == "__main__":
    asyncio.run(main())
