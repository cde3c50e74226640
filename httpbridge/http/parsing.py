"""Bytes to requests: aiohttp's HTTP parser, within bounds. What comes when is `inbound`'s, which inherits it.

Parsing, the bodies' streams and flow control are aiohttp's. Its version is locked, and the tests hold what is relied
upon.
"""

import asyncio
from collections import deque
from typing import TypeAlias

from aiohttp import hdrs
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser, RawRequestMessage
from aiohttp.http_writer import HttpVersion10, HttpVersion11
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from httpbridge.errors import MalformedRequestError
from httpbridge.http import responses
from httpbridge.http.responses import Response

HEADER_BYTES_MAX = 8190
"""Of the request line, and of each header field: what Apache and aiohttp allow."""

HEADERS_MAX = 100

HEAD_BYTES_MAX = 64 * 1024
"""Of a whole head, and of what comes between two pieces of a body. Less is never refused; twice of it always is."""

AHEAD_MAX = 2
"""Requests parsed ahead; beyond it what came is kept as it is."""

_BODY_BUFFER_BYTES = 256 * 1024
"""Of a body that comes faster than it is read; beyond twice of it the connection is not read."""

Message: TypeAlias = tuple[RawRequestMessage | None, StreamReader]
"""What was parsed, and its body; None stands for what is refused."""


def _is_understood(message: RawRequestMessage) -> bool:
    """Return whether a request is HTTP/1.0 or HTTP/1.1, and its body framed as that has it (RFC 9112, 6.1)."""
    codings = message.headers.get(hdrs.TRANSFER_ENCODING)
    if codings is None:
        return message.version is HttpVersion11 or message.version is HttpVersion10
    return message.version is HttpVersion11 and codings.lower() == "chunked"


class RequestParser(BaseProtocol):
    """The requests of one connection, as far as they were parsed."""

    __slots__ = ("_has_more", "_head_bytes", "_is_broken", "_payload", "_queue", "_refusal")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
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
        self._queue: deque[Message] = deque()
        self._payload: StreamReader = EMPTY_PAYLOAD
        """The body of the request that was parsed last, the only one of which anything can still come."""
        self._head_bytes = 0
        """Parsed since a head was whole or something of a body came: at least so much is kept by the parser."""
        self._has_more = False
        """Whether something came that is not parsed, or the parser may have kept something back."""
        self._is_broken = False
        """What comes is discarded: it is not HTTP, or nobody knows where its next request begins."""
        self._refusal: Response = responses.BAD_REQUEST
        """The response to a message that is None."""

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Read on, if it was paused: aiohttp calls this at the end of every body."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of what came."""
        super().connection_lost(exc)
        # Each of these refers to the connection: its memory does not wait for the garbage collector.
        self._is_broken = True
        del self._parser
        self._payload = EMPTY_PAYLOAD
        self._queue.clear()

    def _parse(self, data: bytes) -> bool:
        """Parse what came, one request after the other; return whether the head of one was whole.

        A request that is whole is in the queue before anything is parsed of the next, which may not be HTTP.
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
            if self._is_broken or not self._payload.is_eof():
                break
            if len(self._queue) >= AHEAD_MAX:
                self._has_more = True
                break
            messages, self._is_broken, _ = self._parser.feed_data(b"")
        return is_head_whole

    def _count_head(self, count: int) -> None:
        """Count bytes that were parsed and were neither the end of a head nor of a body; 0 begins anew."""
        self._head_bytes = self._head_bytes + count if count else 0
        if self._head_bytes > HEAD_BYTES_MAX:
            self._refuse(responses.BAD_REQUEST)

    def _refuse(self, refusal: Response) -> None:
        """Discard what comes from now on, and respond so after the requests before it."""
        self._is_broken = True
        self._refusal = refusal
        if not self._payload.is_eof():  # it will not go on, and nobody else tells its reader
            self._payload.set_exception(MalformedRequestError())
            self._payload.feed_eof()
        self._queue.append((None, EMPTY_PAYLOAD))
