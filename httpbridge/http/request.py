"""One request and its response: headers as they were read, the body as it comes, routes, CORS, errors, request log.

What happens on the wire below a request is `connection`'s.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime
from email.utils import formatdate
from functools import lru_cache
from typing import Any

import structlog
from aiohttp import hdrs
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import StreamReader

from authsvc.client import KeyServiceUnavailableError
from authsvc.runtime.logging import log_unexpected
from authsvc.runtime.networks import Networks, client_address, forwarded_for
from httpbridge import errors
from httpbridge.http import responses
from httpbridge.http.responses import Response

_HEADER_BYTES_MAX = 8190
"""Of the request line, and of each header field: what Apache and aiohttp allow."""

_HEADERS_MAX = 100

_BODY_BUFFER_BYTES = 256 * 1024
"""Of a body that comes faster than it is read; beyond twice of it the connection is not read."""

_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_SLASHES = re.compile("//+")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
"""Characters that mean the same escaped and not (RFC 3986, 2.3): some clients escape them all the same."""

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


def parser_for(protocol: BaseProtocol, loop: asyncio.AbstractEventLoop) -> HttpRequestParser:
    """Return aiohttp's parser for a connection, within bounds."""
    return HttpRequestParser(
        protocol,
        loop,
        _BODY_BUFFER_BYTES,
        max_line_size=_HEADER_BYTES_MAX,
        max_field_size=_HEADER_BYTES_MAX,
        max_headers=_HEADERS_MAX,
        payload_exception=errors.MalformedRequestError,
        auto_decompress=False,
        max_msg_queue_size=1,  # it keeps back what follows a request that is whole: see `inbound`
    )


def is_understood(message: RawRequestMessage) -> bool:
    """Return whether a request is HTTP/1.0 or HTTP/1.1, and its body framed as that has it (RFC 9112, 6.1)."""
    codings = message.headers.get(hdrs.TRANSFER_ENCODING)
    if codings is None:
        return message.version is HttpVersion11 or message.version is HttpVersion10
    return message.version is HttpVersion11 and codings.lower() == "chunked"


class Request:
    """A request whose headers were read, and what its response will say beyond the prepared bytes."""

    __slots__ = (
        "_transport",
        "body_timeout_seconds",
        "closes",
        "headers",
        "is_cross_origin",
        "leaves_body_unasked",
        "method",
        "more_headers",
        "payload",
        "project_id",
        "target",
        "version",
    )

    def __init__(
        self,
        transport: asyncio.Transport | None,
        body_timeout_seconds: float,
        message: RawRequestMessage,
        payload: StreamReader,
    ) -> None:
        self._transport = transport
        self.body_timeout_seconds = body_timeout_seconds
        self.payload = payload
        """The body as aiohttp's parser feeds it."""
        self.method = message.method
        self.target = message.path
        self.version = message.version
        self.headers = message.headers
        self.is_cross_origin = hdrs.ORIGIN in self.headers
        self.closes = message.should_close or message.upgrade
        """Whether the connection ends with the response.

        It does after an offer to speak another protocol, which nobody here takes up: aiohttp drops what it read
        together with such a request, so that what comes next need not be the beginning of one.
        """
        self.leaves_body_unasked = (
            not payload.is_eof()
            and self.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
            and self.version >= HttpVersion11
        )
        """Whether the client still waits to be asked for the body: it may send it or not, so nothing can follow."""
        self.more_headers = b""
        """Header lines for any response to this request, each line ended."""
        self.project_id: str | None = None
        """Once the key is known to be valid."""

    @property
    def peer(self) -> str:
        """The address at the other end of the connection; empty where there is none."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return name[0] if isinstance(name, tuple) else ""

    def take_body(self, bytes_max: int) -> bytes | None:
        """Return a body that came along with the headers and as it is, the usual case; None for any other.

        Raises BodyTooLargeError.
        """
        if hdrs.CONTENT_ENCODING in self.headers or not self.payload.is_eof():
            return None
        body = self.payload.read_nowait()
        if len(body) > bytes_max:
            raise errors.BodyTooLargeError
        return body

    def ask_for_body(self) -> None:
        """Ask for the body where the client waits to be asked."""
        if self.leaves_body_unasked and self._transport is not None and not self._transport.is_closing():
            self.leaves_body_unasked = False
            self._transport.write(responses.CONTINUE)


def path_of(target: str) -> str:
    """Return the path of a request target in origin or absolute form (RFC 9112, 3.2)."""
    path = target.partition("?")[0]
    if path[:7].lower() == "http://" or path[:8].lower() == "https://":
        _, slash, rest = path.partition("//")[2].partition("/")
        return slash + rest
    return path


def canonical_path(path: str) -> str:
    """Return what several spellings of a path have in common.

    Escaped plain characters are plain, several slashes are one, and one at the end is none.
    """
    path = _SLASHES.sub("/", _ESCAPED.sub(_plain, path))
    return path if path == "/" else path.removesuffix("/")


def _plain(match: re.Match[str]) -> str:
    character = chr(int(match[1], 16))
    return character if character in _PLAIN else match[0]


Handler = Callable[[Request], Awaitable[Response]]


class _Route:
    def __init__(self, path: str, methods: tuple[str, ...], handler: Handler) -> None:
        allowed = ", ".join(methods)
        self.path = path
        self.methods = methods
        self.handler = handler
        self.method_not_allowed = responses.method_not_allowed(allowed)
        self.preflight = responses.preflight(allowed)


class Router:
    """Responds to the requests of all connections: `ingest` to POST /ingest/logs, `readiness` to GET /ready."""

    def __init__(
        self,
        *,
        ingest: Handler,
        readiness: Callable[[], Awaitable[Response]],
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        trusted_proxies: Networks,
    ) -> None:
        self.is_draining = False
        """Whether /ready fails, and responses close their connections."""
        self._trusted_proxies = trusted_proxies
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
        return responses.DRAINING if self.is_draining else await self._readiness()


@lru_cache(maxsize=1)
def _date_line(unix_seconds: int) -> bytes:
    return f"Date: {formatdate(unix_seconds, usegmt=True)}\r\n".encode("ascii")
