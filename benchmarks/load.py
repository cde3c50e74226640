"""A load of ingest requests, for the other benchmarks: a closed loop over keep-alive connections."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_BODY = b'{"service":"bench","logs":[{"level":"info","message":"a log entry of an ordinary length, about so long"}]}'


@dataclass(slots=True)
class Load:
    """What came back: the start and the status of each request. Instants are Unix seconds."""

    address: tuple[str, int]
    key: Callable[[], str]
    outcomes: list[tuple[float, int]] = field(default_factory=list)
    stopped: bool = False

    async def run(self, connections: int) -> None:
        """Send until `stopped`."""
        await asyncio.gather(*(self._connection() for _ in range(connections)))

    async def _connection(self) -> None:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            while not self.stopped:
                head = (
                    f"POST /ingest/logs HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {self.key()}\r\n"
                    f"Content-Length: {len(_BODY)}\r\n\r\n"
                )
                started = time.time()
                writer.write(head.encode() + _BODY)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.outcomes.append((started, int(answer[9:12])))
        finally:
            writer.close()
