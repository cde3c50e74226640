"""Requests one after the other over keep-alive connections, each noted. For `revocation`: the last one counts."""

import asyncio
import time
from dataclasses import dataclass, field

from benchmarks.rig.traffic import body, head


@dataclass(slots=True)
class Load:
    """What came back: the start and the status of each request. Instants are Unix seconds."""

    address: str
    key: str
    outcomes: list[tuple[float, int]] = field(default_factory=list)
    stopped: bool = False

    async def run(self, connections: int) -> None:
        """Send until `stopped`."""
        await asyncio.gather(*(self._connection() for _ in range(connections)))

    async def _connection(self) -> None:
        host, _, port = self.address.rpartition(":")
        one = body(1)
        request = head(self.key, len(one)) + one
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            while not self.stopped:
                started = time.time()
                writer.write(request)
                answer = await reader.readuntil(b"\r\n\r\n")
                length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                self.outcomes.append((started, int(answer[9:12])))
        finally:
            writer.close()
