"""The public HTTP server: who has room for a connection, what is still read of refused bodies, draining.

`request` responds, and `connection` writes.
"""

import asyncio
from dataclasses import dataclass

import structlog
from aiohttp.streams import StreamReader

from authsvc.runtime.networks import Networks, Places
from httpbridge.http import responses
from httpbridge.http.bodies import Budget
from httpbridge.http.connection import Connection
from httpbridge.http.fairness import PROGRESS_BYTES, PROGRESS_SECONDS, ConnectionPlaces, Turns
from httpbridge.http.request import Router

CONNECTIONS_MAX = 10_000
"""Open at once, those in their TLS handshake included, but for those for health checks.

Each is an open file, and holds no more than `inbound` bounds, so that this bounds what idle and slow clients take:
part of a head, of a body that is not read yet, of requests that wait for their turn, and responses that are not taken.
"""

HEALTH_CONNECTIONS_MAX = 64
"""Beyond these, for health checks alone."""

_LINGERING_SECONDS_MAX = 120.0
"""As long as a body may take that is not refused."""

_LINGERING_SHARE = 10
"""One connection in so many may be one whose refused body is still read."""

_POLL_SECONDS = 0.02
"""Between two looks at which connections have become idle while shutting down."""

_log = structlog.get_logger("httpbridge")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of the server and of each connection."""

    connections_max: int = CONNECTIONS_MAX
    keepalive_seconds: float = 75.0
    """For an idle connection: what nginx has."""
    body_timeout_seconds: float = 120.0
    """For a body to be whole: 5 MiB in it are 44 kB/s, a slow mobile uplink."""
    body_bytes_max: int = 5 * 1024 * 1024
    held_bytes_max: int = 256 * 1024 * 1024
    """Of all connections together: of what came before its turn, and of heads that are not whole."""
    caller_held_bytes_max: int = 64 * 1024 * 1024
    """Of one caller."""


class Lingering:
    """Discards what is still sent of refused bodies for a while, of as many connections at once as have places for it.

    A connection that is closed while something of it is unread takes the response back: slow clients would see a broken
    pipe instead of the status (docs/http-api.md).
    """

    def __init__(self, connections_max: int, bytes_max: int, trusted_proxies: Networks) -> None:
        self._places = Places(max(1, connections_max // _LINGERING_SHARE), trusted_proxies)
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
        end = loop.time() + _LINGERING_SECONDS_MAX
        discarded_bytes = counted_bytes = 0
        async with asyncio.timeout(PROGRESS_SECONDS) as timeout:
            while not payload.is_eof() and discarded_bytes <= self._bytes_max:
                discarded_bytes += len(await payload.readany())
                if discarded_bytes - counted_bytes >= PROGRESS_BYTES:
                    counted_bytes = discarded_bytes
                    timeout.reschedule(min(loop.time() + PROGRESS_SECONDS, end))


class PublicServer:
    """A factory of protocols, and what all of its connections share.

    To be made inside the event loop. To stop: `drain()`, close the listener, then await `shutdown()`.
    """

    def __init__(self, router: Router, limits: ServerLimits, trusted_proxies: Networks) -> None:
        self._loop = asyncio.get_running_loop()
        self.router = router
        self.limits = limits
        self.turns = Turns(self._loop, trusted_proxies)
        self.held_budget = Budget(limits.held_bytes_max, limits.caller_held_bytes_max, "unparsed_budget_exhausted")
        self.lingering = Lingering(limits.connections_max, limits.body_bytes_max, trusted_proxies)
        self._places = ConnectionPlaces(limits.connections_max, trusted_proxies)
        self._health_places = ConnectionPlaces(HEALTH_CONNECTIONS_MAX, trusted_proxies)
        self._connections: set[Connection] = set()

    def __call__(self, address: str) -> Connection:
        caller = self.turns.join(address)
        is_for_health = not self._places.has_room(caller)
        places = self._health_places if is_for_health else self._places
        connection = Connection(self, self._loop, caller, places, is_for_health=is_for_health)
        places.take(connection)
        self._connections.add(connection)
        return connection

    def has_room(self, address: str) -> bool:
        caller = self.turns.join(address)
        try:
            return self._places.make_room(caller) or self._health_places.make_room(caller)
        finally:
            self.turns.leave(caller)

    def refusal(self) -> bytes:
        return responses.last_response(responses.OVERLOADED, self.router.date_line())

    def drain(self) -> None:
        """Send clients away: /ready fails and responses close their connections. New connections are still served."""
        self.router.is_draining = True

    async def shutdown(self, timeout_seconds: float) -> None:
        """Respond to every request that was read, and close all connections; return when nothing is left running.

        The listener should be closed by then. What has no response within the timeout is cancelled.
        """
        self.drain()
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._connections:
                    for connection in self._connections:
                        connection.close_if_idle()
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            _log.warning("requests_cancelled", connections=len(self._connections))
            await asyncio.gather(*(connection.cancel() for connection in self._connections))

    def closed(self, connection: Connection) -> None:
        """Forget a connection: it is lost, and nothing is worked on for it any more."""
        if connection in self._connections:
            self._connections.remove(connection)
            self._places.release(connection)
            self._health_places.release(connection)
            self.turns.leave(connection.caller)
