"""The baselines: servers that do the least that could be called the same work, on uvloop.

Usage: python -m benchmarks.rig.bare aiohttp | grpc | grpc-turns | aiohttp-grpc ADDRESS [TOKEN]

`aiohttp` reads the body and answers JSON; `grpc` answers Validate, BatchValidate and StreamValidate with the same
messages as the key service, made ahead, and `grpc-turns` does with its threads taking turns as well; `aiohttp-grpc` is
the first with one Validate call before each answer, to the second at ADDRESS or to a key service, which wants a token.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from typing import Any, cast

import grpc
import uvloop
from aiohttp import web
from google.protobuf.duration_pb2 import Duration

from authsvc.client.channel import authorization
from authsvc.runtime.environment import Secret
from authsvc.runtime.process import use_batch_scheduling
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import key_service_pb2_grpc as pb_grpc
from benchmarks.rig.traffic import INGEST, key


def ingest_application(validate: Any = None) -> web.Application:
    """Return aiohttp's own server for POST /ingest/logs; `validate` is a stub's method to be called first."""

    async def ingest(request: web.Request) -> web.Response:
        if validate is not None:
            await validate(pb.ValidateRequest(api_key=request.headers["Authorization"].removeprefix("Bearer ")))
        await request.read()
        return web.json_response({"ok": True, "count": 1})

    application = web.Application()
    application.router.add_post(INGEST, ingest)
    return application


class Echo:
    """Answers at once, with as many verdicts as were asked for; the other methods are not called."""

    Issue = Revoke = SetOrigins = Watch = None

    def __init__(self) -> None:
        self._batches: dict[int, pb.BatchValidateResponse] = {}
        """By size, made when one is asked for first."""
        self._turns: dict[int, pb.StreamValidateResponse] = {}
        """Likewise."""
        ttl = Duration()
        ttl.FromTimedelta(timedelta(seconds=60))
        self._answer = pb.ValidateResponse(
            verdict=pb.VERDICT_ALLOWED,
            project_id="project-0",
            key_id="key_0123456789abcdef",
            any_origin=True,
            cache_ttl=ttl,
            revision=1,
        )

    async def Validate(self, request: pb.ValidateRequest, context: Any) -> pb.ValidateResponse:  # noqa: ARG002, N802
        return self._answer

    async def BatchValidate(  # noqa: N802
        self,
        request: pb.BatchValidateRequest,
        context: Any,  # noqa: ARG002
    ) -> pb.BatchValidateResponse:
        size = len(request.requests)
        if size not in self._batches:
            self._batches[size] = pb.BatchValidateResponse(responses=[self._answer] * size)
        return self._batches[size]

    async def StreamValidate(self, requests: AsyncIterator[pb.StreamValidateRequest], context: Any) -> None:  # noqa: N802
        async for request in requests:
            size = len(request.requests)
            if size not in self._turns:
                self._turns[size] = pb.StreamValidateResponse(responses=[self._answer] * size)
            await context.write(self._turns[size])


async def _serve_http(validate: Any = None) -> AsyncIterator[str]:
    runner = web.AppRunner(ingest_application(validate), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    yield f"{host}:{port}"
    await runner.cleanup()


async def _serve_grpc() -> AsyncIterator[str]:
    server = grpc.aio.server()
    pb_grpc.add_KeyServiceServicer_to_server(cast(Any, Echo()), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def _serve_both(address: str, token: str = "") -> AsyncIterator[str]:
    metadata = authorization(Secret(token)) if token else None
    async with grpc.aio.insecure_channel(address) as channel:
        validate = partial(pb_grpc.KeyServiceStub(channel).Validate, metadata=metadata)
        await validate(pb.ValidateRequest(api_key=key(0)))
        async for own in _serve_http(validate):
            yield own


async def main(name: str, *addresses: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    servers: dict[str, Callable[..., AsyncIterator[str]]] = {
        "aiohttp": _serve_http,
        "grpc": _serve_grpc,
        "grpc-turns": _serve_grpc,
        "aiohttp-grpc": _serve_both,
    }
    async for address in servers[name](*addresses):
        print(f"{name} listening address={address}", flush=True)
        await stop.wait()


if __name__ == "__main__":
    if sys.argv[1] == "grpc-turns":
        use_batch_scheduling()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(*sys.argv[1:]))
