"""One client's connection: responds to its requests in the order they came. Made by `server`.

aiohttp's own connection logs what its parser refuses and responds with the offending bytes, an API key included, starts
a task for each request, and builds a request and a response object of a hundred attributes each. This one has one task.
What it receives is `inbound`'s.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import structlog
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion10
from aiohttp.streams import StreamReader
from aiohttp.tcp_helpers import tcp_keepalive

from authsvc.runtime.logging import log_unexpected
from httpbridge.errors import BridgeError, ClientGoneError, OverloadedError
from httpbridge.http import responses
from httpbridge.http.fairness import PROGRESS_BYTES, PROGRESS_SECONDS, Caller, ConnectionPlaces
from httpbridge.http.inbound import Inbound
from httpbridge.http.request import Request
from httpbridge.http.responses import Response

if TYPE_CHECKING:
    from httpbridge.http.server import PublicServer

STALLED_SECONDS_MAX = 75.0
"""For a head to be whole once it has begun, and for responses to be taken; less where idle connections have less."""

HEALTH_SECONDS = 2.0
"""For a health check on a connection that has no ordinary place."""

_RESPONSES_BYTES_MAX = 16 * 1024
"""Of responses that the client has not taken; beyond it the next request waits. TLS by itself would hold 512 KiB."""

_LINE_KEEP_ALIVE = b"Connection: keep-alive\r\n\r\n"
_LINE_NONE = b"\r\n"

_log = structlog.get_logger("httpbridge")


class Connection(Inbound):
    """The protocol of one connection, and the task that responds to its requests.

    With `is_for_health` it responds to one request, a health check, and has little time for it.
    """

    __slots__ = (
        "_begun_at",
        "_is_closing",
        "_is_evicted",
        "_is_for_health",
        "_is_half_closed",
        "_is_head_timed",
        "_places",
        "_request",
        "_server",
        "_stalled_seconds",
        "_timer",
        "_waiting_since",
        "_work",
        "opening",
    )

    def __init__(
        self,
        server: "PublicServer",
        loop: asyncio.AbstractEventLoop,
        caller: Caller,
        places: ConnectionPlaces,
        *,
        is_for_health: bool,
    ) -> None:
        super().__init__(loop, caller, server.turns, server.held_budget)
        self._server = server
        self._places = places
        self._is_for_health = is_for_health
        self._stalled_seconds = min(
            server.limits.keepalive_seconds, HEALTH_SECONDS if is_for_health else STALLED_SECONDS_MAX
        )
        self._request: Request | None = None
        """The one that is worked on; None while waiting for the next."""
        self._work: asyncio.Task[None] | None = None
        self._waiting_since = loop.time()
        """When it began to wait for its client's next request, by the loop's clock."""
        self._begun_at = 0.0
        """When the request began whose body had not come as a whole, or its responses were not taken any more."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_head_timed = False
        """Whether the timer is the one of a head that has begun."""
        self._is_closing = self._is_half_closed = False
        self._is_evicted = False
        self.opening: asyncio.Task[object] | None = None
        """Its TLS handshake; set by the listener."""

    # What the server calls.

    def close_if_idle(self) -> None:
        """Close a connection on which no request waits for its response."""
        if self._is_idle:
            self._close()

    async def cancel(self) -> None:
        """Close it at once, whatever is still to be sent, and return when its work has ended."""
        self._abort()
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    def is_stalled(self) -> bool:
        """Return whether nothing is done for it but to wait for its client, who sends or takes too little.

        A client who sends a body makes progress as long as that is 8 KiB in 5 s on the average.
        """
        if self.transport is None or self._is_closing or self._is_idle:
            return True
        seconds = self._loop.time() - self._begun_at
        if self._paused:
            return seconds > PROGRESS_SECONDS
        if self._request is None or self._request.payload.is_eof():
            return False
        received_bytes = self._request.payload.total_bytes
        return seconds > PROGRESS_SECONDS and received_bytes * PROGRESS_SECONDS < PROGRESS_BYTES * seconds

    def evict(self) -> None:
        """Close it to make room for another, if possible with a response to a request whose body is waited for."""
        self._is_evicted = True
        if self.transport is None:
            if self.opening is not None:
                self.opening.cancel()
        elif self._request is None or self._is_closing or self._paused:
            self._abort()
        else:
            self._request.payload.set_exception(OverloadedError())

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        tcp_keepalive(transport)
        transport.set_write_buffer_limits(_RESPONSES_BYTES_MAX)
        self._waiting_since = self._loop.time()
        seconds = self._stalled_seconds if self._is_for_health else self._server.limits.keepalive_seconds
        self._timer = self._loop.call_later(seconds, self._close_if_idle_too_long)
        self._work = self._loop.create_task(self._serve(), name="connection")

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of it. A request that was read whole is still worked on; nobody will see the response."""
        if not self._payload.is_eof():
            self._payload.set_exception(ClientGoneError())
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()
        if self._work is not None:
            self._work.add_done_callback(lambda _: self._server.closed(self))

    def eof_received(self) -> bool:
        """Keep the sending side open for a client that closed its own and waits for the responses.

        TLS has no such state. Without a request to respond to, or when one will never be whole, nothing is left to do.
        """
        self._is_half_closed = True
        if self.transport is not None and self.transport.get_extra_info("sslcontext") is not None:
            self._close()
        else:
            self._turn_parsed()
        return not self._is_closing

    # The way of the requests.

    async def _serve(self) -> None:
        """Respond to what comes until the connection ends."""
        try:
            self._begin_to_wait()
            while (message := await self._next()) is not None:
                if not await self._serve_one(*message):
                    break
                self._begin_to_wait()
        except (ConnectionError, BridgeError):
            pass  # the client has gone, or what it still sends of a refused body is broken
        except Exception as error:  # noqa: BLE001 - a fault of ours: `respond` raises nothing
            log_unexpected(_log, error)
        finally:
            self._request = None
            self._end_turn()
            self._close()

    def _begin_to_wait(self) -> None:
        self._request = None
        self._is_head_timed = False
        if not self._queue:
            self._waiting_since = self._loop.time()
            self._places.begin_to_wait(self)
            if self._head_bytes:
                self._head_is_partial()

    async def _serve_one(self, message: RawRequestMessage | Response, payload: StreamReader) -> bool:
        """Respond, and discard what is left of the body; return whether the connection goes on."""
        server, router = self._server, self._server.router
        if isinstance(message, Response):
            if message is responses.BAD_REQUEST:
                _log.debug("request", status=400, reason="not HTTP")  # and nothing of it
            self._write(responses.last_response(message, router.date_line()))
            return False
        self._request = request = Request(self.transport, server.limits.body_timeout_seconds, message, payload)
        if not payload.is_eof():
            self._begun_at = self._loop.time()
        response = await (router.respond_to_health(request) if self._is_for_health else router.respond(request))
        # Of those that a response is due to.
        is_last = (router.is_draining or self._is_half_closed) and not self._has_pending()
        goes_on = not (request.closes or request.leaves_body_unasked or is_last or self._is_evicted)
        if not goes_on:
            end = responses.LINE_CLOSE
        elif request.version is HttpVersion10:
            end = _LINE_KEEP_ALIVE
        else:
            end = _LINE_NONE
        head = response.head_cors if request.is_cross_origin else response.head
        body = b"" if request.method == "HEAD" else response.body
        self._write(b"".join((head, router.date_line(), request.more_headers, end, body)))
        if self._paused:
            await self._drain()
        if payload.is_eof() or self._is_evicted or self._is_for_health:
            return goes_on and payload.is_eof()
        return await server.lingering.discard(payload, self.caller.address) and goes_on

    def _write(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)

    async def _drain(self) -> None:
        """Wait until the client takes its responses; one that does not is cut off."""
        self._begun_at = self._loop.time()
        try:
            async with asyncio.timeout(self._stalled_seconds):
                await self._drain_helper()
        except TimeoutError:
            self._abort()
            raise ConnectionResetError from None

    @property
    def _is_idle(self) -> bool:
        return self._request is None and not self._has_pending()

    def _turn_parsed(self) -> None:
        if self._is_half_closed and not self._has_more and (self._is_idle or not self._payload.is_eof()):
            self._close()

    def _close(self) -> None:
        """Close it once the client took what is still to be sent; one that does not is cut off."""
        if self.transport is None:
            return
        self._is_closing = self._is_broken = True
        self._forget_unparsed()
        self.transport.close()
        self._set_timer(0 if self._is_evicted else self._stalled_seconds, self._abort)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _head_is_partial(self) -> None:
        if self._head_bytes and self._request is None and not self._is_head_timed:
            self._is_head_timed = True
            self._set_timer(self._stalled_seconds, self._close_if_idle_too_long)

    def _close_if_idle_too_long(self) -> None:
        """Look whether there was no response for so long: it bounds slow headers as well as idle connections."""
        now = self._loop.time()
        seconds = (
            self._stalled_seconds
            if self._is_head_timed or self._is_for_health
            else self._server.limits.keepalive_seconds
        )
        due = (self._waiting_since if self._is_idle else now) + seconds
        if now >= due or (self._is_head_timed and self._is_idle):
            self.close_if_idle()
        else:
            self._timer = self._loop.call_at(due, self._close_if_idle_too_long)

    def _set_timer(self, seconds: float, call: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, call)
