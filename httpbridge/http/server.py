"""The public HTTP server: paths, CORS, errors to responses, request log, readiness, draining.

What happens on the wire below a request is `connection`'s.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import formatdate
from enum import StrEnum
from functools import lru_cache
from typing import Any

import structlog
from aiohttp import hdrs

from authsvc.client import KeyServiceUnavailableError
from authsvc.runtime.logging import log_unexpected
from authsvc.runtime.networks import Networks, client_address, forwarded_for
from httpbridge import errors
from httpbridge.http import responses
from httpbridge.http.bodies import Budget
from httpbridge.http.connection import Connection
from httpbridge.http.fairness import ConnectionPlaces, Turns
from httpbridge.http.lingering import Lingering
from httpbridge.http.request import Request, canonical_path, path_of
from httpbridge.http.responses import Response

CONNECTIONS_MAX = 10_000
"""Open at once, those in their TLS handshake included, but for those for health checks.

Each is an open file, and holds no more than `inbound` bounds, so that this bounds what idle and slow clients take:
part of a head, of a body that is not read yet, of requests that wait for their turn, and responses that are not taken.
"""

HEALTH_CONNECTIONS_MAX = 64
"""Beyond these, for health checks alone."""

_POLL_SECONDS = 0.02
"""Between two looks at which connections have become idle while shutting down."""

_RESPONSES: Mapping[type, Response] = {
    errors.BodyTooLargeError: responses.BODY_TOO_LARGE,
    errors.UnsupportedEncodingError: responses.UNSUPPORTED_ENCODING,
    errors.IdempotencyConflictError: responses.IDEMPOTENCY_CONFLICT,
    errors.StoreUnavailableError: responses.STORE_UNAVAILABLE,
    KeyServiceUnavailableError: responses.KEY_SERVICE_UNAVAILABLE,
    errors.OverloadedError: responses.OVERLOADED,
    errors.BodyTimeoutError: responses.REQUEST_TIMEOUT,
    errors.MalformedRequestError: responses.BAD_REQUEST,
    errors.ClientGoneError: responses.BAD_REQUEST,  # nobody is left to read it
}
_PREFLIGHT_ELSEWHERE = responses.preflight("POST")
"""Of a path that is not served: a page cannot read a 404 to its preflight, but that to its request."""
_BODY_BROKEN_OFF = (errors.BodyTimeoutError, errors.MalformedRequestError, errors.ClientGoneError)

Handler = Callable[[Request], Awaitable[Response]]


class ReadyStatus(StrEnum):
    """Whether requests should be sent here."""

    OK = "ok"
    DEGRADED = "degraded"
    """The key service is away, and cached verdicts serve."""
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Readiness:
    """What GET /ready says; `reason` is for the operator, and public."""

    status: ReadyStatus
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of the server and of each connection."""

    connections_max: int = CONNECTIONS_MAX
    keepalive_seconds: float = 75.0
    """For an idle connection: what nginx has."""
    body_timeout_seconds: float = 120.0
    """For a body to be whole: 5 MiB in it are 44 kB/s, a slow mobile uplink."""
    body_bytes_max: int = 5 * 1024 * 1024
    held_bytes_max: int = 256 * 1024 * 1024
    """Of all connections together: of what came before its turn, and of heads that are not whole."""
    caller_held_bytes_max: int = 64 * 1024 * 1024
    """Of one caller."""


class _Route:
    def __init__(self, path: str, methods: tuple[str, ...], handler: Handler) -> None:
        allowed = ", ".join(methods)
        self.path = path
        self.methods = methods
        self.handler = handler
        self.method_not_allowed = responses.method_not_allowed(allowed)
        self.preflight = responses.preflight(allowed)


class PublicServer:
    """A factory of protocols, and what all of its connections share.

    `ingest` responds to POST /ingest/logs; `readiness` is asked at each GET /ready. `now` is aware UTC, `monotonic` in
    seconds. To be made inside the event loop. To stop: `drain()`, close the listener, then await `shutdown()`.
    """

    def __init__(
        self,
        *,
        ingest: Handler,
        readiness: Callable[[], Awaitable[Readiness]],
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        limits: ServerLimits,
        trusted_proxies: Networks,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.limits = limits
        self.draining = False
        self.turns = Turns(self._loop, trusted_proxies)
        self.held_budget = Budget(limits.held_bytes_max, limits.caller_held_bytes_max, "unparsed_budget_exhausted")
        self.lingering = Lingering(limits.connections_max, limits.body_bytes_max, trusted_proxies)
        self._trusted_proxies = trusted_proxies
        self._places = ConnectionPlaces(limits.connections_max, trusted_proxies)
        self._health_places = ConnectionPlaces(HEALTH_CONNECTIONS_MAX, trusted_proxies)
        self._connections: set[Connection] = set()
        self._readiness = readiness
        self._now = now
        self._monotonic = monotonic
        self._log = structlog.get_logger("httpbridge").bind()
        self._logs_requests = self._log.is_enabled_for(logging.DEBUG)
        self._health_routes = [
            _Route("/health", ("GET", "HEAD"), self._health),  # the latter is what some load balancers send
            _Route("/ready", ("GET", "HEAD"), self._ready),
        ]
        self._routes = {
            route.path: route for route in (_Route("/ingest/logs", ("POST",), ingest), *self._health_routes)
        }

    def __call__(self, address: str) -> Connection:
        """Return the protocol of a new connection, which is counted until `closed`."""
        caller = self.turns.join(address)
        is_for_health = not self._places.has_room(caller)
        places = self._health_places if is_for_health else self._places
        connection = Connection(self, self._loop, caller, places, is_for_health=is_for_health)
        places.take(connection)
        self._connections.add(connection)
        return connection

    def has_room(self, address: str) -> bool:
        """Return whether an address may have one more connection, after making room for it where that is possible.

        Where it is not, there is room for a health check.
        """
        caller = self.turns.join(address)
        try:
            return self._places.make_room(caller) or self._health_places.make_room(caller)
        finally:
            self.turns.leave(caller)

    def refusal(self) -> bytes:
        """Return what is said to a connection too many."""
        return responses.last_response(responses.OVERLOADED, self.date_line())

    def drain(self) -> None:
        """Send clients away: /ready fails and responses close their connections. New connections are still served."""
        self.draining = True

    async def shutdown(self, timeout_seconds: float) -> None:
        """Respond to every request that was read, and close all connections; return when nothing is left running.

        The listener should be closed by then. What has no response within the timeout is cancelled.
        """
        self.drain()
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._connections:
                    for connection in self._connections:
                        connection.close_if_idle()
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            self._log.warning("requests_cancelled", connections=len(self._connections))
            await asyncio.gather(*(connection.cancel() for connection in self._connections))

    # What connections ask.

    def closed(self, connection: Connection) -> None:
        """Forget a connection: it is lost, and nothing is worked on for it any more."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._places.release(connection)
            self._health_places.release(connection)
            self.turns.leave(connection.caller)

    def date_line(self) -> bytes:
        """Return the Date header of now, its line ended."""
        return _date_line(int(self._now().timestamp()))

    def respond(self, request: Request) -> Coroutine[Any, Any, Response]:
        """Return the response to a request, whatever goes wrong."""
        return (self._respond_and_log if self._logs_requests else self._respond)(request, self._route_of(request))

    async def respond_to_health(self, request: Request) -> Response:
        """Return the response to a health check, and refuse anything else: there is no place for it."""
        request.closes = True
        if self._route_of(request) in self._health_routes and request.method in ("GET", "HEAD"):
            return await self.respond(request)
        return responses.OVERLOADED

    def _route_of(self, request: Request) -> _Route | None:
        return self._routes.get(request.target) or self._routes.get(canonical_path(path_of(request.target)))

    async def _respond_and_log(self, request: Request, route: _Route | None) -> Response:
        started = self._monotonic()
        response = await self._respond(request, route)
        headers = request.headers
        listed = forwarded_for(headers.getall(hdrs.X_FORWARDED_FOR, ()), headers.getall(hdrs.FORWARDED, ()))
        self._log.debug(
            "request",
            method=request.method,
            path=route.path if route else None,
            client=client_address(request.peer, listed, self._trusted_proxies),
            status=response.status,
            milliseconds=round((self._monotonic() - started) * 1000, 3),
            project_id=request.project_id,
        )
        return response

    async def _respond(self, request: Request, route: _Route | None) -> Response:
        if route is None or request.method not in route.methods:
            is_preflight = request.method == hdrs.METH_OPTIONS and request.is_cross_origin
            if is_preflight and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
                request.more_headers = responses.preflight_headers(request.headers)
                return route.preflight if route else _PREFLIGHT_ELSEWHERE
            return route.method_not_allowed if route else responses.NOT_FOUND
        try:
            return await route.handler(request)
        except errors.BodyRefusedError as error:
            return responses.refused_body(error)
        except Exception as error:  # noqa: BLE001 - the last resort; cancellation is no Exception
            request.closes = request.closes or isinstance(error, _BODY_BROKEN_OFF)
            for kind in type(error).__mro__:
                if kind in _RESPONSES:
                    return _RESPONSES[kind]
            log_unexpected(self._log, error)
            return responses.INTERNAL_ERROR

    async def _health(self, _request: Request) -> Response:
        timestamp = self._now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return responses.json_response(200, {"status": "ok", "timestamp": timestamp})

    async def _ready(self, _request: Request) -> Response:
        if self.draining:
            readiness = Readiness(ReadyStatus.UNAVAILABLE, "draining")
        else:
            readiness = await self._readiness()
        status = 503 if readiness.status is ReadyStatus.UNAVAILABLE else 200
        reason = {"reason": readiness.reason} if readiness.reason else {}
        return responses.json_response(status, {"status": readiness.status, **reason})


@lru_cache(maxsize=1)
def _date_line(unix_seconds: int) -> bytes:
    return f"Date: {formatdate(unix_seconds, usegmt=True)}\r\n".encode("ascii")
