"""Fair turns: how much is done for one caller before the event loop goes on to the others. Asked by connections.

A turn is the right to parse one piece of what came, and to begin one request. Whoever sends more has to wait, behind
those who did not: what costs others is not how much is asked of the bridge, but how much of it is done in a row.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable

from authsvc.runtime.networks import Networks, address_group

TURNS = 32
"""Under way at a time, of all callers: a millisecond or two."""

CALLER_TURNS = 16
"""Of them those of one caller. Fewer would make group commits smaller, where one caller sends all there is."""


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
        """Forget a connection of a caller."""
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
        """Give a turn back."""
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
