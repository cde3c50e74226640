"""What is to be asked of the key service: gathered into calls, keys that are known to be good first, and bounded.

`validator` puts in what its cache does not hold, and takes out what goes along with the next call. As in a group
commit there is no timer: who asks while calls are under way goes with the next one, and nobody else waits.

Whoever has no key can send any number of well-formed ones, each of which must be asked for. So keys that were good
lately have a queue and calls of their own, which go first, and one call is kept for them. And so many invalid keys that
only a flood has them are asked for a few at a time, at a rate that leaves the processor to the others.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, TypeAlias

from authsvc.client.api_key import ApiKey, Digest
from authsvc.client.verdicts import INVALID_KEY, Answer, Decision, KeyServiceUnavailableError
from authsvc.runtime.library_logging import EventLogger

_INVALID_PER_SECOND = 1000.0
"""Invalid keys, in the long run: what a tenth of a core answers."""
_INVALID_AT_ONCE = 512.0
"""As many as may be under way, whatever they turn out to be: two full calls."""
_FLOOD_KEYS = 8
"""Keys a call while that is used up. Those answered together delay everybody else, by a tenth of a millisecond each."""

_LOG_INTERVAL_SECONDS = 10.0

_log = EventLogger()


class PendingLookup:
    """A key and an origin, and who waits for the verdict: the one who asked, and those who joined."""

    __slots__ = ("_joined", "api_key", "decided", "is_known", "origin")

    def __init__(self, api_key: ApiKey, origin: str | None, loop: asyncio.AbstractEventLoop, *, is_known: bool) -> None:
        """`is_known`: the key was good lately."""
        self.api_key = api_key
        self.origin = origin
        self.is_known = is_known
        self.decided: asyncio.Future[Decision] = loop.create_future()
        """For the one who asked, and nobody else."""
        self._joined: set[asyncio.Future[None]] = set()

    def join(self) -> asyncio.Future[None]:
        """Return what is done when there is a verdict, which is not told: rule 4 leaves it to the one who asked."""
        told: asyncio.Future[None] = self.decided.get_loop().create_future()
        self._joined.add(told)
        told.add_done_callback(self._joined.discard)
        return told

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more."""
        return self.decided.done() and all(told.done() for told in self._joined)

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


_Waiting: TypeAlias = OrderedDict[PendingLookup, None]


class PendingLookups:
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
        self._latest: dict[tuple[Digest, str | None], PendingLookup] = {}
        self._invalid_left = _INVALID_AT_ONCE  # a token bucket, filled up as of the time beside it
        self._invalid_left_at = clock()
        self._logged_at = float("-inf")

    def get(self, digest: Digest, origin: str | None) -> PendingLookup | None:
        """Return the latest question about a key and an origin."""
        return self._latest.get((digest, origin))

    def put(self, lookup: PendingLookup) -> None:
        """Let a question wait for its call; raise KeyServiceUnavailableError when too many do already."""
        waiting = self._waiting_with(lookup)
        if len(waiting) >= self._waiting_max:
            self._warn("key_service_calls_saturated")
            raise KeyServiceUnavailableError(f"{len(waiting)} keys wait for a call to the key service already")
        waiting[lookup] = None
        self._latest[_route(lookup)] = lookup

    def forget(self, lookup: PendingLookup) -> None:
        """Let go of a question if nobody waits for it, and its call has not begun."""
        waiting = self._waiting_with(lookup)
        if lookup in waiting and lookup.is_abandoned:
            del waiting[lookup]
            self._answered(lookup)

    def begin_call(self) -> list[PendingLookup]:
        """Return what to ask in a call that begins now, and ends with `end_call`: nothing when there is none to begin.

        Keys that are known and others are not mixed: the database is read for the latter, and may be slow.
        """
        if self._known and self._calls < self._calls_max:
            return self._taken(self._known, self._keys_max)
        if self._strangers and self._calls < self._calls_max - 1 and self.pause_seconds() <= 0:
            lookups = self._taken(self._strangers, min(self._keys_max, int(self._invalid_left)))
            self._invalid_left -= len(lookups)  # any of them may be
            return lookups
        return []

    def pause_seconds(self) -> float:
        """Return how long the strangers who wait have to do so because of invalid keys: 0 or less if they need not."""
        if not self._strangers:
            return 0.0
        now = self._clock()
        refill = (now - self._invalid_left_at) * _INVALID_PER_SECOND
        self._invalid_left = min(self._invalid_left + refill, _INVALID_AT_ONCE)
        self._invalid_left_at = now
        return (_FLOOD_KEYS - self._invalid_left) / _INVALID_PER_SECOND

    def end_call(self, lookups: list[PendingLookup], outcomes: Sequence[Answer | Exception]) -> None:
        """Make room for the next call, and note how many of the keys were invalid."""
        self._calls -= 1
        for lookup in lookups:
            self._answered(lookup)
        if not lookups[0].is_known:
            invalid = sum(isinstance(each, Answer) and each.decision is INVALID_KEY for each in outcomes)
            self._invalid_left += len(lookups) - invalid
            if invalid and self.pause_seconds() > 0:
                self._warn("invalid_keys_flood")

    def fail(self, error: Exception) -> None:
        """Raise the error in all who wait for a call."""
        for waiting in (self._known, self._strangers):
            for lookup in waiting:
                lookup.fail(error)
                self._answered(lookup)
            waiting.clear()

    def _taken(self, waiting: _Waiting, keys_max: int) -> list[PendingLookup]:
        self._calls += 1
        lookups = list(islice(waiting, keys_max))
        for lookup in lookups:
            del waiting[lookup]
        return lookups

    def _warn(self, event: str) -> None:
        now = self._clock()
        if now - self._logged_at >= _LOG_INTERVAL_SECONDS:  # it may be a flood
            self._logged_at = now
            _log.warning(event, calls=self._calls, waiting=len(self._known) + len(self._strangers))

    def _waiting_with(self, lookup: PendingLookup) -> _Waiting:
        return self._known if lookup.is_known else self._strangers

    def _answered(self, lookup: PendingLookup) -> None:
        if self._latest.get(_route(lookup)) is lookup:
            del self._latest[_route(lookup)]


def _route(lookup: PendingLookup) -> tuple[Digest, str | None]:
    return lookup.api_key.digest, lookup.origin
