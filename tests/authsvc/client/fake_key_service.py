"""A key service that says what a test tells it to: the fake at the client's boundary, behind a real gRPC server."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeAlias

import grpc
import trustme
from google.protobuf.duration_pb2 import Duration

from authsvc.client.api_key import ApiKey
from authsvc.v1 import key_service_pb2 as pb2

Context: TypeAlias = "grpc.aio.ServicerContext[pb2.BatchValidateRequest, pb2.BatchValidateResponse]"

BRIDGE_TOKEN = "the-token-of-all-callers-of-the-fake"


def allowed(*, any_origin: bool = True, ttl_seconds: int = 60, revision: int = 1) -> pb2.ValidateResponse:
    return pb2.ValidateResponse(
        verdict=pb2.VERDICT_ALLOWED,
        project_id="demo",
        key_id="key_0123456789abcdef",
        any_origin=any_origin,
        cache_ttl=Duration(seconds=ttl_seconds),
        revision=revision,
    )


def refused(ttl_seconds: int = 60) -> pb2.ValidateResponse:
    response = allowed(any_origin=False, ttl_seconds=ttl_seconds)
    response.verdict = pb2.VERDICT_ORIGIN_NOT_ALLOWED
    return response


def invalid(ttl_seconds: int = 5, revision: int = 1) -> pb2.ValidateResponse:
    return pb2.ValidateResponse(
        verdict=pb2.VERDICT_INVALID_KEY, any_origin=True, cache_ttl=Duration(seconds=ttl_seconds), revision=revision
    )


@dataclass(frozen=True)
class Call:
    """A key that was asked about."""

    api_key: str
    origin: str | None
    authorization: str


class Stream:
    """A Watch that arrived: what its holder said, and what a test says to it."""

    def __init__(self, authorization: str, context: Any) -> None:
        self.authorization = authorization
        self.requests: list[pb2.WatchRequest] = []
        self.is_over = asyncio.Event()
        """The holder has ended it, or the connection is gone."""
        self._context = context
        self._arrived = asyncio.Event()
        self._writing = asyncio.Lock()
        self._end: asyncio.Future[grpc.StatusCode] = asyncio.get_running_loop().create_future()

    async def request(self, condition: Callable[[pb2.WatchRequest], bool]) -> pb2.WatchRequest:
        """Return the first request of which this is so, once there is one."""
        while True:
            arrived = self._arrived
            for request in self.requests:
                if condition(request):
                    return request
            await arrived.wait()

    async def acknowledged(self, revision: int) -> pb2.WatchRequest:
        """Return the first request that acknowledges the revision."""
        return await self.request(lambda request: request.applied_revision >= revision)

    async def change(self, revision: int, *keys: ApiKey) -> None:
        digests = [key.digest for key in keys]
        await self._send(pb2.WatchResponse(change=pb2.ChangeEvent(revision=revision, key_digests=digests)))

    async def lease(self, sequence: int, seconds: float, revision: int) -> None:
        duration = Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))
        lease = pb2.LeaseEvent(sequence=sequence, duration=duration, revision=revision)
        await self._send(pb2.WatchResponse(lease=lease))

    async def reset(self, epoch: str, revision: int) -> None:
        await self._send(pb2.WatchResponse(reset=pb2.ResetEvent(epoch=epoch, revision=revision)))

    async def unknown(self) -> None:
        await self._send(pb2.WatchResponse())

    def end(self, status: grpc.StatusCode = grpc.StatusCode.OK) -> None:
        if not self._end.done():
            self._end.set_result(status)

    async def _send(self, response: pb2.WatchResponse) -> None:
        async with self._writing:
            await self._context.write(response)

    async def run(self, requests: AsyncIterator[pb2.WatchRequest], answer: Callable[..., Any]) -> grpc.StatusCode:
        """Take requests until either side ends the stream; return the status to end it with."""

        async def read() -> None:
            async for request in requests:
                self.requests.append(request)
                arrived, self._arrived = self._arrived, asyncio.Event()
                arrived.set()
                await answer(self, request)

        reading = asyncio.create_task(read())
        waiting: list[asyncio.Future[Any]] = [reading, self._end]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            return self._end.result() if self._end.done() else grpc.StatusCode.OK
        finally:
            self.is_over.set()
            async with self._writing:  # gRPC takes no status while a message is under way
                reading.cancel()
            await asyncio.wait([reading])


@dataclass
class FakeKeyService:
    """Answers every call as `answer` or `status` says, once `gate` is open.

    Every keep-alive gets a lease of `lease_seconds`, after a reset if it is of another epoch; of 0: a test answers.
    """

    token: str = BRIDGE_TOKEN
    answer: pb2.ValidateResponse = field(default_factory=allowed)
    next_answers: list[pb2.ValidateResponse] = field(default_factory=list)
    """Given before `answer`, one to a key."""
    answers_of_keys: dict[str, pb2.ValidateResponse] = field(default_factory=dict)
    """Given before either."""
    answers_missing: int = 0
    status: grpc.StatusCode | None = None
    calls: list[Call] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    """How many keys each call, or each turn of a stream, asked about."""
    ways: list[str] = field(default_factory=list)
    """Whether each batch came in a `call` or on a `stream`."""
    peers: list[str] = field(default_factory=list)
    """Which connection each batch came over."""
    streams_refused: grpc.StatusCode | None = grpc.StatusCode.UNIMPLEMENTED
    """How a StreamValidate ends at once; None: it is served."""
    stream_end: grpc.StatusCode | None = None
    """How it ends at a batch, in place of an answer."""
    stream_bytes: bytes | None = None
    """What it answers with in place of a message."""
    stream_gate: asyncio.Event = field(default_factory=asyncio.Event)
    """It answers once this is open, too."""
    batch_streams: int = 0
    """How many of them were opened."""
    batch_streams_open: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    epoch: str = "epoch-1"
    revision: int = 1
    lease_seconds: float = 600.0
    takes_release: bool = True
    streams: list[Stream] = field(default_factory=list)
    _batch_streams_end: asyncio.Event = field(default_factory=asyncio.Event)
    _batch_streams_status: grpc.StatusCode = grpc.StatusCode.OK
    _arrivals: defaultdict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))
    _openings: defaultdict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    def __post_init__(self) -> None:
        self.gate.set()
        self.stream_gate.set()

    async def batch_validate(self, request: pb2.BatchValidateRequest, context: "Context") -> pb2.BatchValidateResponse:
        await self._arrive("call", request.requests, context)
        await self._check(context)
        return pb2.BatchValidateResponse(responses=self._answers(request.requests))

    async def stream_validate(self, messages: AsyncIterator[bytes], context: Any) -> None:
        self.batch_streams += 1
        if self.streams_refused is not None:
            await context.abort(self.streams_refused, "the test says so")
        await self._check(context)
        self.batch_streams_open += 1
        writing = asyncio.Lock()
        answering = asyncio.create_task(self._answer_batches(messages, context, writing))
        ending = asyncio.create_task(self._batch_streams_end.wait())
        waiting: list[asyncio.Future[Any]] = [answering, ending]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            end = await answering if answering.done() else self._batch_streams_status
        finally:
            self.batch_streams_open -= 1
            async with writing:  # gRPC takes no status while a message is under way
                for task in waiting:
                    task.cancel()
            await asyncio.wait(waiting)
        if end is not grpc.StatusCode.OK:
            await context.abort(end, "the test says so")

    async def _answer_batches(
        self, messages: AsyncIterator[bytes], context: Any, writing: asyncio.Lock
    ) -> grpc.StatusCode:
        async for message in messages:
            request = pb2.StreamValidateRequest.FromString(message)
            await self._arrive("stream", request.requests, context)
            await self.stream_gate.wait()
            if self.stream_end is not None:
                return self.stream_end
            response = pb2.StreamValidateResponse(responses=self._answers(request.requests))
            async with writing:
                await context.write(response.SerializeToString() if self.stream_bytes is None else self.stream_bytes)
        return grpc.StatusCode.OK

    def end_batch_streams(self, status: grpc.StatusCode) -> None:
        """End those that are open now."""
        self._batch_streams_status = status
        self._batch_streams_end.set()
        self._batch_streams_end = asyncio.Event()

    async def _arrive(self, way: str, requests: Iterable[pb2.ValidateRequest], context: Any) -> None:
        """Take note of a batch, and wait until the gate is open."""
        batch = [
            Call(entry.api_key, entry.origin if entry.HasField("origin") else None, _authorization(context))
            for entry in requests
        ]
        self.ways.append(way)
        self.batches.append(len(batch))
        self.peers.append(context.peer())
        for call in batch:
            self.calls.append(call)
            self._arrivals[len(self.calls)].set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _check(self, context: Any) -> None:
        if _authorization(context) != f"Bearer {self.token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no or wrong token")
        if self.status is not None:
            await context.abort(self.status, "the test says so")

    def _answers(self, requests: Iterable[pb2.ValidateRequest]) -> list[pb2.ValidateResponse]:
        answered = list(requests)
        return [self._answer(entry.api_key) for entry in answered[: len(answered) - self.answers_missing]]

    def _answer(self, api_key: str) -> pb2.ValidateResponse:
        if api_key in self.answers_of_keys:
            return self.answers_of_keys[api_key]
        return self.next_answers.pop(0) if self.next_answers else self.answer

    async def arrived(self, count: int) -> None:
        """Return once so many keys have been asked about."""
        await self._arrivals[count].wait()

    async def watch(self, requests: AsyncIterator[pb2.WatchRequest], context: Any) -> None:
        authorization = _authorization(context)
        stream = Stream(authorization, context)
        self.streams.append(stream)
        self._openings[len(self.streams)].set()
        if authorization != f"Bearer {self.token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no or wrong token")
        status = await stream.run(requests, self._renew)
        if status is not grpc.StatusCode.OK:
            await context.abort(status, "the test says so")

    async def _renew(self, stream: Stream, request: pb2.WatchRequest) -> None:
        if request.release:
            if self.takes_release:
                stream.end()
        elif self.lease_seconds:
            if request.epoch != self.epoch:
                await stream.reset(self.epoch, self.revision)
            await stream.lease(request.sequence, self.lease_seconds, self.revision)

    async def stream(self, number: int = 1) -> Stream:
        """Return the first, second … stream, once it is there."""
        await self._openings[number].wait()
        return self.streams[number - 1]

    async def mutate(self, *keys: ApiKey) -> None:
        """Commit a change that invalidates verdicts about keys; return when the last stream's holder acknowledges."""
        self.revision += 1
        await self.streams[-1].change(self.revision, *keys)
        await self.streams[-1].acknowledged(self.revision)


def _authorization(context: Any) -> str:
    return str(dict(context.invocation_metadata() or ()).get("authorization", ""))


def serve(
    service: FakeKeyService, address: str, credentials: grpc.ServerCredentials | None = None
) -> tuple[grpc.aio.Server, int]:
    """Return a server, yet to be started, and its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        service.batch_validate,
        request_deserializer=pb2.BatchValidateRequest.FromString,
        response_serializer=pb2.BatchValidateResponse.SerializeToString,
    )
    watch_handler = grpc.stream_stream_rpc_method_handler(
        service.watch,
        request_deserializer=pb2.WatchRequest.FromString,
        response_serializer=pb2.WatchResponse.SerializeToString,
    )
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "BatchValidate": handler,
        "StreamValidate": grpc.stream_stream_rpc_method_handler(service.stream_validate),
        "Watch": watch_handler,
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("authsvc.v1.KeyService", handlers)])
    if credentials is None:
        return server, server.add_insecure_port(address)
    return server, server.add_secure_port(address, credentials)


def server_credentials(
    authority: trustme.CA,
    *names: str,
    client_ca: trustme.CA | None = None,
    not_after: datetime | None = None,
) -> grpc.ServerCredentials:
    """Return a server's credentials for the names; with a client CA, clients must show a certificate of its."""
    leaf = authority.issue_cert(*(names or ("localhost", "127.0.0.1")), not_after=not_after)
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    return grpc.ssl_server_credentials(
        [(leaf.private_key_pem.bytes(), chain)],
        root_certificates=client_ca.cert_pem.bytes() if client_ca else None,
        require_client_auth=client_ca is not None,
    )
