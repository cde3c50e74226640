"""A key service that says what a test tells it to: the fake at the client's boundary, behind a real gRPC server."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

import grpc
import trustme
from google.protobuf.duration_pb2 import Duration

from protos.authsvc.v1 import key_service_pb2 as pb2

Context: TypeAlias = "grpc.aio.ServicerContext[pb2.ValidateRequest, pb2.ValidateResponse]"


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


def invalid(ttl_seconds: int = 5) -> pb2.ValidateResponse:
    return pb2.ValidateResponse(
        verdict=pb2.VERDICT_INVALID_KEY, any_origin=True, cache_ttl=Duration(seconds=ttl_seconds)
    )


@dataclass(frozen=True)
class Call:
    """A Validate that arrived."""

    api_key: str
    origin: str | None
    authorization: str


@dataclass
class FakeKeyService:
    """Answers every Validate as `answer` or `status` says, once `gate` is open."""

    token: str = "the-token"
    answer: pb2.ValidateResponse = field(default_factory=allowed)
    status: grpc.StatusCode | None = None
    calls: list[Call] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    _arrivals: defaultdict[int, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    def __post_init__(self) -> None:
        self.gate.set()

    async def validate(self, request: pb2.ValidateRequest, context: "Context") -> pb2.ValidateResponse:
        metadata = dict(context.invocation_metadata() or ())
        authorization = str(metadata.get("authorization", ""))
        origin = request.origin if request.HasField("origin") else None
        self.calls.append(Call(request.api_key, origin, authorization))
        self._arrivals[len(self.calls)].set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if authorization != f"Bearer {self.token}":
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no or wrong token")
        if self.status is not None:
            await context.abort(self.status, "the test says so")
        return self.answer

    async def arrived(self, count: int) -> None:
        """Return once so many calls have arrived."""
        await self._arrivals[count].wait()


@dataclass
class Clock:
    """A monotonic clock that a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def serve(
    service: FakeKeyService, address: str, credentials: grpc.ServerCredentials | None = None
) -> tuple[grpc.aio.Server, int]:
    """Return a server, yet to be started, and its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        service.validate,
        request_deserializer=pb2.ValidateRequest.FromString,
        response_serializer=pb2.ValidateResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("authsvc.v1.KeyService", {"Validate": handler})]
    )
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
