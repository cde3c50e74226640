"""An HTTP/2 connection to the key service by hand: callers that break what every gRPC library does for them.

Frames are those of RFC 9113, section 6.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.authsvc.conftest import Service

DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK, END_STREAM, END_HEADERS = 1, 1, 4
ENHANCE_YOUR_CALM = 11  # RFC 9113, section 7
_INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


@asynccontextmanager
async def raw_connection(
    service: Service, host: str = "127.0.0.1"
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
    service: Service, method: str, host: str = "127.0.0.1", **metadata: str
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
