"""Places for connections: bounded in all and by address, and whose connection makes room. Asked by `server`."""

from collections import OrderedDict
from typing import TYPE_CHECKING

import structlog

from authsvc.runtime.networks import Networks, Places
from httpbridge.http.turns import Caller

if TYPE_CHECKING:
    from httpbridge.http.connection import Connection

_LOOKS = 64
"""At connections that cannot make room, before a new one is refused."""

_log = structlog.get_logger("httpbridge")


class ConnectionPlaces:
    """Who has a place. When there is none left, the connection that waits longest for its client loses its own.

    An address that has its share makes room among its own, so that it takes nothing from others.
    """

    def __init__(self, places_max: int, trusted_proxies: Networks) -> None:
        self._places = Places(places_max, trusted_proxies)
        self._connections: OrderedDict[Connection, None] = OrderedDict()
        """In the order in which they began to wait for a request."""
        self._by_caller: dict[Caller, OrderedDict[Connection, None]] = {}
        self._vacated: Caller | None = None
        """Who has lost a connection to make room for its next."""
        self._is_logged = False

    def has_room(self, caller: Caller) -> bool:
        """Return whether a caller may have one place more."""
        return self._vacated is caller or self._places.has_room(caller.address)

    def make_room(self, caller: Caller) -> bool:
        """Return whether a caller may have one place more, once another connection was closed where there is need.

        Where it is, it has to be taken.
        """
        if self._places.has_room(caller.address):
            return True
        victim = _first_stalled(
            self._by_caller.get(caller, OrderedDict()) if self._places.has_share(caller.address) else self._connections
        )
        if not self._is_logged:
            self._is_logged = True
            address = caller.address if victim is None else victim.caller.address
            _log.warning(
                "connections_refused" if victim is None else "connections_evicted",
                connections=self._places.taken,
                address=address,
                of_address=self._places.count(address),
            )
        if victim is None:
            return False
        if victim.caller is caller:
            self._vacated = caller
            self._forget(victim)
        else:
            self.release(victim)
        victim.evict()
        return True

    def take(self, connection: "Connection") -> None:
        """Give a connection the place that its caller may have."""
        if self._vacated is connection.caller:
            self._vacated = None
        else:
            self._places.take(connection.caller.address)
        self._connections[connection] = None
        self._by_caller.setdefault(connection.caller, OrderedDict())[connection] = None

    def release(self, connection: "Connection") -> None:
        """Take the place of a connection back, if it has one."""
        if connection not in self._connections:
            return
        self._places.release(connection.caller.address)
        self._forget(connection)
        if self._places.taken < self._places.places_max // 4:
            self._is_logged = False

    def _forget(self, connection: "Connection") -> None:
        del self._connections[connection]
        own = self._by_caller[connection.caller]
        del own[connection]
        if not own:
            del self._by_caller[connection.caller]

    def begin_to_wait(self, connection: "Connection") -> None:
        """Note that a connection waits for its client's next request from now on."""
        if connection in self._connections:
            self._connections.move_to_end(connection)
            self._by_caller[connection.caller].move_to_end(connection)


def _first_stalled(connections: OrderedDict["Connection", None]) -> "Connection | None":
    """Return the first that waits for its client; those before it are put behind the others."""
    for _ in range(min(_LOOKS, len(connections))):
        connection = next(iter(connections))
        if connection.is_stalled():
            return connection
        connections.move_to_end(connection)
    return None
