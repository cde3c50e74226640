"""Whether the key service serves, overall and each of its services: the health protocol of gRPC.

The servicer that comes with grpcio holds a lock while it writes to a watcher: one that reads nothing would block all
the others, and the end of the service.
"""

from collections.abc import Iterable

from grpc_health.v1 import health_pb2, health_pb2_grpc

from authsvc.api.messages import Context
from authsvc.errors import NotFoundError
from authsvc.revocation.change_feed import Notifier

SERVICE_NAME = "grpc.health.v1.Health"

_Status = health_pb2.HealthCheckResponse


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # grpcio has no types for it
    """Says SERVING while there is a database to serve from, until `stop`.

    Of the health service itself it says so all the while: a process that waits for its database is none to end.
    """

    def __init__(self, services: Iterable[str]) -> None:
        """`services` are full names; the service as a whole, whose name is empty, is always known."""
        self._services = frozenset(("", SERVICE_NAME, *services))
        self._is_serving = True
        self._is_stopping = False
        self._changed = Notifier()

    def set_serving(self, is_serving: bool) -> None:
        """Take note of whether the database can be read."""
        self._is_serving = is_serving
        self._changed.notify_all()

    def stop(self) -> None:
        """Say so to everyone who watches, and wait for nobody."""
        self._is_stopping = True
        self._changed.notify_all()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Return a service's status; NOT_FOUND for one that is not known."""
        if request.service not in self._services:
            raise NotFoundError("no such service")
        return self._response(request.service)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        """Return every service's status."""
        return health_pb2.HealthListResponse(statuses={name: self._response(name) for name in self._services})

    # grpc.aio also takes a coroutine that writes to its context; the stub knows generators only.
    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Send a service's status now and when it changes. One that is not known is no error, and stays unknown."""
        said = None
        while True:  # the protocol leaves the end of the stream to the watcher
            changed = self._changed.next()
            if (response := self._response(request.service)) != said:
                await context.write(response)
                said = response
            else:
                await changed.wait()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return _Status(status=_Status.SERVICE_UNKNOWN)
        is_serving = (self._is_serving or service == SERVICE_NAME) and not self._is_stopping
        return _Status(status=_Status.SERVING if is_serving else _Status.NOT_SERVING)
