"""Fair turns: at each turn of the event loop one request begins, of one caller after another. Used by `connections`.

A page takes the event loop a millisecond or two. So whoever asks for many at once waits for its own, and others for one
of each caller.
"""

import asyncio
from collections import OrderedDict, deque


class Turns:
    """Who waits for a turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By caller, whose turn is next first. While it is not empty, `_give` is scheduled."""

    async def next(self, caller: str) -> None:
        """Return when it is the caller's turn."""
        if not self._waiting:
            self._loop.call_soon(self._give)
        turn = self._loop.create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        await turn

    def _give(self) -> None:
        caller, turns = self._waiting.popitem(last=False)
        turn = turns.popleft()
        if turns:
            self._waiting[caller] = turns
        if self._waiting:
            self._loop.call_soon(self._give)
        if not turn.done():  # cancelled
            turn.set_result(None)
