"""An HTTP/2 connection to the key service by hand: callers that break what every gRPC library does for them.

Frames are those of RFC 9113, section 6.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

from grpc_reflection.v1alpha import reflection_pb2

from authsvc.runtime.environment import Address

DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
ACK, END_STREAM, END_HEADERS = 1, 1, 4
ENHANCE_YOUR_CALM = 11  # RFC 9113, section 7
_INITIAL_WINDOW_SIZE = 4
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class Listener(Protocol):
    """The key service, in this process or in another."""

    @property
    def address(self) -> Address:
        """Where it listens."""


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


@asynccontextmanager
async def raw_connection(
    service: Listener, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect from an address of this machine as an HTTP/2 client that answers nothing."""
    reader, writer = await asyncio.open_connection(service.address.host, service.address.port, local_addr=(host, 0))
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_until(reader: asyncio.StreamReader, kind: int, flags: int = 0) -> bytes:
    """Read frames up to the first of this kind; return its payload."""
    while True:
        head = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(head[:3]))
        if (head[3], head[4]) == (kind, flags):
            return payload


@asynccontextmanager
async def unread_call(
    service: Listener, method: str, host: str = "127.0.0.1", **metadata: str
) -> AsyncIterator[asyncio.Task[None]]:
    """Make a call that is served, and whose answer cannot be written: its caller has no room for a single byte.

    Gives what is done when the service closes the connection.
    """
    async with raw_connection(service, host) as (reader, writer):
        writer.write(frame(SETTINGS, payload=_INITIAL_WINDOW_SIZE.to_bytes(2) + bytes(4)))
        for _ in range(2):
            await read_until(reader, SETTINGS, ACK)
        writer.write(frame(HEADERS, END_HEADERS, 1, headers(method, **metadata)) + frame(DATA, END_STREAM, 1, bytes(5)))
        await read_until(reader, HEADERS, END_HEADERS)
        answering = asyncio.create_task(_answer_pings(reader, writer))
        try:
            yield answering
        finally:
            answering.cancel()


async def _answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Be alive, as far as the service can tell."""
    with suppress(asyncio.IncompleteReadError, ConnectionError):  # the service has ended it
        while True:
            writer.write(frame(PING, ACK, payload=await read_until(reader, PING)))


def headers(method: str, **metadata: str) -> bytes:
    """Return a call's headers as literals (RFC 7541, section 6.2.2)."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "stranger",
        "te": "trailers",
        "content-type": "application/grpc",
        **metadata,
    }
    return b"".join(b"\0" + _literal(name) + _literal(value) for name, value in fields.items())


def _literal(text: str) -> bytes:
    return bytes((len(text),)) + text.encode()


class Flood:
    """A stranger's connection, which makes calls without a token and reads nothing."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self._writer = writer
        self._stream = -1

    @property
    def is_closed(self) -> bool:
        """Whether a call met no connection any more."""
        return self._writer.transport.is_closing()

    def call(self, method: str, count: int = 1, **metadata: str) -> None:
        """Make calls, each of which is all said."""
        for _ in range(count):
            self._stream += 2
            self._writer.write(frame(HEADERS, END_HEADERS | END_STREAM, self._stream, headers(method, **metadata)))

    def fill(self) -> None:
        """Ask for more than the connection holds."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        room = (2**31 - 1 - 65535).to_bytes(4)
        self._writer.write(
            frame(SETTINGS, payload=_INITIAL_WINDOW_SIZE.to_bytes(2) + room) + frame(WINDOW_UPDATE, payload=room)
        )
        self._stream += 2
        message = reflection_pb2.ServerReflectionRequest(file_containing_symbol="authsvc.v1.KeyService")
        text = message.SerializeToString()
        self._writer.write(frame(HEADERS, END_HEADERS, self._stream, headers(_REFLECTION)))
        self._writer.write(frame(DATA, 0, self._stream, b"\0" + len(text).to_bytes(4) + text) * 3000)

    async def until_closed(self) -> None:
        """Return when the service has closed the connection."""
        with suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


@asynccontextmanager
async def flood(service: Listener, host: str = "127.0.0.1") -> AsyncIterator[Flood]:
    async with raw_connection(service, host) as (reader, writer):
        await read_until(reader, SETTINGS, ACK)
        writer.write(frame(SETTINGS, ACK))  # gRPC takes no more than the first hundred calls without
        yield Flood(reader, writer)
