"""One client's connection, on aiohttp's HTTP parser. Made by `server`, which answers its requests.

aiohttp's own connection logs and answers what its parser refuses with the offending bytes, a raw
key included, starts a task for each request, and builds a request and a response object of a
hundred attributes each. This one has one task, which answers requests in the order they came.
Parsing, the bodies' streams and flow control are aiohttp's. Its version is locked, and the tests
hold what is relied upon.
"""

import asyncio
from collections import deque
from contextlib import suppress
from typing import Protocol, TypeAlias, cast

from aiohttp import hdrs
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.tcp_helpers import tcp_keepalive

from httpbridge import responses
from httpbridge.errors import BridgeError, ClientGoneError, MalformedRequestError
from httpbridge.request import Request
from httpbridge.responses import Response

LINGERING_SECONDS = 2.0
"""How long the rest of a refused body is discarded, so that the client can read the status (docs/http-api.md)."""

HEADER_BYTES_MAX = 8190
"""Of the request line, and of each header field: what Apache and aiohttp allow."""

HEADERS_MAX = 100

HEAD_BYTES_MAX = 64 * 1024
"""Of a whole head, and of what comes between two pieces of a body. Less is never refused; twice of it always is."""

_PARSED_BYTES = 32 * 1024
"""At a time. Where in them a head began is not known, so the first and the last of it are not counted."""

PIPELINED_MAX = 32
"""Requests parsed ahead; beyond it the connection is not read until their turn has come."""

READ_AHEAD_BYTES_MAX = 512 * 1024
"""Of requests that wait for those before them, headers and bodies; beyond it likewise."""

_BODY_BUFFER_BYTES = 256 * 1024
"""Of a body that comes faster than it is read; beyond twice of it the connection is not read."""

_ANSWERS_BYTES_MAX = 16 * 1024
"""Of answers that the client has not taken; beyond it the next request waits. TLS by itself would hold 512 KiB."""

_LINE_CLOSE = b"Connection: close\r\n\r\n"
_LINE_KEEP_ALIVE = b"Connection: keep-alive\r\n\r\n"
_LINE_NONE = b"\r\n"

_Message: TypeAlias = tuple[RawRequestMessage | None, StreamReader]
"""What was parsed, and its body; None stands for what is not HTTP."""


def last_answer(answer: Response, date_line: bytes) -> bytes:
    """Return an answer to what was not read, after which the connection is closed: it suits pages, too."""
    return b"".join((answer.head_cors, date_line, _LINE_CLOSE, answer.body))


def _is_understood(message: RawRequestMessage) -> bool:
    """Return whether a request is HTTP/1.0 or HTTP/1.1, and its body framed as that has it (RFC 9112, 6.1)."""
    codings = message.headers.get(hdrs.TRANSFER_ENCODING)
    if codings is None:
        return message.version is HttpVersion11 or message.version is HttpVersion10
    return message.version is HttpVersion11 and codings.lower() == "chunked"


class ConnectionOwner(Protocol):
    """What a connection asks of the server that it belongs to."""

    keepalive_seconds: float
    body_timeout_seconds: float
    draining: bool

    def closed(self, connection: "Connection") -> None:
        """Forget a connection: it is lost, and nothing is worked on for it any more."""

    def date_line(self) -> bytes:
        """Return the Date header of now, its line ended."""

    async def answer(self, request: Request) -> Response:
        """Return the answer to a request."""

    def failed(self, error: BaseException) -> None:
        """Log an error that nobody expected."""

    def malformed(self) -> None:
        """Log that something was not HTTP."""


class Connection(BaseProtocol):
    """The protocol of one connection, and the task that answers its requests."""

    __slots__ = (
        "_arrival",
        "_head_bytes",
        "_idle_since",
        "_is_broken",
        "_is_half_closed",
        "_owner",
        "_payload",
        "_queue",
        "_read_ahead_bytes",
        "_request",
        "_timer",
        "_work",
        "opening",
    )

    def __init__(self, owner: ConnectionOwner, loop: asyncio.AbstractEventLoop) -> None:
        parser = HttpRequestParser(
            self,
            loop,
            _BODY_BUFFER_BYTES,
            max_line_size=HEADER_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
            payload_exception=MalformedRequestError,
            auto_decompress=False,
            max_msg_queue_size=1,  # it keeps back what follows a request that is whole: see _parse
        )
        super().__init__(loop, parser)
        self._parser: HttpRequestParser
        self._owner = owner
        self._queue: deque[_Message] = deque()
        self._payload: StreamReader = EMPTY_PAYLOAD
        """The body of the request that was parsed last, the only one of which anything can still come."""
        self._head_bytes = 0
        """Parsed since a head was whole or something of a body came: at least so much is kept by the parser."""
        self._read_ahead_bytes = 0
        """Came before its turn since reading was last paused for that: at least what waits now."""
        self._request: Request | None = None
        """The one that is worked on; None while waiting for the next."""
        self._arrival: asyncio.Future[None] | None = None
        """Done when something was parsed, or the connection is lost."""
        self._is_broken = False
        """What comes is discarded: it is not HTTP, or nobody knows where its next request begins."""
        self._is_half_closed = False
        self._work: asyncio.Task[None] | None = None
        self._idle_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.opening: asyncio.Task[object] | None = None

    # What the server calls.

    def close_if_idle(self) -> None:
        """Close a connection on which no request was read that is not answered."""
        if self._is_idle:
            self._close()

    async def cancel(self) -> None:
        """Close it at once, whatever is still to be sent, and return when its work has ended."""
        self._abort()
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve it."""
        transport = cast(asyncio.Transport, transport)
        super().connection_made(transport)
        tcp_keepalive(transport)
        transport.set_write_buffer_limits(_ANSWERS_BYTES_MAX)
        self._idle_since = self._loop.time()
        self._timer = self._loop.call_later(self._owner.keepalive_seconds, self._close_if_idle_too_long)
        self._work = self._loop.create_task(self._serve(), name="connection")

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of it. A request that was read whole is still worked on; nobody will see the answer."""
        if not self._payload.is_eof():
            self._payload.set_exception(ClientGoneError())
        super().connection_lost(exc)
        self._wake()
        if self._timer is not None:
            self._timer.cancel()
        if self._work is not None:
            self._work.add_done_callback(lambda _: self._owner.closed(self))
        # Each of these refers to the connection: its memory does not wait for the garbage collector.
        self._is_broken = True
        del self._parser
        self._payload = EMPTY_PAYLOAD
        self._queue.clear()

    def data_received(self, data: bytes) -> None:
        """Parse what came. What cannot be parsed is answered with a 400, and what follows it is discarded."""
        if len(data) > _PARSED_BYTES:
            for start in range(0, len(data), _PARSED_BYTES):
                self.data_received(data[start : start + _PARSED_BYTES])
            return
        if self._is_broken:
            return
        body_bytes = self._payload.total_bytes
        try:
            is_head_whole = self._parse(data)
        except Exception:  # noqa: BLE001 - the parser raises more than it says, with what it read in the text
            self._refuse()
        else:
            if is_head_whole:
                self._head_bytes = 0
            else:
                self._count_head(len(data) if self._payload.total_bytes == body_bytes else 0)
        if self._queue:
            self._wake()
            if self._request is not None or len(self._queue) >= PIPELINED_MAX:
                self._count_ahead(len(data))

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Read on, if it was paused: aiohttp calls this at the end of every body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def eof_received(self) -> bool:
        """Keep the sending side open for a client that closed its own and waits for the answers.

        TLS has no such state. Without a request to answer, or when one will never be whole, nothing is left to do.
        """
        self._is_half_closed = True
        is_tls = self.transport is not None and self.transport.get_extra_info("sslcontext") is not None
        if self._is_idle or not self._payload.is_eof() or is_tls:
            self._close()
            return False
        return True

    # The way of the requests.

    async def _serve(self) -> None:
        """Answer what comes until the connection ends."""
        try:
            while (message := await self._next()) is not None:
                if not await self._serve_one(*message):
                    break
        except (ConnectionError, BridgeError):
            pass  # the client has gone, or what it still sends of a refused body is broken
        except Exception as error:  # noqa: BLE001 - a fault of ours: `answer` raises nothing
            self._owner.failed(error)
        finally:
            self._request = None
            self._close()

    async def _next(self) -> _Message | None:
        """Return what was parsed next, or None when the connection is lost."""
        self._request = None
        while self.transport is not None:
            if self._queue:
                message = self._queue.popleft()
                if self._buffer_paused and not self._queue:
                    await asyncio.sleep(0)  # so many were answered in a row, perhaps: others have their turn
                    self._parse_on()
                return message
            self._idle_since = self._loop.time()
            self._arrival = self._loop.create_future()
            await self._arrival
        return None

    async def _serve_one(self, message: RawRequestMessage | None, payload: StreamReader) -> bool:
        """Answer, and discard what is left of the body; return whether the connection goes on."""
        owner = self._owner
        if message is None:
            owner.malformed()
            self._write(last_answer(responses.BAD_REQUEST, owner.date_line()))
            return False
        self._request = request = Request(self.transport, owner.body_timeout_seconds, message, payload)
        response = await owner.answer(request)
        is_last = (owner.draining or self._is_half_closed) and not self._queue  # of those that an answer is due to
        goes_on = not (request.closes or request.leaves_body_unasked or is_last)
        if not goes_on:
            end = _LINE_CLOSE
        elif request.version is HttpVersion10:
            end = _LINE_KEEP_ALIVE
        else:
            end = _LINE_NONE
        head = response.head_cors if request.is_cross_origin else response.head
        body = b"" if request.method == "HEAD" else response.body
        self._write(b"".join((head, owner.date_line(), request.more_headers, end, body)))
        if self._paused:
            await self._drain()
        return (payload.is_eof() or await self._discard(payload)) and goes_on

    def _write(self, data: bytes) -> None:
        if self.transport is None or self.transport.is_closing():
            raise ConnectionResetError
        self.transport.write(data)

    async def _drain(self) -> None:
        """Wait until the client takes its answers; one that does not is cut off."""
        try:
            async with asyncio.timeout(self._owner.keepalive_seconds):
                await self._drain_helper()
        except TimeoutError:
            self._abort()
            raise ConnectionResetError from None

    async def _discard(self, payload: StreamReader) -> bool:
        """Discard what still comes of a body, for a while; return whether that was all of it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGERING_SECONDS):
                while not payload.is_eof():
                    await payload.readany()
        return payload.is_eof()

    def _parse(self, data: bytes) -> bool:
        """Parse what came, one request after the other; return whether the head of one was whole.

        A request that is whole is in the queue before anything is parsed of the next, so that it is answered even if
        that is not HTTP. Beyond PIPELINED_MAX no more than one is parsed of each piece that was read.
        """
        was_whole = self._payload.is_eof()
        is_head_whole = False
        messages, self._is_broken, _ = self._parser.feed_data(data)  # nothing follows a request for an upgrade
        while messages or not was_whole:
            was_whole = True
            if messages:
                is_head_whole = True
                if not _is_understood(messages[0][0]):  # it came alone
                    raise MalformedRequestError
                self._queue += messages
                self._payload = messages[0][1]
            if self._is_broken or not self._payload.is_eof() or len(self._queue) >= PIPELINED_MAX:
                break
            messages, self._is_broken, _ = self._parser.feed_data(b"")
        return is_head_whole

    def _count_head(self, count: int) -> None:
        """Count bytes that were parsed and were neither the end of a head nor of a body; 0 begins anew."""
        self._head_bytes = self._head_bytes + count if count else 0
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse()

    def _refuse(self) -> None:
        """Discard what comes from now on, and have it answered with a 400 after the requests before it."""
        self._is_broken = True
        if not self._payload.is_eof():  # it will not go on, and nobody else tells its reader
            self._payload.set_exception(MalformedRequestError())
            self._payload.feed_eof()
        self._queue.append((None, EMPTY_PAYLOAD))

    def _count_ahead(self, count: int) -> None:
        """Count bytes that came before their turn; when these or the requests are too many, no more are read."""
        self._read_ahead_bytes += count
        is_far_ahead = len(self._queue) >= PIPELINED_MAX or self._read_ahead_bytes > READ_AHEAD_BYTES_MAX
        if is_far_ahead and not self._buffer_paused:
            self._pause_reading_for_buffer()

    def _parse_on(self) -> None:
        """Let the parser go on with what it kept back, and the connection be read again if that was all."""
        self._read_ahead_bytes = 0
        self.data_received(b"")
        if len(self._queue) < PIPELINED_MAX:
            self._resume_reading_for_buffer()

    @property
    def _is_idle(self) -> bool:
        return self._request is None and not self._queue

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def _close(self) -> None:
        """Close it once the client took what is still to be sent; one that does not is cut off."""
        if self.transport is None:
            return
        self.transport.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._owner.keepalive_seconds, self._abort)

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _close_if_idle_too_long(self) -> None:
        """Look whether nothing was answered for so long: it bounds slow headers as well as idle connections."""
        due = (self._idle_since if self._is_idle else self._loop.time()) + self._owner.keepalive_seconds
        if self._loop.time() >= due:
            self.close_if_idle()
        else:
            self._timer = self._loop.call_at(due, self._close_if_idle_too_long)
