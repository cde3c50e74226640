"""Fair turns: how much is done for one caller before the event loop goes on to the others. Asked by connections.

A turn is the right to parse one piece of what came, and to begin one request. Whoever sends more has to wait, behind
those who did not: what costs others is not how much is asked of the bridge, but how much of it is done in a row.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

from authsvc.client.networks import Networks, address_group

TURNS = 32
"""Under way at a time, of all callers: a millisecond or two."""

CALLER_TURNS = 8
"""Of them those of one caller."""


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

    def __init__(self, loop: asyncio.AbstractEventLoop, trusted_proxies: Networks) -> None:
        self._loop = loop
        self._trusted_proxies = trusted_proxies
        self._callers: dict[str, Caller] = {}
        self._numbers = itertools.count(1)
        self._taken = 0
        self._queue: deque[Caller] = deque()
        """Callers that wait and may have a turn, each once."""

    def join(self, address: str) -> Caller:
        """Return who a new connection belongs to."""
        if address in self._trusted_proxies:
            return Caller(address, f"{address} {next(self._numbers)}")
        group = address_group(address)
        caller = self._callers.get(group)
        if caller is None:
            caller = self._callers[group] = Caller(group, group)
        caller.connections += 1
        return caller

    def leave(self, caller: Caller) -> None:
        """Forget a connection of a caller."""
        caller.connections -= 1
        if caller.connections == 0:
            del self._callers[caller.name]

    def take(self, caller: Caller) -> bool:
        """Take a turn, if the caller has one at once; return whether it has."""
        if self._taken >= TURNS or caller.taken >= CALLER_TURNS or caller.waiting:
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

    def end(self, caller: Caller) -> None:
        """Give a turn back."""
        self._taken -= 1
        caller.taken -= 1
        if caller.waiting:
            self._enqueue(caller)
        if self._queue:
            self._give()

    def _enqueue(self, caller: Caller) -> None:
        if not caller.is_queued and caller.taken < CALLER_TURNS:
            caller.is_queued = True
            self._queue.append(caller)

    def _give(self) -> None:
        while self._queue and self._taken < TURNS:
            caller = self._queue.popleft()
            caller.is_queued = False
            self._taken += 1
            caller.taken += 1
            self._loop.call_soon(caller.waiting.popleft())
            if caller.waiting:
                self._enqueue(caller)
