"""The dashboard's connections: aiohttp's, bounded, and with a fixed text for what is not a request.

aiohttp logs what its parser refuses and responds with the offending bytes, a cookie or a token among them, and with its
own version. It also counts nothing, and waits for clients as long as they please. Here the places are counted, and a
new connection replaces the one that has waited longest for its client: for the rest of a head or of a body, for the
next request, or for a response to be read. Those on which somebody is signed in go last.
"""

import asyncio
import logging
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, NoReturn, cast

import msgspec
import structlog
from aiohttp import hdrs, web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from yarl import URL

from authsvc.runtime.logging import log_unexpected
from authsvc.runtime.networks import Networks, Places, address_group
from httpbridge.dashboard.middleware import SECURITY_HEADERS
from httpbridge.dashboard.pages import SESSION
from httpbridge.http import responses
from httpbridge.http.fairness import Turns
from httpbridge.http.request import canonical_path

_log = structlog.get_logger("httpbridge.dashboard")


class ConnectionLimits(msgspec.Struct, frozen=True):
    """Bounds of connections, in all and of each."""

    connections_max: int = 256
    """Open at once, those in their TLS handshake included: forty browsers, which open six at a time, and live tails."""
    keepalive_seconds: float = 75.0
    head_seconds_max: float = 20.0
    """For a head to be whole, from its first byte, or the connection's beginning."""
    head_bytes_max: int = 64 * 1024
    """Of a head that is not whole; the parser by itself would keep a megabyte."""
    response_seconds_max: float = 20.0
    """A client who takes nothing of a response for so long is cut off."""
    late_seconds_max: float = 6.0
    """For a request whose response comes too late for a shutdown: a statement in the log store ends within 5 s."""
    look_seconds: float = 1.0
    """Between two looks at who is too slow."""


CONNECTION_LIMITS = ConnectionLimits()


class Connection(web.RequestHandler):
    """One client's connection."""

    def __init__(self, server: "Connections", address: str, logger: logging.Logger) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=logger,
            logger=logger,
            keepalive_timeout=server.limits.keepalive_seconds,
            auto_decompress=False,  # browsers compress no form
        )
        self.address = address
        self.opening: asyncio.Task[object] | None = None
        """Its TLS handshake; set by the listener."""
        self._server = server
        self._limits = server.limits
        self._was_signed_in = False
        self._wire: asyncio.Transport | None = None
        """None before the handshake is done. aiohttp's own is None as soon as it is to be closed."""
        self._body: StreamReader = EMPTY_PAYLOAD
        """Of the last request."""
        self._since = self._loop.time()
        """When it last began to wait for its client."""
        self._head_since: float | None = self._since
        """When a head began that is not whole, or the connection did."""
        self._head_bytes = 0
        self._request: web.Request | None = None
        """The one that is worked on."""
        self._has_request = False
        """Whether a head is whole that has no response yet."""
        self._is_working = False
        self._untaken_bytes = 0
        self._taken_at = 0.0

    @property
    def is_signed_in(self) -> bool:
        """Whether a request of it had a session."""
        return self._was_signed_in or (self._request is not None and SESSION in self._request)

    @property
    def waiting_since(self) -> float | None:
        """When it began to wait for its client, or a turn, by the loop's clock; None while something is done for it."""
        return None if self._is_working and self._body.is_eof() and not self._paused else self._since

    def begin(self, request: web.Request) -> None:
        """Note that it is the turn of a request."""
        self._request = request
        self._body = request.content
        self._since = self._loop.time()
        self._is_working = True
        self._head_since, self._head_bytes = None, 0

    def finish(self) -> None:
        """Note that it has its response, but for what its client has not taken."""
        self._was_signed_in = self.is_signed_in
        self._request = None
        self._since = self._loop.time()
        self._is_working = False
        self._has_request = bool(self._messages)

    def look(self) -> None:
        """Cut off a client who is too slow."""
        if self._wire is None:
            return
        now = self._loop.time()
        untaken_bytes = self._wire.get_write_buffer_size()
        if not untaken_bytes or untaken_bytes < self._untaken_bytes or not self._untaken_bytes:
            self._taken_at = now
        self._untaken_bytes = untaken_bytes
        head_since = now if self._head_since is None else self._head_since
        is_stuck = now - self._taken_at >= self._limits.response_seconds_max
        if is_stuck or now - head_since >= self._limits.head_seconds_max:
            self.abort()

    def abort(self) -> None:
        if self._wire is not None:
            self._wire.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._wire = cast(asyncio.Transport, transport)
        self._since = self._head_since = self._loop.time()
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._wire = None
        self._server.closed(self)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and note when a head began, and whether it is whole."""
        was_whole = self._body.is_eof()
        super().data_received(data)
        self._has_request = self._has_request or bool(self._messages)
        if self._has_request or not (was_whole and self._body.is_eof()):
            self._head_since, self._head_bytes = None, 0
            return
        self._head_since = self._head_since or self._loop.time()
        self._head_bytes += len(data)
        if self._head_bytes > self._limits.head_bytes_max:
            self.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - repeats what was sent
    ) -> NoReturn:
        """Respond by the status alone, and end the connection. Neither `message` nor the error's text is ours."""
        if isinstance(exc, ConnectionError):  # the client is gone, or this was called before
            raise exc
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR and exc is not None:
            log_unexpected(_log, exc)
        if self.transport is not None and request.writer.output_size == 0:
            self.transport.write(_response(HTTPStatus(status)))
        raise ConnectionAbortedError


class Connections(web.Server):
    """Makes connections for a listener, whose requests go to an application's server. Made inside the event loop."""

    def __init__(self, application: web.Server, trusted_proxies: Networks, limits: ConnectionLimits) -> None:
        super().__init__(self._handle, request_factory=application.request_factory)
        self._respond = application.request_handler
        self._logger = _silent()
        self.limits = limits
        self._places = Places(limits.connections_max, trusted_proxies)
        self._open: set[Connection] = set()
        """Those that have a place."""
        self._is_full = False
        self._turns = Turns(self._loop, trusted_proxies, turns=1, caller_turns=1)
        self._working: set[asyncio.Future[web.StreamResponse]] = set()
        """What responds to requests."""
        self._look()

    def __call__(self, address: str = "") -> Connection:
        connection = Connection(self, address, self._logger)
        self._places.take(address)
        self._open.add(connection)
        return connection

    def has_room(self, address: str) -> bool:
        if self._places.has_room(address):
            return True
        longest = min(self._waiting(address), key=lambda one: (one.is_signed_in, one.waiting_since), default=None)
        if not self._is_full:
            self._is_full = True
            event = "connections_evicted" if longest else "connections_refused"
            _log.warning(event, connections=self._places.taken, address=address, of_address=self._places.count(address))
        if longest is None:
            return False
        longest.abort()
        self.closed(longest)
        return True

    def refusal(self) -> bytes:
        return _response(HTTPStatus.SERVICE_UNAVAILABLE)

    def closed(self, connection: Connection) -> None:
        if connection in self._open:
            self._open.remove(connection)
            self._places.release(connection.address)
            self._is_full = self._is_full and self._places.taken >= self._places.places_max // 2

    async def shutdown(self, timeout: float | None = None) -> None:
        """Let requests have their responses for so long, and close all connections.

        What is late then is waited for all the same, though nobody reads its response: it may have a connection to the
        log store, and cancelled in the middle of a statement it would leave that open.
        """
        self._looking.cancel()
        self.pre_shutdown()
        await super().shutdown(timeout)
        if self._working:
            await asyncio.wait(self._working, timeout=self.limits.late_seconds_max)

    def _waiting(self, address: str) -> Iterator[Connection]:
        """Yield those that can make room: of the address alone, where it has its share."""
        group = address_group(address) if self._places.has_share(address) else None
        for one in self._open:
            if one.waiting_since is not None and (group is None or address_group(one.address) == group):
                yield one

    def _look(self) -> None:
        for connection in [*self._open]:
            connection.look()
        self._looking = self._loop.call_later(self.limits.look_seconds, self._look)

    async def _handle(self, request: Any) -> web.StreamResponse:
        connection: Connection = request.protocol
        await self._turns.turn(connection.address)  # a page takes the event loop a millisecond or two
        request = _with_canonical_path(request)
        connection.begin(request)
        try:
            # Otherwise aiohttp refuses, past the middlewares, what it does not know.
            expected = request.headers.get(hdrs.EXPECT) or "100-continue"
            if expected.lower() != "100-continue":
                connection.handle_error(request, HTTPStatus.EXPECTATION_FAILED)
            responding = asyncio.ensure_future(self._respond(request))
            self._working.add(responding)
            responding.add_done_callback(self._finished)
            return await asyncio.shield(responding)
        finally:
            connection.finish()

    def _finished(self, responding: "asyncio.Future[web.StreamResponse]") -> None:
        self._working.discard(responding)
        if not responding.cancelled():
            responding.exception()  # whoever waited for it has it, or nobody does any more


def _with_canonical_path(request: web.Request) -> web.Request:
    """Return the request as it would be with the path's usual spelling."""
    path = canonical_path(request.rel_url.raw_path)
    if path == request.rel_url.raw_path:
        return request
    url = URL.build(path=path, query_string=request.rel_url.raw_query_string, encoded=True)
    return request.clone(rel_url=url)


def _response(status: HTTPStatus) -> bytes:
    body = f"{status.value} {status.phrase}\n".encode()
    headers = {
        "Cache-Control": "no-store",
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(body)),
    }
    return responses.prepare(status.value, SECURITY_HEADERS | headers, body).head + responses.LINE_CLOSE + body


def _silent() -> logging.Logger:
    """Return a logger for aiohttp, which would log what it cannot parse, cookies included."""
    logger = logging.getLogger("httpbridge.dashboard.http")
    logger.disabled = True
    return logger
