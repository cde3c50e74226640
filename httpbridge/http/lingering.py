"""What is still sent of a refused body is discarded for a while, so that the client can read why. Used by connections.

A connection that is closed while something of it is unread takes the response back: slow clients would see a broken
pipe instead of the status (docs/http-api.md).
"""

import asyncio

from aiohttp.streams import StreamReader

from authsvc.runtime.networks import Networks, Places

LINGERING_SECONDS_MAX = 120.0
"""As long as a body may take that is not refused."""

PROGRESS_BYTES = 8 * 1024
"""Of a body, which a client has to send in PROGRESS_SECONDS not to count as silent."""

PROGRESS_SECONDS = 5.0

_SHARE = 10
"""One place in so many may be taken by what is discarded."""


class Lingering:
    """Discards the rest of refused bodies, for as many connections at once as there are places for that."""

    def __init__(self, connections_max: int, bytes_max: int, trusted_proxies: Networks) -> None:
        self._places = Places(max(1, connections_max // _SHARE), trusted_proxies)
        self._bytes_max = bytes_max

    async def discard(self, payload: StreamReader, address: str) -> bool:
        """Discard what comes of a body as long as enough does; return whether that was all of it.

        Raises what the connection does to a body that breaks off.
        """
        if payload.is_eof():
            return True
        if not self._places.take(address):
            return False
        try:
            await self._discard(payload)
        except TimeoutError:
            pass
        finally:
            self._places.release(address)
        return payload.is_eof()

    async def _discard(self, payload: StreamReader) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + LINGERING_SECONDS_MAX
        discarded_bytes = counted_bytes = 0
        async with asyncio.timeout(PROGRESS_SECONDS) as timeout:
            while not payload.is_eof() and discarded_bytes <= self._bytes_max:
                discarded_bytes += len(await payload.readany())
                if discarded_bytes - counted_bytes >= PROGRESS_BYTES:
                    counted_bytes = discarded_bytes
                    timeout.reschedule(min(loop.time() + PROGRESS_SECONDS, end))
