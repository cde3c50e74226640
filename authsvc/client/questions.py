"""What is to be asked of the key service: gathered into calls, keys that are known to be good first, and bounded.

`validator` puts in what its cache does not hold, and takes out what goes along with the next call. As in a group
commit there is no timer: who asks while calls are under way goes with the next one, and nobody else waits.

Whoever has no key can send any number of well-formed ones, each of which must be asked for. So keys that were good
lately have a queue and calls of their own, which go first, and one call is kept for them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeAlias

import structlog

from authsvc.client.raw_key import Digest, RawKey
from authsvc.client.verdicts import Decision, KeyServiceUnavailableError

_LOG_INTERVAL_SECONDS = 10.0

_log = structlog.get_logger("authsvc.client")


class Question:
    """A key and an origin, and who waits for the verdict: the one who asked, and those who joined."""

    __slots__ = ("_joined", "api_key", "decided", "is_known", "origin")

    def __init__(self, api_key: RawKey, origin: str | None, *, is_known: bool) -> None:
        """`is_known`: the key was good lately."""
        self.api_key = api_key
        self.origin = origin
        self.is_known = is_known
        self.decided: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        """For the one who asked, and nobody else."""
        self._joined: set[asyncio.Future[None]] = set()

    async def join(self) -> None:
        """Return when there is a verdict, which is not told: rule 4 leaves it to the one who asked."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._joined.add(told)
        try:
            await told
        finally:
            self._joined.discard(told)

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more."""
        return self.decided.done() and not self._joined

    def decide(self, decision: Decision) -> None:
        """Wake all who wait."""
        if not self.decided.done():
            self.decided.set_result(decision)
        for told in self._joined:
            if not told.done():
                told.set_result(None)

    def fail(self, error: Exception) -> None:
        """Raise the error in all who wait."""
        waiters: list[asyncio.Future[Any]] = [self.decided, *self._joined]
        for waiting in waiters:
            if not waiting.done():
                waiting.set_exception(error)


_Waiting: TypeAlias = OrderedDict[Question, None]


class Questions:
    """Those without an answer: they wait for a call, or it is under way."""

    def __init__(self, clock: Callable[[], float], *, calls_max: int, keys_max: int, waiting_max: int) -> None:
        """Allow `calls_max` calls at once, each with up to `keys_max` questions, and so many waiting of either kind.

        `clock` is in seconds. Raises ValueError when `calls_max` is less than 2.
        """
        if calls_max < 2:
            raise ValueError("calls_max: at least 2, one of them for known keys")
        self._clock = clock
        self._calls_max = calls_max
        self._keys_max = keys_max
        self._waiting_max = waiting_max
        self._calls = 0
        self._known: _Waiting = OrderedDict()
        self._strangers: _Waiting = OrderedDict()
        self._latest: dict[tuple[Digest, str | None], Question] = {}
        self._logged_at = float("-inf")

    def get(self, digest: Digest, origin: str | None) -> Question | None:
        """Return the latest question about a key and an origin."""
        return self._latest.get((digest, origin))

    def put(self, question: Question) -> None:
        """Let a question wait for its call; raise KeyServiceUnavailableError when too many do already."""
        waiting = self._waiting_with(question)
        if len(waiting) >= self._waiting_max:
            if self._clock() - self._logged_at >= _LOG_INTERVAL_SECONDS:  # it may be a flood
                self._logged_at = self._clock()
                _log.warning("key_service_calls_saturated", calls=self._calls, waiting=len(waiting))
            raise KeyServiceUnavailableError(f"{len(waiting)} keys wait for a call to the key service already")
        waiting[question] = None
        self._latest[_route(question)] = question

    def forget(self, question: Question) -> None:
        """Let go of a question if nobody waits for it, and its call has not begun."""
        waiting = self._waiting_with(question)
        if question.is_abandoned and question in waiting:
            del waiting[question]
            self._answered(question)

    def begin_call(self) -> list[Question]:
        """Return what to ask in a call that begins now, and ends with `end_call`: nothing when there is none to begin.

        Keys that are known and others are not mixed: the database is read for the latter, and may be slow.
        """
        for waiting, calls_max in ((self._known, self._calls_max), (self._strangers, self._calls_max - 1)):
            if waiting and self._calls < calls_max:
                self._calls += 1
                questions = list(islice(waiting, self._keys_max))
                for question in questions:
                    del waiting[question]
                return questions
        return []

    def end_call(self, questions: list[Question]) -> None:
        """Make room for the next call."""
        self._calls -= 1
        for question in questions:
            self._answered(question)

    def fail(self, error: Exception) -> None:
        """Raise the error in all who wait for a call."""
        for waiting in (self._known, self._strangers):
            for question in waiting:
                question.fail(error)
                self._answered(question)
            waiting.clear()

    def _waiting_with(self, question: Question) -> _Waiting:
        return self._known if question.is_known else self._strangers

    def _answered(self, question: Question) -> None:
        if self._latest.get(_route(question)) is question:
            del self._latest[_route(question)]


def _route(question: Question) -> tuple[Digest, str | None]:
    return question.api_key.digest, question.origin
