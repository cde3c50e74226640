"""One dear step at a time: between two of them the event loop is everybody else's.

Work that keeps the interpreter lock holds the event loop wherever it runs, in a thread as well. So large bodies are
taken apart in steps, project by project, and sixteen connections with a step each do not hold up a small request for
sixteen steps in a row.
"""

from collections.abc import Generator
from typing import TypeVar

from httpbridge.http.fairness import Turns

TURNS_BETWEEN = 8
"""Turns of the event loop from one step to the next.

In so many a small request that has arrived is read, checked and handed to the store, and a response is written. On an
idle event loop they take some microseconds.
"""

T = TypeVar("T")


class BodyTurn:
    """One request's turns, of which one is taken at a time.

    A request that has begun goes on before others of its project begin: sixteen that were inflated side by side would
    take all that the project may hold, and none would come to its end.
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

    async def run(self, steps: Generator[None, None, T]) -> T:
        """Take each step in a turn of its own, and return what the last one returns, still in its turn."""
        while True:
            await self.take()
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result


def finished(steps: Generator[None, None, T]) -> T:
    """Take all steps at once, for whoever has no event loop that others use, and return what the last one returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
