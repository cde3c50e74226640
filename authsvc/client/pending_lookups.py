"""Lookups that the cache could not answer: gathered into calls, keys that are known to be good first, and bounded.

As in a group commit there is no timer: what comes while calls are under way goes into the next one.

Anybody can send any number of well-formed keys, each of which must be looked up. So keys that were good lately have a
queue and calls of their own, which go first, and one call is kept for them. And so many invalid keys that only a flood
has them are looked up a few at a time, at a rate that leaves the processor to the others.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import TypeAlias

from authsvc.client.api_key import ApiKey, Digest
from authsvc.client.key_client import KEYS_PER_CALL_MAX
from authsvc.client.verdicts import INVALID_KEY, Decision, KeyServiceUnavailableError, Response
from authsvc.runtime.library_logging import EventLogger

_GATHER_TURNS = 4
"""Turns of the event loop between calls, for callers to join with their next key: a third less CPU a key, measured."""

_INVALID_PER_SECOND = 1000.0
"""Invalid keys, in the long run: what a tenth of a core answers."""
_INVALID_AT_ONCE = 512.0
"""As many as may be under way, whatever they turn out to be: two full calls."""
_FLOOD_KEYS = 8
"""Keys a call while that is used up. Those answered together delay everybody else, by a tenth of a millisecond each."""

_LOG_INTERVAL_SECONDS = 10.0
_CLOSED = "this validator is closed"

_log = EventLogger()


class PendingLookup:
    """A key and an origin, and who waits for the verdict: the one who asked, and those who joined."""

    __slots__ = ("_waiting", "api_key", "is_known", "origin", "route")

    def __init__(self, api_key: ApiKey, origin: str | None, *, is_known: bool) -> None:
        """`is_known`: the key was good lately."""
        self.api_key = api_key
        self.origin = origin
        self.route = api_key.digest, origin
        self.is_known = is_known
        self._waiting: list[asyncio.Future[Decision]] = []

    def join(self) -> asyncio.Future[Decision]:
        """Return what is done when there is a verdict, which rule 4 leaves to the one who asked."""
        waiting: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        return waiting

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits any more."""
        return all(waiting.done() for waiting in self._waiting)

    def settle(self, outcome: Response | Exception) -> None:
        """Wake all who wait, or raise the error in them."""
        for waiting in self._waiting:
            if waiting.done():
                continue
            if isinstance(outcome, Response):
                waiting.set_result(outcome.decision)
            else:
                waiting.set_exception(outcome)


_Waiting: TypeAlias = OrderedDict[PendingLookup, None]


class PendingLookups:
    """Those that wait for a call, or whose call is under way. Made anywhere, used in one event loop."""

    def __init__(
        self,
        call: Callable[[list[PendingLookup]], Awaitable[Sequence[Response | Exception]]],
        clock: Callable[[], float],
        *,
        calls_max: int,
        waiting_max: int,
    ) -> None:
        """Make `calls_max` calls at once, and let so many lookups wait of either kind.

        `call` returns an outcome for each; what it raises is the outcome of all. `clock` is in seconds. Raises
        ValueError when `calls_max` is less than 2.
        """
        if calls_max < 2:
            raise ValueError("calls_max: at least 2, one of them for known keys")
        self._call = call
        self._clock = clock
        self._calls_max = calls_max
        self._waiting_max = waiting_max
        self._calls: dict[asyncio.Task[None], list[PendingLookup]] = {}
        """What those under way are about."""
        self._is_gathering = False
        self._is_closed = False
        self._pause: asyncio.TimerHandle | None = None
        self._known: _Waiting = OrderedDict()
        self._unknown: _Waiting = OrderedDict()
        self._latest: dict[tuple[Digest, str | None], PendingLookup] = {}
        self._invalid_left = _INVALID_AT_ONCE  # a token bucket, filled up as of the time beside it
        self._invalid_left_at = clock()
        self._logged_at = float("-inf")

    def get(self, digest: Digest, origin: str | None) -> PendingLookup | None:
        """Return the latest lookup of a key and an origin."""
        return self._latest.get((digest, origin))

    def put(self, lookup: PendingLookup) -> None:
        """Let a lookup wait for its call; raise KeyServiceUnavailableError when too many do already."""
        if self._is_closed:
            raise KeyServiceUnavailableError(_CLOSED)
        waiting = self._waiting_with(lookup)
        if len(waiting) >= self._waiting_max:
            self._warn("key_service_calls_saturated")
            raise KeyServiceUnavailableError(f"{len(waiting)} keys wait for a call to the key service already")
        waiting[lookup] = None
        self._latest[lookup.route] = lookup
        self._gather(_GATHER_TURNS if self._calls else 0)  # who asks in the same turn of the event loop goes along

    def forget(self, lookup: PendingLookup) -> None:
        """Let go of a lookup if nobody waits for it, and its call has not begun."""
        waiting = self._waiting_with(lookup)
        if lookup in waiting and lookup.is_abandoned:
            del waiting[lookup]
            self._forget_route(lookup)

    def refuse(self) -> None:
        """Take no more lookups."""
        self._is_closed = True

    async def close(self) -> None:
        """End the calls under way, and raise KeyServiceUnavailableError in all who wait, as in those who come later."""
        self._is_closed = True
        if self._pause is not None:
            self._pause.cancel()
        for lookups in (self._known, self._unknown, *self._calls.values()):
            for lookup in lookups:
                lookup.settle(KeyServiceUnavailableError(_CLOSED))
        self._known.clear()
        self._unknown.clear()
        self._latest.clear()
        for task in self._calls:
            task.cancel()
        if self._calls:
            await asyncio.wait(self._calls)

    def _gather(self, turns: int) -> None:
        if not self._is_gathering:
            self._is_gathering = True
            asyncio.get_running_loop().call_soon(self._begin_calls, turns)

    def _begin_calls(self, turns: int) -> None:
        """Begin calls, after so many turns of the event loop."""
        if turns:
            asyncio.get_running_loop().call_soon(self._begin_calls, turns - 1)
            return
        self._is_gathering = False
        while lookups := self._next_call():
            self._calls[asyncio.create_task(self._make_call(lookups))] = lookups
        if self._pause is None and (pause_seconds := self._pause_seconds()) > 0:
            self._pause = asyncio.get_running_loop().call_later(pause_seconds, self._end_pause)

    def _end_pause(self) -> None:
        self._pause = None
        self._begin_calls(0)

    async def _make_call(self, lookups: list[PendingLookup]) -> None:
        """Make a call, tell who waits, and begin the next one."""
        outcomes: Sequence[Response | Exception]
        try:
            outcomes = await self._call(lookups)
        except Exception as error:  # noqa: BLE001 - who waits gets it
            outcomes = [error] * len(lookups)
        self._calls.pop(asyncio.current_task())  # type: ignore[arg-type] # in one
        if not lookups[0].is_known:
            invalid = sum(isinstance(each, Response) and each.decision is INVALID_KEY for each in outcomes)
            self._invalid_left += len(lookups) - invalid
            if invalid and self._pause_seconds() > 0:
                self._warn("invalid_keys_flood")
        for lookup, outcome in zip(lookups, outcomes, strict=True):
            self._forget_route(lookup)
            lookup.settle(outcome)
        self._gather(_GATHER_TURNS)

    def _next_call(self) -> list[PendingLookup]:
        """Return the lookups of a call to begin, [] for none: known keys do not wait for what the others need read."""
        if self._known and len(self._calls) < self._calls_max:
            return _taken(self._known, KEYS_PER_CALL_MAX)
        if self._unknown and len(self._calls) < self._calls_max - 1 and self._pause_seconds() <= 0:
            lookups = _taken(self._unknown, min(KEYS_PER_CALL_MAX, int(self._invalid_left)))
            self._invalid_left -= len(lookups)  # any of them may be
            return lookups
        return []

    def _pause_seconds(self) -> float:
        """Return how long unknown keys that wait have to do so because of invalid ones: 0 or less if they need not."""
        if not self._unknown:
            return 0.0
        now = self._clock()
        refill = (now - self._invalid_left_at) * _INVALID_PER_SECOND
        self._invalid_left = min(self._invalid_left + refill, _INVALID_AT_ONCE)
        self._invalid_left_at = now
        return (_FLOOD_KEYS - self._invalid_left) / _INVALID_PER_SECOND

    def _warn(self, event: str) -> None:
        now = self._clock()
        if now - self._logged_at >= _LOG_INTERVAL_SECONDS:  # it may be a flood
            self._logged_at = now
            _log.warning(event, calls=len(self._calls), waiting=len(self._known) + len(self._unknown))

    def _waiting_with(self, lookup: PendingLookup) -> _Waiting:
        return self._known if lookup.is_known else self._unknown

    def _forget_route(self, lookup: PendingLookup) -> None:
        if self._latest.get(lookup.route) is lookup:
            del self._latest[lookup.route]


def _taken(waiting: _Waiting, keys_max: int) -> list[PendingLookup]:
    lookups = list(islice(waiting, keys_max))
    for lookup in lookups:
        del waiting[lookup]
    return lookups
