"""One request: its headers as they were read, its body as it comes. Made by `connection`, answered by `server`."""

import asyncio

from aiohttp import hdrs
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import StreamReader

from httpbridge.errors import BodyTimeoutError
from httpbridge.http import bodies, responses


class Request:
    """A request whose headers were read, and what its answer will say beyond the prepared bytes."""

    __slots__ = (
        "_body_timeout_seconds",
        "_transport",
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
        self._body_timeout_seconds = body_timeout_seconds
        self.payload = payload
        """The body as aiohttp's parser feeds it."""
        self.method = message.method
        self.target = message.path
        self.version = message.version
        self.headers = message.headers
        self.is_cross_origin = hdrs.ORIGIN in self.headers
        self.closes = message.should_close or message.upgrade
        """Whether the connection ends with the answer.

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
        """Header lines for any answer to this request, each line ended."""
        self.project_id: str | None = None
        """Once the key is known to be valid."""

    @property
    def peer(self) -> str:
        """The address at the other end of the connection; empty where there is none."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return name[0] if isinstance(name, tuple) else ""

    def has_whole_body(self) -> bool:
        """Return whether the body came along with the headers: the usual case."""
        return self.payload.is_eof()

    def take_body(self, bytes_max: int) -> bytes:
        """Return a body that is here as a whole, as it came. Raises BodyTooLargeError."""
        return bodies.take(self.payload, bytes_max)

    async def read_body(self, bytes_max: int, share: bodies.Reservation) -> bytes:
        """Return the whole body as it came, after asking for it where the client waits to be asked.

        Raises BodyTooLargeError, OverloadedError, BodyTimeoutError, MalformedRequestError (its
        framing is broken) and ClientGoneError.
        """
        if self.leaves_body_unasked and self._transport is not None and not self._transport.is_closing():
            self.leaves_body_unasked = False
            self._transport.write(responses.CONTINUE)
        try:
            async with asyncio.timeout(self._body_timeout_seconds):
                return await bodies.read(self.payload, bytes_max, share)
        except TimeoutError:
            raise BodyTimeoutError from None
