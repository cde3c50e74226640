"""One request, to see how a server answers it: before and after a load, whose answers are only counted."""

import asyncio

from benchmarks.rig.traffic import head


async def is_answered(
    address: str, status: int, api_key: str, body: bytes, origin: str | None = None, *, tries: int = 1
) -> bool:
    """Whether one of so many requests, over one connection, is answered with that status; then that is the last."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for _ in range(tries):
            writer.write(head(api_key, len(body), origin) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            if int(answer[9:12]) == status:
                return True
    finally:
        writer.close()
        await writer.wait_closed()
    return False
