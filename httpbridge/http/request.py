"""One request: its headers as they were read, its body as it comes; and the paths that targets mean."""

import asyncio
import re

from aiohttp import hdrs
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import HttpVersion11
from aiohttp.streams import StreamReader

from httpbridge.http import responses

_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_SLASHES = re.compile("//+")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
"""Characters that mean the same escaped and not (RFC 3986, 2.3): some clients escape them all the same."""


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

    def take_body(self) -> bytes | None:
        """Return a body that came along with the headers and as it is: the usual case. For others see `bodies.read`."""
        if hdrs.CONTENT_ENCODING in self.headers or not self.payload.is_eof():
            return None
        return self.payload.read_nowait()

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
