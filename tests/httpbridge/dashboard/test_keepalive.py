"""An idle connection to the dashboard is kept as long as one to the bridge: as configured."""

import asyncio
from pathlib import Path

from authsvc.runtime.environment import Address
from tests.clocks import RunningClock
from tests.httpbridge.dashboard.conftest import Browser, running


async def test_an_idle_connection_is_kept_as_long_as_is_configured(tmp_path: Path, loop_clock: RunningClock) -> None:
    async with running(tmp_path, Address("127.0.0.1", 1), HTTPBRIDGE_KEEPALIVE_SECONDS="620") as dashboard:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(dashboard.url.rpartition(":")[2]))
        try:
            for _ in range(2):
                writer.write(b"GET /sign-in HTTP/1.1\r\nHost: x\r\n\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 ")
                length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
                await reader.readexactly(int(length.partition(b":")[2]))
                async with Browser(dashboard.url) as other:  # by its answer the first connection is idle
                    await other.get("/sign-in")
                loop_clock.advance(610)
            loop_clock.advance(20)
            async with asyncio.timeout(60):
                assert await reader.read() == b""
        finally:
            writer.close()
