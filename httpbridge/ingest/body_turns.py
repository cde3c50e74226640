"""One dear step at a time: between two of them the event loop is everybody else's.

`app` makes one for the process; `ingest` takes large bodies apart in its turns. Work that keeps the interpreter lock
holds the event loop wherever it runs, in a thread as well. So what is dear is done in steps, and sixteen connections
with a step each do not hold up a small request for sixteen steps in a row.
"""

import asyncio
from collections import deque
from collections.abc import Generator
from typing import TypeVar

TURNS_BETWEEN = 8
"""Turns of the event loop from one step to the next.

In so many a small request that has arrived is read, checked and handed to the store, and a response is
written. On an idle event loop they take some microseconds.
"""

T = TypeVar("T")


class BodyTurns:
    """Who may take the next dear step: project by project, and in each one request after the other.

    A request that has begun goes on before others of its project begin: sixteen that were inflated side by side would
    take all that the project may hold, and none would come to its end.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By project, the next one first."""
        self._is_taken = False

    async def take(self, project_id: str, *, has_begun: bool) -> None:
        """Return when it is this request's turn: it may hold the event loop until it awaits something."""
        loop = asyncio.get_running_loop()
        if self._is_taken:
            turn: asyncio.Future[None] = loop.create_future()
            waiting = self._waiting.setdefault(project_id, deque())
            (waiting.appendleft if has_begun else waiting.append)(turn)
            await turn
        else:
            self._is_taken = True
            loop.call_soon(self._pass_on, TURNS_BETWEEN)

    def _pass_on(self, turns_left: int) -> None:
        """Give the turn to the next one, in so many turns of the event loop."""
        loop = asyncio.get_running_loop()
        if turns_left:
            loop.call_soon(self._pass_on, turns_left - 1)
            return
        while self._waiting:
            project_id, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            del self._waiting[project_id]
            if turns:
                self._waiting[project_id] = turns  # behind the other projects
            if not turn.done():  # a cancelled request has gone
                turn.set_result(None)
                loop.call_soon(self._pass_on, TURNS_BETWEEN)
                return
        self._is_taken = False


class BodyTurn:
    """One request's turns, of its project."""

    __slots__ = ("_has_begun", "_project_id", "_turns")

    def __init__(self, turns: BodyTurns, project_id: str) -> None:
        self._turns = turns
        self._project_id = project_id
        self._has_begun = False

    async def take(self) -> None:
        """Return when it is this request's turn: it may hold the event loop until it awaits something."""
        await self._turns.take(self._project_id, has_begun=self._has_begun)
        self._has_begun = True

    async def run(self, steps: Generator[None, None, T]) -> T:
        """Take each step in a turn of its own, and return what the last one returns, still in its turn."""
        while True:
            await self.take()
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result
