"""Calls of Validate at a fixed rate, as one more caller of the key service makes them. For `flood`."""

import asyncio
import time

from authsvc.v1 import key_service_pb2 as pb
from benchmarks.rig import open_loop
from benchmarks.rig.open_loop import Latencies
from benchmarks.rig.services import Rig


async def measure(rig: Rig, api_key: str, *, per_second: float, seconds: float) -> Latencies:
    """Call with plain grpc.aio; each latency counts from when the call was due. Fails where the key is not admitted."""
    request = pb.ValidateRequest(api_key=api_key)
    clock = time.perf_counter  # the event loop's has whole milliseconds
    started = clock()

    async def call(due: float) -> float:
        await asyncio.sleep(due - clock())
        answer = await rig.stub.Validate(request, metadata=rig.metadata)
        assert answer.verdict == pb.VERDICT_ALLOWED, answer
        return clock() - due

    total = round(per_second * seconds)
    latencies = await asyncio.gather(*(call(started + number / per_second) for number in range(total)))
    return open_loop.summary(list(latencies), per_second)
