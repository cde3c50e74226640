"""One client's connection, on aiohttp's HTTP parser. Used by `server`; the only module that knows aiohttp's inside.

aiohttp's own connection logs and answers what its parser refuses with the offending bytes, a raw
key included, and builds a request and a response object of a hundred attributes each. Here both
are ours, and reduced to what this API needs; parsing, pipelining, flow control, keep-alive and
lingering stay aiohttp's. Its version is locked, and the tests hold what is relied upon.
"""

import asyncio
from typing import Any, Protocol, cast

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo
from multidict import CIMultiDict, MultiMapping

from httpbridge import bodies, responses
from httpbridge.errors import BodyTimeoutError, BridgeError, ClientGoneError, MalformedRequestError
from httpbridge.responses import Response

LINGERING_SECONDS = 2.0
"""How long the rest of a refused body is discarded, so that the client can read the status (http-contract.md)."""

HEADER_BYTES_MAX = 8190
"""Of the request line, and of each header field: what Apache and aiohttp allow."""

HEADERS_MAX = 100

_NO_HEADERS: MultiMapping[str] = CIMultiDict()
_LINE_CLOSE = b"Connection: close\r\n\r\n"
_LINE_KEEP_ALIVE = b"Connection: keep-alive\r\n\r\n"
_LINE_NONE = b"\r\n"


class Host(Protocol):
    """What a connection asks of the server that it belongs to."""

    keepalive_seconds: float
    body_timeout_seconds: float
    draining: bool

    def opened(self) -> bool:
        """Count a new connection; return False, without counting it, when there are too many."""

    def closed(self) -> None:
        """Count a connection less."""

    def date_line(self) -> bytes:
        """Return the Date header of now, its line ended."""

    def failed(self, error: BaseException) -> None:
        """Log an error that nobody expected."""

    def malformed(self) -> None:
        """Log that something was not HTTP."""


class Request:
    """A request whose headers were read, and what its answer will say beyond the prepared bytes."""

    __slots__ = (
        "_awaits_continue",
        "_connection",
        "_payload",
        "_task",
        "closes",
        "headers",
        "is_answered",
        "is_cross_origin",
        "method",
        "more_headers",
        "project_id",
        "target",
        "version",
    )

    def __init__(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        _writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> None:
        self._connection = cast("Connection", protocol)
        self._connection.request = self
        self._payload = payload
        self._task: Any = task  # aiohttp clears it
        self.method = message.method
        self.target = message.path
        self.version = message.version
        if message is ERROR:
            self.headers, self.is_cross_origin = _NO_HEADERS, True  # whether it has an Origin was not to be read
        else:
            self.headers = cast(MultiMapping[str], message.headers)
            self.is_cross_origin = hdrs.ORIGIN in self.headers
        self.closes = bool(message.should_close)
        """Whether the connection ends with the answer."""
        self.is_answered = False
        self.more_headers = b""
        """Header lines for any answer to this request, each line ended."""
        self.project_id: str | None = None
        """Once the key is known to be valid."""
        self._awaits_continue = (
            self.headers.get(hdrs.EXPECT, "").lower() == "100-continue"
            and self.version >= HttpVersion11
            and not payload.is_eof()
        )

    @property
    def has_whole_body(self) -> bool:
        """Whether the body came along with the headers: the usual case."""
        return self._payload.is_eof()

    def take_body(self, bytes_max: int) -> bytes:
        """Return a body that is here as a whole, as it came. Raises BodyTooLargeError."""
        return bodies.take(self._payload, bytes_max)

    async def read_body(self, bytes_max: int, share: bodies.Share) -> bytes:
        """Return the whole body as it came, after asking for it where the client waits to be asked.

        Raises BodyTooLargeError, OverloadedError, BodyTimeoutError, MalformedRequestError (its
        framing is broken) and ClientGoneError.
        """
        if self._awaits_continue and self._connection.transport is not None:
            self._awaits_continue = False
            self._connection.transport.write(responses.CONTINUE)
        try:
            async with asyncio.timeout(self._connection.host.body_timeout_seconds):
                return await bodies.read(self._payload, bytes_max, share)
        except TimeoutError:
            raise BodyTimeoutError("Request timeout") from None

    @property
    def leaves_body_unasked(self) -> bool:
        """Whether the client still waits to be asked for the body: it may send it or not, so nothing can follow."""
        return self._awaits_continue

    @property
    def payload(self) -> StreamReader:
        """The body as aiohttp's parser feeds it."""
        return self._payload

    # What aiohttp's connection calls on its requests.

    def _cancel(self, _error: BaseException) -> None:
        """Do nothing: the connection has told whoever reads the body."""

    def _finish(self) -> None:
        """Do nothing: there is nothing to release."""


class Reply:
    """An answer on its way to a client, as aiohttp's connection wants one: it calls `prepare`, then `write_eof`."""

    __slots__ = ("_request", "_response", "keep_alive")

    def __init__(self, request: Request, response: Response) -> None:
        self._request = request
        self._response = response
        self.keep_alive = False

    async def prepare(self, _request: Request) -> None:
        """Do nothing: everything is."""

    async def write_eof(self) -> None:
        """Write it all at once; raise ConnectionResetError when the client is gone."""
        request, response = self._request, self._response
        connection = request._connection
        self.keep_alive = not (request.closes or request.leaves_body_unasked or connection.ends_now)
        if not self.keep_alive:
            end = _LINE_CLOSE
        elif request.version == HttpVersion10:
            end = _LINE_KEEP_ALIVE
        else:
            end = _LINE_NONE
        head = response.head_cors if request.is_cross_origin else response.head
        body = b"" if request.method == "HEAD" else response.body
        request.is_answered = True
        await connection.write(b"".join((head, connection.host.date_line(), request.more_headers, end, body)))


class Connection(RequestHandler):
    """aiohttp's connection, with requests, answers and logs of ours."""

    __slots__ = ("_is_broken", "_is_half_closed", "_is_refused", "_work", "host", "request")

    def __init__(self, manager: web.Server, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            manager,
            loop=loop,
            # Counted from the last answer, so it bounds slow headers as well as idle connections.
            keepalive_timeout=host.keepalive_seconds,
            access_log=cast(Any, None),
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
            lingering_time=LINGERING_SECONDS,
            auto_decompress=False,
        )
        self.host = host
        self.request: Request | None = None
        """The newest one, answered or not; aiohttp's own note of it comes too late, and goes too early."""
        self._is_broken = False
        self._is_refused = False
        self._is_half_closed = False
        self._work: asyncio.Task[None] | None = None

    @property
    def ends_now(self) -> bool:
        """Whether the answer being written is the last: none is due to a request that was read."""
        return (self.host.draining or self._is_half_closed) and not self._messages

    async def write(self, data: bytes) -> None:
        """Hand bytes to the client; wait while it does not take them. Raises ConnectionResetError when it is gone."""
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)
        if self._paused:
            try:
                async with asyncio.timeout(self.host.keepalive_seconds):
                    await self._drain_helper()
            except TimeoutError:
                self.kill()
                raise ConnectionResetError from None

    def close_if_idle(self) -> None:
        """Close a connection on which no request was read that is not answered."""
        if self._waiter is not None and not self._waiter.done():
            self.force_close()

    def kill(self) -> None:
        """Close it at once, whatever is still to be sent."""
        transport = self.transport
        self.force_close()
        if transport is not None:
            transport.abort()

    async def cancel(self) -> None:
        """Close it at once, and return when its work has ended."""
        self.kill()
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve it, or close it at once when there are too many."""
        if not self.host.opened():
            self._is_refused = self._is_broken = True
            transport = cast(asyncio.Transport, transport)
            answer = responses.OVERLOADED
            transport.write(b"".join((answer.head_cors, self.host.date_line(), _LINE_CLOSE, answer.body)))
            transport.close()
            return
        super().connection_made(transport)
        self._work = self._task_handler  # aiohttp forgets it when the connection is lost, though it may still run

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of it. A request that was read whole is still worked on; nobody will see the answer."""
        if self._is_refused:
            return
        self.host.closed()
        for payload in self._open_payloads():
            payload.set_exception(ClientGoneError())
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came. What cannot be parsed is answered with a 400, and what follows it is discarded."""
        if self._is_broken:
            return
        try:
            super().data_received(data)
        except Exception:  # noqa: BLE001 - the parser raises more than it says, with what it read in the text
            self._messages.append((_ErrInfo(400, MalformedRequestError(), ""), EMPTY_PAYLOAD))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
            self._is_broken = True
            # A body that was being read will not go on; nobody else tells its reader.
            for payload in self._open_payloads():
                payload.set_exception(MalformedRequestError())
                payload.feed_eof()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the sending side open for a client that closed its own and waits for the answers.

        TLS has no such state. Without a request to answer, or when one will never be whole, nothing is left to do.
        """
        self._is_half_closed = True
        is_answer_due = bool(self._messages) or (self.request is not None and not self.request.is_answered)
        return is_answer_due and not self._open_payloads() and self.ssl_context is None

    def _open_payloads(self) -> list[StreamReader]:
        payloads = [payload for _, payload in self._messages]
        if self.request is not None:
            payloads.append(self.request.payload)
        return [payload for payload in payloads if not payload.is_eof()]

    def handle_error(
        self, request: Any, status: int = 500, exc: BaseException | None = None, _message: str | None = None
    ) -> Any:
        """Answer what the parser refused. `server` catches every other error, so another one is a fault of ours."""
        request.closes = True
        if status == 400:
            self.host.malformed()
            return Reply(request, responses.BAD_REQUEST)
        if exc is not None:
            self.host.failed(exc)
        return Reply(request, responses.INTERNAL_ERROR)

    def log_debug(self, *_args: Any, **_kw: Any) -> None:
        """Log nothing: `server` logs each request."""

    def log_exception(self, *_args: Any, **kw: Any) -> None:
        """Log a fault of ours. That a body breaks off while it is discarded is none."""
        error = kw.get("exc_info")
        if isinstance(error, BaseException) and not isinstance(error, BridgeError):
            self.host.failed(error)
