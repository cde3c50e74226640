"""Whether the key service serves, overall and each of its services: the health protocol of gRPC.

Registered by `app`, called by gRPC behind `interceptors`. The servicer that comes with grpcio holds a lock while it
writes to a watcher: a stranger who reads nothing would block all the others, and the end of the service.
"""

import asyncio
from collections.abc import Iterable

from grpc_health.v1 import health_pb2, health_pb2_grpc

from authsvc.errors import NotFoundError
from authsvc.messages import Context

SERVICE_NAME = "grpc.health.v1.Health"

_Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # grpcio has no types for it
    """Says SERVING until `stop`, and NOT_SERVING from then on."""

    def __init__(self, services: Iterable[str]) -> None:
        """`services` are full names; the service as a whole, whose name is empty, is always known."""
        self._services = frozenset(("", *services))
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Say so to everyone who watches, and wait for nobody."""
        self._stopping.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Return a service's status; NOT_FOUND for one that is not known."""
        if request.service not in self._services:
            raise NotFoundError("no such service")
        return self._answer(request.service)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        """Return every service's status."""
        return health_pb2.HealthListResponse(statuses={name: self._answer(name) for name in self._services})

    # grpc.aio also takes a coroutine that writes to its context; the stub knows generators only.
    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Send a service's status now and when it changes. One that is not known is no error, and stays unknown."""
        answer = self._answer(request.service)
        await context.write(answer)
        await self._stopping.wait()
        if (last := self._answer(request.service)) != answer:
            await context.write(last)
        await asyncio.Event().wait()  # the protocol leaves the end of the stream to the watcher

    def _answer(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        return _Status(status=_Status.NOT_SERVING if self._stopping.is_set() else _Status.SERVING)
