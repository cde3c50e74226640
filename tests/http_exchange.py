"""One HTTP connection, byte by byte: what is sent is what the test says, and how an answer ends is told apart.

A client library would hide what matters here: whether the connection broke before the first byte of an
answer or in the middle of it.
"""

import asyncio
import json
import ssl
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

BODY = b'{"logs": [{"level": "info", "message": "hello"}]}'
_ANSWER_SECONDS_MAX = 60.0


class NoAnswerError(Exception):
    """The connection ended before the first byte of an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    status: int
    head: bytes
    """Status line and headers."""
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """An open connection; use it with `async with`."""

    def __init__(self, address: str, tls: ssl.SSLContext | None = None, *, source: str | None = None) -> None:
        """Connect to an address, from one of this machine's if that matters."""
        self._source = source
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._tls = tls
        self._reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        local = None if self._source is None else (self._source, 0)
        self._reader, self.writer = await asyncio.open_connection(
            self._host, self._port, ssl=self._tls, local_addr=local
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.transport.abort()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.writer.write(data)

    def finish(self) -> None:
        """Say that nothing more will be sent."""
        self.writer.write_eof()

    async def answer(self, *, has_body: bool = True) -> Answer:
        """Read one answer, interim ones (100) included.

        Raises NoAnswerError when there is none, and IncompleteReadError when it breaks off.
        """
        async with asyncio.timeout(_ANSWER_SECONDS_MAX):
            try:
                first = await self._reader.readexactly(1)
            except (asyncio.IncompleteReadError, ConnectionError):
                raise NoAnswerError from None
            head = first + await self._reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().splitlines()
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
            length = int(headers.get("content-length", "0")) if has_body else 0
            return Answer(int(status.split()[1]), head, headers, await self._reader.readexactly(length))

    def is_at_eof(self) -> bool:
        """Return whether the server has closed the connection, as far as is known here."""
        return self._reader.at_eof() or self._reader.exception() is not None

    async def rest(self) -> bytes:
        """Wait until the server has closed the connection, and return what it still sent."""
        return await self._reader.read()

    async def close(self) -> None:
        """Close it, once all is sent."""
        self.writer.close()
        with suppress(ConnectionError):  # the server may have been faster
            await self.writer.wait_closed()

    async def is_closed_by_server(self) -> bool:
        """Read on, and say whether the server ends the connection without another byte."""
        async with asyncio.timeout(_ANSWER_SECONDS_MAX):
            try:
                return await self._reader.read(1) == b""
            except ConnectionError:
                return True


def request(
    *headers: str,
    method: str = "POST",
    target: str = "/ingest/logs",
    key: str | None = None,
    origin: str | None = None,
    body: bytes | None = None,
) -> bytes:
    """Write a request; with a body, its length is declared."""
    lines = [f"{method} {target} HTTP/1.1", "Host: bridge.example"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if origin is not None:
        lines.append(f"Origin: {origin}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in (*lines, *headers, "")).encode("latin-1") + (body or b"")


async def exchange(address: str, data: bytes, tls: ssl.SSLContext | None = None, *, has_body: bool = True) -> Answer:
    """Send bytes on a new connection and return the first answer."""
    async with Connection(address, tls) as connection:
        connection.send(data)
        return await connection.answer(has_body=has_body)


async def post(address: str, key: str, body: bytes = BODY, tls: ssl.SSLContext | None = None) -> Answer:
    """Send logs."""
    return await exchange(address, request(key=key, body=body), tls)


async def get(address: str, target: str, tls: ssl.SSLContext | None = None) -> Answer:
    """Read a resource."""
    return await exchange(address, request(method="GET", target=target), tls)
