"""Fair turns and places: what one caller gets, so that others get theirs.

A turn is the right to parse one piece of what came, and to begin one request. Whoever sends more has to wait, behind
those who did not: what costs others is not how much is asked of the bridge, but how much of it is done in a row.
A place is the right to hold a connection: they are bounded in all and by address, and connections that only wait make
room.
"""

import asyncio
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, TypeVar

import structlog

from authsvc.runtime.networks import Networks, Places, address_group

if TYPE_CHECKING:
    from httpbridge.http.connection import Connection

TURNS = 64
"""Under way at a time, of all callers: two or three milliseconds."""

CALLER_TURNS = 32
"""Of them those of one caller. Fewer would make group commits smaller, and refusals dearer by a tenth, where one caller
sends all there is."""

TURNS_BETWEEN = 8
"""Turns of the event loop from one step of a large body to the next.

In so many a small request that has arrived is read, checked and handed to the store, and a response is written. On an
idle event loop they take some microseconds.
"""

PROGRESS_BYTES = 8 * 1024
"""Of a body, which a client has to send in PROGRESS_SECONDS not to count as silent."""

PROGRESS_SECONDS = 5.0

_LOOKS = 64
"""At connections that cannot make room, before a new one is refused."""

_T = TypeVar("_T")

_log = structlog.get_logger("httpbridge")


class Caller:
    """Who is counted as one: an address (of IPv6 its /64), or a single connection of a trusted proxy."""

    __slots__ = ("address", "connections", "is_queued", "name", "taken", "waiting")

    def __init__(self, address: str, name: str) -> None:
        self.address = address
        self.name = name
        """No other caller has it."""
        self.connections = 0
        self.taken = 0
        """Turns under way."""
        self.waiting: deque[Callable[[], None]] = deque()
        """What is called at the next turns, in order."""
        self.is_queued = False


class Turns:
    """Gives callers their turns: at once while few are under way, then to one caller after the other."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        trusted_proxies: Networks,
        turns: int = TURNS,
        caller_turns: int = CALLER_TURNS,
    ) -> None:
        self._loop = loop
        self._turns = turns
        self._caller_turns = caller_turns
        self._trusted_proxies = trusted_proxies
        self._callers: dict[str, Caller] = {}
        self._numbers = itertools.count(1)
        self._taken = 0
        self._queue: deque[Caller] = deque()
        """Callers that wait and may have a turn, each once."""

    def join(self, address: str) -> Caller:
        """Return who a new connection belongs to."""
        if address in self._trusted_proxies:
            name = f"{address} {next(self._numbers)}"
        else:
            name = address = address_group(address)
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = Caller(address, name)
        caller.connections += 1
        return caller

    def leave(self, caller: Caller) -> None:
        caller.connections -= 1
        if caller.connections == 0:
            del self._callers[caller.name]

    def take(self, caller: Caller) -> bool:
        """Take a turn, if the caller has one at once; return whether it has."""
        if self._taken >= self._turns or caller.waiting or caller.taken >= self._caller_turns:
            return False
        self._taken += 1
        caller.taken += 1
        return True

    def wait(self, caller: Caller, call: Callable[[], None]) -> None:
        """Have something called, later, when the caller has a turn for it."""
        if self.take(caller):
            self._loop.call_soon(call)
            return
        caller.waiting.append(call)
        self._enqueue(caller)
        self._give()

    async def turn(self, address: str, loop_turns: int = 1, *, is_first: bool = False) -> None:
        """Return when an address has a turn, at once if it can. The turn ends in so many turns of the event loop.

        With `is_first`, it has the next turn of its caller.
        """
        caller = self.join(address)
        if self.take(caller):
            self._end_in(loop_turns, caller)
            return
        begun: asyncio.Future[None] = self._loop.create_future()

        def begin() -> None:
            if begun.done():  # who waited was cancelled
                self._end_in(0, caller)
            else:
                begun.set_result(None)
                self._end_in(loop_turns, caller)

        (caller.waiting.appendleft if is_first else caller.waiting.append)(begin)
        self._enqueue(caller)
        self._give()
        await begun

    def _end_in(self, loop_turns: int, caller: Caller) -> None:
        if loop_turns:
            self._loop.call_soon(self._end_in, loop_turns - 1, caller)
        else:
            self.end(caller)
            self.leave(caller)

    def end(self, caller: Caller) -> None:
        self._taken -= 1
        caller.taken -= 1
        if caller.waiting:
            self._enqueue(caller)
        if self._queue:
            self._give()

    def _enqueue(self, caller: Caller) -> None:
        if not caller.is_queued and caller.taken < self._caller_turns:
            caller.is_queued = True
            self._queue.append(caller)

    def _give(self) -> None:
        while self._queue and self._taken < self._turns:
            caller = self._queue.popleft()
            caller.is_queued = False
            self._taken += 1
            caller.taken += 1
            self._loop.call_soon(caller.waiting.popleft())
            if caller.waiting:
                self._enqueue(caller)


class BodyTurn:
    """One large body's turns, of which one is taken at a time.

    Work that keeps the interpreter lock holds the event loop wherever it runs, in a thread as well. So large bodies are
    taken apart in steps, project by project. A request that has begun goes on before others of its project begin:
    sixteen that were inflated side by side would take all that the project may hold, and none would come to its end.
    """

    __slots__ = ("_has_begun", "_project_id", "_turns")

    def __init__(self, turns: Turns, project_id: str) -> None:
        self._turns = turns
        self._project_id = project_id
        self._has_begun = False

    async def take(self) -> None:
        """Return when it is this request's turn: it may hold the event loop until it awaits something."""
        await self._turns.turn(self._project_id, TURNS_BETWEEN, is_first=self._has_begun)
        self._has_begun = True

    async def run(self, steps: Generator[None, None, _T]) -> _T:
        """Take each step in a turn of its own, and return what the last one returns, still in its turn."""
        while True:
            await self.take()
            try:
                next(steps)
            except StopIteration as end:
                result: _T = end.value
                return result


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
