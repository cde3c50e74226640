"""A TCP proxy between a bridge and the key service that can stop delivering without telling either side.

What a broken network looks like to both ends: connections stay open, bytes are taken and nothing
arrives. Nothing is read while it is cut, so that healed connections deliver late what was sent
meanwhile, as TCP does when packets get through again.
"""

import asyncio
from typing import Self

_CHUNK_BYTES = 65_536


class TcpProxy:
    """Forwards connections to one address; use it with `async with`."""

    def __init__(self, target: str) -> None:
        """`target` is `host:port`."""
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._delivers = asyncio.Event()
        self._delivers.set()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server
        self.address = ""
        """Where it listens."""

    @property
    def connections(self) -> int:
        """How many there are, those included that wait for the first bytes to be delivered."""
        return len(self._connections)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.reset()

    def cut(self) -> None:
        """Deliver nothing from here on, in either direction, on connections old and new."""
        self._delivers.clear()

    def heal(self) -> None:
        """Deliver again, and first of all what was sent meanwhile."""
        self._delivers.set()

    async def reset(self) -> None:
        """Break every connection, and deliver again on new ones."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        self._delivers.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends = [writer]
        try:
            await self._delivers.wait()
            far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
            ends.append(far_writer)
            ways = [
                asyncio.create_task(self._pump(reader, far_writer)),
                asyncio.create_task(self._pump(far_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the key service is away: the other end finds its connection broken
        finally:
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._delivers.wait()
            writer.write(data)
            await writer.drain()
