"""What does a verdict cost the key service: one a call, one a turn on a stream, and 32 a call?"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import count, cycle
from typing import Any

import grpc

from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from benchmarks.rig.comparison import Comparison, Throughput
from benchmarks.rig.processes import Server
from benchmarks.rig.report import Pace, Report, Table, interleaved, run
from benchmarks.rig.services import Rig
from benchmarks.rig.traffic import MALFORMED_KEY, key, unknown_key
from benchmarks.rig.wrk import VoidError

KEYS = 1000
BATCH = 32
IN_FLIGHT = 32
ECHO, FOUND, NEW, UNKNOWN, MALFORMED = "bare echo", "found", "found, first time asked", "unknown", "malformed"
ECHO_TURNS = "bare echo, threads taking turns"
COLUMNS = [("calls/s", ",.0f"), ("CPU µs", ",.1f"), ("ratio, wall clock", ".2f"), ("ratio, CPU", ".2f")]
NEW_A_SECOND_MAX = 30_000

HOW = """\
A client on grpc.aio keeps 32 calls in flight to the server, which has a core to itself. The bare echo is grpc.aio on
uvloop, answering with the same messages, made in advance. Found keys are a thousand in turn; unknown ones are all
different. On streams, the client has 32 of `StreamValidate` open, and asks for one key at a time on each. The key
service's threads take turns (`SCHED_BATCH`); a second echo shows what that alone is worth. The ratio that is judged
is of the server's processor time: the client costs as much as the server, so that the wall clock measures both."""


async def main(pace: Pace) -> Report:
    async with Rig() as rig:
        keys = KEYS + NEW_A_SECOND_MAX * pace.seconds * (pace.rounds + 1)
        service = await rig.key_service(keys=keys)
        echo, echo_turns = await rig.bare("grpc"), await rig.bare("grpc-turns")
        async with (
            grpc.aio.insecure_channel(echo.address) as channel,
            grpc.aio.insecure_channel(echo_turns.address) as channel_turns,
        ):
            echo_stub: Any = pb_grpc.KeyServiceStub(channel)
            echo_turns_stub: Any = pb_grpc.KeyServiceStub(channel_turns)
            ask = partial(call, rig, pace.seconds)
            found = cycle([pb.ValidateRequest(api_key=key(number)) for number in range(KEYS)])
            new = (pb.ValidateRequest(api_key=key(number)) for number in range(KEYS, keys))
            unknown = (pb.ValidateRequest(api_key=unknown_key(number)) for number in count())
            malformed = cycle([pb.ValidateRequest(api_key=MALFORMED_KEY)])
            on_streams = partial(call_on_streams, rig, pace.seconds)
            single = await interleaved(
                {
                    ECHO: lambda: ask(echo, echo_stub.Validate, found),
                    ECHO_TURNS: lambda: ask(echo_turns, echo_turns_stub.Validate, found),
                    FOUND: lambda: ask(service, rig.stub.Validate, found),
                    NEW: lambda: ask(service, rig.stub.Validate, new),
                    UNKNOWN: lambda: ask(service, rig.stub.Validate, unknown),
                    MALFORMED: lambda: ask(service, rig.stub.Validate, malformed),
                },
                pace.rounds,
            )
            stream = await interleaved(
                {
                    ECHO: lambda: on_streams(echo, echo_stub, found),
                    FOUND: lambda: on_streams(service, rig.stub, found),
                    NEW: lambda: on_streams(service, rig.stub, new),
                    UNKNOWN: lambda: on_streams(service, rig.stub, unknown),
                },
                pace.rounds,
            )
            found_batches, unknown_batches = _batches(found), _batches(unknown)
            batch = await interleaved(
                {
                    ECHO: lambda: ask(echo, echo_stub.BatchValidate, found_batches),
                    FOUND: lambda: ask(service, rig.stub.BatchValidate, found_batches),
                    UNKNOWN: lambda: ask(service, rig.stub.BatchValidate, unknown_batches),
                },
                pace.rounds,
            )
    one, turn, many = Comparison(single, ECHO), Comparison(stream, ECHO), Comparison(batch, ECHO)
    return Report(
        __doc__ or "",
        HOW,
        [
            Table("Validate", COLUMNS, one.rows()),
            Table("StreamValidate, one a turn", [("turns/s", ",.0f"), *COLUMNS[1:]], turn.rows()),
            Table(f"BatchValidate of {BATCH}", COLUMNS, many.rows()),
        ],
        {"validate": one.cpu(FOUND), "batch_validate": many.cpu(FOUND)},
        {"validate": one.wall(FOUND), "batch_validate": many.wall(FOUND)},
    )


def _batches(requests: Iterator[pb.ValidateRequest]) -> Iterator[pb.BatchValidateRequest]:
    while True:
        yield pb.BatchValidateRequest(requests=[next(requests) for _ in range(BATCH)])


async def call(rig: Rig, seconds: float, server: Server, method: Any, requests: Iterator[Any]) -> Throughput:
    """Keep calls in flight for so many seconds; count them, and what they cost the server.

    Raises VoidError when there are fewer requests than that takes.
    """

    async def ask(request: Any) -> None:
        await method(request, metadata=rig.metadata)

    return await _count(seconds, server, [ask] * IN_FLIGHT, requests)


async def call_on_streams(
    rig: Rig, seconds: float, server: Server, stub: Any, requests: Iterator[pb.ValidateRequest]
) -> Throughput:
    """Do the same with a stream in place of each call in flight."""
    streams = [stub.StreamValidate(metadata=rig.metadata) for _ in range(IN_FLIGHT)]

    async def ask(stream: Any, request: pb.ValidateRequest) -> None:
        await stream.write(pb.StreamValidateRequest(requests=[request]))
        if not isinstance(await stream.read(), pb.StreamValidateResponse):
            raise VoidError("a stream ended without an answer")

    try:
        return await _count(seconds, server, [partial(ask, stream) for stream in streams], requests)
    finally:
        for stream in streams:
            stream.cancel()


async def _count(
    seconds: float, server: Server, askers: Sequence[Callable[[Any], Awaitable[None]]], requests: Iterator[Any]
) -> Throughput:
    """Have each ask one request after the other."""
    calls = 0
    cpu, started = server.cpu_seconds(), time.perf_counter()

    async def ask_on(ask: Callable[[Any], Awaitable[None]]) -> None:
        nonlocal calls
        while time.perf_counter() < started + seconds:
            request = next(requests, None)
            if request is None:
                raise VoidError(f"after {calls} calls no key was left that was not sent before")
            await ask(request)
            calls += 1

    await asyncio.gather(*map(ask_on, askers))
    return Throughput(calls / (time.perf_counter() - started), (server.cpu_seconds() - cpu) * 1e6 / calls)


if __name__ == "__main__":
    run(main)
